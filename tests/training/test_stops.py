"""What ends a `tst train` process from outside, and what must not: signals, closed pipes, too little memory."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.runs import go, numbers
from token_superposition.cli import main
from token_superposition.errors import UserError
from token_superposition.progress import ProgressSink
from token_superposition.training.logger import Recorder
from token_superposition.training.trainer import Trainer


@pytest.fixture
def words(small_run: dict[str, Any], tmp_path: Path) -> list[str]:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small_run))
    return ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]


def test_a_reader_that_closes_its_pipe_does_not_end_the_run(words: list[str], whole: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "token_superposition", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()  # as `head -1` does
    assert process.wait() == 0
    assert numbers(tmp_path / "run") == numbers(whole)
    assert (tmp_path / "run" / "summary.json").exists()


def during(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *numbers: signal.Signals) -> None:
    """Send the signals whenever a method is called."""
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        for number in numbers:
            signal.raise_signal(number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("method", ["step", "checkpoint", "close", "finish"])
def test_repeated_signals_are_one_request(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    """While a step is computed, the checkpoint written, what is open closed, and the result taken."""
    owner = Trainer if method == "step" else Recorder
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with monkeypatch.context() as patched:
        during(patched, owner, method, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM)
        if method == "close":  # a stop is under way already
            during(patched, Trainer, "step", signal.SIGTERM)
        assert main(words) == 130
    assert "Traceback" not in capsys.readouterr().err
    done = {"step": 1, "checkpoint": 3, "close": 1, "finish": 12}[method]
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:07d}" / "manifest.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_after_too_little_memory_the_run_continues_with_fewer_rows_at_once(
    small_run: dict[str, Any],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = Trainer.step

    def step(self: Trainer, batch: Any) -> Any:
        if batch.step == 7 and self.config.train.micro_batch_size is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", step)
    assert main([*words, "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    advice = line.partition("continue with: tst ")[2].split()
    assert advice == ["train", str(tmp_path / "run"), "--train.micro_batch_size", "2"]
    assert main([*advice, "--quiet"]) == 0
    assert "train.micro_batch_size" in capsys.readouterr().err  # bits may differ
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert kept["micro_batch_size"] == 2
    with pytest.raises(UserError, match=r"train.learning_rate"):
        go(small_run, tmp_path / "run", train__learning_rate=0.5)


@pytest.mark.parametrize("terminal", [True, False])
def test_where_no_bar_can_be_drawn_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(said, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "dumb" if terminal else "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services have it
    progress = ProgressSink(1000, 0, superposed=False, quiet=False)
    for step in range(100, 1001, 100):
        progress.write(
            {
                "step": step,
                "phase": "recovery",
                "bag_size": 1,
                "loss": 1.5,
                "positions_per_second": 1e6,
                "seconds_per_step": 10.0,
            }
        )
    progress.close()
    first, last = said.getvalue().splitlines()
    assert "step 100/1000" in first
    assert "next-token" in first
    assert "loss 1.500" in first
    assert "2 h 30 min left" in first
    assert "step 1000/1000" in last
    assert "\x1b" not in first + last
