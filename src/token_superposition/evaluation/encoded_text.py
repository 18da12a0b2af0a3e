"""Text for evaluation, encoded on the fly with the tokenizer of the model.

The documents follow each other, and each document ends with the end token, as in a prepared dataset. Long documents are
encoded in pieces, and only the text that will be scored is encoded.

Any fast tokenizer reports the position of each token in the text, from which the bytes per token follow. A token counts
the bytes after the end of all earlier tokens; the last token of a document also counts the remaining bytes. The sum is
therefore correct for any tokenizer. Characters without a token, or with only the unknown token, are counted separately,
because they make the bits per byte too low.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.readers import Corpus
from token_superposition.data.tokenizers import is_tokenizers_own
from token_superposition.data.tokenizers.text_loss import count_characters, not_covered
from token_superposition.errors import UserError

_PIECE_CHARACTERS = 2**16


class EncodedText:
    """The first tokens of a corpus, in the form that a `Validator` scores.

    Args:
        corpus: the documents.
        tokenizer: a fast Hugging Face tokenizer.
        max_tokens: largest number of tokens.

    Attributes:
        text_lost: share of the characters of the encoded text that the tokenizer lost.

    Raises:
        UserError: if the tokenizer does not report token positions or fails on a document, or if the text cannot be
            read or has no token.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, max_tokens: int) -> None:
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer, so the bytes per token are unknown")
        parts: list[_Part] = []
        found = 0
        for part in _encode(corpus, tokenizer):
            parts.append(part)
            found += len(part.ids)
            if found >= max_tokens:
                break
        if not found:
            raise UserError(f"{', '.join(corpus.sizes)}: the tokenizer of the model returns no tokens for this text")
        self._ids = np.concatenate([part.ids for part in parts])[:max_tokens]
        num_bytes = np.concatenate([part.num_bytes for part in parts])[:max_tokens]
        self._until = np.concatenate([[0], np.cumsum(num_bytes)])
        self.text_lost = sum(part.lost for part in parts) / max(1, sum(part.characters for part in parts))

    @property
    def num_tokens(self) -> int:
        """Number of encoded tokens."""
        return len(self._ids)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """The tokens from `start` to `start + length - 1`, int64."""
        return self._ids[start : start + length]

    def count_bytes(self, start: int, length: int) -> int:
        """Bytes of the text of these tokens; special tokens have no bytes."""
        return int(self._until[start + length] - self._until[start])


class _Part(NamedTuple):
    """A part of a document.

    Attributes:
        ids, num_bytes: (tokens,), the ids, and the bytes of text per token.
        lost, characters: number of lost characters, and number of all characters.
    """

    ids: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    lost: int = 0
    characters: int = 0


def _encode(corpus: Corpus, tokenizer: Any) -> Iterator[_Part]:
    """Encode a corpus, part by part."""
    end = tokenizer.eos_token_id
    for document in corpus.documents():
        text, start, ids, left = document.text.decode("utf-8"), 0, [], 0
        while start < len(text):
            stop = text.find("\n", start + _PIECE_CHARACTERS) + 1 or len(text)
            piece = text[start:stop]
            encoded = _encode_piece(piece, document.origin, tokenizer, is_first=start == 0)
            ids, places = encoded["input_ids"], encoded["offset_mapping"]
            num_bytes = _bytes_by_token(piece, places)
            left += len(piece.encode("utf-8")) - int(num_bytes.sum())
            if ids:  # the last token gets the bytes after the end of all tokens
                num_bytes[-1] += left
                left = 0
            lost = not_covered(piece, ids, places, tokenizer.unk_token_id)
            yield _Part(np.array(ids, np.int64), num_bytes, lost, count_characters(piece.encode("utf-8")))
            start = stop
        if end is not None and (not ids or ids[-1] != end):
            yield _Part(np.array([end], np.int64), np.array([left], np.int64))


def _encode_piece(text: str, origin: object, tokenizer: Any, *, is_first: bool) -> Any:
    try:
        return tokenizer(
            text,
            add_special_tokens=is_first,
            split_special_tokens=True,  # text that looks like a special token is ordinary text
            return_offsets_mapping=True,
            verbose=False,
        )
    except BaseException as error:
        if not is_tokenizers_own(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{origin}: the tokenizer of the model cannot encode this document ({reason})") from None


def _bytes_by_token(text: str, places: list[tuple[int, int]]) -> NDArray[np.int64]:
    """For each token, the bytes of UTF-8 from the end of all earlier tokens to its own end."""
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points > 0x7F) + (code_points > 0x7FF) + (code_points > 0xFFFF).astype(np.int64)
    until = np.concatenate([[0], np.cumsum(widths)])
    ends = np.array([place[1] for place in places], dtype=np.int64)
    reached = np.maximum.accumulate(until[ends]) if len(ends) else ends
    return np.diff(reached, prepend=0)
