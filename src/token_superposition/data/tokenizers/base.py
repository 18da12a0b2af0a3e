"""What the rest of the package asks of a tokenizer.

A tokenizer is known by its name (what a user writes) and by its fingerprint (a hash over all that defines
it). Shards carry the fingerprint, so ids are never read with another tokenizer than the one that wrote them.

Every tokenizer has one id that ends a document. `encode` never gives it: it turns text into ids and nothing
else, so text that spells "<|endoftext|>" stays text. Whoever writes documents appends the id.

The vocabulary a model sees (`vocab_size`) is padded to a multiple of 64, which suits matrix kernels; the ids
from `num_ids` up stand for nothing and are never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)
END_OF_DOCUMENT = "<|endoftext|>"  # of the tokenizers that are made here
_VOCABULARY_MULTIPLE = 64


def padded(num_ids: int) -> int:
    """`vocab_size` of so many ids."""
    return -(-num_ids // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def is_tokenizers_own(error: BaseException) -> bool:
    """Whether an exception out of a tokenizer is about the text, and not about the machine or a signal.

    The library `tokenizers` raises plain `Exception`s, and panics that are no `Exception` at all.
    """
    if type(error).__name__ == "PanicException":
        return True
    return isinstance(error, Exception) and not isinstance(error, OSError | MemoryError)


class Tokenizer(Protocol):
    """Text to ids and back, and how many bytes of text each id stands for."""

    @property
    def name(self) -> str:
        """What the user calls it."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding: `num_ids` padded to a multiple of 64."""
        ...

    @property
    def num_ids(self) -> int:
        """Ids that stand for something: 0 .. num_ids - 1."""
        ...

    @property
    def end_of_document_id(self) -> int:
        """The id after every document."""
        ...

    @property
    def end_token(self) -> str:
        """How that id is written where somebody wants to read it."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over what defines it."""
        ...

    @property
    def encoded_dtype(self) -> np.dtype[Any]:
        """What `encode` gives: the narrowest unsigned integers that hold every id but the end's."""
        ...

    @property
    def is_costly(self) -> bool:
        """Whether encoding takes far longer than reading, so that a process for it soon pays."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether `byte_lengths` of the ids of any text add up to the text's bytes."""
        ...

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        """The ids of `text`, (tokens,), read-only. Never the end-of-document id."""
        ...

    def encode_documents(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger[Any]]]:
        """The ids of each of some texts in valid UTF-8, as `encode` gives them."""
        ...

    def count_lost(self, text: bytes | None, ids: NDArray[np.integer[Any]]) -> tuple[int, int]:
        """Characters of a text that became the unknown token or no token, of how many; white space is not counted.

        Args:
            text: in UTF-8; None where it is known by its ids alone, so that only unknown tokens are counted.
            ids: what it was encoded to, without ends of documents.
        """
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of `ids`; broken UTF-8 becomes U+FFFD, ids that stand for no text are dropped.

        Raises:
            ValueError: where an id is not in [0, vocab_size).
        """
        ...

    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocab_size,): bytes of text each id stands for; 0 for the end of a document and for padding.

        A tokenizer that changes text before it splits it (lower case, a space in front) cannot say this
        exactly; what it is off by over a dataset is in `dataset.json`, and corrected for.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` what `load_tokenizer` needs."""
        ...

    def backend(self) -> Any:
        """A `tokenizers.Tokenizer` with the same ids, for whoever wants a Hugging Face tokenizer."""
        ...
