"""The stream: from a corpus of tokens, or a mixture of several, to the batches of a run, from any step.

Every token is an input exactly once an epoch, whatever the bag sizes, batch sizes and ranks: a stage goes on at the
token where the one before stopped, and the next epoch at the row where the last one ended. `order` says in which
order a stage reads its rows, `windows` where they lie in the corpus.

The rows of a run are numbered through all its steps. In a mixture each number belongs to one source (`mixture`), and
each source has its own order and its own epochs. Where documents are to be kept apart, rows come from `documents`.

Where a batch lies is a pure function of its step: the whole state of the stream is a stage and a row number, both
derived from the step, and the order depends on neither ranks nor workers (rank k of n takes rows k, k + n, ...), so
that a run may go on with another number of them.

A `Batch` carries its step and stage; nobody downstream asks again which phase it is, so a batch fetched
early can never be trained in the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.data.documents import DocumentRows
from token_superposition.data.mixture import Interleaving
from token_superposition.data.windows import Tokens, WindowRows
from token_superposition.errors import UserError
from token_superposition.plan.stages import Schedule, Stage

_BLOCK_WINDOWS = 1024  # windows that rows are shuffled over, at least


class Source(NamedTuple):
    """One corpus of a mixture.

    Attributes:
        name: for messages and counters.
        corpus: its tokens.
        weight: of its rows, in any unit.
    """

    name: str
    corpus: Tokens
    weight: float = 1


@dataclass(frozen=True)
class Span:
    """A batch's place: rows `first_row` to `first_row + num_rows - 1` of stage number `stage`."""

    stage: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class Batch:
    """One optimizer step's rows (of one rank).

    Attributes:
        step: the optimizer step it belongs to.
        stage: how it is trained.
        ids: inputs, int64, (B, L, s); s = 1 where inputs are plain tokens.
        targets: (B, L, k), aligned with the inputs.
        span: its place in the stream, over all ranks.
        position_ids: (B, L), restarting with each document; None where documents are not kept apart. Where they are,
            -100 in `ids` is padding.
    """

    step: int
    stage: Stage
    ids: Tensor
    targets: Tensor
    span: Span
    position_ids: Tensor | None = None

    @property
    def bag_size(self) -> int:
        """s of the batch's stage."""
        return self.stage.bag_size


@dataclass(frozen=True)
class Coverage:
    """What a run reads of a corpus, or of all of a mixture.

    Attributes:
        raw_tokens: read as inputs, repetitions included.
        unique_raw_tokens: read at least once.
        corpus_tokens: that there are.
        padding_tokens: slots of bags left free at the ends of documents.
    """

    raw_tokens: int
    unique_raw_tokens: int
    corpus_tokens: int
    padding_tokens: int = 0

    @classmethod
    def of_all(cls, parts: Iterable[Coverage]) -> Coverage:
        """The sum of several corpora's."""
        return cls(*(sum(column) for column in zip(*(astuple(part) for part in parts), strict=True)))

    @property
    def epochs(self) -> float:
        """Passes over the corpus, as a fraction."""
        return self.raw_tokens / self.corpus_tokens

    def counters(self) -> dict[str, float]:
        """What is logged of it."""
        keys = ("raw_tokens", "unique_raw_tokens", "epochs", "padding_tokens")
        return {key: getattr(self, key) for key in keys}


class RowPlace(NamedTuple):
    """Where a row lies: its source, and the token there that it starts with."""

    source: int
    start: int


