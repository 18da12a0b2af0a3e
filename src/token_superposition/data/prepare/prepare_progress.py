"""The progress of a preparation on a terminal: a bar with MB/s, documents, tokens and the time left."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from token_superposition.data.prepare.encode import EncodeProgress
from token_superposition.output_streams import draws_bars, progress_console

_SECONDS_BETWEEN_UPDATES = 0.1
_SECONDS_BETWEEN_PREPARE_LINES = 30.0

# Called with the name of the work, its progress, and its total number of bytes.
Show = Callable[[str, EncodeProgress, int], None]


class Sum:
    """Sums the progress of all pieces."""

    def __init__(self, show: Callable[[EncodeProgress], None]) -> None:
        self._show = show
        self._parts: dict[int, EncodeProgress] = {}
        self._whole = EncodeProgress()
        self._lock = threading.Lock()

    def report(self, number: int, progress: EncodeProgress) -> None:
        """Update the progress of one piece."""
        with self._lock:
            self._add(number, progress)

    def _add(self, number: int, progress: EncodeProgress) -> None:
        before = self._parts.get(number, EncodeProgress())
        self._parts[number] = EncodeProgress(progress.done, progress.documents, progress.tokens)
        self._whole = self._whole.plus(progress).plus(EncodeProgress(-before.done, -before.documents, -before.tokens))
        self._show(self._whole)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Show]:
    """Show a bar on standard error if it is a terminal, otherwise print a line every half minute."""
    if quiet:
        yield lambda *_: None
        return
    console = progress_console(quiet=quiet)
    if not draws_bars(console):
        yield _lines()
        return
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(8, min(40, console.width - 72))),  # the figures come first
        TaskProgressColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Bar(*columns, console=console) as bar:
        tasks: dict[str, Any] = {}
        next_update = 0.0

        def show(what: str, progress: EncodeProgress, total: int) -> None:
            nonlocal next_update
            if what not in tasks:
                tasks[what] = bar.add_task(what, words="")
            elif time.monotonic() < next_update and progress.done < total:
                return
            next_update = time.monotonic() + _SECONDS_BETWEEN_UPDATES
            bar.update(tasks[what], completed=progress.done, total=total, words=_words(progress))

        yield show


def _lines() -> Show:
    """Return a function that prints a line every half minute; shorter work prints nothing."""
    next_line = time.monotonic() + _SECONDS_BETWEEN_PREPARE_LINES

    def show(what: str, progress: EncodeProgress, total: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + _SECONDS_BETWEEN_PREPARE_LINES
            share = f"{progress.done / total:.0%}" if total else ""
            print(" · ".join(filter(None, [what, share, _words(progress)])), file=sys.stderr)

    return show


def _words(progress: EncodeProgress) -> str:
    if not progress.documents:
        return ""
    millions = progress.tokens / 1e6
    return f"{progress.documents:,} documents, {millions:,.{0 if millions > 100 else 1}f}M tokens"
