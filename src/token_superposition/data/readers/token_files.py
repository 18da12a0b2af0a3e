"""Token files of other stacks, taken over as they are: nothing is encoded again.

- `.bin` of nanoGPT: ids of two bytes (four where the tokenizer has more than 65,536), and nothing else. A file of
  another width looks like text to nobody but a program, so it is looked for and refused; `token_bytes` names the width.
- `.npy` of numpy: one row of integers, of the type that the file names.
- `.bin` of llm.c and modded-nanogpt: a header of 256 integers of four bytes (a magic number, a version, the
  number of tokens), then ids of two bytes (GPT-2) or four (Llama 3).

Documents are what lies between the tokenizer's end tokens, whether the file puts them after (nanoGPT) or
before (llm.c) a document. The text is known by its ids alone, so such files are not mixed with text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.readers.document import Document, Piece, ReadOptions, Skipped
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError

RANGE_TOKENS = 2**24
_SAMPLE = 2**20  # ids, a multiple of 8, that are looked at in each of three places
_FEW = 16  # ids; of fewer, nothing can be said
_HEADER_INTEGERS = 256
_HEADER_BYTES = 4 * _HEADER_INTEGERS
_MAGIC = {20240520: "<u2", 20240801: "<u4"}  # of GPT-2 (llm.c, modded-nanogpt) and of Llama 3 (llm.c)


def token_map(path: str, tokenizer: Tokenizer, token_bytes: int | None = None) -> NDArray[Any]:
    """The ids of a file, mapped.

    Args:
        path: the file.
        tokenizer: that wrote it.
        token_bytes: bytes an id, 2, 4 or 8; without it, what the file says or else what the tokenizer needs.

    Raises:
        UserError: where its length and its header do not fit each other.
    """
    ids = _numpy_map(path) if path.lower().endswith(".npy") else _bin_map(path, tokenizer, token_bytes)
    if not len(ids):
        raise UserError(f"{path}: holds no tokens; leave it out")
    if token_bytes not in (None, ids.itemsize):
        raise UserError(f"--token-bytes: {path} says that its ids have {ids.itemsize} bytes, not {token_bytes}")
    return ids


def _numpy_map(path: str) -> NDArray[Any]:
    try:
        ids = np.lib.format.open_memmap(path, mode="r")  # which reads no pickle
    except Exception as error:  # numpy raises several kinds for a damaged header
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is no array of numpy, or is cut short or damaged ({reason})") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        shape = " x ".join(map(str, ids.shape)) or "a single number"
        raise UserError(f"{path}: holds {ids.dtype} of shape {shape}; token ids are one row of integers")
    return ids.view(np.ndarray)


def _bin_map(path: str, tokenizer: Tokenizer, token_bytes: int | None) -> NDArray[Any]:
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
        dtype, offset = np.dtype(f"<u{token_bytes or (2 if tokenizer.num_ids <= 2**16 else 4)}"), 0
        if size % dtype.itemsize:
            raise UserError(f"{path}: is no file of ids of {dtype.itemsize} bytes: it has {size:,} bytes")
    if size == offset:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset).view(np.ndarray)


def check_ids(path: str, ids: NDArray[Any], tokenizer: Tokenizer) -> None:
    """Look at the begin, the middle and the end of a file; UserError where its ids have another width than assumed."""
    if path.lower().endswith(".npy"):  # which says the width itself
        return
    places = (0, (len(ids) - _SAMPLE) // 2 // 8 * 8, (len(ids) - _SAMPLE) // 8 * 8)
    parts = [np.array(ids[max(0, place) :][:_SAMPLE]) for place in places]
    found = _guess(parts, ids.dtype, tokenizer.num_ids)
    if found != ids.dtype and found is not None and any(map(_is_interleaved, parts)):
        raise UserError(
            f"{path}: every second id is 0 if its ids are read as {_words(ids.dtype)}; {_seems(path, found)}"
        )


def _is_interleaved(ids: NDArray[Any]) -> bool:
    """Whether every second id is 0 throughout and others are not, which no text is: numbers of twice the width."""
    lanes = ids[0::2], ids[1::2]
    return len(ids) >= _FEW and any(lane.any() for lane in lanes) and not all(lane.any() for lane in lanes)


def _guess(parts: Sequence[NDArray[Any]], assumed: np.dtype[Any], num_ids: int) -> np.dtype[Any] | None:
    """The type of integer that a file's ids can be of: the assumed one before others; None where there is none."""

    def fits(name: str) -> bool:
        dtype = np.dtype(name)
        read = [part[: part.nbytes // dtype.itemsize * dtype.itemsize // part.itemsize].view(dtype) for part in parts]
        in_vocabulary = all(len(each) and 0 <= int(each.min()) <= int(each.max()) < num_ids for each in read)
        return in_vocabulary and not any(map(_is_interleaved, read))

    names = [assumed.str, *(f"{order}u{width}" for order in "<>" for width in (8, 4, 2))]  # narrow reads fit by chance
    return next((np.dtype(name) for name in names if fits(name)), None)


def _signed(value: Any) -> str:
    """An id; an impossible one as the negative number that a file of signed integers means, too."""
    bits = 8 * value.itemsize
    return f"{value}, or {int(value) - 2**bits} with a sign" if bits > 16 and value >= 2 ** (bits - 1) else str(value)


def _words(dtype: np.dtype[Any]) -> str:
    return f"integers of {dtype.itemsize} bytes{', the highest byte first' if dtype.str[0] == '>' else ''}"


def _seems(path: str, found: np.dtype[Any]) -> str:
    if found.str[0] == ">":
        name = f"<u{found.itemsize}"
        fix = f"turn them round: np.fromfile({path!r}, {found.str!r}).astype({name!r}).tofile(...)"
    else:
        fix = f"name their width: --token-bytes {found.itemsize}"
    return f"the file seems to hold {_words(found)}; {fix}"


def read_tokens(piece: Piece, reading: ReadOptions, skipped: Skipped, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents that end in a range of tokens.

    Raises:
        UserError: for an id that the tokenizer does not have.
    """
    (path,) = piece.files
    ids, end = token_map(path, tokenizer, reading.token_bytes), tokenizer.end_of_document_id
    start, stop = piece.start or 0, len(ids) if piece.stop is None else piece.stop
    start, stop = _document_start(ids, start, end), _document_start(ids, stop, end)
    part = np.array(ids[start:stop])
    if len(part) and not 0 <= int(part.min()) <= int(part.max()) < tokenizer.num_ids:
        place = int(np.argmax((part < 0) | (part >= tokenizer.num_ids)))
        found = None if path.lower().endswith(".npy") else _guess([part], part.dtype, tokenizer.num_ids)
        raise UserError(
            f"{path}: token {start + place:,} is {_signed(part[place])}, where tokenizer {tokenizer.name!r} has "
            f"{tokenizer.num_ids:,} ids; name the one that wrote it (--tokenizer)"
            + (f"; {_seems(path, found)}" if found is not None else "")
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
