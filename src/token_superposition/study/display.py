"""What a study shows of its runs while they train: a bar a run on a terminal; elsewhere a line a minute.

Steps that a run has from another one are not counted again: the total is what is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from token_superposition.streams import draws_bars, progress_console
from token_superposition.study.job import Job

_SECONDS_BETWEEN_LINES = 60.0


class Display:
    """The runs of a study.

    Args:
        jobs: the runs; looked at anew with every update, so one may take another's place.
        quiet: show nothing.
        console: where to; standard error without it.
    """

    def __init__(self, jobs: Sequence[Job], *, quiet: bool, console: Console | None = None) -> None:
        self.jobs = jobs
        self.console = console or progress_console(quiet=quiet)
        self.started = time.monotonic()
        self.first = sum(job.last_step()[0] - job.branch_step for job in jobs)
        self.next_line = 0.0
        self.bars: Progress | None = None
        if draws_bars(self.console):
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.tasks = [self.bars.add_task(job.name, total=None, text="waiting") for job in jobs]
            self.bars.start()

    def update(self) -> None:
        """Show how far the runs are."""
        states = [job.last_step() for job in self.jobs]
        if self.bars:
            for task, job, (step, text) in zip(self.tasks, self.jobs, states, strict=True):
                steps, total = step - job.branch_step, job.total_steps - job.branch_step
                self.bars.update(task, completed=steps, total=total, text="done" if job.done else text)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            total = sum(job.total_steps - job.branch_step for job in self.jobs)
            steps = sum(step - job.branch_step for job, (step, _) in zip(self.jobs, states, strict=True))
            spent = time.monotonic() - self.started
            left = f", {spent * (total - steps) / (steps - self.first):.0f} s left" if steps > self.first else ""
            self.console.print(f"{steps:,} of {total:,} steps{left}", highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bars:
            self.bars.stop()
