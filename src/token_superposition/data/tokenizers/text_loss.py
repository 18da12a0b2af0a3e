"""Count the text that a tokenizer loses: characters that become the unknown token, or no token.

White space is not counted, because many tokenizers split at white space and leave it out. The count is exact if the
tokenizer does not change the text, and also if it changes the text and more than half a percent seems to be lost.
Otherwise the count is the difference between the characters of the text and the characters of its tokens. This
difference needs no second encoding, and is enough for a good tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.tokenizers.byte_level import byte_characters

Places = Iterator[tuple[str, list[int], list[tuple[int, int]]]]  # parts of a text, their ids, the ids' offsets
_LOOK_CLOSELY = 200  # the exact count is made if at least one of this many characters seems to be lost
_WHITE_BYTES = bytes(byte for byte in range(128) if chr(byte).isspace())
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # the character for a space in SentencePiece


def count_characters(text: bytes) -> int:
    """Return the number of characters of a UTF-8 text that are not white space."""
    if text.isascii():
        return len(text.translate(None, _WHITE_BYTES))
    return sum(map(len, text.decode("utf-8").split()))


def characters_by_id(
    vocabulary: dict[str, int], definition: dict[str, Any], unknown: int | None, size: int
) -> NDArray[np.int64]:
    """Return (size,): the characters of text of each id, without white space; 0 for the unknown token.

    Args:
        vocabulary: the id of each token.
        definition: the content of tokenizer.json.
        unknown: the id of the unknown token.
        size: the size of the result, at least the largest id plus one.
    """
    model = definition["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    added = {token["content"]: bool(token["special"]) for token in definition["added_tokens"]}
    parts = (definition.get("pre_tokenizer"), definition.get("normalizer"), definition.get("decoder"))
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    is_byte_level = any("'ByteLevel'" in str(part) for part in parts)
    counts = np.zeros(size, dtype=np.int64)
    for token, place in vocabulary.items():
        piece = token.removesuffix(suffix)
        if added.get(token) or place == unknown:
            continue
        if token in added:
            counts[place] = count_characters(token.encode("utf-8"))
        elif is_byte_level and byte_of.keys() >= set(piece):
            counts[place] = _begun(byte_of[character] for character in piece)
        elif found := _BYTE_PIECE.fullmatch(token):
            counts[place] = _begun([int(found[1], 16)])
        else:
            piece = piece.removeprefix(prefix).replace(_SPACE, " ")
            counts[place] = count_characters(piece.encode("utf-8", errors="replace"))
    return counts


def _begun(data: Iterable[int]) -> int:
    """Return the number of characters that begin in some bytes of UTF-8, without white space."""
    return sum(byte & 0xC0 != 0x80 and byte not in _WHITE_BYTES for byte in data)


def count_lost(
    text: bytes,
    ids: NDArray[Any],
    counts: NDArray[np.int64],
    unknown: int | None,
    encode: Callable[[str], Places] | None,
) -> tuple[int, int]:
    """Return the number of lost characters of a text, and the number of all its characters.

    Args:
        text: the text in UTF-8.
        ids: the ids of the text.
        counts: the result of `characters_by_id`.
        unknown: the id of the unknown token.
        encode: encodes the text again and yields each part of it, with its ids and their offsets; None if the tokenizer
            does not change the text, so that the difference is exact.
    """
    total = count_characters(text)
    num_unknown = 0 if unknown is None else int(np.count_nonzero(ids == unknown))
    lost = min(total, max(total - int(counts[ids].sum()), num_unknown))
    if encode is None or lost * _LOOK_CLOSELY <= total:
        return lost, total
    parts = encode(text.decode("utf-8"))
    return sum(not_covered(part, part_ids, places, unknown) for part, part_ids, places in parts), total


def not_covered(text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], unknown: int | None) -> int:
    """Return the number of characters, without white space, that only the unknown token or no token covers."""
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    is_unknown = np.asarray(ids, dtype=np.int64) == (-1 if unknown is None else unknown)
    known, lost = (_covered(len(text), spans[chosen]) for chosen in (~is_unknown, is_unknown))
    # A known token can also cover a character of the unknown token: a space that the tokenizer inserted before it has
    # no place in the text.
    places = np.flatnonzero(lost | ~known).tolist()
    return sum(map(len, "".join(text[place] for place in places).split()))


def _covered(length: int, spans: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (length,): whether each place is in one of the spans (n, 2); the end of a span is exclusive."""
    edges = np.zeros(length + 1, dtype=np.int64)
    np.add.at(edges, spans[:, 0], 1)
    np.add.at(edges, spans[:, 1], -1)
    return np.cumsum(edges[:-1]) > 0
