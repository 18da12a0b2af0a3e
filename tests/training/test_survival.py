"""A run survives what happens to it: kills, stops, full disks, damaged checkpoints, numbers that are none."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

from tests.faults import Disk, failing
from tests.training.runs import TIMES, go, go_until, numbers, weights
from token_superposition.cli import main
from token_superposition.data.dataset import TokenDataset
from token_superposition.errors import CheckpointError, TrainingDivergedError, UserError
from token_superposition.interrupts import STOP_SIGNALS
from token_superposition.models.superposed import SuperposedLM
from token_superposition.training import checkpoint
from token_superposition.training.config import parse_config
from token_superposition.training.logger import Recorder
from token_superposition.training.metrics import MetricsFile, read_metrics
from token_superposition.training.trainer import Trainer


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_step(step: int) -> None:
    """A kill once the step of that number is done."""
    original = Trainer.step

    def step_and_die(self: Trainer, batch: Any) -> Any:
        result = original(self, batch)
        if batch.step == step:
            kill()
        return result

    Trainer.step = step_and_die  # type: ignore[method-assign]


def at_call(name: str, number: int) -> None:
    """A kill when `training.checkpoint` calls one of its functions for the n-th time."""
    original, calls = getattr(checkpoint, name), iter(range(1, 1000))

    def call_or_die(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            kill()
        return original(*arguments, **options)

    setattr(checkpoint, name, call_or_die)


def kill_a_run(values: dict[str, Any], folder: Path, when: Callable[[], None]) -> None:
    """Train in a process of its own until SIGKILL ends it."""

    def work() -> None:
        when()
        go(values, folder)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def check_same(folder: Path, whole: Path) -> None:
    """Metrics, weights and summary to the last bit."""
    assert numbers(folder) == numbers(whole)
    ours, theirs = weights(folder), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


# The switch is at step 6 of 12; checkpoints are written every 3 steps, each of about three synced files.
KILLS: dict[str, Callable[[], None]] = {
    "after step switch - 1": lambda: after_step(5),
    "after step switch": lambda: after_step(6),
    "after step switch + 1": lambda: after_step(7),
    "in recovery": lambda: after_step(10),
    "while tensors are written": lambda: at_call("_sync_file", 1),
    "before the state is written": lambda: at_call("write_json", 3),
    "before the manifest is written": lambda: at_call("write_json", 4),
    "before the checkpoint takes its name": lambda: at_call("replace_folder", 3),
    "before an old checkpoint is removed": lambda: at_call("_all_checkpoints", 6),
}


@pytest.mark.parametrize("when", list(KILLS))
def test_killed_and_started_again_it_is_the_same_run(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, when: str
) -> None:
    """Trap 8, with real processes and SIGKILL."""
    kill_a_run(small_run, tmp_path / "killed", KILLS[when])
    assert not (tmp_path / "killed" / "summary.json").exists()
    go(small_run, tmp_path / "killed")
    check_same(tmp_path / "killed", whole)


def test_killed_again_and_again_it_is_the_same_run(small_run: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    for step in (1, 4, 5, 6, 8, 9, 11):
        kill_a_run(small_run, tmp_path / "killed", lambda step=step: after_step(step))  # type: ignore[misc]
    go(small_run, tmp_path / "killed")
    check_same(tmp_path / "killed", whole)


def test_killed_by_the_system_it_goes_on(small_run: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """A real process and a real SIGKILL, somewhere after the first checkpoint."""
    folder, file = tmp_path / "killed", tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(small_run))
    command = [sys.executable, "-m", "token_superposition", "train", str(file), "--out", str(folder), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "checkpoints" / "step-0000003").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert numbers(folder) == numbers(whole)


def test_sigterm_writes_a_checkpoint_and_exits_130(small_run: dict[str, Any], tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "run.yaml"
    small_run["train"]["total_steps"] = 100_000
    small_run["logging"]["checkpoint_interval"] = 50_000
    file.write_text(yaml.safe_dump(small_run))
    command = [sys.executable, "-m", "token_superposition", "train", str(file), "--out", str(folder), "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and sum(1 for _ in read_metrics(folder / "metrics.jsonl")) < 5:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert (checkpoint / "manifest.json").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    small_run: dict[str, Any], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = numbers(whole)
    (whole / "summary.json").unlink()
    file = whole / "checkpoints" / "step-0000012" / "tensors" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    go(small_run, whole)
    assert "step-0000012" in capsys.readouterr().err
    assert numbers(whole) == expected


def test_pruning_never_keeps_a_damaged_checkpoint_for_a_good_one(
    small_run: dict[str, Any], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole / "summary.json").unlink()
    for step in (9, 12):
        (whole / "checkpoints" / f"step-{step:07d}" / "manifest.json").unlink()
    go_until(10, small_run, whole, monkeypatch, logging__keep_checkpoints=1)
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["step-0000009"]
    assert go(small_run, whole, logging__keep_checkpoints=1)["steps"] == 12


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_to_stop_is_answered_with_a_checkpoint(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    original = Trainer.step

    def step(self: Trainer, batch: Any) -> Any:
        if batch.step == 7:
            signal.raise_signal(number)
        return original(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            go(small_run, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-0000008").exists()
    go(small_run, tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(whole)


# ---- full disks ----------------------------------------------------------------------------------------


@contextmanager
def full_at(folder: Path, steps: Container[int]) -> Iterator[None]:
    """The disk is full while these steps are trained, and until the next one begins."""
    now, original = [-1], Trainer.step

    def step(self: Trainer, batch: Any) -> Any:
        now[0] = batch.step
        return original(self, batch)

    with mock.patch.object(Trainer, "step", step), failing(Disk(lambda _: now[0] in steps), folder):
        yield


def test_training_goes_on_while_the_disk_is_full(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with full_at(folder, range(4, 10)):  # the checkpoints after 6 and 9 steps
        go(small_run, folder)
    errors = capsys.readouterr().err
    assert errors.count("could not be written") == 2
    assert "step 6: " in errors
    assert "step 9: " in errors
    assert "the training continues, and the earlier checkpoints" in errors
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-0000003", "step-0000012"]
    assert numbers(folder) == numbers(whole)  # nothing that was logged meanwhile is lost


@pytest.mark.parametrize(("at", "asked"), [(5, True), (11, False)])
def test_a_checkpoint_that_must_be_written_ends_the_run(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, at: int, asked: bool
) -> None:
    """Where that is asked for, and at the end, where the trained weights would be lost."""
    folder = tmp_path / "run"
    with (
        full_at(folder, [at]),
        pytest.raises(CheckpointError, match=r"could not be written .*MiB are free .*start the run again"),
    ):
        go(small_run, folder, logging__fail_on_checkpoint_error=asked)
    assert not (folder / "summary.json").exists()
    go(small_run, folder)
    check_same(folder, whole)


@pytest.mark.parametrize("number", range(0, 30, 3))
def test_wherever_writing_a_checkpoint_fails_the_one_before_it_is_good(tmp_path: Path, number: int) -> None:
    tensors = {"model": {"weight": torch.arange(100.0)}}
    checkpoint.save_checkpoint(tmp_path, 1, tensors, {"step": 1}, keep=1)
    disk = Disk(lambda change: change == number)
    with failing(disk, tmp_path), contextlib.suppress(CheckpointError):
        checkpoint.save_checkpoint(tmp_path, 2, {"model": {"weight": torch.zeros(100)}}, {"step": 2}, keep=1)
    assert disk.faults == 1
    newest, complaints = checkpoint.newest_checkpoint(tmp_path)
    assert newest is not None
    assert not complaints
    read = {"model": {"weight": torch.ones(100)}}
    step = checkpoint.load_checkpoint(newest, read)["step"]
    assert torch.equal(read["model"]["weight"], {1: torch.arange(100.0), 2: torch.zeros(100)}[step])


def test_the_command_ends_with_one_line_where_a_checkpoint_must_be_written(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "dcp_save", full)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small_run))
    words = ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "--fail-on-checkpoint-error"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "No space left on device" in line


def test_metrics_lines_wait_for_room_and_stand_once(tmp_path: Path) -> None:
    number = 0
    with failing(Disk(lambda _: number in (1, 2, 4)), tmp_path):
        metrics = MetricsFile(tmp_path / "metrics.jsonl", -1)
        for number in range(6):
            metrics.write({"step": number})
        metrics.sync()
        metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(6))


# ---- numbers that are none -----------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The loss of these steps (of one forward each) is not a number, and so is its gradient."""
    original, training = SuperposedLM.forward, iter(range(10**6))

    def forward(self: SuperposedLM, ids: torch.Tensor, *rest: Any, **options: Any) -> Any:
        output = original(self, ids, *rest, **options)
        if ids.shape[0] == 1 or next(training) not in steps:  # one row: the check at construction
            return output
        return output._replace(loss=output.loss * float("nan"))

    monkeypatch.setattr(SuperposedLM, "forward", forward)


