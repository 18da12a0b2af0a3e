"""Text as tokens to be scored, encoded on the fly with the model's own tokenizer.

Documents stand one after the other as the tokenizer writes them, each ended by the end token, as in a
prepared data set. Long documents are encoded in pieces, and no more of them than is going to be scored.

How many bytes of text a token stands for is told by its place in the text, which any fast tokenizer knows:
it stands for what no token before it reached. So the sum is right whatever the tokenizer does to the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.sources import Corpus
from token_superposition.errors import UserError

_PIECE_CHARACTERS = 2**16


class EncodedText:
    """The first tokens of a corpus; has what a `Validator` scores.

    Args:
        corpus: the documents.
        tokenizer: a fast Hugging Face tokenizer.
        max_tokens: where to stop.

    Raises:
        UserError: for a tokenizer that does not know the places of its tokens, or a text it cannot read.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, max_tokens: int) -> None:
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer: it cannot tell bytes of text by token")
        ids, num_bytes, found = [], [], 0
        for part, part_bytes in _encode(corpus, tokenizer):
            ids.append(part)
            num_bytes.append(part_bytes)
            found += len(part)
            if found >= max_tokens:
                break
        self._ids = np.concatenate(ids)[:max_tokens]
        self._until = np.concatenate([[0], np.cumsum(np.concatenate(num_bytes)[:max_tokens])])

    @property
    def num_tokens(self) -> int:
        """Tokens encoded."""
        return len(self._ids)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens start .. start + length - 1."""
        return self._ids[start : start + length]

    def count_bytes(self, start: int, length: int) -> int:
        """Bytes of text that those tokens stand for; special tokens stand for none."""
        return int(self._until[start + length] - self._until[start])


def _encode(corpus: Corpus, tokenizer: Any) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Ids and bytes, piece by piece."""
    for document in corpus.documents():
        text, start, ids = document.text.decode("utf-8"), 0, []
        while start < len(text):
            stop = text.find("\n", start + _PIECE_CHARACTERS) + 1 or len(text)
            piece = text[start:stop]
            encoded = tokenizer(
                piece,
                add_special_tokens=start == 0,
                split_special_tokens=True,  # text that spells a special token is text
                return_offsets_mapping=True,
                verbose=False,
            )
            ids = encoded["input_ids"]
            yield np.array(ids, dtype=np.int64), _bytes_by_token(piece, encoded["offset_mapping"])
            start = stop
        end = tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):
            yield np.array([end], dtype=np.int64), np.zeros(1, dtype=np.int64)


def _bytes_by_token(text: str, places: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Bytes of UTF-8 from the end of the tokens before to the end of each."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF).astype(np.int64)
    until = np.concatenate([[0], np.cumsum(widths)])
    ends = np.array([place[1] for place in places], dtype=np.int64)
    reached = np.maximum.accumulate(until[ends]) if len(ends) else ends
    return np.diff(reached, prepend=0)
