"""The public names: each loads, and the examples of its docstring do what they say."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import token_superposition as ts
from token_superposition import api

NAMES = [name for name in ts.__all__ if name not in ("Mode", "Phase", "__version__")]  # two are types without examples
CASES = [(name, ts) for name in NAMES]
TRAINER = ("SuperpositionArguments", "SuperpositionTrainer")


@pytest.fixture
def workplace(
    tmp_path: Path, small_data: Path, small_run: dict[str, Any], in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the text and the configuration that examples name."""
    del in_process  # which trains the runs of a study here
    shutil.copytree(small_data.parent / "text", tmp_path / "my-text")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**small_run, "data": {"path": "data/mine"}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("name", "module"), CASES, ids=[name for name, _ in CASES])
@pytest.mark.usefixtures("workplace")
def test_the_examples_of_a_docstring_run(name: str, module: Any) -> None:
    if name in TRAINER:
        pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")
    torch.manual_seed(0)
    shown = getattr(module, name)
    space = {**vars(sys.modules[shown.__module__])}
    tests = [test for test in doctest.DocTestFinder(recurse=True).find(shown, name, globs=space) if test.examples]
    assert tests, f"{name} has no example"
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


def test_every_name_is_there_for_type_checkers_too() -> None:
    assert all(callable(getattr(ts, name)) for name in NAMES)
    source = Path(ts.__file__).read_text(encoding="utf-8")
    assert all(f"import {name} as {name}" in source or f"    {name} as {name}," in source for name in NAMES)
    with pytest.raises(AttributeError, match="Superpose"):
        _ = ts.Superpose


def test_the_package_imports_without_torch() -> None:
    code = "import sys, token_superposition as ts; dir(ts); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of config and parameters"),
        ({"parameters": "many"}, "parameters: 'many' is not an amount"),
        ({"parameters": "135M", "budget": ("weeks", 3)}, "budget is one of tokens"),
        ({"parameters": "135M", "goal": "fun"}, "goal is loss or cost"),
        ({"parameters": "135M", "hardware": "h1000"}, "h1000.*did you mean"),
    ],
)
def test_a_plan_names_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(api.UserError, match=message):
        api.plan(**options)


def test_a_configuration_or_a_file(small_run: dict[str, Any], tmp_path: Path) -> None:
    from token_superposition.training.config import parse_config

    with pytest.raises(TypeError, match="out="):
        api.train(parse_config(small_run))
    with pytest.raises(api.UserError, match="nowhere"):
        api.train(tmp_path / "nowhere.yaml")
    with pytest.raises(api.UserError, match="nowhere"):
        ts.compare(tmp_path / "nowhere.yaml")
