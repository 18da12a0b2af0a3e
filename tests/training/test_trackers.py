"""Trackers: the metrics' numbers reach each of them, and a run that goes on appends to the same tracked run."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.runs import go, go_until, numbers
from token_superposition.errors import UserError
from token_superposition.training import trackers


def test_nested_numbers_go_by_their_path_and_texts_stay_behind() -> None:
    line = {"step": 3, "phase": "recovery", "loss": 1.5, "final": True, "validation_sets": {"wiki": {"loss": 2}}}
    assert dict(trackers.numbers(line)) == {"loss": 1.5, "validation_sets/wiki/loss": 2}


def test_tensorboard_files_are_written(small_run: dict[str, Any], tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard` is not installed"
    )
    go(small_run, tmp_path / "run", logging__trackers=["tensorboard"])
    accumulator = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    accumulator.Reload()
    logged = [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars("loss")]
    assert [(line["step"], line["loss"]) for line in numbers(tmp_path / "run") if "loss" in line] == logged


def test_trackio_keeps_one_run_over_a_stop(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    small_run["logging"] |= {"trackers": ["trackio"], "project": "bags"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small_run))
    go_until(7, {**small_run, "logging": {**small_run["logging"], "trackers": []}}, tmp_path / "run", monkeypatch)
    command = [sys.executable, "-m", "token_superposition", "train", "run.yaml", "--out", "run", "--json", "--quiet"]
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1  # the result alone: what trackio says goes elsewhere
    with sqlite3.connect(tmp_path / "trackio" / "bags.db") as database:
        rows = database.execute("select run_name, step from metrics order by step").fetchall()
    assert {step for _, step in rows} == set(range(7, 13))
    ((name, _),) = {(name, 0) for name, _ in rows}
    assert name.startswith("run-")


def test_wandb_takes_the_metrics_offline(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    go(small_run, tmp_path / "run", logging__trackers=["wandb"])
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while b"validation_loss" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.2)  # wandb's own process writes it
    content = file.read_bytes()
    assert b"validation_loss" in content
    assert b"learning_rate" in content


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Failing:
        def write(self, line: dict[str, Any]) -> None:
            if line["step"] == 5:
                raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setattr("token_superposition.training.logger.open_tracker", lambda *_, **__: Failing())
    go(small_run, tmp_path / "run", logging__trackers=["wandb"])
    assert numbers(tmp_path / "run") == numbers(whole)
    assert capsys.readouterr().err.count("wandb failed and is no longer used") == 1


def test_a_tracker_that_refuses_is_one_line(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(trackers, "_WeightsAndBiases", refuse)
    with pytest.raises(UserError, match=r"^logging.trackers: wandb cannot be opened: no API key configured$"):
        go(small_run, tmp_path / "run", logging__trackers=["wandb"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_names_its_extra(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb needs an extra: pip install 'token-superposition\[wandb\]'"):
        go(small_run, tmp_path / "run", logging__trackers=["wandb"])
    with pytest.raises(UserError, match="tensorboard"):
        go(small_run, tmp_path / "run", logging__trackers=["tensorbord"])
