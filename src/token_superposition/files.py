"""Atomic writes of files and folders, and safe reads of JSON files.

A reader never sees a partial file: the content goes to a temporary file in the same folder, is flushed to the disk,
and is then renamed in one step. `replace_folder` does the same for a folder.

Errors of the disk leave these functions as an `OSError` with the name of the file; the command line turns the
exception into a message (`errors.machine_trouble`). A file that is read may be damaged: `read_object` returns a JSON
object or raises `UserError`, and `read_record` also notices a changed digit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from token_superposition.errors import UserError, shortened


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def could_not_write(path: Path, *causes: BaseException) -> str:
    """A message for a failed write, with the free disk space, because some libraries hide the error of a full disk."""
    texts = [getattr(cause, "strerror", None) or str(cause) or type(cause).__name__ for cause in causes]
    reasons = " ".join("; ".join(texts).split())
    free = shutil.disk_usage(path.parent).free
    return f"{path}: could not be written ({reasons}); {free / 2**20:,.0f} MiB are free on that disk"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to an OSError of the block: an error from a write to an open file lacks the name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its parents; returns the folders that did not exist before, the innermost first."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that are empty, in the given order."""
    for folder in folders:
        with contextlib.suppress(OSError):  # the folder is not empty, or does not exist
            folder.rmdir()


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that is renamed to `path` when the block ends, and removed when the block raises.

    If `durable` is false, the file is not flushed to the disk. A power cut may then leave an empty file, and the reader
    has to detect this.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # the user does not know the temporary file
        with contextlib.suppress(OSError):  # keep the first error if the disk refuses this too
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_file(path, durable=durable) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    with atomic_file(path, durable=durable) as file:
        # A file name may contain bytes that are not UTF-8. Python holds them as surrogates; JSON gets them as \udcXX.
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace"))


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object from a file that may be damaged.

    Args:
        path: the file.
        fix: the advice that error messages end with.

    Raises:
        UserError: if the file cannot be read or is not a JSON object; the message names the file and the fix.
        FileNotFoundError: if the file does not exist.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
    except (ValueError, RecursionError):  # text that is not UTF-8 is a ValueError too
        raise UserError(f"{path}: is not JSON; {fix}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; {fix}")
    return value


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its values, atomically; `read_record` reads the file."""
    write_json(path, {**values, "checksum": _checksum(values)})


def read_record(path: Path, fix: str) -> dict[str, Any]:
    """Read a file of `write_record`; a file of version 0.1 has no checksum and is read without this check.

    Args:
        path: the file.
        fix: the advice that error messages end with.

    Raises:
        UserError: if the file is damaged or was edited; the message names the file and the fix.
        FileNotFoundError: if the file does not exist.
    """
    values = read_object(path, fix)
    checksum = values.pop("checksum", None)
    if checksum is not None and checksum != _checksum(values):
        raise UserError(f"{path}: was edited or damaged (the checksum does not match); {fix}")
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)  # the same text for tuples and integer keys
    return hashlib.blake2b(text.encode("utf-8", errors="surrogatepass"), digest_size=16).hexdigest()


def is_whole_number(value: object, least: int = 0) -> bool:
    """Whether a value is an integer of at least `least`; True and False are not integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def replace_folder(filled: Path, final: Path) -> None:
    """Rename the folder `filled` to `final`, in place of the folder that has this name now.

    The old folder is renamed first and removed last, so that a kill in between never leaves a partial folder.
    """
    aside = final.with_name(f".{final.name}.replaced")
    if aside.exists():  # left over from a killed process
        shutil.rmtree(aside)
    if final.exists():
        final.replace(aside)
    try:
        filled.replace(final)
    except OSError:
        if aside.exists():
            aside.replace(final)
        raise
    sync_folder(final.parent)
    if aside.exists():
        shutil.rmtree(aside)


# Paths in options and in configuration files.


def user_path(text: str) -> Path:
    """Convert text from an option or a configuration to a path; `~` and `~user` mean home folders.

    Raises:
        UserError: if the text is empty, the home folder is unknown, or a character is impossible in a file name of
            this system.
    """
    if not text or "\0" in text:
        raise UserError("the path is empty or contains a NUL character; give the path of a folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        name = shortened(text.partition("/")[0])
        raise UserError(f"the home folder {name!r} is unknown; write ./{name} for a folder with this name") from None
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{shortened(text)!r} has characters that file names cannot have on this system, because the encoding "
            f"of file names is {error.encoding}; set PYTHONUTF8=1"
            if sys.getfilesystemencoding() != "utf-8"
            else f"{shortened(text)!r} has characters that a file name cannot have"
        ) from None
    return path


def expanded(text: str) -> str:
    """Replace a leading `~` in a text that is a path or another name, such as the name of a tokenizer."""
    return str(user_path(text)) if text.startswith("~") else text
