"""Records: .jsonl, .json and .csv, each record a document, plain or compressed.

.jsonl can be entered at any line, so a long plain file is read in ranges. A .json file is a list of objects,
or objects one after the other. Of none is more held than a record.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from token_superposition.data.sources.compression import DamagedError, Stream, open_stream, split_compression
from token_superposition.data.sources.document import (
    SKIP_HINT,
    Document,
    Piece,
    Reading,
    Skipped,
    is_too_long,
    no_column,
    text_of,
)
from token_superposition.data.sources.text import line_start

_CHUNK = 2**20
_FAR = 2**62
_SPACE_AND_COMMA = " \t\r\n,"


def read_jsonl(piece: Piece, reading: Reading, skipped: Skipped) -> Iterator[Document]:
    """A document a line."""
    (path,) = piece.files
    number, read = 0, piece.start or 0
    try:
        with open_stream(path) as stream:
            file, stop = stream.lines, _FAR
            if piece.stop is not None:
                stop = line_start(file, piece.stop)
                first = line_start(file, piece.start or 0)
                file.seek(first)
                number, read = _lines_before(path, first), first
            while read < stop and (line := file.readline(reading.max_document_bytes + 1)):
                number += 1
                read += len(line)
                origin = f"{path}:{number}"
                if is_too_long(len(line), origin, reading, skipped):
                    read += _pass_over_line(file, line)
                elif not line.isspace():
                    text = _text_of_line(line, origin, reading, skipped)
                    if text is not None:
                        yield Document(text, origin)
                skipped.bytes_done = stream.tell() - (piece.start or 0)
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after line {number} ({error.reason})")


def read_json(piece: Piece, reading: Reading, skipped: Skipped) -> Iterator[Document]:
    """A document an object, in a list or one after the other."""
    (path,) = piece.files
    number = 0
    try:
        with open_stream(path) as stream:
            for number, record in enumerate(_values(stream, path, reading, skipped), start=1):
                text = _text_of_record(record, f"{path}:{number}", reading, skipped)
                if text is not None:
                    yield Document(text, f"{path}:{number}")
                skipped.bytes_done = stream.tell()
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after record {number} ({error.reason})")


def read_csv(piece: Piece, reading: Reading, skipped: Skipped) -> Iterator[Document]:
    """A document a row; the first row names the columns."""
    (path,) = piece.files
    number = 0
    csv.field_size_limit(min(reading.max_document_bytes, 2**31 - 1))
    delimiter = "\t" if split_compression(path)[0].endswith(".tsv") else ","
    try:
        with open_stream(path) as stream:
            # What is no UTF-8 comes through as halves of surrogate pairs, to be found in its field.
            lines = io.TextIOWrapper(stream.lines, encoding="utf-8-sig", errors="surrogateescape", newline="")
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            header = next(rows, [])
            if reading.text_key not in header:
                raise no_column(path, reading.text_key, header)
            column = header.index(reading.text_key)
            while True:
                number += 1
                origin = f"{path}:{number}"
                try:
                    row = next(rows, None)
                except csv.Error as error:  # where it goes on is not known
                    if "field limit" in str(error):
                        is_too_long(reading.max_document_bytes + 1, origin, reading, skipped)
                    else:
                        message = f"{origin}: is not CSV ({error}, line {rows.line_num}); mend it, {SKIP_HINT}"
                        reading.bad(skipped, "files_damaged", message)
                    return
                if row is None:
                    return
                if row and column < len(row):
                    text = _text_of_field(row[column], origin, reading, skipped)
                    if text is not None:
                        yield Document(text, origin)
                elif row:
                    message = f"{origin}: has {len(row)} fields, the first row has {len(header)}"
                    reading.bad(skipped, "records_not_readable", message)
                skipped.bytes_done = stream.tell()
    except DamagedError as error:
        reading.bad(skipped, "files_damaged", f"{path}: {error} after row {number} ({error.reason})")


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


def _text_of_line(line: bytes, origin: str, reading: Reading, skipped: Skipped) -> bytes | None:
    try:
        record = json.loads(line.rstrip().removeprefix(codecs.BOM_UTF8).decode("utf-8"))
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
    return _text_of_record(record, origin, reading, skipped)


def _text_of_record(record: Any, origin: str, reading: Reading, skipped: Skipped) -> bytes | None:
    if not isinstance(record, dict):
        message = f"{origin}: is a JSON {type(record).__name__}, not an object with a text key"
        reading.bad(skipped, "records_not_readable", message)
        return None
    if reading.text_key not in record:
        raise no_column(origin, reading.text_key, record, "key")
    return text_of(record[reading.text_key], f"{origin}: the value of {reading.text_key!r}", reading, skipped)


def _text_of_field(field: str, origin: str, reading: Reading, skipped: Skipped) -> bytes | None:
    try:
        text = field.encode("utf-8")
    except UnicodeEncodeError as error:
        place = len(field[: error.start].encode("utf-8", errors="surrogateescape"))
        message = f"{origin}: column {reading.text_key!r} is not UTF-8 (byte {place} of the field)"
        reading.bad(skipped, "documents_not_utf8", message)
        return None
    return None if is_too_long(len(text), origin, reading, skipped) else text


def _values(stream: Stream, path: str, reading: Reading, skipped: Skipped) -> Iterator[Any]:
    """JSON values that follow each other, with or without a list about them."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")()
    text, wanted, ended, number = "", _CHUNK, False, 0

    def bad(kind: str, reason: object) -> None:
        reading.bad(skipped, kind, f"{path}:{number + 1}: {reason} (the rest of the file cannot be read)")

    depth: int | None = None  # of the list about them: 1 while it is open
    while True:
        while not ended and len(text) < wanted:
            chunk = stream.lines.read(_CHUNK)
            ended = not chunk
            try:
                text += decode.decode(chunk, final=ended)
            except UnicodeDecodeError as error:
                return bad("documents_not_utf8", f"is not UTF-8 ({error.reason}, near record {number + 1})")
        start = len(text) - len(text.lstrip(_SPACE_AND_COMMA))
        if start == len(text) and ended:
            return bad("records_not_readable", "the list does not end") if depth else None
        if depth is None and start < len(text):
            depth = int(text[start] == "[")
            start += depth
            start += len(text) - start - len(text[start:].lstrip(_SPACE_AND_COMMA))
        if depth and text[start : start + 1] == "]":
            return None
        try:
            value, end = decoder.raw_decode(text, start)
            if end == len(text) and not ended:  # a number may go on
                raise json.JSONDecodeError("cut", text, end)
        except json.JSONDecodeError as error:
            if ended:
                return bad("records_not_readable", f"is not JSON ({error.msg.removesuffix(' at')})")
            if len(text) > reading.max_document_bytes + _CHUNK:
                return bad("documents_too_long", "is longer than --max-document-bytes, or not JSON")
            text, wanted = text[start:], 2 * max(len(text), _CHUNK)
            continue
        except (ValueError, RecursionError) as error:
            return bad("records_not_readable", f"is not JSON that Python reads ({error})")
        yield value
        number += 1
        text, wanted = text[end:], _CHUNK
