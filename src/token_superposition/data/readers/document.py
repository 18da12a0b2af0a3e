"""What every reader gives and takes: documents, pieces of a source, how to read, and what was passed over."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from token_superposition.errors import UserError

MAX_DOCUMENT_BYTES = 2**28
BAD = (
    "documents_not_utf8",
    "documents_too_long",
    "records_not_readable",
    "files_damaged",
    "documents_not_encoded",
)
_MOST_NAMES = 1000  # of keys that are looked at for a message
SKIP_HINT = "or skip what is bad (--on-error skip)"


@dataclass(frozen=True)
class Document:
    """A document: its text as UTF-8 that has been checked, and where it is from.

    Attributes:
        text: empty for a document that came as tokens.
        origin: its `str` is a path, path:byte (a part of a long text), path:line (.jsonl, from 1), path:row (.parquet
            from 0, .csv and .json from 1) or path:token.
        ids: of a document of a token file, without its end; else None.
    """

    text: bytes
    origin: object
    ids: NDArray[np.unsignedinteger[Any]] | None = None


@dataclass
class Skipped:
    """What was passed over, and how far reading has come.

    Attributes:
        empty_documents: of no or only white space.
        files_of_unknown_suffix, files_not_utf8, files_unreadable: files that were not read; of the last two, only in
            `python`.
        documents_not_utf8, documents_too_long, records_not_readable, files_damaged: what `on_error="skip"` passed
            over: documents, records that are not as their format says, and files that end before their end.
        first: what was said of the first of them.
        bytes_done: of the piece being read, on the disk.
    """

    empty_documents: int = 0
    files_of_unknown_suffix: int = 0
    files_not_utf8: int = 0
    files_unreadable: int = 0
    documents_not_utf8: int = 0
    documents_too_long: int = 0
    records_not_readable: int = 0
    files_damaged: int = 0
    documents_not_encoded: int = 0
    first: str | None = None
    bytes_done: int = field(default=0, compare=False)

    def counts(self) -> dict[str, Any]:
        """Everything but `bytes_done`, for a JSON object."""
        return {name: value for name, value in vars(self).items() if name != "bytes_done"}

    def add(self, counts: dict[str, Any]) -> None:
        """Add what another has counted, after this one."""
        for name, value in counts.items():
            if name == "first":
                self.first = self.first if self.first is not None else value
            else:
                setattr(self, name, getattr(self, name) + value)

    @property
    def bad(self) -> int:
        """How many things `on_error="skip"` passed over."""
        return sum(getattr(self, name) for name in BAD)


@dataclass(frozen=True)
class ReadOptions:
    """How sources are read.

    Attributes:
        text_key: the column that holds the text; dots lead into columns that hold others.
        on_error: "fail", or "skip" and count what is bad.
        max_document_bytes: a record above this is bad; a text above it is cut.
        cut_bytes: cut texts after the line that reaches so many bytes; None leaves them whole.
        cut_tokens: the same for token files.
        token_bytes: bytes an id of token files that do not say it; None takes what the tokenizer needs.
    """

    text_key: str = "text"
    on_error: str = "fail"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    cut_bytes: int | None = None
    cut_tokens: int | None = None
    token_bytes: int | None = None

    def bad(self, skipped: Skipped, kind: str, message: str, times: int = 1) -> None:
        """Something is bad: raise, or count it under the name of one of `Skipped`'s counts."""
        if self.on_error == "fail":
            raise UserError(message)
        setattr(skipped, kind, getattr(skipped, kind) + times)
        skipped.first = skipped.first if skipped.first is not None else message


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read by one process: it can be read on its own, and is what a restart skips.

    Attributes:
        source: whose it is.
        kind: which reader reads it.
        files: one, or several small texts; for a hub data set, its name.
        start, stop: of the file: bytes of a text or of .jsonl, row groups of .parquet, shards of a hub data set,
            tokens; None for all of it.
        size: bytes, for the progress; what they are bytes of differs by kind.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    start: int | None
    stop: int | None
    size: int


class Read(Protocol):
    """A reader: the documents of a piece, in order."""

    def __call__(self, piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]: ...


