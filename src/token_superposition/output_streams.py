"""Standard error that may be lost: a closed pipe, a terminal that is gone or a full disk must not end the work.

Progress and warnings go to standard error. They are worth less than the work, so text that cannot be written is
dropped. Results go to standard output, where a failure is reported.
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

_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # nobody will read this stream again


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that the process was started without.

    Otherwise the next file that is opened would get the descriptor, and messages would be written into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest descriptor that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", closefd=False))


@contextlib.contextmanager
def losable_stderr() -> Iterator[None]:
    """Inside the block, text for standard error that cannot be written is dropped."""
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
    """Send a stream to the null device from here on.

    Text that could not be written stays in Python's buffer, and would fail again when the process ends.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def progress_console(*, quiet: bool) -> Console:
    """A console on standard error, which is a terminal only if standard error is one."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, force_terminal=sys.stderr.isatty())


def draws_bars(console: Console) -> bool:
    """Whether a progress bar can be drawn: on a terminal that can move its cursor, if output is wanted."""
    return console.is_terminal and not console.is_dumb_terminal and not console.quiet


class _Losable:
    """A text stream that drops what cannot be written; otherwise the stream that it is made from."""

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
