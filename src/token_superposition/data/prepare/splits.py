"""Write a split as shards with a maximum number of tokens and of documents.

A document that is longer than a shard continues in the next shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.dataset import ShardWriter
from token_superposition.data.manifest import shard_name
from token_superposition.data.prepare.spill import Rows
from token_superposition.data.tokenizers import Tokenizer

COUNTED = ("tokens", "bytes", "documents")
_MOST_DOCUMENTS = 2**24  # per shard; their ends are in memory until the shard is written, 8 bytes each


class SplitWriter:
    """Writes a split in a `with` block.

    Args:
        folder: the folder of the shards.
        split: the name of the split.
        tokenizer: the tokenizer of the ids.
        max_tokens: the maximum number of tokens per shard.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._folder, self._split, self._tokenizer, self._max_tokens = folder, split, tokenizer, max_tokens
        self._shard: ShardWriter | None = None
        self._shards: list[dict[str, Any]] = []
        self._counted = 0

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._close(kind, *rest)

    def add(self, tokens: NDArray[Any], ends: NDArray[np.int64], rows: Rows) -> None:
        """Append whole documents.

        Args:
            tokens: (tokens,), with end-of-document ids.
            ends: (documents,), the end of each document in `tokens`.
            rows: (documents,), the rows of the index.
        """
        self._counted += int(rows["counted"].sum())
        num_bytes = rows["bytes"].astype(np.int64)
        start = first = 0
        while first < len(ends):
            shard = self._open()
            available = self._max_tokens - shard.num_tokens
            last = int(np.searchsorted(ends, start + available, side="right"))
            last = min(last, first + _MOST_DOCUMENTS - shard.num_documents)
            if last > first:
                stop = int(ends[last - 1])
                shard.add(tokens[start:stop], int(num_bytes[first:last].sum()), ends[first:last] - start)
                start, first = stop, last
            elif shard.num_tokens:
                self._close()
            else:
                self._add_long(tokens[start : ends[first]], int(num_bytes[first]))
                start, first = int(ends[first]), first + 1

    def description(self) -> dict[str, Any]:
        """Return the entry of the split in dataset.json."""
        sums = {key: sum(shard[key] for shard in self._shards) for key in COUNTED}
        if self._counted != sums["bytes"]:
            sums["counted_bytes"] = self._counted
        return {**sums, "shards": self._shards}

    def _add_long(self, tokens: NDArray[Any], num_bytes: int) -> None:
        """Write a document that is longer than a shard; its bytes are divided by the byte lengths of its tokens."""
        lengths, left = self._tokenizer.byte_lengths(), num_bytes
        for start in range(0, len(tokens), self._max_tokens):
            part = tokens[start : start + self._max_tokens]
            is_last = start + len(part) == len(tokens)
            own = left if is_last else min(left, int(lengths[part].sum()))
            left -= own
            self._open().add(part, own, [len(part)] if is_last else [])
            if not is_last:
                self._close()

    def _open(self) -> ShardWriter:
        if self._shard is None:
            self._shard = ShardWriter(self._folder / shard_name(self._split, len(self._shards)), self._tokenizer)
        return self._shard

    def _close(self, kind: type[BaseException] | None = None, *rest: Any) -> None:
        if self._shard is None:
            return
        shard, self._shard = self._shard, None
        shard.__exit__(kind, *rest)
        counts = {"tokens": shard.num_tokens, "bytes": shard.num_bytes, "documents": shard.num_documents}
        self._shards.append({"file": shard_name(self._split, len(self._shards)), **counts})
