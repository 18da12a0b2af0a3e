"""The order in which a stage reads its rows: arithmetic, with nothing to remember.

A stage's rows lie side by side along the epochs of a corpus, counted in units (tokens, or bags where documents
are kept apart): row i starts at unit `origin + i * stride`, and the next stage starts where the last row ends. So
nothing is left between stages, and none is read twice.

Rows are not read in that order, for neighbours share a document. The rows of an epoch are cut into blocks of
`block_windows * window_rows` of them, the last one up to twice as large, and a block is read with a stride of
`window_rows`: its rows 0, m, 2m, ..., then 1, m + 1, ... Rows that are read one after another then come from different
windows. A block reaches neither into the next epoch nor into the next stage; the one row that lies across an
epoch's end is the epoch's last. So an epoch is read to its end before the next one begins.

The last stage has no end here: a run that is made longer goes on, and has read the same until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Ints = Any  # an int or an int64 array: the arithmetic is the same


@dataclass(frozen=True)
class RowOrder:
    """Where the rows of a stage start.

    Attributes:
        origin: the unit that the stage starts with, counted on through the epochs.
        stride: units a row.
        epoch: units an epoch, at least one row.
        num_rows: rows of the stage; None for a run's last.
        window_rows: m, rows that a window holds.
        block_windows: windows a block.
    """

    origin: int
    stride: int
    epoch: int
    num_rows: int | None
    window_rows: int
    block_windows: int

    def units(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The units that rows start with; rows count from 0 in the order they are read in."""
        return self.origin + self._places(rows) * self.stride

    def end(self) -> int:
        """The unit after the last row's; of a stage that ends."""
        return self.origin + (self.num_rows or 0) * self.stride

    def block_start(self, row: int) -> int:
        """The first row of the block that a row is in: those before it lie side by side, without a gap."""
        rows = np.array([row])
        first, _, _, start, _ = self._blocks(rows)
        return int((first + start)[0])

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the rows as they lie side by side each row is."""
        first, count, within, start, size = self._blocks(rows)
        spread = _spread(within - start, size, self.window_rows)
        return np.where(within < count, first + start + spread, rows)

    def _blocks(self, rows: NDArray[np.int64]) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints]:
        """Of each row: its epoch's first row and how many are shuffled there, its number among them, its block's
        first row there and how many the block has."""
        epoch = (self.origin + rows * self.stride) // self.epoch
        first, end = self._first_row(epoch), self._first_row(epoch + 1)
        if self.num_rows is not None:
            end = np.minimum(end, self.num_rows)
        count = end - first - (self.origin + end * self.stride > (epoch + 1) * self.epoch)
        within, block_rows = rows - first, self.block_windows * self.window_rows
        last = np.maximum(count // block_rows, 1) - 1
        block = np.minimum(within // block_rows, last)
        start = np.where(within < count, block * block_rows, within)
        return first, count, within, start, np.where(block == last, count - start, block_rows)

    def _first_row(self, epoch: _Ints) -> _Ints:
        """The first row that starts in an epoch."""
        return np.maximum(0, -((self.origin - epoch * self.epoch) // self.stride))


def _spread(row: _Ints, size: _Ints, stride: int) -> NDArray[np.int64]:
    """Rows 0 .. size - 1 read with a stride: 0, m, 2m, ..., 1, m + 1, ..."""
    short, extra = np.divmod(size, stride)  # the first `extra` of the m passes are one row longer
    short, long = np.maximum(short, 1), short + 1
    late = row - extra * long
    pass_number = np.where(late < 0, row // long, extra + late // short)
    spread: NDArray[np.int64] = np.where(late < 0, row % long, late % short) * stride + pass_number
    return spread
