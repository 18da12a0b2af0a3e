"""A disk that fails: every change to a file system under a folder can be made to fail, one by one.

A fault is an `OSError` (no space left) out of the call itself, as the operating system gives it: opening for writing,
a write (which may take some bytes first), flushing, renaming, making and removing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class Disk:
    """Counts the changes under a folder, and decides about each.

    Args:
        fails: asked with the number of the change (from 0), says whether it fails.
    """

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.fails = fails
        self.changes = 0
        self.faults = 0

    def change(self, path: Any) -> None:
        """Called before a change; raises where the disk fails."""
        number, self.changes = self.changes, self.changes + 1
        if self.fails(number):
            self.faults += 1
            raise OSError(28, "No space left on device", str(path))


@contextmanager
def failing(disk: Disk, folder: Path) -> Iterator[None]:
    """Every change under `folder` goes through `disk` inside the block."""
    real_open, inside = io.open, str(folder)

    class Raw(io.FileIO):
        full = False

        def write(self, data: Any) -> int:
            if self.full:
                self.full = False
                raise OSError(28, "No space left on device", str(self.name))
            try:
                disk.change(self.name)
            except OSError:  # the first call takes what there is room for, the next one nothing
                self.full = True
                return super().write(bytes(memoryview(data)[: (len(data) + 1) // 2]))
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        if isinstance(file, int) or mode not in ("wb", "ab") or not str(file).startswith(inside):
            return real_open(file, mode, buffering, *rest, **more)
        disk.change(file)
        raw = Raw(str(file), mode)
        return raw if buffering == 0 else io.BufferedWriter(raw)

    def guarded(name: str) -> Any:
        real = getattr(os, name)

        def call(target: Any, *rest: Any, **more: Any) -> Any:
            path = str(Path(f"/proc/self/fd/{target}").readlink()) if isinstance(target, int) else str(target)
            if path.startswith(inside) or "dir_fd" in more:
                disk.change(path)
            return real(target, *rest, **more)

        return mock.patch.object(os, name, call)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(io, "open", opened))
        for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir"):
            stack.enter_context(guarded(name))
        yield
