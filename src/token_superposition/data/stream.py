"""The stream: from a corpus of tokens to the batches of a run, exactly once an epoch, from any step.

The corpus is one sequence of tokens, cut into windows of W = L * lcm(the run's input bag sizes) tokens, so
that a window holds a whole number of rows of every stage. A stateless seeded permutation orders the
windows, another one each epoch; "window q" counts on through the epochs.

Rows that stand next to each other come from different windows. An epoch is cut into blocks of G windows,
the last of which takes what is left, so that no block reaches into the next epoch. A stage whose inputs have
bag size s cuts a window into m = W / (s * L) rows: row r of a block (0 <= r < G * m) is slot r // G of
window r % G. A row's look-ahead, the targets past its last bag, is what follows it physically in the
corpus. The next stage starts with the first block the stage before did not touch.

So each token is an input once an epoch, but for two remainders, both counted: the corpus's tail, shorter
than a window, and the rows left in a stage's last block. Where a batch lies is a pure function of its
step: the whole state of the stream is a stage and a row number, both derived from the step, and the order
depends on neither ranks nor workers (rank k of n takes rows k, k + n, ...).

A `Batch` carries its step and stage; nobody downstream asks again which phase it is, so a batch fetched
early can never be trained in the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.data.permutation import permute
from token_superposition.errors import UserError
from token_superposition.objective.bags import split_inputs_and_targets
from token_superposition.plan.stages import Schedule, Stage

# Windows in a block: more mixes the corpus better, fewer leave less unread when a stage ends. The largest
# number up to the first that leaves at most the second, as a share of the corpus, is taken.
_BLOCK_WINDOWS, _UNREAD = 1024, 0.01

_Ints = Any  # an int or an int64 array: the arithmetic is the same


class Tokens(Protocol):
    """What the stream reads: a prepared corpus, or anything that copies out a span of token ids."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> NDArray[np.int64]: ...


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
    """

    step: int
    stage: Stage
    ids: Tensor
    targets: Tensor
    span: Span

    @property
    def bag_size(self) -> int:
        """s of the batch's stage."""
        return self.stage.bag_size


@dataclass(frozen=True)
class Coverage:
    """What a run reads, in raw tokens.

    Attributes:
        raw_tokens: read as inputs, repetitions included.
        unique_raw_tokens: read at least once.
        skipped_tokens: rows passed over at the ends of stages.
        tail_tokens: the corpus's end that no window covers.
        epochs: passes over the corpus, as a fraction.
    """

    raw_tokens: int
    unique_raw_tokens: int
    skipped_tokens: int
    tail_tokens: int
    epochs: float


