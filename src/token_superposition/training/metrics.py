"""Reading and writing `metrics.jsonl`.

Each line is written at once, so that other programs can follow a run. A full disk must not end the training because of
a log line. Text that cannot be written stays in memory and is written before the next line. A line that was written in
part is completed when the disk has space again, so no line is lost or repeated. A line that cannot be written is an
error only in `sync`, before a checkpoint and at the end of the run.
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
        step: lines after this completed step are removed first, and so is the line of the final validation, because a
            resumed run writes these lines again.
        recompute: function that maps each kept line to the line to write.
    """

    def __init__(
        self, path: Path, step: int, recompute: Callable[[dict[str, Any]], dict[str, Any]] = lambda line: line
    ) -> None:
        kept = [
            json.dumps(recompute(line)) + "\n"
            for line in read_metrics(path)
            if line["step"] <= step and not line.get("final")
        ]
        write_text(path, "".join(kept))
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; if the disk refuses, keep the line in memory for the next write."""
        self._pending += json.dumps(line).encode() + b"\n"
        try:
            self._drain()
        except OSError:
            return

    def sync(self) -> None:
        """Flush all lines to the disk.

        Raises:
            CheckpointError: if a line cannot be written; a step's lines must be on the disk before its checkpoint.
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
    """Read the lines of a metrics file.

    Unreadable lines at the end of the file are ignored: the process or the machine died during the write.

    Raises:
        UserError: if a line is unreadable and a later line is readable.
    """
    if not path.exists():
        return
    damaged = None
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        line = _metrics_line(text)
        if line is None:
            damaged = damaged or number
        elif damaged is not None:
            raise UserError(f"{path}, line {damaged}: is damaged; delete this line to continue without it")
        else:
            yield line


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metrics_line(text: bytes) -> dict[str, Any] | None:
    """The values of a line; None if no run writes such a line."""
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
