"""Bytes as tokens: this tokenizer needs no training and no download, and can encode every text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.tokenizers.base import END_OF_DOCUMENT, TOKENIZER_FILE
from token_superposition.files import write_json


class ByteTokenizer:
    """The ids 0 to 255 are the bytes of UTF-8; the id 256 ends a document."""

    name: str = "bytes"
    num_ids: int = 257
    vocab_size: int = 320
    end_of_document_id: int = 256
    end_token: str = END_OF_DOCUMENT
    encoded_dtype: np.dtype[Any] = np.dtype(np.uint8)
    is_costly: bool = False
    is_exact: bool = True

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._definition(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def encode_documents(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger[Any]]]:
        return [np.frombuffer(text, dtype=np.uint8) for text in texts]

    def count_lost(self, text: bytes | None, ids: NDArray[np.integer[Any]]) -> tuple[int, int]:  # noqa: ARG002
        return 0, len(ids)

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        values = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.vocab_size:
            raise ValueError(f"an id is not in [0, {self.vocab_size}): {values.min()} to {values.max()}")
        return values[values < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def byte_lengths(self) -> NDArray[np.int64]:
        return (np.arange(self.vocab_size) < 256).astype(np.int64)

    def save(self, folder: Path) -> None:
        write_json(folder / TOKENIZER_FILE, {**self._definition(), "fingerprint": self.fingerprint})

    def backend(self) -> Any:
        """Return a byte-level BPE without merges: every text becomes its UTF-8 bytes, and id b is byte b."""
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
        # The end token is in the vocabulary too: as an added token alone it would get the next free id.
        backend = Backend(models.BPE(vocab={**vocabulary, self.end_token: self.end_of_document_id}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(self.end_token, special=True, normalized=False)])
        return backend

    def _definition(self) -> dict[str, Any]:
        return {
            "kind": self.name,
            "num_ids": self.num_ids,
            "vocab_size": self.vocab_size,
            "end_of_document_id": self.end_of_document_id,
        }


def byte_characters() -> list[str]:
    """Return the character of each byte in byte-level BPE: itself if it is visible, else one from U+0100 up."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]
