"""The progress of a measurement: a bar with the remaining time on a terminal, otherwise one line per phase."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from token_superposition.output_streams import draws_bars, progress_console


class BenchProgress:
    """Prints progress on standard error; a context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = progress_console(quiet=quiet)
        self._task: TaskID | None = None
        self._bar: Bar | None = None
        if draws_bars(self._console):
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
            )

    def __enter__(self) -> BenchProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a message that stays on the screen."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def phase(self, what: str, total: float, unit: str = "") -> None:
        """Start a phase with `total` parts."""
        if self._bar is None:
            self.say(f"{what} ...")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, unit=unit)

    def advance(self) -> None:
        """Record that one more part is done."""
        if self._bar and self._task is not None:
            self._bar.advance(self._task)

    def at(self, done: float, total: float) -> None:
        """Record that `done` of `total` parts are done."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=round(done), total=round(total))
