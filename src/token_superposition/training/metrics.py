"""`metrics.jsonl`: a line for whatever a run has to say, there for a reader at once.

A full disk must not end a run that only wanted to log. What cannot be written stays in memory and goes out
before the next line, so that nothing is lost and nothing stands twice: a line cut in the middle is completed
when there is room again. Only at the run's end is a line that cannot be written an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from token_superposition.errors import CheckpointError, UserError
from token_superposition.files import could_not_write, is_whole_number, write_text


class MetricsFile:
    """Appends lines to a metrics file.

    Args:
        path: the file.
        step: lines after this completed step are cut off first, and so is the final validation's: a run that
            goes on from a checkpoint writes them again.
        mend: what to make of each line that is kept; nothing if not given.
    """

    def __init__(
        self, path: Path, step: int, mend: Callable[[dict[str, Any]], dict[str, Any]] = lambda line: line
    ) -> None:
        kept = [
            json.dumps(mend(line)) + "\n"
            for line in read_metrics(path)
            if line["step"] <= step and not line.get("final")
        ]
        write_text(path, "".join(kept))
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; where the disk refuses it, keep it for later."""
        self._pending += json.dumps(line).encode() + b"\n"
        try:
            self._drain()
        except OSError:
            return

    def sync(self) -> None:
        """Put every line on the disk.

        Raises:
            CheckpointError: where a line cannot be written; lines stand before their step's checkpoint.
        """
        try:
            self._drain()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(could_not_write(self.path, error)) from error

    def close(self) -> None:
        self._file.close()

    def _drain(self) -> None:
        while self._pending:
            written = self._file.write(self._pending)
            self._pending = self._pending[written:]


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file.

    What cannot be read at its end was being written when the process or the machine died, and is left out.

    Raises:
        UserError: at a line that cannot be read and has one after it that can.
    """
    if not path.exists():
        return
    damaged = None
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        line = _metrics_line(text)
        if line is None:
            damaged = damaged or number
        elif damaged is not None:
            raise UserError(f"{path}, line {damaged}: is damaged; delete this line to go on without it")
        else:
            yield line


def is_number(value: object) -> bool:
    """Whether it is a number, as figures are; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metrics_line(text: bytes) -> dict[str, Any] | None:
    """A line's values; None where it is not a line that a run writes."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not is_whole_number(line.get("step")):
        return None
    numbers = ["loss"] if "loss" in line else []
    if "validation_loss" in line:
        numbers = ["validation_loss", "flops", "raw_tokens"]
    if numbers and not (isinstance(line.get("phase"), str) and is_whole_number(line.get("bag_size"), 1)):
        return None
    return line if all(is_number(line.get(name)) for name in numbers) else None
