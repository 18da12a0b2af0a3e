"""Which rows of a data set each batch of a run takes; the data set stays what it is.

A bag row of bag size s is a group of s consecutive rows: s times L token ids, folded into L bags (`folding`). What its
last bag predicts lies in the row after the group; where there is none, the last bag is ignored. Groups are shuffled,
rows inside a group never, so neighbours in a bag are neighbours in the text. (But for a group across the data set's
end, which goes on at its beginning, and where a stage's bag size does not divide what the one before left.)

For a map-style data set the groups are dealt out by `TokenStream`, whose "tokens" here are row numbers: each row is
read once a pass over the data, whatever the mix of bag sizes, and where a step's rows lie is a pure function
of the step. A streaming data set is read front to back, again and again.

Rows of a recovery step are the data set's own features, untouched: the batch is collated as it always was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset

from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError
from token_superposition.integrations.folding import Group
from token_superposition.schedule import Schedule, Stage


class Key(NamedTuple):
    """A row to be made: its stage, and the numbers of the data set's rows that it takes, and the one after them."""

    stage: Stage
    numbers: tuple[int, ...]


class _RowNumbers:
    """What `TokenStream` deals out: a "token" a row, its number."""

    def __init__(self, num_rows: int) -> None:
        self.num_tokens = num_rows

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        return np.arange(start, start + length)


class RunSampler:
    """The keys of every batch of a run, an epoch of the Trainer's at a time, from step `first_step` on.

    Whoever trains sets `first_step` before each epoch, by the number of steps that were trained.

    Args:
        num_rows: of the data set.
        schedule: the run's stages.
        batch_size: rows a batch (of one process).
        batches_per_step: over micro-batches and processes.
        steps_per_epoch: what the Trainer takes for an epoch.
        seed: of the groups' order.

    Raises:
        UserError: where the data set has fewer rows than a group.
    """

    def __init__(
        self,
        num_rows: int,
        schedule: Schedule,
        *,
        batch_size: int,
        batches_per_step: int,
        steps_per_epoch: int,
        seed: int,
    ) -> None:
        group = max(stage.input_bag_size for stage in schedule.stages)
        if num_rows < group:
            raise UserError(
                f"the training data has {num_rows} rows, but a group of this run takes {group}: "
                "more rows, or a smaller bag_size"
            )
        self.schedule = schedule
        self.batch_size = batch_size
        self.drop_last = False  # accelerate asks; every batch is full
        self.steps_per_epoch = steps_per_epoch
        self.batches_per_step = batches_per_step
        self.first_step = 0
        self.stream = TokenStream(
            _RowNumbers(num_rows),
            schedule,
            sequence_length=1,
            batch_size=batch_size * batches_per_step,
            seed=seed,
        )
        self.rows: Any = self.stream.rows[0]  # row numbers, of rows of row numbers

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batches_per_step

    def __iter__(self) -> Iterator[list[Key]]:
        last = min(self.first_step + self.steps_per_epoch, self.schedule.total_steps)
        for step in range(self.first_step, last):
            index = self.schedule.index_at(step)
            rows_per_step = self.stream.batch_size
            first = (step - self.schedule.starts[index]) * rows_per_step
            rows = self.rows.raw_rows(index, np.arange(first, first + rows_per_step))
            keys = [self._key(self.schedule.stages[index], row) for row in rows.tolist()]
            yield from (keys[n : n + self.batch_size] for n in range(0, len(keys), self.batch_size))

    @staticmethod
    def _key(stage: Stage, row: list[int]) -> Key:
        group = stage.input_bag_size
        followed = row[group] == row[group - 1] + 1  # not where the next is the data set's first again
        return Key(stage, tuple(row[: group + followed]))


class BagRows(Dataset[Any]):
    """A map-style data set, asked with keys: its own rows in recovery, groups of them before."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> Any:
        stage, numbers = key
        if stage.bag_size == 1:
            return self.rows[numbers[0]]
        return Group(stage, numbers, tuple(self.rows[number] for number in numbers))

    def set_epoch(self, epoch: int) -> None:
        """What accelerate tells the data set, passed on."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


class BagStream(IterableDataset[Any]):
    """A streaming data set, read front to back into the rows that each step needs, from step `first_step` on.

    Args:
        rows: the data set.
        schedule: the run's stages.
        rows_per_step: over all micro-batches and processes.
        opened: the rows of the first pass, where the data set was opened already and can be read only once.

    Raises:
        UserError: while reading, where a whole pass over the data holds no row.
    """

    def __init__(
        self, rows: Iterable[Any], schedule: Schedule, *, rows_per_step: int, opened: Iterator[Any] | None = None
    ) -> None:
        self.rows = rows
        self.opened = opened
        self.schedule = schedule
        self.rows_per_step = rows_per_step
        self.first_step = 0

    def __iter__(self) -> Iterator[Any]:
        passes = self._passes()
        ahead: list[tuple[int, Any]] = []  # the row that was read as a look-ahead is the next group's first
        for step in range(self.first_step, self.schedule.total_steps):
            stage = self.schedule.lookup(step)
            for _ in range(self.rows_per_step):
                group = [*ahead, *(next(passes) for _ in range(stage.input_bag_size - len(ahead)))]
                if stage.bag_size == 1:
                    ahead = []
                    yield group[0][1]
                    continue
                ahead = [next(passes)]
                followed = ahead if ahead[0][0] == group[-1][0] + 1 else []  # not where the data begins again
                numbers, rows = zip(*group, *followed, strict=True)
                yield Group(stage, numbers, rows)

    def _passes(self) -> Iterator[tuple[int, Any]]:
        number_of_rows = 0
        while True:
            number = -1
            rows, self.opened = self.opened or self.rows, None
            for number, row in enumerate(rows):
                yield number, row
            if number < 0:
                raise UserError(
                    f"the training data ended after {number_of_rows} rows and cannot be read again: the run needs a "
                    "data set that can be read several times, more rows, or fewer steps"
                    if number_of_rows
                    else "the training data has no rows"
                )
            number_of_rows = number + 1
