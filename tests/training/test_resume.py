"""Going on with a run: what it comes to, what may change meanwhile, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.runs import TIMES, check_equal, go, go_until, numbers, weights
from token_superposition.errors import UserError
from token_superposition.files import read_record


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 9, 10])
def test_stopped_and_started_again_it_is_the_same_run(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    # Trap 8: the switch is at step 6; checkpoints come every 3 steps, a stop falls between or on them.
    folder = tmp_path / "stopped"
    go_until(stop_after, small_run, folder, monkeypatch)
    assert not (folder / "summary.json").exists()
    go(small_run, folder)

    assert numbers(folder) == numbers(whole)
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


@pytest.mark.parametrize(
    "superposition",
    [
        {"bag_size": 2, "superposition_steps": 6},
        {"stages": "4:0.25,2:0.25"},
        {"stages": [{"bag_size": 3, "steps": 5, "slot_weights": "mutual_information"}]},
    ],
)
def test_what_a_run_has_written_down_starts_the_same_run_elsewhere(
    small_run: dict[str, Any], tmp_path: Path, superposition: dict[str, Any]
) -> None:
    go({**small_run, "superposition": superposition}, tmp_path / "first")
    written = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    go(written, tmp_path / "second")
    assert numbers(tmp_path / "second") == numbers(tmp_path / "first")
    assert yaml.safe_load((tmp_path / "second" / "config.yaml").read_text()) == written


def test_a_run_that_is_done_stays_as_it_is(small_run: dict[str, Any], whole: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != "lock"}
    summary = go(small_run, whole)
    assert summary == read_record(whole / "summary.json", "")
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != "lock"}


def test_a_changed_configuration_is_refused_by_its_key(small_run: dict[str, Any], whole: Path) -> None:
    with pytest.raises(UserError, match=r"started with train.learning_rate 0.01, but the value is now 0.02"):
        go(small_run, whole, train__learning_rate=0.02)
    with pytest.raises(UserError, match=r"superposition.ratio 0.5"):
        go(small_run, whole, superposition__ratio=0.25)


def test_how_a_run_is_logged_may_change(small_run: dict[str, Any], whole: Path) -> None:
    assert go(small_run, whole, logging__log_interval=5)["steps"] == 12


def test_a_longer_run_keeps_its_switch(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    go_until(7, small_run, folder, monkeypatch)
    summary = go(small_run, folder, train__total_steps=24)
    assert (summary["switch_step"], summary["steps"]) == (6, 24)
    with pytest.raises(UserError, match=r"train.total_steps: this run was started with 24 steps, and 24 are done"):
        go(small_run, folder, train__total_steps=48)


@pytest.mark.parametrize("step", [1, 13])
def test_a_run_made_longer_equals_one_that_was_so_long_from_the_start(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In its warm-up, and at the last step whose learning rate both agree in: 16 steps decay over 4 of them."""
    small_run["superposition"] = {"bag_size": 2, "superposition_steps": 6}
    small_run["train"] |= {"total_steps": 16, "warmup_steps": 2, "decay_ratio": 0.25}
    del small_run["train"]["warmup_ratio"]
    small_run["logging"] |= {"checkpoint_interval": step, "validation_interval": 100}
    go_until(step, small_run, tmp_path / "longer", monkeypatch)
    go(small_run, tmp_path / "longer", train__total_steps=24)
    go(small_run, tmp_path / "whole", train__total_steps=24)
    check_equal(tmp_path / "longer", tmp_path / "whole")


@pytest.fixture
def steady(small_run: dict[str, Any]) -> dict[str, Any]:
    """A run whose learning rate does not fall: its end is a step like the others."""
    small_run["superposition"] = {"bag_size": 2, "superposition_steps": 6}
    small_run["train"] |= {"warmup_steps": 2, "decay_ratio": 0.0}
    del small_run["train"]["warmup_ratio"]
    return small_run


def test_a_run_that_is_done_goes_on_to_more_steps_where_its_learning_rate_has_not_fallen(
    steady: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "longer"
    assert go(steady, folder)["steps"] == 12
    assert go(steady, folder, train__total_steps=20)["steps"] == 20
    go(steady, tmp_path / "whole", train__total_steps=20)
    check_equal(folder, tmp_path / "whole")
    with pytest.raises(UserError, match="agree only from step 0 to step 12"):
        go(steady, folder, train__total_steps=12)


def test_without_its_last_checkpoint_it_is_not_taken_for_a_longer_one(
    steady: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a study's results that were kept without weights."""
    go(steady, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000012")
    with pytest.raises(
        UserError, match=r"ended after 12 steps, and the checkpoint that it would continue from to 20 is"
    ):
        go(steady, tmp_path / "run", train__total_steps=20)
    capsys.readouterr()
    assert go(steady, tmp_path / "run")["steps"] == 12
    assert "checkpoint of step 12 is missing" in capsys.readouterr().err


def test_a_run_whose_learning_rate_falls_is_not_made_longer(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run["train"] |= {"total_steps": 16, "decay_ratio": 0.25}
    small_run["logging"]["checkpoint_interval"] = 14
    go_until(14, small_run, tmp_path / "run", monkeypatch)
    with pytest.raises(UserError, match="agree only from step 0 to step 13"):
        go(small_run, tmp_path / "run", train__total_steps=24)


def test_other_data_under_the_same_path_is_refused(
    small_run: dict[str, Any], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole / "summary.json").unlink()
    monkeypatch.setattr("token_superposition.training.run.Corpora", Other)
    with pytest.raises(UserError, match="is not the data that the run"):
        go(small_run, whole)


def test_dropout_goes_on_from_its_generator(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run["model"] = {
        "architecture": "gpt2",
        "config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    }
    go(small_run, tmp_path / "whole")
    go_until(7, small_run, tmp_path / "stopped", monkeypatch)
    go(small_run, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


def test_a_run_that_is_done_is_not_taken_for_a_longer_one_or_other_data(
    small_run: dict[str, Any], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"train.total_steps: this run was started with 12"):
        go(small_run, whole, train__total_steps=24)
    with pytest.raises(UserError, match=r"logging.validation_tokens 1024"):
        go(small_run, whole, logging__validation_tokens=512)
    monkeypatch.setattr("token_superposition.training.run.Corpora", Other)
    with pytest.raises(UserError, match="is not the data that the run"):
        go(small_run, whole)


class Other:
    """Stands for a data set that was prepared again, of other text."""

    fingerprint = "another"
    place = "elsewhere"

    @classmethod
    def open(cls, *_: Any) -> type[Other]:
        return cls


def test_a_kill_while_the_folder_is_made_does_not_spoil_it(small_run: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"stages": [], "data_fingerprint": "half a start"}')
    (folder / ".config.yaml.1234.tmp").write_text("half")
    assert go(small_run, folder)["steps"] == 12
