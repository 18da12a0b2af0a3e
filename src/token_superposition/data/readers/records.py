"""Records: .jsonl, .json and .csv, each record a document, plain or compressed.

.jsonl can be entered at any line, so a long plain file is read in ranges. A .json file is a list of objects,
or objects one after the other. Of none is more held than a record.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from token_superposition.data.readers.compression import DamagedError, Stream, open_stream, split_compression
from token_superposition.data.readers.document import (
    SKIP_HINT,
    Document,
    Piece,
    ReadOptions,
    Skipped,
    is_too_long,
    no_column,
    text_of_record,
)
from token_superposition.data.readers.text import line_start
from token_superposition.errors import UserError

_CHUNK = 2**20
_FAR = 2**62
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_LONGEST_WORD = 16  # of JSON's words and escapes: a fault further from the end is not that the text is cut there


class _Line(NamedTuple):
    """A line of a file; lines before `first`, the byte of the file that reading began at, are counted when asked."""

    path: str
    first: int
    number: int

    def __str__(self) -> str:
        return f"{self.path}:{_lines_before(self.path, self.first) + self.number}"


class _LongLineError(csv.Error):
    """A line of .csv that is longer than a record may be."""


def read_jsonl(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """A document a line."""
    (path,) = piece.files
    number, first, read = 0, 0, 0
    try:
        with open_stream(path) as stream:
            file, stop = stream.lines, _FAR
            if piece.stop is not None:
                stop = line_start(file, piece.stop)
                first = read = line_start(file, piece.start or 0)
                file.seek(first)
            while read < stop and (line := file.readline(reading.max_document_bytes + 1)):
                number += 1
                read += len(line)
                origin = _Line(path, first, number)
                if is_too_long(len(line), origin, reading, skipped):
                    read += _pass_over_line(file, line)
                elif not line.isspace():
                    text = _text_of_line(line, origin, reading, skipped)
                    if text is not None:
                        yield Document(text, origin)
                skipped.bytes_done = stream.tell() - (piece.start or 0)
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after line {number} ({error.reason})")


def read_json(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """A document an object, in a list or one after the other."""
    (path,) = piece.files
    number = 0
    try:
        with open_stream(path) as stream:
            for number, record in _values(stream, path, reading, skipped):
                text = _text_of_record(record, f"{path}:{number}", reading, skipped)
                if text is not None:
                    yield Document(text, f"{path}:{number}")
                skipped.bytes_done = stream.tell()
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after record {number} ({error.reason})")


def read_csv(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """A document a row; the first row names the columns."""
    (path,) = piece.files
    number = 0
    csv.field_size_limit(min(reading.max_document_bytes, 2**31 - 1))
    delimiter = "\t" if split_compression(path)[0].endswith(".tsv") else ","
    try:
        with open_stream(path) as stream:
            # What is no UTF-8 comes through as halves of surrogate pairs, to be found in its field.
            text = io.TextIOWrapper(stream.lines, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(_lines(text, reading.max_document_bytes), delimiter=delimiter, strict=True)
            header = _row(rows, f"{path}, first row", reading, skipped)
            if header is None:
                return
            if header.count(reading.text_key) != 1:
                raise UserError(_not_one_column(path, reading.text_key, header))
            column = header.index(reading.text_key)
            while True:
                number += 1
                origin = f"{path}:{number}"
                row = _row(rows, origin, reading, skipped)
                if row is None:
                    return
                if row and column < len(row):
                    field = _text_of_field(row[column], origin, reading, skipped)
                    if field is not None:
                        yield Document(field, origin)
                elif row:
                    message = f"{origin}: has {len(row)} fields, the first row has {len(header)}"
                    reading.bad(skipped, "records_not_readable", message)
                skipped.bytes_done = stream.tell()
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after row {number} ({error.reason})")


def _not_one_column(path: str, text_key: str, header: list[str]) -> str:
    if text_key not in header:
        return no_column(path, text_key, header, nested=False)
    return f"{path}: has {header.count(text_key)} columns {text_key!r}; give each a name of its own"


def _lines(file: IO[str], longest: int) -> Iterator[str]:
    while line := file.readline(longest + 1):
        if len(line) > longest:
            raise _LongLineError
        yield line


def _row(rows: Any, origin: str, reading: ReadOptions, skipped: Skipped) -> list[str] | None:
    """The next row of .csv; None at the end, and where it cannot be told how it goes on."""
    try:
        row: list[str] | None = next(rows, None)
    except csv.Error as error:
        if isinstance(error, _LongLineError) or "field limit" in str(error):
            is_too_long(reading.max_document_bytes + 1, origin, reading, skipped)
        else:
            message = f"{origin}: is not CSV ({error}, line {rows.line_num}); mend it, {SKIP_HINT}"
            reading.bad(skipped, "files_damaged", message)
        return None
    return row


@functools.lru_cache(maxsize=1)
def _lines_before(path: str, first: int) -> int:
    """Lines before a byte, so that messages name the right one."""
    lines = 0
    with Path(path).open("rb") as file:
        while first > 0 and (chunk := file.read(min(first, _CHUNK))):
            lines += chunk.count(b"\n")
            first -= len(chunk)
    return lines


def _pass_over_line(file: IO[bytes], part: bytes) -> int:
    passed = 0
    while part and not part.endswith(b"\n"):
        part = file.readline(_CHUNK)
        passed += len(part)
    return passed


def _text_of_line(line: bytes, origin: object, reading: ReadOptions, skipped: Skipped) -> bytes | None:
    try:
        text = line.rstrip().removeprefix(codecs.BOM_UTF8).decode("utf-8")
        record = json.loads(text)
    except UnicodeDecodeError as error:
        message = f"{origin}: is not UTF-8 (byte {error.start} of the line)"
        reading.bad(skipped, "documents_not_utf8", message)
        return None
    except json.JSONDecodeError as error:
        message = f"{origin}: is not JSON ({error.msg.removesuffix(' at')}, column {error.colno})"
        reading.bad(skipped, "records_not_readable", message)
        return None
    except (ValueError, RecursionError) as error:  # a number of more digits, or lists deeper than Python reads
        reading.bad(skipped, "records_not_readable", f"{origin}: is not JSON that Python reads ({error})")
        return None
    if twice := _has_twice(text, 0, len(text), reading.text_key):
        reading.bad(skipped, "records_not_readable", f"{origin}: {twice}")
        return None
    return _text_of_record(record, origin, reading, skipped)


@functools.lru_cache(maxsize=8)
def _names(text_key: str) -> tuple[str, ...]:
    """The text key, and the last of the keys that its dots lead through, in quotes."""
    return tuple(dict.fromkeys(f'"{name}"' for name in (text_key, text_key.rpartition(".")[2])))


def _has_twice(text: str, start: int, stop: int, text_key: str) -> str | None:
    """What to say of a JSON value in which an object has the text key twice: Python takes the last one silently."""
    names = _names(text_key)
    if text.count(names[0], start, stop) < 2 and (len(names) == 1 or text.count(names[1], start, stop) < 2):
        return None
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        found.extend(name.strip('"') for name in names if keys.count(name.strip('"')) > 1)

    json.loads(text[start:stop], object_pairs_hook=look)
    return f"has the key {found[0]!r} twice in one object; keep one of them, {SKIP_HINT}" if found else None


def _text_of_record(record: Any, origin: object, reading: ReadOptions, skipped: Skipped) -> bytes | None:
    if not isinstance(record, dict):
        message = f"{origin}: is a JSON {type(record).__name__}, not an object with a text key"
        reading.bad(skipped, "records_not_readable", message)
        return None
    return text_of_record(record, origin, reading, skipped, "key")


def _text_of_field(field: str, origin: str, reading: ReadOptions, skipped: Skipped) -> bytes | None:
    try:
        text = field.encode("utf-8")
    except UnicodeEncodeError as error:
        place = len(field[: error.start].encode("utf-8", errors="surrogateescape"))
        message = f"{origin}: column {reading.text_key!r} is not UTF-8 (byte {place} of the field)"
        reading.bad(skipped, "documents_not_utf8", message)
        return None
    return None if is_too_long(len(text), origin, reading, skipped) else text


def _values(stream: Stream, path: str, reading: ReadOptions, skipped: Skipped) -> Iterator[tuple[int, Any]]:
    """JSON values that follow each other, with or without lists about them; each with its number, from 1."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, place, wanted, ended, number = "", 0, 1, False, 0  # `wanted`: characters from `place` on
    is_open: bool | None = None  # whether a list is about them; None where one may begin

    def bad(kind: str, reason: object) -> None:
        reading.bad(skipped, kind, f"{path}:{number + 1}: {reason} (the rest of the file cannot be read)")

    while True:
        place = _end_of(_BETWEEN, text, place)
        if not ended and len(text) - place < wanted:
            chunk = stream.lines.read(max(_CHUNK, wanted))
            ended = not chunk
            try:
                text, place = text[place:] + decode.decode(chunk, final=ended), 0
            except UnicodeDecodeError as error:
                return bad("documents_not_utf8", f"is not UTF-8 ({error.reason}, near record {number + 1})")
            continue
        if place == len(text):
            return bad("records_not_readable", "the list does not end") if is_open else None
        if is_open is None and text[place] == "[":
            place, is_open = place + 1, True
            continue
        if is_open and text[place] == "]":
            place, is_open = place + 1, None
            continue
        try:
            value, end = decoder.raw_decode(text, place)
            if end == len(text) and not ended:  # a number may go on
                raise json.JSONDecodeError("cut", text, end)
        except json.JSONDecodeError as error:
            is_cut = error.msg.startswith("Unterminated") or error.pos > len(text) - _LONGEST_WORD
            if ended or not is_cut:
                return bad("records_not_readable", f"is not JSON ({error.msg.removesuffix(' at')})")
            if len(text) - place > reading.max_document_bytes + _CHUNK:
                return bad("documents_too_long", "is longer than --max-document-bytes, or not JSON")
            wanted = 2 * (len(text) - place)
            continue
        except (ValueError, RecursionError) as error:
            return bad("records_not_readable", f"is not JSON that Python reads ({error})")
        number, wanted, is_open = number + 1, 1, bool(is_open)
        if twice := _has_twice(text, place, end, reading.text_key):
            reading.bad(skipped, "records_not_readable", f"{path}:{number}: {twice}")
        else:
            yield number, value
        place = end


def _end_of(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return place if match is None else match.end()
