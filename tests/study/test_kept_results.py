"""What `benchmarks/keep_results.py` keeps of a study is enough to go on with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.reports import compare
from token_superposition.study.compare import load_study

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "keep_results.py"


def test_a_kept_study_goes_on_without_its_weights(
    small_run: dict[str, Any], tmp_path: Path, in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = tmp_path / "elsewhere" / "study.yaml", tmp_path / "elsewhere" / "out"
    study.parent.mkdir()
    study.write_text(yaml.safe_dump(small_run))
    before = compare(load_study(study, {}), folder, quiet=True)
    assert in_process == ["baseline, seed 0", "superposition, seed 0"]
    (tmp_path / "repository" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "repository")
    Path("data/corpus").symlink_to(small_run["data"]["path"])

    command = [sys.executable, str(PROGRAM), str(study), str(folder), "results/small", "--data", "data/corpus"]
    subprocess.run(command, check=True)
    kept = Path("results/small")
    for file in kept.rglob("*"):
        if file.is_file():
            assert str(tmp_path) not in file.read_text()
            assert small_run["data"]["path"] not in file.read_text()
    assert not list(kept.rglob("checkpoints"))

    after = compare(load_study(kept / "study.yaml", {}), kept, quiet=True, num_seeds=2)
    assert in_process[2:] == ["baseline, seed 1", "superposition, seed 1"]  # and nothing again
    for old, new in zip(before["arms"], after["arms"], strict=True):
        assert new["seeds"][0] == old["seeds"][0]
