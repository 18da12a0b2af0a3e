"""Writes to standard error that may fail without an error.

Progress and warnings go to standard error. A closed pipe, a closed terminal or a full disk must not end the training,
so text that cannot be written is dropped. Results go to standard output, and a failure there is reported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # errors after which nobody reads this stream again


def open_standard_streams() -> None:
    """Open the null device for each standard stream that the process was started without.

    Otherwise the next opened file would get the descriptor, and messages would be written into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", closefd=False))


@contextlib.contextmanager
def losable_stderr() -> Iterator[None]:
    """Drop text for standard error that cannot be written, inside the block."""
    before = sys.stderr
    if before is None or isinstance(before, _Losable):
        yield
        return
    sys.stderr = cast(TextIO, _Losable(before))
    try:
        yield
    finally:
        sys.stderr = before
        try:
            before.flush()
        except OSError:
            to_null_device(before)


def to_null_device(stream: TextIO) -> None:
    """Redirect a stream to the null device.

    Text that could not be written is still in Python's buffer. Without the redirection, the write would fail again when
    the process ends.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def progress_console(*, quiet: bool) -> Console:
    """A console on standard error; it counts as a terminal only if standard error is a terminal."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, force_terminal=sys.stderr.isatty())


def draws_bars(console: Console) -> bool:
    """Whether to draw a progress bar: the console is not quiet, and is a terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal and not console.quiet


class _Losable:
    """A text stream that wraps another stream and drops text that cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in _GONE:
            to_null_device(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
