"""Tokenizers: text to ids and back, and how many bytes of text each id stands for.

A tokenizer is known by its name (what a user writes) and by its fingerprint (a hash over all that defines
it). Shards carry the fingerprint, so ids are never read with another tokenizer than the one that wrote them.

Every tokenizer has one id that ends a document. `encode` never gives it: it turns text into ids and nothing
else, so text that spells "<|endoftext|>" stays text. Whoever writes documents appends the id.

The vocabulary a model sees (`vocab_size`) is padded to a multiple of 64, which suits matrix kernels; the ids
from `num_ids` up stand for nothing and are never written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from token_superposition.errors import UserError, did_you_mean
from token_superposition.files import read_object, write_json

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What the rest of the package asks of a tokenizer."""

    @property
    def name(self) -> str:
        """What `make_tokenizer` knows it by."""
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
    def fingerprint(self) -> str:
        """SHA-256, in hex, over what defines it."""
        ...

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        """The ids of `text`, (tokens,), of any unsigned width; read-only. Never the end-of-document id."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """The text of `ids`; broken UTF-8 becomes U+FFFD, ids that stand for no text are dropped.

        Raises:
            ValueError: where an id is not in [0, vocab_size).
        """
        ...

    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocab_size,): bytes of text each id stands for; 0 for the end of a document and for padding."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` what `load_tokenizer` needs."""
        ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 ends a document. Nothing to train, nothing to download."""

    name: str = "bytes"
    num_ids: int = 257
    vocab_size: int = 320
    end_of_document_id: int = 256

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._definition(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        values = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.vocab_size:
            raise ValueError(f"an id is not in [0, {self.vocab_size}): {values.min()} to {values.max()}")
        return values[values < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def byte_lengths(self) -> NDArray[np.int64]:
        return (np.arange(self.vocab_size) < 256).astype(np.int64)

    def save(self, folder: Path) -> None:
        write_json(folder / TOKENIZER_FILE, {**self._definition(), "fingerprint": self.fingerprint})

    def _definition(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "num_ids": self.num_ids,
            "vocab_size": self.vocab_size,
            "end_of_document_id": self.end_of_document_id,
        }


_KINDS = {"bytes": ByteTokenizer}


def make_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name ("bytes"); UserError, naming those there are, for any other."""
    if name not in _KINDS:
        raise UserError(f"tokenizer {name!r} is not known{did_you_mean(name, _KINDS)} (known: {', '.join(_KINDS)})")
    return _KINDS[name]()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that was saved into `folder`.

    Raises:
        UserError: where its file is missing or broken, or this version would encode otherwise.
    """
    file, mend = folder / TOKENIZER_FILE, "prepare the data again"
    try:
        saved = read_object(file, mend)
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; {mend}") from None
    kind, fingerprint = saved.get("kind"), saved.get("fingerprint")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(f"{file}: names no tokenizer that this version knows ({kind!r}); {mend}")
    tokenizer = make_tokenizer(kind)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{file}: was written by another version of tokenizer {kind!r}; {mend}")
    return tokenizer
