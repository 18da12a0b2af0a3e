"""The types that all readers share: documents, pieces of a source, read options, and counts of skipped documents."""

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
_MOST_NAMES = 1000  # the number of keys that are searched for a message
SKIP_HINT = "or skip bad documents (--on-error skip)"


@dataclass(frozen=True)
class Document:
    """A document: its text in valid UTF-8, and its origin.

    Attributes:
        text: the text; empty for a document of a token file.
        origin: the place. Its `str` is a path, path:byte (a part of a long text), path:line (.jsonl, from 1), path:row
            (.parquet from 0, .csv and .json from 1) or path:token.
        ids: the ids of a document of a token file, without the end-of-document id; None for text.
    """

    text: bytes
    origin: object
    ids: NDArray[np.unsignedinteger[Any]] | None = None


@dataclass
class Skipped:
    """The counts of skipped documents and files, and the progress of reading.

    Attributes:
        empty_documents: documents that are empty or hold only white space.
        files_of_unknown_suffix, files_not_utf8, files_unreadable: files that were not read; the last two only in
            `python`.
        documents_not_utf8, documents_too_long, records_not_readable, files_damaged, documents_not_encoded: documents,
            records that do not follow their format, and damaged files that `on_error="skip"` skipped.
        first: the message about the first skipped document, record or file.
        bytes_done: the bytes on disk that were read of the current piece.
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
        """Return all values except `bytes_done`, for a JSON object."""
        return {name: value for name, value in vars(self).items() if name != "bytes_done"}

    def add(self, counts: dict[str, Any]) -> None:
        """Add the counts of a later piece."""
        for name, value in counts.items():
            if name == "first":
                self.first = self.first if self.first is not None else value
            else:
                setattr(self, name, getattr(self, name) + value)

    @property
    def bad(self) -> int:
        """The number of documents, records and files that `on_error="skip"` skipped."""
        return sum(getattr(self, name) for name in BAD)


@dataclass(frozen=True)
class ReadOptions:
    """The options for reading sources.

    Attributes:
        text_key: the column that holds the text; dots name nested columns.
        on_error: "fail" raises an error at a bad document; "skip" skips and counts bad documents.
        max_document_bytes: a longer record is bad; a longer text is split.
        cut_bytes: split a text after the line that reaches this number of bytes; None does not split texts.
        cut_tokens: the same for token files, in tokens.
        token_bytes: bytes per id of token files that do not say it; None uses the width that the tokenizer needs.
    """

    text_key: str = "text"
    on_error: str = "fail"
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    cut_bytes: int | None = None
    cut_tokens: int | None = None
    token_bytes: int | None = None

    def bad(self, skipped: Skipped, kind: str, message: str, times: int = 1) -> None:
        """Report a bad document: raise UserError, or add `times` to the count `kind` of `Skipped`."""
        if self.on_error == "fail":
            raise UserError(message)
        setattr(skipped, kind, getattr(skipped, kind) + times)
        skipped.first = skipped.first if skipped.first is not None else message


@dataclass(frozen=True)
class Piece:
    """A part of a source that one process reads separately; a restart skips finished pieces.

    Attributes:
        source: the name of the source.
        kind: the name of the reader.
        files: one file, or several small texts; empty for a hub dataset.
        start, stop: the range in the file: bytes of a text or of .jsonl, row groups of .parquet, shards of a hub
            dataset, or tokens; None for the whole file.
        size: the size for the progress, in bytes; the unit depends on the kind.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    start: int | None
    stop: int | None
    size: int


class Read(Protocol):
    """A reader: yields the documents of a piece, in order."""

    def __call__(self, piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]: ...


def check_utf8(text: bytes, what: str, reading: ReadOptions, skipped: Skipped, first_byte: int = 0) -> bool:
    """Return whether `text` is UTF-8; report a bad document with its place if it is not."""
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
    """Return the text of a record in UTF-8, or None if the record is bad; `word` is the word for its columns."""
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
    """Return a value as text in UTF-8, or None if it is bad; a null is an empty document."""
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
    """Return whether a record is too long, and report it as bad if so."""
    if size <= reading.max_document_bytes:
        return False
    reading.bad(
        skipped,
        "documents_too_long",
        f"{origin} is longer than {reading.max_document_bytes:,} bytes; raise --max-document-bytes, {SKIP_HINT}",
    )
    return True


def value_at(record: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key; if there is no such key, dots in the key name a nested field (`meta.text`).

    If an outer field is null, the value is null.

    Raises:
        KeyError: if there is neither such a key nor such a nested field.
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
    """Return the path of names to a column, by the rule of `value_at`; raise KeyError if there is none."""
    if key in columns:
        return [key]
    for place, character in enumerate(key):
        inner = columns.get(key[:place]) if character == "." else None
        if isinstance(inner, Mapping):
            with contextlib.suppress(KeyError):
                return [key[:place], *path_of(inner, key[place + 1 :])]
    raise KeyError(key)


def dotted_names(record: Mapping[str, Any]) -> list[str]:
    """Return the keys of a record and of its nested records, in the form of `--text-key`."""
    names: list[str] = []
    waiting = [("", record)]
    while waiting and len(names) < _MOST_NAMES:
        before, inside = waiting.pop(0)
        names += [f"{before}{key}" for key in inside]
        waiting += [(f"{before}{key}.", value) for key, value in inside.items() if isinstance(value, Mapping)]
    return names


def no_column(where: str, text_key: str, names: Sequence[str], word: str = "column", *, nested: bool = True) -> str:
    """Return the message for a missing text column.

    Args:
        where: the place.
        text_key: the requested column.
        names: the names of the existing columns, with dots for nested columns.
        word: the word for a column.
        nested: whether columns can be nested.
    """
    listed = [str(name) for name in names]
    some = ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
    last = text_key.rpartition(".")[2]
    near = [name for name in listed if name.rpartition(".")[2] == last]
    near = (near or difflib.get_close_matches(text_key, listed, n=3, cutoff=0.6))[:3]
    hint = f"; nearest: {', '.join(map(repr, near))}" if near else ""
    dots = f"; a {word} inside another is named with a dot, such as meta.text" if nested else ""
    return f"{where}: has no {word} {text_key!r} ({word}s: {some}){hint}; name the text with --text-key{dots}"
