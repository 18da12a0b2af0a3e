"""The interface of a tokenizer for the rest of the package.

A tokenizer has a name (what a user writes) and a fingerprint (a hash over its whole definition). Shards store the
fingerprint, so ids are never read with another tokenizer than the tokenizer that wrote them.

Every tokenizer has one id that ends a document. `encode` only turns text into ids and never returns this id, so text
that spells "<|endoftext|>" stays text. The code that writes documents appends the id.

The vocabulary size of the model (`vocab_size`) is padded to a multiple of 64, because matrix kernels are faster then.
The ids from `num_ids` up have no meaning and are never written.
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
END_OF_DOCUMENT = "<|endoftext|>"  # the end token of the tokenizers that this package makes
_VOCABULARY_MULTIPLE = 64


def padded(num_ids: int) -> int:
    """Return the `vocab_size` for a number of ids."""
    return -(-num_ids // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def is_tokenizers_own(error: BaseException) -> bool:
    """Return whether an exception of a tokenizer is about the text, and not about the machine or a signal.

    The library `tokenizers` raises plain `Exception`s, and also panics that are not subclasses of `Exception`.
    """
    if type(error).__name__ == "PanicException":
        return True
    return isinstance(error, Exception) and not isinstance(error, OSError | MemoryError)


class Tokenizer(Protocol):
    """A tokenizer: text to ids and back, and the bytes of text of each id."""

    @property
    def name(self) -> str:
        """The name that the user writes."""
        ...

    @property
    def vocab_size(self) -> int:
        """The rows of the model's embedding: `num_ids` padded to a multiple of 64."""
        ...

    @property
    def num_ids(self) -> int:
        """The number of ids with a meaning: 0 .. num_ids - 1."""
        ...

    @property
    def end_of_document_id(self) -> int:
        """The id after every document."""
        ...

    @property
    def end_token(self) -> str:
        """The end-of-document id as text."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the definition of the tokenizer."""
        ...

    @property
    def encoded_dtype(self) -> np.dtype[Any]:
        """The dtype of `encode`: the smallest unsigned integers for all ids except the end-of-document id."""
        ...

    @property
    def is_costly(self) -> bool:
        """Whether encoding takes far longer than reading, so that more processes save time also for a small corpus."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether, for every text, the `byte_lengths` of its ids sum to the number of its bytes."""
        ...

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        """Return the ids of `text`, (tokens,), read-only; never the end-of-document id."""
        ...

    def encode_documents(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger[Any]]]:
        """Return the ids of each text, as `encode` does; the texts are valid UTF-8."""
        ...

    def count_lost(self, text: bytes | None, ids: NDArray[np.integer[Any]]) -> tuple[int, int]:
        """Return the number of lost characters of a text and the number of all its characters, without white space.

        A lost character became the unknown token, or no token.

        Args:
            text: the text in UTF-8; None if only its ids are known, so that only unknown tokens are counted.
            ids: the ids of the text, without end-of-document ids.
        """
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Return the text of `ids`; invalid UTF-8 becomes U+FFFD, and ids without text are left out.

        Raises:
            ValueError: if an id is not in [0, vocab_size).
        """
        ...

    def byte_lengths(self) -> NDArray[np.int64]:
        """Return (vocab_size,): the bytes of text of each id; 0 for the end-of-document id and for padding.

        The numbers are not exact for a tokenizer that changes text before it splits it (lower case, a space in front).
        `dataset.json` holds the total error over a dataset, which is then corrected.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the files for `load_tokenizer` into `folder`."""
        ...

    def backend(self) -> Any:
        """Return a `tokenizers.Tokenizer` with the same ids, to make a Hugging Face tokenizer from."""
        ...
