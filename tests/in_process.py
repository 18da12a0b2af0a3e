"""A study's runs, trained in the test's process or in forks of it: a new interpreter takes seconds to start."""

from __future__ import annotations

import contextlib
import email
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from token_superposition import interrupts
from token_superposition.cli import main
from token_superposition.data.readers import discovery
from token_superposition.study import runner as queue
from token_superposition.study.job import Job
from token_superposition.training import logger as record
from token_superposition.training.config import load_config
from token_superposition.training.loop import train


def train_here(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on runs are trained here, one after another. Returns their names, as they are trained."""
    trained: list[str] = []

    def run_jobs(jobs: Sequence[Job], **_: Any) -> None:
        waiting = [job for job in jobs if not job.done]
        while waiting:
            job = next(job for job in waiting if job.ready)
            waiting.remove(job)
            job.prepare()
            trained.append(job.name)
            train(load_config(job.config), job.folder, quiet=True)

    patch.setattr(queue, "run_jobs", run_jobs)
    patch.setattr(record, "matrix_peak", lambda *_: 1e9)
    return trained


class ForkedProcess:
    """A `tst` command in a child of the test's process: real kills, exit codes and logs, but no import of torch.

    It takes the place of `subprocess.Popen` in the queue of a study.
    """

    def __init__(self, command: Sequence[str], *, stdout: IO[bytes], env: Mapping[str, str] | None = None, **_: Any):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            words = list(command[command.index("token_superposition") + 1 :])
            _run_as_child(words, stdout.fileno(), os.environ if env is None else env)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int | None:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("tst", timeout)
            time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _run_as_child(words: list[str], output: int, environment: Mapping[str, str]) -> NoReturn:
    """Run the command as a fresh process would: with its own output, environment and signal handlers."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv = ["tst", *words]
        environment = dict(environment)
        os.environ.clear()
        os.environ.update(environment)
        interrupts._current = None
        for number in interrupts.STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# Takes the place of the module `subprocess` in code that starts `tst`.
FORKING = SimpleNamespace(
    Popen=ForkedProcess,
    DEVNULL=subprocess.DEVNULL,
    STDOUT=subprocess.STDOUT,
    TimeoutExpired=subprocess.TimeoutExpired,
)


def fork_runs(patch: pytest.MonkeyPatch) -> None:
    """From now on the runs of a study are forked from this process."""
    patch.setattr(queue, "subprocess", FORKING)
    patch.setattr(record, "matrix_peak", lambda *_: 1e9)


def little_python(patch: pytest.MonkeyPatch) -> None:
    """From now on the source `python` is one package of the standard library, and not 30 MB of text."""
    paths = dict.fromkeys(("stdlib", "purelib", "platlib"), str(Path(email.__file__).parent))
    patch.setattr(discovery, "sysconfig", SimpleNamespace(get_paths=lambda: paths))
