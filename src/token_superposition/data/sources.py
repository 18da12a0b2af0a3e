"""Sources: from what the user names to documents of text.

A source is the word `python`, a file or a folder. What to read is listed first, sorted by name and before
anything is opened: a misspelt name is an error at once, not after an hour, and progress has a total. Then
one file is held at a time (.jsonl by the line, .parquet by the batch), so memory does not grow with the
corpus.

`python` is the Python source installed with the running interpreter: the standard library and
site-packages, without tests. Every machine that runs this package has it. What is no UTF-8 or cannot be
read there is skipped and counted, for the user did not write it. In the user's own sources the same is an
error that names the place: silently training on half a corpus is worse than stopping.
"""

from __future__ import annotations

import codecs
import fnmatch
import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from token_superposition.errors import UserError, did_you_mean

PYTHON = "python"

# What a folder is searched for. Data formats (.json, .csv, .svg) are left out: little of them is language.
_SUFFIXES = """
    .txt .text .md .markdown .mdx .rst .adoc .org .tex .html .htm
    .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh .m .mm .rs .go .java .kt .kts .scala .clj
    .cs .fs .vb .js .jsx .mjs .cjs .ts .tsx .vue .svelte .css .scss .less .php .rb .pl .pm .lua .r .jl .swift
    .dart .hs .ml .mli .ex .exs .erl .lisp .el .scm .f .f90 .f95 .pas .asm .s .sql .sh .bash .zsh .fish .ps1
    .bat .cmake .mk .gradle .proto .graphql .tf .nix .zig .v .sv .vhd .yaml .yml .toml .ini .cfg
"""
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})  # `testing` is a library in numpy and torch: kept
_TEST_FILES = ("test_*.py", "*_test.py", "conftest.py")
_FEW_FILES, _NUM_PIECES, _SMALLEST_PIECE = 20, 40, 16 * 1024  # a few long texts are cut at line ends
_BATCH_ROWS = 256  # of a parquet file; a row may be a whole book


@dataclass(frozen=True)
class Document:
    """A document: its text as UTF-8 that has been checked, and where it is from.

    `origin` is a path, path:byte (a piece of a long text), path:line (.jsonl, from 1) or path:row (.parquet, from 0).
    """

    text: bytes
    origin: str


def source_name(source: str | Path) -> str:
    """A source as it is listed: `python` for that word alone, else its path, tidied (./python for a folder)."""
    if source == PYTHON:  # a Path never is
        return PYTHON
    if source == "":
        raise UserError("a source has an empty name")
    path = os.path.normpath(source)
    return f".{os.sep}{path}" if path == PYTHON else path


@dataclass
class Skipped:
    """What was passed over: documents of no or only white space; files that are no text, or cannot be read."""

    empty_documents: int = 0
    files_of_unknown_suffix: int = 0
    files_not_utf8: int = 0
    files_unreadable: int = 0


@dataclass(frozen=True)
class _File:
    path: str
    size: int


