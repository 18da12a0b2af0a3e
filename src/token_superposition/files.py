"""Files that are written whole or not at all.

A reader never sees half a file: content goes to a temporary name in the same folder, is flushed to the disk,
and takes its final name in one step. `replace_folder` does the same for a folder that was filled beside its
final place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def could_not_write(path: Path, *causes: BaseException) -> str:
    """One line on a file or folder that could not be written: a library may hide a full disk behind its own error."""
    texts = [getattr(cause, "strerror", None) or str(cause) or type(cause).__name__ for cause in causes]
    reasons = " ".join("; ".join(texts).split())
    free = shutil.disk_usage(path.parent).free
    return f"{path}: could not be written ({reasons}); {free / 2**20:,.0f} MiB are free there"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends, and not at all when it raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_folder(filled: Path, final: Path) -> None:
    """Give the folder `filled` the name `final`; what stood there is removed first."""
    if final.exists():
        shutil.rmtree(final)
    filled.replace(final)
    sync_folder(final.parent)
