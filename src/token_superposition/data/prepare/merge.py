"""Merge the runs into shards, one range of places at a time.

First, only the indexes are read. They give the total sizes, the repeated texts, and the texts with the lowest hashes.
The texts with the lowest hashes are the validation split, up to a limit. The validation split therefore depends neither
on the seed nor on the order of the sources. The same text is never in both splits, and additional documents change
little of the validation split. Equal texts have equal places, so one range holds all copies of a text.

Then the copies of training texts get their own places (`duplicates`). Each range is read with its ids, sorted, and
written. Threads read and sort ahead of the range that is written. Memory holds a few ranges, and the validation split
with each text once.
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

from token_superposition.data.prepare.duplicates import Texts, write_copies
from token_superposition.data.prepare.encode import EncodeProgress
from token_superposition.data.prepare.spill import ROW, Ids, Rows, Run, Stretch, read_ranges
from token_superposition.data.prepare.splits import SplitWriter
from token_superposition.data.shard_format import token_dtype
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError

_COPIES_AT_ONCE = 2**23  # for validation texts: tokens plus the bytes of their rows, which dominate for short texts


@dataclass(frozen=True)
class Limits:
    """The limits that the user sets; see `prepare`."""

    deduplicate: bool
    max_validation_tokens: int
    validation_fraction: float
    max_shard_tokens: int


@dataclass(frozen=True)
class Census:
    """The content of all runs.

    Attributes:
        documents, tokens: the documents and tokens to write, end-of-document ids included.
        different: the number of different texts of these documents.
        duplicates: the documents that are not written.
        threshold: the highest hash of the validation split, as (high, low).
    """

    documents: int
    different: int
    tokens: int
    duplicates: int
    threshold: tuple[int, int]

    def is_held_out(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which rows of an index are in the validation split."""
        high, low = rows["high"], rows["low"]
        return (high < self.threshold[0]) | ((high == self.threshold[0]) & (low <= self.threshold[1]))


