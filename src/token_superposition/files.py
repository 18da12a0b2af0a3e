"""Files that are written whole or not at all.

A reader never sees half a file: content goes to a temporary name in the same folder, is flushed to the disk,
and takes its final name in one step. `replace_folder` does the same for a folder that was filled beside its
final place.

What goes wrong on the disk is not handled here: it comes out as the `OSError` it is, with the file's name,
and the command line puts it into words (`errors.machine_trouble`). What is read back is never trusted:
`read_object` gives a JSON object or a `UserError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
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
    """One line on a file or folder that could not be written: a library may hide a full disk behind its own error."""
    texts = [getattr(cause, "strerror", None) or str(cause) or type(cause).__name__ for cause in causes]
    reasons = " ".join("; ".join(texts).split())
    free = shutil.disk_usage(path.parent).free
    return f"{path}: could not be written ({reasons}); {free / 2**20:,.0f} MiB are free there"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give every OSError that leaves the block a file's name: writing to an open file raises one without."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it; returns what was not there before, the innermost first."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, in the order given."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` when the block ends, and not at all when it raises.

    Without `durable` it is not flushed to the disk: a power cut may leave it empty, which its reader then has to find.
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
            error.filename = str(path)  # nobody has heard of the temporary one
        with contextlib.suppress(OSError):  # a disk that refused the file may refuse this too: say the first
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` (UTF-8) to `path`, whole or not at all."""
    with atomic_file(path, durable=durable) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    with atomic_file(path, durable=durable) as file:
        # The name of a file may hold bytes that are no UTF-8: in JSON, too, such half of a pair is written \udcXX.
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", errors="backslashreplace"))


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """The JSON object in a file that somebody or something may have damaged.

    Args:
        path: the file.
        mend: what to do where it is not one, for the message.

    Raises:
        UserError: where it cannot be read or is no JSON object; names the file and the mend.
        FileNotFoundError: where it is not there.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    except (ValueError, RecursionError):  # text that is not UTF-8 is a ValueError too
        raise UserError(f"{path}: is not JSON; {mend}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is JSON, but no object; {mend}")
    return value


def is_whole_number(value: object, least: int = 0) -> bool:
    """Whether a value that was read is an integer of at least `least` (which True is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def replace_folder(filled: Path, final: Path) -> None:
    """Give the folder `filled` the name `final`.

    What stood there is put aside first and removed last: whoever is killed in between never leaves half a folder there.
    """
    aside = final.with_name(f".{final.name}.replaced")
    if aside.exists():  # somebody was killed
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


# Paths as people write them, in options and in configuration files.


def user_path(text: str) -> Path:
    """The path that a text names; `~` and `~user` stand for home folders.

    Raises:
        UserError: for an empty text, a home folder that is not known, or characters that this system's file names
            cannot have.
    """
    if not text or "\0" in text:
        raise UserError("the path of a folder is needed")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        name = shortened(text.partition("/")[0])
        raise UserError(f"the home folder {name!r} is not known; write ./{name} for a folder of that name") from None
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{shortened(text)!r} has characters that file names cannot have here, because their encoding is "
            f"{error.encoding}; set PYTHONUTF8=1"
            if sys.getfilesystemencoding() != "utf-8"
            else f"{shortened(text)!r} is not text that a file name can have"
        ) from None
    return path


def expanded(text: str) -> str:
    """A word that may be a path or something else, such as the name of a tokenizer, with `~` replaced."""
    return str(user_path(text)) if text.startswith("~") else text
