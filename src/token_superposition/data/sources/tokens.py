"""Token files of other stacks, taken over as they are: nothing is encoded again.

- `.bin` of nanoGPT: ids of two bytes (four where the tokenizer has more than 65,536), and nothing else.
- `.bin` of llm.c and modded-nanogpt: a header of 256 integers of four bytes (a magic number, a version, the
  number of tokens), then ids of two bytes (GPT-2) or four (Llama 3).

Documents are what lies between the tokenizer's end tokens, whether the file puts them after (nanoGPT) or
before (llm.c) a document. The text is known by its ids alone, so such files are not mixed with text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.sources.document import Document, Piece, Reading, Skipped
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError

SUFFIX = ".bin"
RANGE_TOKENS = 2**24
_HEADER_INTEGERS = 256
_HEADER_BYTES = 4 * _HEADER_INTEGERS
_MAGIC = {20240520: "<u2", 20240801: "<u4"}  # of GPT-2 (llm.c, modded-nanogpt) and of Llama 3 (llm.c)


def token_map(path: str, tokenizer: Tokenizer) -> NDArray[Any]:
    """The ids of a file, mapped.

    Raises:
        UserError: where its length and its header do not fit each other.
    """
    size = Path(path).stat().st_size
    head = np.fromfile(path, dtype="<i4", count=min(_HEADER_INTEGERS, size // 4))
    magic = int(head[0]) if len(head) else 0
    if magic in _MAGIC and len(head) == _HEADER_INTEGERS:
        dtype, offset, wanted = np.dtype(_MAGIC[magic]), _HEADER_BYTES, int(head[2])
        if size != offset + wanted * dtype.itemsize:
            raise UserError(
                f"{path}: is cut short or damaged: its header says {wanted:,} tokens of {dtype.itemsize} bytes, after "
                f"which it would be {offset + wanted * dtype.itemsize:,} bytes long; it has {size:,}"
            )
    else:
        dtype, offset = np.dtype("<u2" if tokenizer.num_ids <= 2**16 else "<u4"), 0
        if size % dtype.itemsize:
            raise UserError(f"{path}: is no file of ids of {dtype.itemsize} bytes: it has {size:,} bytes")
    if size == offset:
        raise UserError(f"{path}: holds no tokens; leave it out")
    return np.memmap(path, dtype=dtype, mode="r", offset=offset).view(np.ndarray)


def read_tokens(piece: Piece, reading: Reading, skipped: Skipped, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents that end in a range of tokens.

    Raises:
        UserError: for an id that the tokenizer does not have.
    """
    (path,) = piece.files
    ids, end = token_map(path, tokenizer), tokenizer.end_of_document_id
    start, stop = piece.start or 0, len(ids) if piece.stop is None else piece.stop
    start, stop = _document_start(ids, start, end), _document_start(ids, stop, end)
    part = np.array(ids[start:stop])
    if len(part) and int(part.max()) >= tokenizer.num_ids:
        place = int(np.argmax(part))
        raise UserError(
            f"{path}: token {start + place:,} is {int(part[place])}, where tokenizer {tokenizer.name!r} has "
            f"{tokenizer.num_ids:,} ids; name the one that wrote it (--tokenizer)"
        )
    before = 0
    for after in [*np.flatnonzero(part == end).tolist(), len(part)]:
        size = reading.cut_tokens
        if size is None or after - before < 2 * size:
            size = after - before
        # Nothing lies before an end that comes first (llm.c's), nor after one that comes last (nanoGPT's).
        for first in range(before, after, max(size, 1)):
            yield Document(b"", f"{path}:{start + first}", part[first : min(first + size, after)])
        before = after + 1
    skipped.bytes_done = piece.size


def _document_start(ids: NDArray[Any], place: int, end: int) -> int:
    """The first token from `place` on that follows an end; `place` itself where none is near."""
    if not 0 < place < len(ids):
        return min(place, len(ids))
    found = np.flatnonzero(ids[place - 1 : place - 1 + RANGE_TOKENS] == end)
    return place + int(found[0]) if len(found) else place
