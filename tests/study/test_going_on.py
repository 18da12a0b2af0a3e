"""Studies that go on from a trained model: every run from the same weights, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.study.reports import compare
from tests.training.runs import going_on, shared_steps, stranger
from token_superposition.cli import main
from token_superposition.errors import UserError
from token_superposition.study.compare import load_study, make_study
from token_superposition.training.run_folder import RunFolder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return stranger(tmp_path / "stranger")


@pytest.mark.usefixtures("in_process")
def test_a_study_s_arms_go_on_from_the_same_weights(foreign: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    values = going_on(small_run, foreign)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    words = ["compare", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"]["architecture"] == "llama"
    assert report["model"]["config"]["hidden_size"] == 32
    assert report["model"]["init_from"]["path"] == str(foreign)
    first = {arm["seeds"][0]["curve"][0]["validation_loss"] for arm in report["arms"]}
    assert len(first) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "continued from the trained model" in page
    assert "trained from scratch" not in page
    # Other weights in the folder for seeds that come later are noticed: the runs could not be compared.
    file = foreign / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="seed-1: went on from other weights than"):
        compare(load_study(tmp_path / "study.yaml", {}), tmp_path / "out", num_seeds=2, quiet=True)


def test_budgets_that_go_on_from_it_branch(
    foreign: Path, small_run: dict[str, Any], tmp_path: Path, in_process: list[str]
) -> None:
    values = {**going_on(small_run, foreign), "budgets": [10, 12]}
    report = compare(make_study(values), tmp_path / "out", quiet=True)
    folder = tmp_path / "out" / "runs" / "baseline" / "10-steps" / "seed-0"
    assert shared_steps(RunFolder(folder)) == 9
    assert report["model"]["init_from"]["path"] == str(foreign)
    assert in_process[-1] == "superposition, 10 steps, seed 0"


def test_arms_cannot_differ_in_it(foreign: Path, small_run: dict[str, Any]) -> None:
    arms = {"plain": {"superposition.bag_size": 1}, "other": {"model.init_from": str(foreign)}}
    with pytest.raises(UserError, match=r"arms\.other: model\.init_from: arms share their seeds, their data and what"):
        make_study({**small_run, "arms": arms})