def check_utf8(text: bytes, what: str, reading: ReadOptions, skipped: Skipped, first_byte: int = 0) -> bool:
    """Whether `text` is UTF-8; where it is not, it is bad and the place is named."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        places = text.decode("utf-8", errors="replace").count("\ufffd") - text.count("\ufffd".encode())
        more = f", and {places - 1:,} more" if places > 1 else ""
        message = (
            f"{what}: is not UTF-8 text (byte {first_byte + error.start}: {error.reason}{more}); convert it, leave it "
            f"out, {SKIP_HINT}"
        )
        reading.bad(skipped, "documents_not_utf8", message)
        return False
    return True


def text_of_record(
    record: Mapping[str, Any], origin: object, reading: ReadOptions, skipped: Skipped, word: str
) -> bytes | None:
    """A record's text in UTF-8, None where the record is bad; `word` is what its columns are called."""
    if reading.text_key in record:  # as in nearly all of millions of records
        return text_of(record[reading.text_key], origin, reading, skipped)
    try:
        value = value_at(record, reading.text_key)
    except KeyError:
        message = f"{no_column(str(origin), reading.text_key, dotted_names(record), word)}, {SKIP_HINT}"
        reading.bad(skipped, "records_not_readable", message)
        return None
    return text_of(value, origin, reading, skipped)


def text_of(value: object, origin: object, reading: ReadOptions, skipped: Skipped) -> bytes | None:
    """A value as text in UTF-8, None where it is bad; a null is a document without text."""
    if value is None:
        return b""
    if not isinstance(value, str):
        message = f"{origin}: the value of {reading.text_key!r} is of type {type(value).__name__}, not a string"
        reading.bad(skipped, "records_not_readable", message)
        return None
    try:
        text = value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        where = f"{origin}: the value of {reading.text_key!r}"
        message = f"{where} is not Unicode text (a lone surrogate at character {error.start})"
        reading.bad(skipped, "documents_not_utf8", message)
        return None
    return None if is_too_long(len(text), origin, reading, skipped) else text


def is_too_long(size: int, origin: object, reading: ReadOptions, skipped: Skipped) -> bool:
    """Whether a record is longer than allowed, which is bad."""
    if size <= reading.max_document_bytes:
        return False
    reading.bad(
        skipped,
        "documents_too_long",
        f"{origin} is longer than {reading.max_document_bytes:,} bytes; raise --max-document-bytes, {SKIP_HINT}",
    )
    return True


def value_at(record: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or where there is no such key, of a field inside another that dots lead to (`meta.text`).

    A null on the way is a null.

    Raises:
        KeyError: where there is neither.
    """
    if key in record:
        return record[key]
    for place, character in enumerate(key):
        if character != "." or key[:place] not in record:
            continue
        inner = record[key[:place]]
        if inner is None:
            return None
        if isinstance(inner, Mapping):
            with contextlib.suppress(KeyError):
                return value_at(inner, key[place + 1 :])
    raise KeyError(key)


def path_of(columns: Mapping[str, Any], key: str) -> list[str]:
    """The names that lead to a column, as `value_at` finds a value; KeyError where there is none."""
    if key in columns:
        return [key]
    for place, character in enumerate(key):
        inner = columns.get(key[:place]) if character == "." else None
        if isinstance(inner, Mapping):
            with contextlib.suppress(KeyError):
                return [key[:place], *path_of(inner, key[place + 1 :])]
    raise KeyError(key)


def dotted_names(record: Mapping[str, Any]) -> list[str]:
    """The keys of a record, and of the records inside, as `--text-key` names them."""
    names: list[str] = []
    waiting = [("", record)]
    while waiting and len(names) < _MOST_NAMES:
        before, inside = waiting.pop(0)
        names += [f"{before}{key}" for key in inside]
        waiting += [(f"{before}{key}.", value) for key, value in inside.items() if isinstance(value, Mapping)]
    return names


def no_column(where: str, text_key: str, names: Sequence[str], word: str = "column", *, nested: bool = True) -> str:
    """What is said of a text column that is not there.

    Args:
        where: the place.
        text_key: the column that was asked for.
        names: of the columns that are there, those inside others with dots.
        word: what a column is called.
        nested: whether a column can lie inside another.
    """
    listed = [str(name) for name in names]
    some = ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
    last = text_key.rpartition(".")[2]
    near = [name for name in listed if name.rpartition(".")[2] == last]
    near = (near or difflib.get_close_matches(text_key, listed, n=3, cutoff=0.6))[:3]
    hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
    dots = f"; a {word} inside another is named with a dot, such as meta.text" if nested else ""
    return f"{where}: has no {word} {text_key!r} ({word}s: {some}){hint}; name the text with --text-key{dots}"
