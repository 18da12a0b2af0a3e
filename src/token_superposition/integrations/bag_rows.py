"""The rows of a dataset that each batch of a run reads; the dataset itself does not change.

A bag row of bag size s is made from a group of s consecutive rows: s * L token ids, folded into L bags (`folding`). The
targets of the last bag are in the row after the group. If there is no such row, the last bag is ignored in the loss.
Groups are shuffled, but the rows inside a group are not, so neighbours in a bag are neighbours in the text. There are
two exceptions: a group across the end of the dataset, which continues at the beginning, and a stage whose bag size does
not divide the number of rows that the previous stage left.

For a map-style dataset, `TokenStream` assigns the groups; its "tokens" are row numbers here. Each row is read once per
pass over the data for any mix of bag sizes, and the rows of a step are a pure function of the step. A streaming dataset
is read from front to back, repeatedly.

A recovery step uses the unchanged features of the dataset and the unchanged collator.
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
    """A row to make: its stage, and the numbers of the dataset rows that it reads, and of the row after them."""

    stage: Stage
    numbers: tuple[int, ...]


class _RowNumbers:
    """The data for `TokenStream`: one "token" per row, which is the number of the row."""

    def __init__(self, num_rows: int) -> None:
        self.num_tokens = num_rows

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        return np.arange(start, start + length)


class RunSampler:
    """Yields the keys of the batches of one Trainer epoch, from step `first_step` on.

    The caller sets `first_step` to the number of completed steps before each epoch.

    Args:
        num_rows: number of rows of the dataset.
        schedule: stages of the run.
        batch_size: rows per batch and process.
        batches_per_step: batches per step, over micro-batches and processes.
        steps_per_epoch: steps per epoch of the Trainer.
        seed: seed of the order of the groups.

    Raises:
        UserError: if the dataset has fewer rows than a group.
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
                f"the training data has {num_rows} rows, but a group of this run needs {group}: use more rows, or a "
                "smaller bag_size"
            )
        self.schedule = schedule
        self.batch_size = batch_size
        self.drop_last = False  # accelerate reads this attribute; every batch is full
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
        self.rows: Any = self.stream.rows[0]  # assigns row numbers to the rows of the stream

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
        followed = row[group] == row[group - 1] + 1  # false if the next row is the first row of the dataset
        return Key(stage, tuple(row[: group + followed]))


class BagRows(Dataset[Any]):
    """A map-style dataset indexed by `Key`: single rows in the recovery phase, groups of rows before it."""

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
        """Pass the call of accelerate on to the dataset."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)


class BagStream(IterableDataset[Any]):
    """A streaming dataset, read from front to back into the rows of each step, from step `first_step` on.

    Args:
        rows: the data set.
        schedule: the run's stages.
        rows_per_step: over all micro-batches and processes.
        opened: the rows of the first pass, where the data set was opened already and can be read only once.

    Raises:
        UserError: during iteration, if a whole pass over the data yields no row.
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
        ahead: list[tuple[int, Any]] = []  # the look-ahead row is the first row of the next group
        for step in range(self.first_step, self.schedule.total_steps):
            stage = self.schedule.lookup(step)
            for _ in range(self.rows_per_step):
                group = [*ahead, *(next(passes) for _ in range(stage.input_bag_size - len(ahead)))]
                if stage.bag_size == 1:
                    ahead = []
                    yield group[0][1]
                    continue
                ahead = [next(passes)]
                followed = ahead if ahead[0][0] == group[-1][0] + 1 else []  # empty if the data starts again
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
