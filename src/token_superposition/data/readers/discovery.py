"""List the files of a source, sorted by name, before any file is opened.

The source `python` is the Python code that is installed with the running interpreter: the standard library and
site-packages, without tests. Every machine that runs this package has it.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from token_superposition.data.readers import hub
from token_superposition.data.readers.arrow import is_saved, saved_files
from token_superposition.data.readers.compression import split_compression
from token_superposition.data.readers.document import Skipped
from token_superposition.errors import UserError, did_you_mean

PYTHON = "python"
STDIN = "-"

# The suffixes that are read from a folder. Data formats (.json, .csv, .svg) are left out, because they contain little
# language. A corpus in .json or .csv is named file by file or by a glob, or is compressed.
_SUFFIXES = """
    .txt .text .md .markdown .mdx .rst .adoc .org .tex .html .htm
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh .m .mm .rs .go .java .kt .kts .scala .clj
    .cs .fs .vb .js .jsx .mjs .cjs .ts .tsx .vue .svelte .css .scss .less .php .rb .pl .pm .lua .r .jl .swift
    .dart .hs .ml .mli .ex .exs .erl .lisp .el .scm .f .f90 .f95 .pas .asm .s .sql .sh .bash .zsh .fish .ps1
    .bat .cmake .mk .gradle .proto .graphql .tf .nix .zig .v .sv .vhd .yaml .yml .toml .ini .cfg
"""
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
_RECORDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_WHOLE = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".bin": "tokens",
    ".npy": "tokens",
}  # formats without a compression suffix

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})  # `testing` is a library in numpy and torch, so it is kept
_TEST_FILES = ("test_*.py", "*_test.py", "conftest.py")


@dataclass(frozen=True)
class File:
    """A file to read: its path, its bytes on disk, the name of its reader, and the time when it was last written."""

    path: str
    size: int
    kind: str
    modified: float = 0.0


def kind_of(name: str) -> str:
    """Return the reader for a file name: text, jsonl, json, csv, parquet, arrow, tokens, or `unknown`."""
    base, compression = split_compression(name)
    suffix = os.path.splitext(base)[1]  # noqa: PTH122  (Path is slow a million times)
    if suffix in _RECORDS:
        return _RECORDS[suffix]
    if suffix in _WHOLE and not compression:
        return _WHOLE[suffix]
    return "text" if suffix in TEXT_SUFFIXES else "unknown"


def source_name(source: str | Path) -> str:
    """Return the name of a source: `python`, `-` and `hf:` names unchanged, else a normalized path.

    A folder with one of these names becomes a relative path, such as ./python. A `Path` is always a path.
    """
    if isinstance(source, str) and (source in (PYTHON, STDIN) or source.startswith(hub.PREFIX)):
        return source
    if source == "":
        raise UserError("a source has an empty name")
    path = os.path.normpath(source)
    return f".{os.sep}{path}" if path in (PYTHON, STDIN) or path.startswith(hub.PREFIX) else path


def list_files(source: str, skipped: Skipped) -> list[File]:
    """Return the files of a source that is a path, a pattern or `python`.

    Raises:
        UserError: if the source is missing or empty, or is a folder or pattern without text.
    """
    if source == PYTHON:
        return list(_list_python(skipped))
    path = Path(source)
    if not path.exists():
        if glob.has_magic(source):
            return _list_glob(source)
        raise UserError(f"{source}: no such file or folder{did_you_mean(source, [PYTHON])}")
    if path.is_file():
        return [_named(source)]
    if not path.is_dir():
        raise UserError(f"{source}: is neither a file nor a folder; to read from a pipe, use standard input (-)")
    return list_saved(source, None) if is_saved(source) else _list_folder(source, skipped)


def list_saved(folder: str, split: str | None) -> list[File]:
    """Return the files of a dataset that `save_to_disk` wrote; raise UserError if a file is missing."""
    return [_stat(path, "arrow") for path in saved_files(folder, split)]


def _named(path: str) -> File:
    """Return a file that the user named; it is read with any suffix."""
    kind = kind_of(path)
    file = _stat(path, "text" if kind == "unknown" else kind)
    if not file.size:
        raise UserError(f"{path}: is empty; leave it out")
    return file


def _list_glob(source: str) -> list[File]:
    paths = [path for path in sorted(glob.glob(source, recursive=True)) if Path(path).is_file()]  # noqa: PTH207
    if not paths:
        raise UserError(f"{source}: no file matches this pattern")
    return [_named(path) for path in paths]


def _list_folder(source: str, skipped: Skipped) -> list[File]:
    found, num_unknown = [], 0
    entered = {os.path.realpath(source)}  # links are followed, but each folder is entered only once

    def enter(folder: str) -> bool:
        real = os.path.realpath(folder)
        is_new = real not in entered
        entered.add(real)
        return is_new

    for folder, folders, names in os.walk(source, onerror=_raise_unreadable, followlinks=True):
        inner = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in inner if enter(os.path.join(folder, name))]  # noqa: PTH118
        for name in sorted(name for name in names if not name.startswith(".")):
            kind = kind_of(name)
            plain = not split_compression(name)[1]
            if kind in ("unknown", "tokens", "arrow") or (kind in ("json", "csv") and plain):
                num_unknown += 1
            else:
                found.append(_stat(os.path.join(folder, name), kind))  # noqa: PTH118
    skipped.files_of_unknown_suffix += num_unknown
    if not found:
        raise UserError(
            f"{source}: no text in this folder ({num_unknown} files of unknown suffix); to read files with any suffix, "
            "name them one by one, or by a pattern in quotes"
        )
    return found


def _stat(path: str, kind: str) -> File:
    try:
        status = Path(path).stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe, or a device without an end
        raise UserError(f"{path}: is not a regular file; leave it out")
    return File(path, status.st_size, kind, status.st_mtime)


def _list_python(skipped: Skipped) -> Iterator[File]:
    paths = sysconfig.get_paths()
    roots = list(dict.fromkeys(os.path.realpath(paths[key]) for key in ("stdlib", "purelib", "platlib")))
    for root in roots:
        for folder, folders, names in os.walk(root):
            # On most systems site-packages is inside the folder of the standard library. It must be read only once.
            folders[:] = sorted(
                name
                for name in folders
                if name not in _TEST_FOLDERS
                and name not in ("__pycache__", "site-packages", "dist-packages")
                and not name.startswith(".")
                and str(Path(folder, name)) not in roots
            )
            for name in sorted(fnmatch.filter(names, "*.py")):
                if name.startswith(".") or any(fnmatch.fnmatchcase(name, test) for test in _TEST_FILES):
                    continue
                path = Path(folder, name)
                try:
                    yield File(str(path), path.stat().st_size, "text")
                except OSError:
                    skipped.files_unreadable += 1


def _raise_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")
