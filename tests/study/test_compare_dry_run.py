"""`tst compare --dry-run`: the steps that it names are those that the study then trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.reports import compare
from tests.training.runs import shared_steps
from token_superposition.cli import main
from token_superposition.errors import UserError
from token_superposition.study import tuning as tune
from token_superposition.study.compare import make_study
from token_superposition.study.study_config import Study
from token_superposition.study.study_plan import dry_run
from token_superposition.study.sweep import parse_sweep
from token_superposition.training.run_folder import RunFolder

RATES = "train.learning_rate=1e-2,2e-2"


@pytest.fixture
def study(small_run: dict[str, Any]) -> Study:
    """Two budgets that share steps, and equal data."""
    del small_run["train"]["total_steps"]
    small_run["train"] |= {"decay_ratio": 0.3, "warmup_ratio": None, "warmup_steps": 1}
    return make_study(small_run, budgets="10,20", equal_data=True)


def trained(folder: Path) -> int:
    """Steps that runs of a study have trained themselves."""
    runs = [RunFolder(file.parent) for file in folder.rglob("summary.json")]
    return sum((run.read_summary() or {})["steps"] - shared_steps(run) for run in runs)


@pytest.mark.parametrize(("words", "runs"), [([], 6), (["--seeds", "2"], 4)])
def test_seeds_are_the_files_unless_the_command_says_otherwise(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], runs: int
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**small_run, "seeds": 3}))
    out = str(tmp_path / "out")
    assert main(["compare", str(file), "--dry-run", "--json", "--out", out, *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == runs


@pytest.mark.parametrize("swept", [True, False])
def test_the_steps_named_are_those_trained(study: Study, tmp_path: Path, in_process: list[str], swept: bool) -> None:
    sweep = parse_sweep([RATES], study.arms) if swept else None
    folder = tmp_path / "out"
    before = dry_run(study, folder, num_seeds=2, sweep=sweep)
    assert not folder.exists()
    assert before["runs_done"] == before["steps_done"] == 0
    assert before["steps_to_train"] == before["steps"] - before["steps_shared"]
    assert before["steps_shared"] > 0
    compare(study, folder, num_seeds=2, sweep=sweep, quiet=True)
    assert trained(folder) == before["steps_to_train"]
    assert len(in_process) == before["runs"]
    after = dry_run(study, folder, num_seeds=2, sweep=sweep)
    assert (after["steps_to_train"], after["runs_done"]) == (0, before["runs"])
    assert after["flops_to_train"] == 0
    if sweep is None:
        more = dry_run(study, folder, num_seeds=3, sweep=sweep)
        assert more["steps_to_train"] == before["steps_to_train"] // 2


def test_what_it_says(study: Study, tmp_path: Path) -> None:
    found = dry_run(study, tmp_path / "out", num_seeds=1)
    baseline, superposition = found["arms"]
    assert [(each["total_steps"], each["kind"]) for each in baseline["budgets"]] == [
        (10, "budget"),
        (20, "budget"),
        (30, "equal_data"),
    ]
    assert [each["raw_tokens"] for each in superposition["budgets"]] == [10 * 96, 20 * 96]
    assert baseline["budgets"][2]["raw_tokens"] == superposition["budgets"][1]["raw_tokens"]
    assert found["positions_to_train"] == 64 * found["steps_to_train"]
    assert found["flops_to_train"] > 6 * 3000 * found["positions_to_train"]


def test_the_command_writes_nothing(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(small_run))
    words = ["compare", str(file), "--out", str(tmp_path / "out"), "--seeds", "3", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "superposition  bags of 2 then 1; 12 steps; the longest run reads 1,152 raw tokens" in said
    assert "6 for 3 seeds, 0 of them done" in said
    assert "72 to train: 72 in all, less 0 that runs share and 0 that are done" in said
    assert said.endswith("nothing was trained or written\n")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps_to_train"] == 72
    assert [path.name for path in tmp_path.iterdir() if path.name in ("out", "runs")] == []


def test_what_the_study_would_refuse_is_refused(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a study's folder"):
        dry_run(study, tmp_path, num_seeds=1)
    with pytest.raises(UserError, match="--seeds is at least 1"):
        dry_run(study, tmp_path / "out", num_seeds=0)
    monkeypatch.setattr(tune, "FIRST_SWEEP_SEED", 2)
    sweep = parse_sweep([RATES], study.arms)
    with pytest.raises(UserError, match="--seeds is at most 2 with --sweep"):
        dry_run(study, tmp_path / "out", num_seeds=3, sweep=sweep)