class Corpus:
    """The documents of some sources.

    Args:
        sources: `python`, files and folders (for a folder named python: ./python, or a Path).
        text_key: the column of .jsonl and .parquet that holds the text.
        pieces: cut texts where they are few and long, so that there is something to shuffle and hold out.

    Attributes:
        sizes: by source, how many files `documents` reads and their bytes on the disk.
        total_bytes: of all of them.
        newest: when the youngest of them was last written, in seconds since 1970; 0 for `python`, whose
            files change with whatever is installed beside them.
        bytes_done: how far `documents` has come, of total_bytes.
        skipped: what was passed over so far.

    Raises:
        UserError: for a source that is missing, empty or named twice, or a folder without text.
    """

    def __init__(self, sources: Sequence[str | Path], *, text_key: str = "text", pieces: bool = True) -> None:
        if not sources:
            raise UserError("no source given: name 'python', text files, folders, .jsonl or .parquet")
        self.text_key = text_key
        self.skipped = Skipped()
        self.newest = 0.0
        self.bytes_done = 0
        self._listed: list[tuple[str, list[_File]]] = []
        reached: dict[str, str] = {}
        for source in map(source_name, sources):
            if any(source == other for other, _ in self._listed):
                raise UserError(f"{source}: is named twice; name each source once")
            files = list(self._list(source))
            for file in files:
                other = reached.setdefault(os.path.realpath(file.path), source)
                if other != source:
                    raise UserError(f"{file.path}: is in two sources, {other} and {source}; leave one out")
            self._listed.append((source, files))
        self.sizes = {
            source: {"files": len(files), "bytes": sum(file.size for file in files)} for source, files in self._listed
        }
        self.total_bytes = sum(size["bytes"] for size in self.sizes.values())
        self._piece_bytes = self._piece_size() if pieces else None

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty, source by source.

        Raises:
            UserError: for a file that cannot be read, is not UTF-8, is damaged or lacks the text column, and
                for a source without any text, in one line that names the place.
        """
        before = 0
        for source, files in self._listed:
            found = False
            for file in files:
                self.bytes_done = before
                for document in self._read(source, file):
                    if not document.text or document.text.isspace():
                        self.skipped.empty_documents += 1
                        continue
                    found = True
                    yield document
                before += file.size
            if not found:
                raise UserError(f"{source}: holds no text (every document is empty)")
        self.bytes_done = before

    def _list(self, source: str) -> Iterator[_File]:
        if source == PYTHON:
            yield from self._list_python()
            return
        path = Path(source)
        if not path.exists():
            raise UserError(f"{source}: no such file or folder{did_you_mean(source, [PYTHON])}")
        if path.is_file():
            file = self._stat(source)
            if not file.size:
                raise UserError(f"{source}: is empty; leave it out")
            yield file
            return
        if not path.is_dir():
            raise UserError(f"{source}: is neither a file nor a folder")
        num_found, num_unknown = 0, 0
        for folder, folders, names in os.walk(source, onerror=_raise_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                if _kind(name) == "unknown":
                    num_unknown += 1
                else:
                    num_found += 1
                    yield self._stat(os.path.join(folder, name))  # noqa: PTH118  (Path is slow a million times)
        self.skipped.files_of_unknown_suffix += num_unknown
        if not num_found:
            raise UserError(
                f"{source}: no text in this folder ({num_unknown} files of unknown suffix); "
                "name files one by one to have them read whatever their suffix"
            )

    def _stat(self, path: str) -> _File:
        try:
            status = Path(path).stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        self.newest = max(self.newest, status.st_mtime)
        return _File(path, status.st_size)

    def _list_python(self) -> Iterator[_File]:
        paths = sysconfig.get_paths()
        roots = list(dict.fromkeys(os.path.realpath(paths[key]) for key in ("stdlib", "purelib", "platlib")))
        for root in roots:
            for folder, folders, names in os.walk(root):
                # Inside the standard library's folder lies, on most systems, site-packages: once is enough.
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
                        yield _File(str(path), path.stat().st_size)
                    except OSError:
                        self.skipped.files_unreadable += 1

    def _read(self, source: str, file: _File) -> Iterator[Document]:
        kind = _kind(file.path)
        try:
            if source != PYTHON and kind == "jsonl":
                yield from self._read_jsonl(file)
            elif source != PYTHON and kind == "parquet":
                yield from self._read_parquet(file)
            else:
                text = self._read_text(file)
                for first, piece in _pieces(text, self._piece_bytes):
                    yield Document(piece, f"{file.path}:{first}" if first else file.path)
        except OSError as error:
            if source != PYTHON:
                raise UserError(f"{file.path}: cannot be read ({error.strerror or error})") from None
            self.skipped.files_unreadable += 1
        except UserError:
            if source != PYTHON:
                raise
            self.skipped.files_not_utf8 += 1

    def _piece_size(self) -> int | None:
        """Bytes to cut text files into, where there are so few that nothing could be shuffled or held out."""
        files = [file for source, listed in self._listed if source != PYTHON for file in listed]
        few = len(files) < _FEW_FILES and len(self._listed) == sum(source != PYTHON for source, _ in self._listed)
        if not few or any(_kind(file.path) in ("jsonl", "parquet") for file in files):
            return None
        return max(_SMALLEST_PIECE, self.total_bytes // _NUM_PIECES)

    def _read_text(self, file: _File) -> bytes:
        data = Path(file.path).read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file.path}: is not UTF-8 text (byte {error.start}: {error.reason}); convert it, or leave it out"
            ) from None
        return data.removeprefix(codecs.BOM_UTF8)

    def _read_jsonl(self, file: _File) -> Iterator[Document]:
        before, number = self.bytes_done, 0
        with Path(file.path).open("rb") as raw:
            lines: IO[bytes] = raw
            if file.path.lower().endswith(".gz"):
                lines = gzip.open(raw)  # type: ignore[assignment]  # noqa: SIM115  (nothing to close but raw)
            try:
                for number, line in enumerate(lines, start=1):
                    if line.isspace():
                        continue
                    origin = f"{file.path}:{number}"
                    self.bytes_done = before + raw.tell()
                    yield Document(self._text_of_line(line, origin), origin)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(
                    f"{file.path}: the gzip data is cut short or damaged after line {number} ({error})"
                ) from None

    def _text_of_line(self, line: bytes, origin: str) -> bytes:
        try:
            record = json.loads(line.rstrip().removeprefix(codecs.BOM_UTF8).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{origin}: is not UTF-8 (byte {error.start} of the line)") from None
        except json.JSONDecodeError as error:
            raise UserError(f"{origin}: is not JSON ({error.msg.removesuffix(' at')}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # a number of more digits, or lists deeper than Python reads
            raise UserError(f"{origin}: is not JSON that Python reads ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{origin}: is a JSON {type(record).__name__}, not an object with a text key")
        if self.text_key not in record:
            raise UserError(
                f"{origin}: has no key {self.text_key!r} (keys: {_some(record)}); name the text with --text-key"
            )
        return _as_bytes(record[self.text_key], f"{origin}: the value of {self.text_key!r}")

    def _read_parquet(self, file: _File) -> Iterator[Document]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"{file.path}: reading parquet needs an extra: pip install 'token-superposition[parquet]'"
            ) from None
        before, row = self.bytes_done, 0
        try:
            with pyarrow.parquet.ParquetFile(file.path) as table:
                self._check_column(table.schema_arrow, file.path)
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=[self.text_key]):
                    for text in batch.column(0).to_pylist():
                        origin = f"{file.path}:{row}"
                        yield Document(_as_bytes(text, f"{origin}: column {self.text_key!r}"), origin)
                        row += 1
                    self.bytes_done = before + file.size * row // max(1, table.metadata.num_rows)
        except UnicodeDecodeError as error:
            raise UserError(f"{file.path}:{row}: is not UTF-8 (byte {error.start} of the text)") from None
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{file.path}: is not parquet, or is cut short or damaged ({reason})") from None

    def _check_column(self, schema: Any, path: str) -> None:
        import pyarrow

        if self.text_key not in schema.names:
            raise UserError(
                f"{path}: has no column {self.text_key!r} (columns: {_some(schema.names)}); "
                "name the text with --text-key"
            )
        kind = schema.field(self.text_key).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if str(kind) not in ("string", "large_string", "string_view", "null"):
            raise UserError(f"{path}: column {self.text_key!r} is {kind}, not string")


def _pieces(text: bytes, size: int | None) -> Iterator[tuple[int, bytes]]:
    """Cut a text after the line that reaches `size` bytes; each piece with the byte it starts at."""
    if size is None or len(text) < 2 * size:
        yield 0, text
        return
    start = 0
    while start < len(text):
        stop = text.find(b"\n", start + size - 1) + 1
        if stop == 0 or len(text) - stop < size:  # the rest would be short: it stays with this piece
            stop = len(text)
        yield start, text[start:stop]
        start = stop


def _kind(name: str) -> str:
    lower = name.lower()
    if lower.endswith((".jsonl", ".jsonl.gz")):
        return "jsonl"
    suffix = os.path.splitext(lower)[1]  # noqa: PTH122
    if suffix == ".parquet":
        return "parquet"
    return "text" if suffix in TEXT_SUFFIXES else "unknown"


def _as_bytes(text: object, what: str) -> bytes:
    if text is None:  # a null is a document without text: dropped and counted as empty
        return b""
    if not isinstance(text, str):
        raise UserError(f"{what} is of type {type(text).__name__}, not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        raise UserError(f"{what} is not Unicode text (a lone surrogate at character {error.start})") from None


def _some(names: Sequence[str] | dict[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")


def _raise_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")
