"""Several runs at once, each in a process of its own.

A run is `tst train` on a configuration file, so a study adds nothing to what a run is: a killed study
leaves run folders that go on where they stopped, and what is done is not trained again. The parent only
starts processes, reads the lines they log, and shows them.

A run that diverges ends a study, in one line, unless the study asked to know: a sweep tries values that may
be too much.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from token_superposition.errors import RunFailedError, TrainingDivergedError, UserError
from token_superposition.files import make_folder, remove_empty, write_text
from token_superposition.model.device import resolve_device
from token_superposition.run.folder import RunFolder
from token_superposition.train.config import RunConfig, parse_config
from token_superposition.train.resume import check_unchanged

_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class Job:
    """One run: what to call it, its configuration file, its folder, and how many steps it has."""

    name: str
    config: Path
    folder: Path
    total_steps: int

    @property
    def log(self) -> Path:
        """Where the run's standard output and error go."""
        return self.config.with_suffix(".log")

    @property
    def done(self) -> bool:
        """Whether the run has its result."""
        return RunFolder(self.folder).summary_file.exists()

    @property
    def diverged(self) -> bool:
        """Whether the run has stopped without one, because its loss is no longer a number."""
        return not self.done and RunFolder(self.folder).diverged_file.exists()

    def last_step(self) -> tuple[int, str]:
        """Completed steps and the last loss, from the metrics' end; a diverged run has no steps left."""
        if self.diverged:
            return self.total_steps, "diverged"
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().splitlines()
        except OSError:
            return 0, "starting"
        for text in reversed(lines):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # half a line, or a damaged one
                line = json.loads(text)
                if "loss" in line:
                    return int(line["step"]), f"{line['phase']}, loss {line['loss']:.3f}"
        return 0, "starting"


def write_job(place: Path, name: str, config: RunConfig, seed: int) -> Job:
    """Write a run's configuration into a folder of its arm; returns its job.

    Raises:
        UserError: where the run is there already, with another configuration.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    values.setdefault("train", {})["seed"] = seed
    run = place / f"seed-{seed}"
    check_unchanged(parse_config(values), RunFolder(run))  # before what is there is taken for what is asked
    try:
        made = make_folder(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be made ({error.strerror}); name another folder") from None
    file = place / f"seed-{seed}.yaml"
    try:
        write_text(file, yaml.safe_dump(values, sort_keys=False))
    except OSError:
        remove_empty(made)
        raise
    return Job(f"{name}, seed {seed}", file, run, config.train.total_steps)


def share_cores(config: RunConfig, num_runs: int, jobs: int | None) -> tuple[int, int]:
    """How many runs at once, with how many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if resolve_device(config.train.device).type != "cpu":
        return jobs or 1, cores
    if isinstance(config.train.num_threads, int):
        return jobs or max(1, cores // config.train.num_threads), config.train.num_threads
    at_once = jobs or min(cores, num_runs)
    return at_once, max(1, cores // at_once)


def run_jobs(jobs: Sequence[Job], *, at_once: int, threads: int, quiet: bool, may_diverge: bool = False) -> None:
    """Run every job that is not done, `at_once` at a time with `threads` threads each.

    With `may_diverge` a run that diverges is one that has ended, now and when the study is started again.

    Raises:
        UserError: where a run says that its input is wrong, in its words.
        TrainingDivergedError: where a run diverges that may not, in its words.
        RunFailedError: where a run fails otherwise; names its log.
        KeyboardInterrupt: after every running job has written its checkpoint.
    """
    waiting = [job for job in jobs if not (job.done or (may_diverge and job.diverged))]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    display = _Display(jobs, quiet=quiet)
    before = _interrupt_on(signal.SIGTERM, signal.SIGHUP)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = _start(job, threads)
            time.sleep(0.3)
            display.update()
            for job, process in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    if not (may_diverge and job.diverged):
                        _check(job, process.returncode)
        display.update()
    finally:
        display.close()
        for process in running.values():  # reached with any only when something went wrong
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_on(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Let these signals end the study as Ctrl-C does; returns what they did before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, signal.default_int_handler) for number in numbers}


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "token_superposition", "train", str(job.config)]
    command += ["--data.verify", "false"]  # the study has done it, once for all runs
    with job.log.open("wb") as log:
        return subprocess.Popen(
            [*command, "--out", str(job.folder), "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # an interrupt of ours reaches it once, from us
        )


def _check(job: Job, code: int) -> None:
    if code == 0:
        return
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    if code == 2:
        raise UserError(f"{job.name}: {last}")
    if job.diverged:
        raise TrainingDivergedError(f"{job.name}: {last}")
    raise RunFailedError(f"{job.name} ended with exit code {code}: {last} (all of it: {job.log})")


class _Display:
    """A bar a run on a terminal; elsewhere a line a minute."""

    def __init__(self, jobs: Sequence[Job], *, quiet: bool) -> None:
        self.jobs = jobs
        self.console = Console(stderr=True, quiet=quiet)
        self.started = time.monotonic()
        self.first = sum(job.last_step()[0] for job in jobs)
        self.next_line = 0.0
        self.bars: Progress | None = None
        self.tasks: dict[Job, TaskID] = {}
        if self.console.is_terminal and not quiet:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            for job in jobs:
                self.tasks[job] = self.bars.add_task(job.name, total=job.total_steps, text="waiting")
            self.bars.start()

    def update(self) -> None:
        states = {job: job.last_step() for job in self.jobs}
        if self.bars:
            for job, (step, text) in states.items():
                self.bars.update(self.tasks[job], completed=step, text="done" if job.done else text)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            total = sum(job.total_steps for job in self.jobs)
            steps = sum(step for step, _ in states.values())
            spent = time.monotonic() - self.started
            left = f", {spent * (total - steps) / (steps - self.first):.0f} s left" if steps > self.first else ""
            self.console.print(f"{steps:,} of {total:,} steps{left}", highlight=False)

    def close(self) -> None:
        if self.bars:
            self.bars.stop()
