"""What a study shows of its runs while they train.

On a terminal there is a bar for the whole study and a bar for every run. Elsewhere (a pipe, a file, TERM=dumb) there is
a line for the whole study once a minute. Steps that a run has from another one are not counted again: the total is what
is trained.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from token_superposition.formatting import duration, plural
from token_superposition.output_streams import draws_bars, progress_console
from token_superposition.study.job import Job

_SECONDS_BETWEEN_STUDY_LINES = 60.0


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
                console=self.console,
            )
            self.whole = self.bars.add_task("study", total=None, text="")
            self.tasks = [self.bars.add_task(job.name, total=None, text="queued") for job in jobs]
            self.bars.start()

    def update(self, running: Collection[Job] = ()) -> None:
        """Show how far the runs are.

        Args:
            running: the runs that are being trained; the others are done, or they are queued or wait for another run.
        """
        states = [job.last_step() for job in self.jobs]
        steps = sum(step - job.branch_step for job, (step, _) in zip(self.jobs, states, strict=True))
        total = sum(job.total_steps - job.branch_step for job in self.jobs)
        if self.bars:
            self.bars.update(self.whole, completed=steps, total=total, text=self._left(steps, total))
            for task, job, (step, text) in zip(self.tasks, self.jobs, states, strict=True):
                own, own_total = step - job.branch_step, job.total_steps - job.branch_step
                said = text if job in running else job.standing
                self.bars.update(task, completed=own, total=own_total, text=said)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + _SECONDS_BETWEEN_STUDY_LINES
            line = f"study: {steps:,} of {total:,} steps, {self._left(steps, total)}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self, steps: int, total: int) -> str:
        """`3 of 10 runs done, 1 h 05 min left`, at the speed of the steps done so far."""
        done = sum(job.done or job.diverged for job in self.jobs)
        text = f"{done:,} of {plural(len(self.jobs), 'run')} done"
        if self.first < steps < total:
            seconds = (time.monotonic() - self.started) * (total - steps) / (steps - self.first)
            text += f", {duration(seconds)} left"
        return text

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bars:
            self.bars.stop()
