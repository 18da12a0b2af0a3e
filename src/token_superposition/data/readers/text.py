"""Read text, Markdown and code: one document per file, or several documents if texts are split.

A long file is read in ranges of bytes, each separately. The start of a range depends only on the file (the line end
next to a round number), so neighbouring ranges fit together without communication. A compressed file cannot be read
from its middle, so it is read and split as a stream.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from token_superposition.data.readers.compression import DamagedError, open_stream, split_compression
from token_superposition.data.readers.document import Document, Piece, ReadOptions, Skipped, check_utf8

RANGE_BYTES = 2**25  # per range of a long text or .jsonl; if texts are split, the documents depend on this number
LONGEST_CUT = 2**24  # the maximum size of the parts of a text above --max-document-bytes
_SEARCHED = 2**20  # the bytes that are searched for a line end


def read_texts(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """Yield the documents of some files, or of a range of one file."""
    before = 0
    for path in piece.files:
        if split_compression(path)[1]:
            yield from _compressed(path, reading, skipped)
        else:
            size = reading.cut_bytes
            if piece.stop is None:
                first, text = 0, Path(path).read_bytes()
            else:
                first, text = _range(path, piece.start or 0, piece.stop)
                size = min(size or LONGEST_CUT, LONGEST_CUT)
            if check_utf8(text, path, reading, skipped, first):
                if not first:
                    text = text.removeprefix(codecs.BOM_UTF8)
                for start, part in _cut(text, size):
                    yield Document(part, f"{path}:{first + start}" if first + start else path)
            before += len(text)
        skipped.bytes_done = min(before, piece.size)


def line_start(file: IO[bytes], place: int) -> int:
    """Return the first byte from `place` on that begins a line, or the end of the file."""
    if place == 0:
        return 0
    file.seek(place - 1)
    while (part := file.readline(_SEARCHED)) and not part.endswith(b"\n"):
        pass
    return file.tell()


def _range_start(file: IO[bytes], place: int) -> int:
    """Return the start of the next line, or of the next character if no line ends near."""
    if place == 0:
        return 0
    file.seek(place - 1)
    data = file.readline(_SEARCHED)
    if data.endswith(b"\n"):
        return place - 1 + len(data)
    for skip, byte in enumerate(data[1:5]):
        if byte & 0xC0 != 0x80:  # not inside a character of UTF-8
            return place + skip
    return place - 1 + len(data)


def _range(path: str, start: int, stop: int) -> tuple[int, bytes]:
    with Path(path).open("rb") as file:
        first = _range_start(file, start)
        last = _range_start(file, stop)
        file.seek(first)
        return first, file.read(last - first)


def _cut(text: bytes, size: int | None) -> Iterator[tuple[int, bytes]]:
    """Split a text after the line that reaches `size` bytes; yield each part with its first byte."""
    if size is None or len(text) < 2 * size:
        yield 0, text
        return
    start = 0
    while start < len(text):
        stop = text.find(b"\n", start + size - 1) + 1
        if stop == 0 or len(text) - stop < size:  # a short rest stays with this part
            stop = len(text)
        yield start, text[start:stop]
        start = stop


def _compressed(path: str, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    size = reading.cut_bytes
    first, pending = 0, b""  # `pending`: the first bytes of a character whose end was not read yet
    try:
        with open_stream(path) as stream:
            while True:
                limit = RANGE_BYTES if size is not None else reading.max_document_bytes
                data = stream.lines.read(limit)
                text, pending = pending + data, b""
                if len(data) == limit:  # the text continues: read to the line end, and split it from here on
                    text += stream.lines.readline(_SEARCHED)
                    whole = _whole_characters(text)
                    text, pending = text[:whole], text[whole:]
                    size = min(size or LONGEST_CUT, LONGEST_CUT)
                elif not text:
                    return
                if text and check_utf8(text, path, reading, skipped, first):
                    for start, part in _cut(text.removeprefix(codecs.BOM_UTF8) if not first else text, size):
                        yield Document(part, f"{path}:{first + start}" if first + start else path)
                first += len(text)
                skipped.bytes_done = stream.tell()
    except DamagedError as error:
        message = f"{path}: {error} after byte {first:,} of the text ({error.reason})"
        reading.bad(skipped, "files_damaged", message)


def _whole_characters(text: bytes) -> int:
    """Return the number of bytes up to the end of the last whole character of a UTF-8 text."""
    for back in range(1, min(4, len(text)) + 1):
        lead = text[-back]
        if lead & 0xC0 != 0x80:  # a character begins here; compute its number of bytes
            length = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
            return len(text) - back if length > back else len(text)
    return len(text)