@dataclass(frozen=True)
class _Blocks:
    """Epochs of `num_windows` windows, each cut into blocks of `size` of them; both are numbered on and on.

    The last block of an epoch is up to twice as large: a short one would put neighbours of a window side by side.
    """

    num_windows: int
    size: int

    @property
    def per_epoch(self) -> int:
        return max(1, self.num_windows // self.size)

    def first_window(self, block: _Ints) -> _Ints:
        """The window that a block starts with."""
        return block // self.per_epoch * self.num_windows + block % self.per_epoch * self.size

    def holding(self, window: _Ints) -> _Ints:
        """The block that a window lies in."""
        within = np.minimum(window % self.num_windows // self.size, self.per_epoch - 1)
        block: _Ints = window // self.num_windows * self.per_epoch + within
        return block


def _empty(*shape: int) -> Tensor:
    """An int64 tensor of whatever is in memory, which numpy asks for in huge pages, where the system has them.

    torch does not; a large batch then spends four times as long on its first touch of small pages as on the copying.
    """
    return torch.from_numpy(np.empty(shape, dtype=np.int64))


class TokenStream:
    """The batches of a run over a corpus.

    Args:
        corpus: the training tokens.
        schedule: the run's stages.
        sequence_length: L, latent positions a row.
        rows_per_step: B over all ranks and micro-batches.
        seed: of the windows' order.
        rank, world_size: which rows this process takes.
        block_windows: G; chosen by the corpus's size without it.

    Raises:
        UserError: where the corpus is shorter than one row.
        ValueError: where the ranks do not divide the rows.
    """

    def __init__(
        self,
        corpus: Tokens,
        schedule: Schedule,
        *,
        sequence_length: int,
        rows_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        block_windows: int | None = None,
    ) -> None:
        if rows_per_step % world_size:
            raise ValueError(f"{rows_per_step} rows a step do not divide over {world_size} ranks")
        self.corpus = corpus
        self.schedule = schedule
        self.sequence_length = sequence_length
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.window = sequence_length * schedule.input_period
        look_ahead = max(stage.bag_size for stage in schedule.stages)
        self.num_windows = (corpus.num_tokens - look_ahead) // self.window
        if self.num_windows < 1:
            raise UserError(
                f"the training data has {corpus.num_tokens:,} tokens, but one window of this run takes "
                f"{self.window + look_ahead:,} (train.sequence_length {sequence_length} times the bag sizes' "
                f"least common multiple {schedule.input_period}, and a look-ahead of {look_ahead}): "
                "prepare more text, or lower train.sequence_length or the bag size"
            )
        self.blocks = _Blocks(self.num_windows, block_windows or self._choose_block())

    def rows_per_window(self, stage: Stage) -> int:
        """m: rows of a stage that fill a window."""
        return self.window // (stage.input_bag_size * self.sequence_length)

    def row_length(self, stage: Stage) -> int:
        """Tokens of a row of a stage, its look-ahead included."""
        return stage.input_bag_size * self.sequence_length + stage.bag_size

    def _first_windows(self, blocks: _Blocks) -> list[int]:
        """The window that each stage starts with, and at the end the first that the run does not touch."""
        firsts = [0]
        for stage in self.schedule.stages:
            last = firsts[-1] + (stage.steps * self.rows_per_step - 1) // self.rows_per_window(stage)
            firsts.append(int(blocks.first_window(blocks.holding(last) + 1)))
        return firsts

    def _choose_block(self) -> int:
        """G, never under the rows of a step. The last stage leaves nothing unread, so the run may get longer."""
        size = _BLOCK_WINDOWS
        read = [stage.steps * self.rows_per_step / self.rows_per_window(stage) for stage in self.schedule.stages]
        while size > self.rows_per_step:
            taken = self._first_windows(_Blocks(self.num_windows, size))[-2]
            if taken - sum(read[:-1]) <= _UNREAD * self.num_windows:
                break
            size //= 2
        return max(size, self.rows_per_step)

    @cached_property
    def first_windows(self) -> list[int]:
        """The window that each stage starts with, and at the end the first that the run does not touch."""
        return self._first_windows(self.blocks)

    def locate(self, stage_index: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows of a stage start in the corpus, in tokens.

        Args:
            stage_index: the stage.
            rows: row numbers within the stage, counted from 0 over all ranks.
        """
        stage = self.schedule.stages[stage_index]
        per_window, first = self.rows_per_window(stage), self.first_windows[stage_index]
        block = self.blocks.holding(first + rows // per_window)
        start, end = self.blocks.first_window(block), self.blocks.first_window(block + 1)
        slot, window = np.divmod(rows - (start - first) * per_window, end - start)
        epoch, index = np.divmod(start + window, self.num_windows)
        place = np.empty_like(index)
        for number in np.unique(epoch):  # one or two
            here = epoch == number
            place[here] = permute(index[here], self.num_windows, self.seed, int(number))
        return place * self.window + slot * (stage.input_bag_size * self.sequence_length)

    def batch(self, step: int) -> Batch:
        """The batch of one step; raises ValueError where the run has no such step."""
        stage_index = self.schedule.index_at(step)
        stage = self.schedule.stages[stage_index]
        first_row = (step - self.schedule.starts[stage_index]) * self.rows_per_step
        rows = np.arange(first_row + self.rank, first_row + self.rows_per_step, self.world_size)
        length = self.row_length(stage)
        raw = np.empty((len(rows), length), dtype=np.int64)
        for row, start in zip(raw, self.locate(stage_index, rows), strict=True):
            row[:] = self.corpus.read(int(start), length)
        parts = split_inputs_and_targets(torch.from_numpy(raw), stage.bag_size, stage.mode)
        ids, targets = (_empty(*part.shape).copy_(part) for part in parts)  # whole: to be pinned, copied at once
        return Batch(step, stage, ids, targets, Span(stage_index, first_row, self.rows_per_step))

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """Every batch from `first_step` to the run's end."""
        for step in range(first_step, self.schedule.total_steps):
            yield self.batch(step)

    def coverage(self, step: int | None = None) -> Coverage:
        """What is read before `step` (in all, without it)."""
        end = self.schedule.total_steps if step is None else step
        capacity = self.num_windows * self.window
        raw_tokens = self.schedule.raw_tokens(self.rows_per_step * self.sequence_length, end)
        touched, skipped = 0, 0  # tokens of the windows taken, and those of them passed over
        for index, (start, stage) in enumerate(zip(self.schedule.starts, self.schedule.stages, strict=True)):
            steps = min(max(end - start, 0), stage.steps)
            taken = (self.first_windows[index + 1] - self.first_windows[index]) * self.window
            read = steps * self.rows_per_step * stage.input_bag_size * self.sequence_length
            if steps == stage.steps and end > start + steps:  # the next stage has begun: the rest is lost
                touched, skipped = touched + taken, skipped + taken - read
            else:
                touched += read
        return Coverage(
            raw_tokens=raw_tokens,
            unique_raw_tokens=self._unique(end) if touched > capacity else raw_tokens,
            skipped_tokens=skipped,
            tail_tokens=self.corpus.num_tokens - capacity,
            epochs=touched / capacity,
        )

    def _unique(self, end: int) -> int:
        """Distinct input tokens read before step `end`, by marking pieces of L tokens."""
        seen = np.zeros(self.num_windows * self.schedule.input_period, dtype=bool)
        chunk = max(1, (1 << 20) // self.rows_per_step)
        for index, (start, stage) in enumerate(zip(self.schedule.starts, self.schedule.stages, strict=True)):
            steps = min(max(end - start, 0), stage.steps)
            for first in range(0, steps, chunk):
                rows = np.arange(first * self.rows_per_step, min(first + chunk, steps) * self.rows_per_step)
                pieces = self.locate(index, rows) // self.sequence_length
                for offset in range(stage.input_bag_size):
                    seen[pieces + offset] = True
                if seen.all():
                    break
        return int(seen.sum()) * self.sequence_length
