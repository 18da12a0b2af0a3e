"""The progress of a run: a progress bar on a terminal, and otherwise a line about every 30 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from token_superposition.output_streams import draws_bars, progress_console

_SECONDS_BETWEEN_TRAINING_LINES = 30.0


class ProgressSink:
    """Print phase, loss, speed and remaining time on standard error.

    Args:
        total_steps: number of steps of the run.
        first_step: completed steps at the start; above 0 for a resumed run.
        quiet: show nothing.
        superposed: whether the run has a superposition phase; otherwise the phase is not called recovery.
    """

    def __init__(self, total_steps: int, first_step: int, *, quiet: bool, superposed: bool = True) -> None:
        self.total_steps, self.superposed = total_steps, superposed
        self.console = progress_console(quiet=quiet)
        self.validation = ""
        self._next_line = 0.0
        self._bar: Progress | None = None
        if draws_bars(self.console):
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TaskProgressColumn(),
                TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
                TextColumn("left · {task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self.console,
            )
            self._task = self._bar.add_task("starting", total=total_steps, completed=first_step, text="")
            self._bar.start()

    def say(self, text: str) -> None:
        """Print a message that stays on the screen."""
        (self._bar.console if self._bar else self.console).print(text, highlight=False, markup=False, soft_wrap=True)

    def write(self, line: dict[str, Any]) -> None:
        """Show a line of the metrics."""
        step = line["step"]
        if "validation_loss" in line:
            self.validation = f" · validation {line['validation_loss']:.3f}"
        if "loss" not in line:
            return
        phase = phase_words(line, superposed=self.superposed)
        text = f"loss {line['loss']:.3f} · {_short(line['positions_per_second'])} positions/s{self.validation}"
        if self._bar:
            self._bar.update(self._task, completed=step, description=phase, text=text)
        elif time.monotonic() >= self._next_line or step == self.total_steps:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_TRAINING_LINES
            left = (self.total_steps - step) * line["seconds_per_step"]
            self.say(f"step {step}/{self.total_steps} · {phase} · {text} · {_duration(left)} left")

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar:
            self._bar.stop()


def phase_words(line: Mapping[str, Any], *, superposed: bool) -> str:
    """The phase of a line of the metrics as text; a run without superposition has no recovery, only `next-token`.

    Args:
        line: a line with the keys `phase` (`superposition` or `recovery`) and `bag_size`.
        superposed: whether the run has a superposition phase.
    """
    if line["phase"] == "recovery":
        return "recovery" if superposed else "next-token"
    return f"{line['phase']} s={line['bag_size']}"


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


def warn(text: str) -> None:
    """Print a warning on standard error; the work continues."""
    print(f"warning: {text}", file=sys.stderr)


def _duration(seconds: float) -> str:
    """A duration as text, such as `38 s`, `4 min` or `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _short(value: float) -> str:
    """A number with a unit prefix: 1234567 as 1.23M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