def test_a_step_without_a_finite_loss_is_skipped_and_its_text_named(
    small_run: dict[str, Any],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, 3)
    summary = go(small_run, tmp_path / "run")
    assert summary["skipped_steps"] == 1
    lines = numbers(tmp_path / "run")
    assert lines[:4] == numbers(whole)[:4]  # the steps before it, and the first validation
    (skipped,) = [line for line in lines if "skipped" in line]
    assert (skipped["step"], skipped["bag_size"], skipped["skipped_steps"]) == (4, 2, 1)
    assert skipped["skipped"]["loss"] == "nan"
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, *range(5, 13)]
    # The place leads to the very tokens of the batch.
    read: list[Any] = []
    dataset = TokenDataset.open(small_run["data"]["path"], "train")
    for start in skipped["skipped"]["row_starts"]:
        read.append(dataset.read(start, skipped["skipped"]["row_tokens"]))
    config = parse_config(small_run, {"train.dtype": "float32"})
    batch = Trainer(config, config.schedule()).stream.batch(3)
    assert np.array_equal(np.stack(read)[:, : 2 * 16], batch.ids.flatten(1).numpy())
    assert f"step 4 of {tmp_path / 'run'}: loss nan, gradient norm nan: skipped" in capsys.readouterr().err


def test_skipped_steps_stay_counted_over_a_stop(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        poison(patched, 1)
        go_until(7, small_run, tmp_path / "run", patched)
    assert go(small_run, tmp_path / "run")["skipped_steps"] == 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_more_skipped_steps_than_are_borne_end_the_run(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    settings = {"train__max_skipped_steps": 2, "train__optimizer": optimizer}
    with monkeypatch.context() as patched:
        poison(patched, 4, 5, 7)
        with pytest.raises(TrainingDivergedError, match=r"^step 8 of .* exceeds train.max_skipped_steps"):
            go(small_run, tmp_path / "run", **settings)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert go(small_run, tmp_path / "run", **settings)["skipped_steps"] == 2  # counted up to the checkpoint at 6


def test_weights_that_are_no_numbers_never_become_a_checkpoint(small_run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match=r"after step \d+ of .*diverged"):
        go(small_run, tmp_path / "run", train__learning_rate=1e38, train__max_grad_norm=None)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "diverged" in json.loads((tmp_path / "run" / "diverged.json").read_text())["message"]
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        assert int(path.name[5:]) < 12


def test_a_weight_that_is_no_number_is_found_at_the_checkpoint(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was still one: the optimizer's own step spoilt it."""
    original = Trainer.step

    def step(self: Trainer, batch: Any) -> Any:
        result = original(self, batch)
        if batch.step == 5:
            next(self.model.parameters()).data[-1, 0] = float("inf")
        return result

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Recorder, "validate", lambda *_, **__: {})
    with pytest.raises(TrainingDivergedError, match="a weight is NaN or infinite after step 6"):
        go(small_run, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000003"]


def test_a_second_request_to_stop_stops_at_once(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        go(small_run, tmp_path / "run")


def test_time_is_counted_over_a_stop(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_until(7, small_run, tmp_path / "run", monkeypatch)
    file = tmp_path / "run" / "checkpoints" / "step-0000006" / "state.json"
    before = json.loads(file.read_text())["wall_seconds"]
    assert go(small_run, tmp_path / "run")["wall_seconds"] > before > 0


def test_a_checkpoint_of_another_model_is_one_line(small_run: dict[str, Any], whole: Path) -> None:
    (whole / "summary.json").unlink()
    text = (whole / "config.yaml").read_text()
    (whole / "config.yaml").write_text(text.replace("intermediate_size: 32", "intermediate_size: 64"))
    small_run["model"]["config"]["intermediate_size"] = 64
    with pytest.raises(UserError, match=r"model.config.intermediate_size is 64, .* trained with 32") as caught:
        go(small_run, whole)
    assert "\n" not in str(caught.value)


# ---- bits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_deterministic_reruns_are_equal_bit_for_bit(small_run: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    settings = {"train__deterministic": True, "train__num_threads": 2, "train__optimizer": optimizer}
    try:
        for name in ("one", "two"):
            go(small_run, tmp_path / name, **settings)
            assert torch.are_deterministic_algorithms_enabled()
        check_same(tmp_path / "one", tmp_path / "two")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


def test_muon_goes_on_from_its_state(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(small_run, tmp_path / "whole", train__optimizer="muon")
    go_until(7, small_run, tmp_path / "stopped", monkeypatch, train__optimizer="muon")
    go(small_run, tmp_path / "stopped", train__optimizer="muon")
    check_same(tmp_path / "stopped", tmp_path / "whole")
