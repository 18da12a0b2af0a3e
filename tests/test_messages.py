"""A message is one line that people read: no value is repeated at any length, and options name their help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bad_input import refused


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "run", "data", "--device", "x" * 5000],
        ["eval", "run", "data", "--device", "x y " * 1250],
        ["eval", "r" * 5000, "data"],
        ["train", "x" * 5000],
        ["train", "x.yaml", "--" + "k" * 5000],
        ["train", "CONFIG", "--" + "k" * 5000 + ".a", "1"],
        ["train", "CONFIG", "--train.seed", "y" * 5000],
        ["train", "CONFIG", "--train.seed", "{" * 5000],
        ["train", "CONFIG", "--train.device", "z z " * 1000],
        ["train", "CONFIG", "--model.architecture", "m" * 5000],
        ["train", "CONFIG", "--superposition.mode", "m" * 5000],
        ["train", "CONFIG", "--superposition.slot_weights", "m" * 5000],
        ["train", "CONFIG", "--superposition.stages", "m" * 5000],
        ["compare", "CONFIG", "--sweep", "m" * 5000],
        ["compare", "CONFIG", "--sweep", "train." + "m" * 5000 + "=1,2"],
        ["compare", "CONFIG", "--budgets", "m" * 5000],
        ["compare", "CONFIG", "--seeds", "9" * 5000],
        ["generate", "run", "--prompt", "a", "--seed", "9" * 300],
        ["plan", "--parameters", "m" * 5000],
        ["prepare", "p" * 5000, "--out", "out"],
        ["m" * 5000],
    ],
    ids=range(21),
)  # fmt: skip
def test_a_long_value_is_not_repeated_whole(tmp_path: Path, small_run: dict[str, Any], words: list[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(small_run))
    words = [str(config) if word == "CONFIG" else word for word in words]
    line = refused(*words)
    assert len(line) < 700, line
    assert not re.search(r"(.)\1{520}", line), line


def test_the_path_of_a_file_is_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 100) / "it's a long name" / ("b" * 100)
    assert str(path) in refused("train", path)


@pytest.mark.parametrize("command", ["train", "compare", "plan", "bench", "eval", "generate", "export", "prepare"])
def test_an_unknown_option_names_the_command_s_own_help(command: str) -> None:
    needed = {"generate": ["run", "--prompt", "a"], "export": ["run", "out"]}.get(command, ["x"])
    line = refused(command, *needed, "--quite")
    assert f"see tst {command} --help" in line
    assert "did you mean '--quiet'" in line