class Merge:
    """Merges runs.

    Args:
        folder: the folder of the runs and of the shards.
        runs: the encoded runs.
        tokenizer: the tokenizer that encoded them.
        seed: the seed of the order.
        limits: the limits of splits and shards.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], tokenizer: Tokenizer, seed: int, limits: Limits) -> None:
        self._folder, self._runs, self._tokenizer, self._seed = folder, runs, tokenizer, seed
        self._limits = limits

    def census(self) -> Census:
        """Read the indexes and return their totals.

        Raises:
            UserError: if there is too little text for a validation split.
        """
        most = self._limits.max_validation_tokens
        lowest = np.empty((0, 3), dtype=np.uint64)  # high, low and tokens of the candidates for validation
        documents = different = tokens = 0
        for stretches in self._ranges(self._runs):
            rows = self._texts(stretches).rows
            of_text = (rows["tokens"] + np.uint64(1)) * rows["times"]
            documents, different = documents + int(rows["times"].sum()), different + len(rows)
            tokens += int(of_text.sum())
            lowest = _lowest(np.concatenate([lowest, np.stack([rows["high"], rows["low"], of_text], axis=1)]), most)
        limit = min(most, int(self._limits.validation_fraction * tokens))
        until = np.cumsum(lowest[:, 2])
        held_out = max(1, int(np.searchsorted(until, limit, side="right")))
        if different < 2 or 2 * int(until[held_out - 1]) > tokens:
            raise UserError(
                f"too little text to hold some out for validation: {documents} documents, {different} of them "
                f"different, {tokens:,} tokens; add documents, or split long documents into files or lines of .jsonl"
            )
        high, low, _ = lowest[held_out - 1].tolist()
        duplicates = sum(run.documents for run in self._runs) - documents
        return Census(documents, different, tokens, duplicates, (high, low))

    def write(self, census: Census, threads: int, report: Callable[[EncodeProgress], None]) -> dict[str, Any]:
        """Write the shards of both splits, and return their entries for dataset.json.

        Args:
            census: the census of these runs.
            threads: the number of threads that sort.
            report: called from time to time; progress is counted in bytes of the shards.
        """
        held_out: list[_Documents] = []
        most = self._limits.max_shard_tokens
        width = token_dtype(self._tokenizer.vocab_size).itemsize
        progress = EncodeProgress()

        def wrote(documents: _Documents) -> None:
            progress.done += width * len(documents.tokens)
            progress.documents += len(documents.rows)
            progress.tokens += len(documents.tokens)
            report(progress)

        runs = list(self._runs)
        if census.documents > census.different:
            dtype = self._tokenizer.encoded_dtype
            runs += write_copies(
                self._folder, self._runs, dtype, self._seed, census.is_held_out, lambda: report(progress)
            )
        with SplitWriter(self._folder, "train", self._tokenizer, most) as train:
            for documents, validation in self._sorted(runs, census, threads):
                train.add(documents.tokens, documents.ends, documents.rows)
                held_out.append(validation)
                wrote(documents)
        with SplitWriter(self._folder, "validation", self._tokenizer, most) as split:
            for documents in _with_copies(_by_hash(held_out)):
                split.add(documents.tokens, documents.ends, documents.rows)
                wrote(documents)
        return {"train": train.description(), "validation": split.description()}

    def _ranges(self, runs: Sequence[Run]) -> Iterator[list[Stretch]]:
        return read_ranges(self._folder, runs, self._tokenizer.encoded_dtype)

    def _texts(self, stretches: Sequence[Stretch]) -> Texts:
        texts = Texts.of(stretches)
        if self._limits.deduplicate:
            texts.rows["times"] = 1
        return texts

    def _sorted(self, runs: Sequence[Run], census: Census, threads: int) -> Iterator[tuple[_Documents, _Documents]]:
        """Yield for each range the ordered documents of the training split, and the documents held out."""
        waiting: deque[Future[tuple[_Documents, _Documents]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for stretches in self._ranges(runs):
                waiting.append(pool.submit(self._read, stretches, census))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, stretches: Sequence[Stretch], census: Census) -> tuple[_Documents, _Documents]:
        texts = self._texts(stretches)
        ids = texts.read(np.ones(len(texts.rows), dtype=bool))
        held_out = census.is_held_out(texts.rows)
        return self._join(texts.rows, ids, ~held_out), self._join(texts.rows, ids, held_out)

    def _join(self, rows: Rows, ids: list[Ids], chosen: NDArray[np.bool_]) -> _Documents:
        rows = rows[chosen]
        ends = np.cumsum(rows["tokens"] + np.uint64(1)).astype(np.int64)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, dtype=token_dtype(self._tokenizer.vocab_size))
        start = 0
        for number, end in zip(np.flatnonzero(chosen).tolist(), ends.tolist(), strict=True):
            tokens[start : end - 1] = ids[number]
            start = end
        tokens[ends - 1] = self._tokenizer.end_of_document_id
        return _Documents(rows, tokens, ends)


@dataclass(frozen=True)
class _Documents:
    """Adjacent documents: the index row of each document, all tokens, and the end of each document in the tokens."""

    rows: Rows
    tokens: NDArray[Any]
    ends: NDArray[np.int64]


def _lowest(texts: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """Return the texts with the lowest hashes, sorted, up to the first text beyond the limit; at least one text."""
    texts = texts[np.lexsort((texts[:, 1], texts[:, 0]))]
    return texts[: int(np.searchsorted(np.cumsum(texts[:, 2]), most, side="right")) + 1]


def _by_hash(parts: list[_Documents]) -> _Documents:
    rows = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, dtype=ROW)
    texts = [text for part in parts if len(part.ends) for text in np.split(part.tokens, part.ends[:-1])]
    order = np.lexsort((rows["low"], rows["high"]))
    tokens = np.concatenate([texts[place] for place in order.tolist()])
    rows = rows[order]
    return _Documents(rows, tokens, np.cumsum(rows["tokens"] + np.uint64(1)).astype(np.int64))


def _with_copies(documents: _Documents) -> Iterator[_Documents]:
    """Yield each text as often as the corpus holds it, a few copies at a time."""
    if not len(documents.rows) or int(documents.rows["times"].max()) == 1:
        yield documents
        return
    texts = np.split(documents.tokens, documents.ends[:-1])
    for number, text in enumerate(texts):
        left = int(documents.rows["times"][number])
        while left:
            copies = min(left, max(1, _COPIES_AT_ONCE // (len(text) + ROW.itemsize)))
            rows = np.repeat(documents.rows[number : number + 1], copies)
            yield _Documents(rows, np.tile(text, copies), len(text) * np.arange(1, copies + 1))
            left -= copies