class TokenStream:
    """The batches of a run over a corpus or a mixture.

    Args:
        corpus: the training tokens, or the sources of a mixture.
        schedule: the run's stages.
        sequence_length: L, latent positions a row.
        batch_size: B over all ranks and micro-batches.
        seed: of the windows' order.
        rank, world_size: which rows this process takes.
        block_windows: windows that rows are shuffled over.
        documents_apart: keep documents apart; the corpora then say where they end. See `documents`.

    Raises:
        UserError: where a corpus is shorter than one row.
        ValueError: where the ranks do not divide the rows, or the weights are no proportion of a few rows.
    """

    def __init__(
        self,
        corpus: Tokens | Sequence[Source],
        schedule: Schedule,
        *,
        sequence_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        block_windows: int = _BLOCK_WINDOWS,
        documents_apart: bool = False,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"{batch_size} rows a step do not divide over {world_size} ranks")
        self.sources = tuple(corpus) if isinstance(corpus, Sequence) else (Source("", corpus),)
        self.schedule = schedule
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.interleaving = Interleaving([source.weight for source in self.sources])
        make: Any = DocumentRows if documents_apart else WindowRows
        self.rows: list[WindowRows | DocumentRows] = [
            make(
                source.corpus,
                schedule.stages,
                [self._rows_of_stage(number, index) for index in range(len(schedule.stages))],
                sequence_length=sequence_length,
                window=sequence_length * schedule.input_period,
                # Rows of a step come from different windows.
                block_windows=max(block_windows, batch_size),
                seed=seed,
            )
            for number, source in enumerate(self.sources)
        ]
        self._check_lengths()

    def row_length(self, stage: Stage) -> int:
        """Tokens of a row of a stage, its look-ahead included; at most, where documents are kept apart."""
        return stage.input_bag_size * self.sequence_length + stage.bag_size

    def locate(self, stage_index: int, rows: NDArray[np.int64]) -> list[RowPlace]:
        """Where rows of a stage lie.

        Args:
            stage_index: the stage.
            rows: row numbers within the stage, counted from 0 over all ranks.
        """
        places = np.empty((len(rows), 2), dtype=np.int64)
        for number, here, inner in self._by_source(stage_index, rows):
            places[here] = np.stack([np.full(len(inner), number), self.rows[number].starts(stage_index, inner)], axis=1)
        return [RowPlace(*place) for place in places.tolist()]

    def batch(self, step: int) -> Batch:
        """The batch of one step; raises ValueError where the run has no such step."""
        index = self.schedule.index_at(step)
        stage, length = self.schedule.stages[index], self.sequence_length
        first_row = (step - self.schedule.starts[index]) * self.batch_size
        rows = np.arange(first_row + self.rank, first_row + self.batch_size, self.world_size)
        # numpy's memory and numpy's copies. torch asks for no huge pages: the first touch of a large batch then takes
        # four times as long as its copying. And torch would copy with several threads, which go on spinning where the
        # step beside is computed: on two cores it took a sixth longer.
        ids = np.empty((len(rows), length, stage.input_bag_size), dtype=np.int64)
        targets = np.empty((len(rows), length, stage.num_targets), dtype=np.int64)
        positions = None
        for number, here, inner in self._by_source(index, rows):
            ids_BLs, targets_BLk, restart = self.rows[number].read(index, inner)
            ids[here], targets[here] = ids_BLs.numpy(), targets_BLk.numpy()
            if restart is not None:
                positions = np.empty((len(rows), length), dtype=np.int64) if positions is None else positions
                positions[here] = restart.numpy()
        restarting = None if positions is None else torch.from_numpy(positions)
        span = Span(index, first_row, self.batch_size)
        return Batch(step, stage, torch.from_numpy(ids), torch.from_numpy(targets), span, restarting)

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """Every batch from `first_step` to the run's end."""
        for step in range(first_step, self.schedule.total_steps):
            yield self.batch(step)

    def coverage(self, step: int | None = None) -> Coverage:
        """What is read of all sources together before `step` (in all, without it)."""
        return Coverage.of_all(self.coverages(step).values())

    def coverages(self, step: int | None = None) -> dict[str, Coverage]:
        """What is read of each source before `step` (in all, without it), by its name."""
        end = self.schedule.total_steps if step is None else step
        found = {}
        for number, source in enumerate(self.sources):
            raw_tokens, slots = 0, 0
            for index, (start, stage) in enumerate(zip(self.schedule.starts, self.schedule.stages, strict=True)):
                first, last = (min(max(at, start), start + stage.steps) * self.batch_size for at in (start, end))
                rows = self.interleaving.count(number, last) - self.interleaving.count(number, first)
                raw_tokens += self.rows[number].tokens_read(index, int(rows))
                slots += int(rows) * stage.input_bag_size * self.sequence_length
            # An epoch ends before the next one begins, so nothing is read twice before all was read once.
            there = source.corpus.num_tokens
            found[source.name] = Coverage(raw_tokens, min(raw_tokens, there), there, slots - raw_tokens)
        return found

    def _by_source(
        self, stage_index: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each source that rows of a stage come from: its number, which of them, their numbers in the source."""
        first = self.schedule.starts[stage_index] * self.batch_size
        sources = self.interleaving.sources(first + rows)
        for number in np.unique(sources).tolist():
            here = np.flatnonzero(sources == number)
            before, until = (self.interleaving.count(number, row) for row in (first, first + rows[here]))
            yield number, here, until - before

    def _rows_of_stage(self, source: int, stage_index: int) -> int | None:
        """How many rows a stage takes from a source; None for the last stage, which may get longer."""
        if stage_index == len(self.schedule.stages) - 1:
            return None
        ends = (self.schedule.starts[index] * self.batch_size for index in (stage_index, stage_index + 1))
        first, last = (self.interleaving.count(source, row) for row in ends)
        return int(last - first)

    def _check_lengths(self) -> None:
        for source, rows in zip(self.sources, self.rows, strict=True):
            for stage, order in zip(self.schedule.stages, rows.orders, strict=True):
                if order.epoch >= order.stride:
                    continue
                size = stage.input_bag_size
                there = f"{source.corpus.num_tokens:,} tokens"
                needed = f"{order.stride:,}"
                if isinstance(rows, DocumentRows):
                    there += f", {order.epoch:,} bags of {size} in documents of their own"
                    needed = f"{order.stride:,} bags"
                raise UserError(
                    f"the training data{f' of source {source.name!r}' if source.name else ''} has {there}, but one row "
                    f"of this run takes {needed} (train.sequence_length {self.sequence_length}, bag size {size}): "
                    "prepare more text, or lower train.sequence_length or the bag size"
                )
