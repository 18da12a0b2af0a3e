"""Writing: the runs merged into shards, a range of places at a time.

First the indexes alone are read: how much there is, what is there twice, and which texts have the lowest
hashes, for those are the validation split, up to a limit. So it depends neither on the seed nor on the order
of the sources, the same text is never on both sides, and adding documents leaves most of it as it was.
Equal texts have equal places, so whatever asks for equal texts is asked of one range.

Then each range is read with its ids, sorted, and written. Threads sort ranges ahead of the one that is
written. What is held are a few ranges, and the validation split.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.prepare.encode import Progress
from token_superposition.data.prepare.runs import ROW, Rows, Run, RunReader
from token_superposition.data.prepare.splits import SplitWriter
from token_superposition.data.shard_file import token_dtype
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError

_RANGE_BYTES, _RANGE_ROWS = 2**23, 2**18
_PLACES = 2**64


@dataclass(frozen=True)
class Limits:
    """What the user allows: see `prepare`."""

    deduplicate: bool
    max_validation_tokens: int
    validation_fraction: float
    max_shard_tokens: int


@dataclass(frozen=True)
class Census:
    """What is in all runs.

    Attributes:
        documents, tokens: that will be written, ends included.
        duplicates: documents that will not.
        threshold: the highest hash of the validation split, as (high, low).
    """

    documents: int
    tokens: int
    duplicates: int
    threshold: tuple[int, int]


class Merge:
    """Merges runs.

    Args:
        folder: where they lie, and shards go.
        runs: what was encoded.
        tokenizer: whose ids they are.
        limits: what goes where.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], tokenizer: Tokenizer, limits: Limits) -> None:
        self._folder, self._runs, self._tokenizer, self._limits = folder, runs, tokenizer, limits
        self._documents = sum(run.documents for run in runs)
        ids_bytes = sum(run.ids_bytes for run in runs)
        ranges = max(1, -(-ids_bytes // _RANGE_BYTES), -(-self._documents // _RANGE_ROWS))
        self._bounds = [_PLACES * number // ranges for number in range(1, ranges + 1)]

    def census(self) -> Census:
        """Read the indexes.

        Raises:
            UserError: where there is too little to hold some out.
        """
        readers = self._readers()
        most = self._limits.max_validation_tokens
        lowest = np.empty((0, 3), dtype=np.uint64)  # high, low and tokens of the texts that may be held out
        documents = texts = tokens = 0
        for bound in self._bounds:
            rows = np.concatenate([reader.take(bound) for reader in readers])
            if not len(rows):
                continue
            rows = rows[np.lexsort((rows["low"], rows["high"]))]
            first = _first_of_equals(rows)
            if self._limits.deduplicate:
                rows, first = rows[first], np.ones(int(first.sum()), dtype=bool)
            with_ends = rows["tokens"] + np.uint64(1)
            starts = np.flatnonzero(first)
            of_text = np.add.reduceat(with_ends, starts)
            documents, texts, tokens = documents + len(rows), texts + len(starts), tokens + int(with_ends.sum())
            found = np.stack([rows["high"][starts], rows["low"][starts], of_text], axis=1)
            lowest = _lowest(np.concatenate([lowest, found]), most)
        limit = min(most, int(self._limits.validation_fraction * tokens))
        until = np.cumsum(lowest[:, 2])
        held_out = max(1, int(np.searchsorted(until, limit, side="right")))
        if texts < 2 or 2 * int(until[held_out - 1]) > tokens:
            raise UserError(
                f"too little text to hold some out for validation: {documents} documents, {texts} of them "
                f"different, {tokens:,} tokens; add documents, or cut long ones into files or lines of .jsonl"
            )
        high, low, _ = lowest[held_out - 1].tolist()
        return Census(documents, tokens, self._documents - documents, (high, low))

    def write(self, census: Census, threads: int, report: Callable[[Progress], None]) -> dict[str, Any]:
        """Write the shards of both splits; returns what dataset.json says of them.

        Args:
            census: of these runs.
            threads: that sort.
            report: called now and then; what is done is counted in bytes of the shards.
        """
        held_out: list[_Documents] = []
        most = self._limits.max_shard_tokens
        width = token_dtype(self._tokenizer.vocab_size).itemsize
        progress = Progress()

        def wrote(documents: _Documents) -> None:
            progress.done += width * len(documents.tokens)
            progress.documents += len(documents.rows)
            progress.tokens += len(documents.tokens)
            report(progress)

        with SplitWriter(self._folder, "train", self._tokenizer, most) as train:
            for documents, validation in self._sorted(census.threshold, threads):
                train.add(documents.tokens, documents.ends, documents.rows)
                held_out.append(validation)
                wrote(documents)
        validation = _by_hash(held_out)
        with SplitWriter(self._folder, "validation", self._tokenizer, most) as split:
            split.add(validation.tokens, validation.ends, validation.rows)
            wrote(validation)
        return {"train": train.description(), "validation": split.description()}

    def _readers(self) -> list[RunReader]:
        dtype = self._tokenizer.encoded_dtype
        share = self._documents // len(self._bounds) // max(1, len(self._runs))
        return [RunReader(self._folder, run, dtype, 2 * share + 64) for run in self._runs]

    def _sorted(self, threshold: tuple[int, int], threads: int) -> Iterator[tuple[_Documents, _Documents]]:
        """For each range, the documents of the training split in their order, and those held out."""
        readers = self._readers()
        waiting: deque[Future[tuple[_Documents, _Documents]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for bound in self._bounds:
                rows, ids = [], []
                for reader in readers:
                    rows.append(reader.take(bound))
                    ids.append(reader.take_ids(rows[-1]))
                waiting.append(pool.submit(self._sort, rows, ids, threshold))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _sort(
        self, parts: list[Rows], ids: list[NDArray[Any]], threshold: tuple[int, int]
    ) -> tuple[_Documents, _Documents]:
        rows = np.concatenate(parts)
        # Stable: equal texts stay side by side, and which is which makes no difference.
        order = np.lexsort((rows["low"], rows["high"], rows["place"]))
        if self._limits.deduplicate and len(order):
            order = order[_first_of_equals(rows[order])]
        high, low = rows["high"][order], rows["low"][order]
        below = (high < threshold[0]) | ((high == threshold[0]) & (low <= threshold[1]))
        texts: list[NDArray[Any]] = []
        for part, own in zip(parts, ids, strict=True):
            if len(part):  # nothing is split into one part
                texts += np.split(own, np.cumsum(part["tokens"])[:-1].astype(np.int64))
        return self._join(rows, texts, order[~below]), self._join(rows, texts, order[below])

    def _join(self, rows: Rows, texts: list[NDArray[Any]], order: NDArray[np.int64]) -> _Documents:
        rows = rows[order]
        ends = np.cumsum(rows["tokens"] + np.uint64(1)).astype(np.int64)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, dtype=token_dtype(self._tokenizer.vocab_size))
        start = 0
        for place, end in zip(order.tolist(), ends.tolist(), strict=True):
            tokens[start : end - 1] = texts[place]
            start = end
        tokens[ends - 1] = self._tokenizer.end_of_document_id
        return _Documents(rows, tokens, ends)


@dataclass(frozen=True)
class _Documents:
    """Documents side by side: a row of the index for each, their tokens, and where each ends in them."""

    rows: Rows
    tokens: NDArray[Any]
    ends: NDArray[np.int64]


def _first_of_equals(rows: Rows) -> NDArray[np.bool_]:
    """Of rows sorted so that equal texts are neighbours, whether each is the first of its text."""
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    return first


def _lowest(texts: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """The texts of the lowest hashes, sorted, up to the first that is too much; at least one."""
    texts = texts[np.lexsort((texts[:, 1], texts[:, 0]))]
    return texts[: int(np.searchsorted(np.cumsum(texts[:, 2]), most, side="right")) + 1]


def _by_hash(parts: list[_Documents]) -> _Documents:
    rows = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, dtype=ROW)
    texts = [text for part in parts if len(part.ends) for text in np.split(part.tokens, part.ends[:-1])]
    order = np.lexsort((rows["low"], rows["high"]))
    tokens = np.concatenate([texts[place] for place in order.tolist()])
    rows = rows[order]
    return _Documents(rows, tokens, np.cumsum(rows["tokens"] + np.uint64(1)).astype(np.int64))
