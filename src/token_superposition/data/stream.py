"""The stream: the batches of a run, from any step, over one corpus of tokens or a mixture of several corpora.

Every token is an input exactly once per epoch, for all bag sizes, batch sizes and numbers of ranks. A stage continues
at the token where the stage before stopped, and the next epoch continues at the row where the last epoch ended.
`sampler` defines the order in which a stage reads its rows, and the place of the rows in the corpus.

The rows of a run are numbered through all its steps. In a mixture each row number belongs to one source (`mixture`),
and each source has its own order and its own epochs. If documents are kept apart, the rows come from `documents`.

The place of a batch is a pure function of its step: the whole state of the stream is a stage and a row number, and both
follow from the step. The order depends neither on ranks nor on workers, so a run can resume with another number of
them. Rank k of n reads the k-th of n equal blocks of the rows of a step, so micro-batches have the same rows for every
n.

A `Batch` carries its step and its stage, so no later code decides the phase again. A batch that was prefetched can
therefore never be trained in the wrong phase.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.data.documents import DocumentRows
from token_superposition.data.mixture import Interleaving
from token_superposition.data.sampler import Tokens, WindowRows
from token_superposition.data.token_ids import fingerprint, open_tokens
from token_superposition.errors import UserError
from token_superposition.schedule import Schedule, Stage

_BLOCK_WINDOWS = 1024  # the default number of windows over which rows are shuffled


class Source(NamedTuple):
    """One corpus of a mixture.

    Attributes:
        name: the name in messages and counters.
        corpus: the tokens of the source.
        weight: the weight of its rows relative to the other sources.
    """

    name: str
    corpus: Tokens
    weight: float = 1


@dataclass(frozen=True)
class Span:
    """The place of a batch: rows `first_row` to `first_row + num_rows - 1` of stage number `stage`."""

    stage: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step (for one rank).

    Attributes:
        step: the optimizer step of the batch.
        stage: the stage of this step.
        ids: inputs, int64, (B, L, s); s = 1 if the inputs are plain tokens.
        targets: (B, L, k), aligned with the inputs.
        span: the place in the stream, over all ranks.
        position_ids: (B, L), which restart with each document; None if documents are not kept apart. If documents are
            kept apart, -100 in `ids` is padding.
    """

    step: int
    stage: Stage
    ids: Tensor
    targets: Tensor
    span: Span
    position_ids: Tensor | None = None

    @property
    def bag_size(self) -> int:
        """The bag size s of the batch's stage."""
        return self.stage.bag_size

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the same batch with its tensors on a device."""
        names = ("ids", "targets", *(() if self.position_ids is None else ("position_ids",)))
        moved: Any = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True)
class Coverage:
    """The number of tokens that a run reads from a corpus, or from all corpora of a mixture.

    Attributes:
        raw_tokens: the tokens read as inputs, repetitions included.
        unique_raw_tokens: the tokens read at least once.
        corpus_tokens: the tokens of the corpus.
        padding_tokens: the empty slots of bags at the ends of documents.
    """

    raw_tokens: int
    unique_raw_tokens: int
    corpus_tokens: int
    padding_tokens: int = 0

    @classmethod
    def of_all(cls, parts: Iterable[Coverage]) -> Coverage:
        """Return the sum over several corpora."""
        return cls(*(sum(column) for column in zip(*(astuple(part) for part in parts), strict=True)))

    @property
    def epochs(self) -> float:
        """The number of passes over the corpus, as a fraction."""
        return self.raw_tokens / self.corpus_tokens

    def counters(self) -> dict[str, float]:
        """Return the counters that are logged."""
        keys = ("raw_tokens", "unique_raw_tokens", "epochs", "padding_tokens")
        return {key: getattr(self, key) for key in keys}


class RowPlace(NamedTuple):
    """The place of a row: its source, and the number of its first token in this source."""

    source: int
    start: int


class TokenStream:
    """The batches of a run over a corpus or a mixture, as an iterator whose state can be saved and loaded.

    Args:
        ids: the training tokens: a folder of `tst prepare`, an array (also a memory map) or tensor of token ids, or a
            `datasets.Dataset` of rows of token ids (see `open_tokens`); or the sources of a mixture.
        schedule: the stages of the run.
        sequence_length: L, the latent positions of a row.
        batch_size: B, the rows per optimizer step, over all ranks and micro-batches.
        seed: the seed of the order of the windows.
        rank, world_size: the rank of this process, and the number of ranks; they select the rows of this process.
        block_windows: the number of windows over which rows are shuffled.
        documents_apart: keep documents apart; each corpus must then know where its documents end. See `documents`.

    Raises:
        UserError: if a corpus is shorter than one row, or its ids cannot be used.
        TypeError: if `ids` or `schedule` has another type.
        ValueError: if the number of rows is not a multiple of the number of ranks, a weight is NaN or infinite, or a
            number is out of range.

    Example:
        >>> import numpy as np
        >>> ids = np.arange(10_000) % 256
        >>> schedule = Schedule.two_phase(total_steps=8, bag_size=4, ratio=0.25)
        >>> stream = TokenStream(ids, schedule, sequence_length=16, batch_size=2)
        >>> [tuple(batch.ids.shape) for batch in stream][1:3]
        [(2, 16, 4), (2, 16, 1)]
        >>> again = TokenStream(ids, schedule, sequence_length=16, batch_size=2)
        >>> again.load_state_dict({**stream.state_dict(), "step": 5})
        >>> [batch.step for batch in again]
        [5, 6, 7]
    """

    def __init__(
        self,
        ids: Any,
        schedule: Schedule,
        *,
        sequence_length: int = 1024,
        batch_size: int = 32,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        block_windows: int = _BLOCK_WINDOWS,
        documents_apart: bool = False,
    ) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule is a {type(schedule).__name__}; give Schedule.two_phase(total_steps, bag_size, ratio)"
            )
        for name, number, least in (
            ("sequence_length", sequence_length, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, not {number}")
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} must be a multiple of the number of ranks, {world_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        several = isinstance(ids, Sequence) and len(ids) > 0 and all(isinstance(each, Source) for each in ids)
        self.step = 0  # the step of the next batch of the iterator
        self.seed = seed
        self.documents_apart = documents_apart
        self.sources: tuple[Source, ...] = tuple(
            source._replace(corpus=open_tokens(source.corpus)) for source in (ids if several else [Source("", ids)])
        )
        self.schedule = schedule
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.block_windows = block_windows
        self._fingerprint: str | None = None  # computed with the first state, because it reads the corpus
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
                # At least batch_size windows, so that the rows of a step come from different windows.
                block_windows=max(block_windows, batch_size),
                seed=seed,
            )
            for number, source in enumerate(self.sources)
        ]
        self._check_lengths()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current step to the end of the run; each yielded batch counts as trained on."""
        while self.step < self.schedule.total_steps:
            batch = self.batch(self.step)
            self.step += 1
            yield batch

    def __len__(self) -> int:
        """Return the number of batches that are left."""
        return self.schedule.total_steps - self.step

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream for `load_state_dict`, as plain values that are the same on every rank.

        Save the state with the model after an optimizer step. The next batch is then the batch of the next step.
        """
        return {"step": self.step, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of a stream with the same corpus and settings.

        The number of ranks may differ, and the last stage of the schedule may be longer.

        Raises:
            UserError: if the state has another corpus, schedule, batch or seed, or is not a state of a stream.
        """
        mine = self._settings()
        if set(state) != {"step", *mine} or not isinstance(state["step"], int) or state["step"] < 0:
            raise UserError(f"this is not a state of a TokenStream: it has {', '.join(map(str, state)) or 'no keys'}")
        for name, own in mine.items():
            if state[name] != own and not (name == "schedule" and self._is_longer(state["schedule"], state["step"])):
                given = "different" if name in ("corpus", "schedule") else f"{state[name]}, but this stream has {own}"
                raise UserError(
                    f"the state cannot be loaded: its {name} is {given}; make the stream with its first settings"
                )
        if state["step"] > self.schedule.total_steps:
            raise UserError(
                f"the state is of step {state['step']}, but this run has only {self.schedule.total_steps} steps"
            )
        self.step = state["step"]

    def _settings(self) -> dict[str, Any]:
        """Return the settings that determine the order of the rows."""
        if self._fingerprint is None:
            parts = [(fingerprint(source.corpus), source.weight) for source in self.sources]
            self._fingerprint = parts[0][0] if len(parts) == 1 else str(parts)
        return {
            "corpus": self._fingerprint,
            "schedule": self.schedule.as_dicts(),
            "sequence_length": self.sequence_length,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "documents_apart": self.documents_apart,
            "block_windows": self.block_windows,
        }

    def _is_longer(self, stages: Any, step: int) -> bool:
        """Return whether a schedule differs from this one only in the length of its last stage, and has the step."""
        try:
            other = Schedule.from_dicts(stages)
        except (TypeError, ValueError, AttributeError):
            return False
        mine, theirs = self.schedule.stages, other.stages
        return (
            len(mine) == len(theirs)
            and mine[:-1] == theirs[:-1]
            and replace(theirs[-1], steps=mine[-1].steps) == mine[-1]
            and step <= self.schedule.total_steps
        )

    def row_length(self, stage: Stage) -> int:
        """Return the number of tokens of a row, with its look-ahead; the maximum if documents are kept apart."""
        return stage.input_bag_size * self.sequence_length + stage.bag_size

    def locate(self, stage_index: int, rows: NDArray[np.int64]) -> list[RowPlace]:
        """Return the places of rows of a stage.

        Args:
            stage_index: the stage.
            rows: row numbers within the stage, counted from 0 over all ranks.
        """
        places = np.empty((len(rows), 2), dtype=np.int64)
        for number, here, inner in self._by_source(stage_index, rows):
            places[here] = np.stack([np.full(len(inner), number), self.rows[number].starts(stage_index, inner)], axis=1)
        return [RowPlace(*place) for place in places.tolist()]

    def batch(self, step: int) -> Batch:
        """Return the batch of one step; raise ValueError if the run has no such step."""
        index = self.schedule.index_at(step)
        stage, length = self.schedule.stages[index], self.sequence_length
        first_row = (step - self.schedule.starts[index]) * self.batch_size
        share = self.batch_size // self.world_size
        rows = np.arange(first_row + self.rank * share, first_row + (self.rank + 1) * share)
        # numpy allocates and copies here. torch does not request huge pages, so the first access to a large batch would
        # take four times as long as the copy. torch would also copy with several threads, which keep spinning while the
        # training step runs: on two cores the step took a sixth longer.
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
        """Yield every batch from `first_step` to the end of the run."""
        for step in range(first_step, self.schedule.total_steps):
            yield self.batch(step)

    def coverage(self, step: int | None = None) -> Coverage:
        """Return the coverage of all sources together before `step` (of the whole run if None)."""
        return Coverage.of_all(self.coverages(step).values())

    def coverages(self, step: int | None = None) -> dict[str, Coverage]:
        """Return the coverage of each source before `step` (of the whole run if None), by the name of the source."""
        end = self.schedule.total_steps if step is None else step
        found = {}
        for number, source in enumerate(self.sources):
            raw_tokens, slots = 0, 0
            for index, (start, stage) in enumerate(zip(self.schedule.starts, self.schedule.stages, strict=True)):
                first, last = (min(max(at, start), start + stage.steps) * self.batch_size for at in (start, end))
                rows = self.interleaving.count(number, last) - self.interleaving.count(number, first)
                raw_tokens += self.rows[number].tokens_read(index, int(rows))
                slots += int(rows) * stage.input_bag_size * self.sequence_length
            # An epoch ends before the next epoch starts, so no token is read twice before every token is read once.
            there = source.corpus.num_tokens
            found[source.name] = Coverage(raw_tokens, min(raw_tokens, there), there, slots - raw_tokens)
        return found

    def _by_source(
        self, stage_index: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield for each source of these rows: its number, the indices of its rows, and their numbers in the source."""
        first = self.schedule.starts[stage_index] * self.batch_size
        sources = self.interleaving.sources(first + rows)
        for number in np.unique(sources).tolist():
            here = np.flatnonzero(sources == number)
            before, until = (self.interleaving.count(number, row) for row in (first, first + rows[here]))
            yield number, here, until - before

    def _rows_of_stage(self, source: int, stage_index: int) -> int | None:
        """Return the number of rows of a stage from a source; None for the last stage, which may be extended."""
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
                    there += f", {order.epoch:,} bags of {size} with documents kept apart"
                    needed = f"{order.stride:,} bags"
                raise UserError(
                    f"the training data{f' of source {source.name!r}' if source.name else ''} has {there}, but one row "
                    f"of this run needs {needed} (train.sequence_length {self.sequence_length}, bag size {size}): "
                    "prepare more text, or lower train.sequence_length or the bag size"
                )
