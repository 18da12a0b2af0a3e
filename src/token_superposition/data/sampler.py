"""The rows of a corpus of plain text: their places in the corpus, and the order in which a stage reads them.

The corpus is one sequence of tokens, and each token is read once per epoch. Three parts compute the place of a row from
its number. None of them has a state to save.

Windows (`WindowRows`). The tokens of an epoch are read in windows of W = L * lcm(input bag sizes of the run) tokens, so
that a window holds a whole number of rows of every stage. A seeded permutation orders the windows, a different one in
each epoch. The tokens at the end of the corpus that do not fill a window come last. The row that does not fit into them
continues at the beginning of the corpus, as if the corpus were a ring. The windows of the next epoch start after this
row, so that the rows of that epoch do not cross the window edges. If the bag size of a stage does not divide the part
of a window that the stage before left, then rows continue in the next window for the rest of that epoch. The text has a
break there, as between documents. The look-ahead of a row (the targets after its last bag) is the text that follows
the row in the corpus.

Order (`RowOrder`). The rows of a stage are adjacent along the epochs of a corpus, counted in units (tokens, or bags if
documents are kept apart). Row i starts at unit `origin + i * stride`, and the next stage starts where the last row
ends. So no unit is left out between stages, and no unit is read twice. Rows are not read in this order, because
neighbouring rows share a document. The rows of an epoch are split into blocks of `block_windows * window_rows` rows;
the last block can be up to twice as large. A block is read with a stride of m = `window_rows`: its rows 0, m, 2m, ...,
then 1, m + 1, ... So rows that are read one after another come from different windows. A block never reaches into the
next epoch or into the next stage. The row that crosses the end of an epoch is the last row of that epoch, so an epoch
is read to its end before the next epoch starts. The last stage has no end here: if a run is extended, it continues, and
the rows before are the same.

Permutation (`permute`). A shuffled list of all windows would cost memory and start-up time that grow with the corpus,
and a resume would have to restore it. A Feistel network needs neither. By construction it is a bijection on the next
power of four. Its output is fed back until a value below n appears ("cycle walking"), which makes it a bijection on
0 .. n - 1. Every element is computed separately from (seed, epoch, index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.bags import split_inputs_and_targets
from token_superposition.schedule import Stage


class Tokens(Protocol):
    """The interface of a corpus for the stream: a prepared dataset, or any object that copies spans of token ids."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> NDArray[np.int64]: ...


class WindowRows:
    """The rows that the stages of a run read from one corpus.

    Args:
        corpus: the training tokens, at least one row.
        stages: the stages of the run.
        num_rows: the number of rows that each stage reads from this corpus; None for the last stage, which may be
            extended.
        sequence_length: L, the latent positions per row.
        window: W, in tokens.
        block_windows: the number of windows over which rows are shuffled.
        seed: the seed of the order of the windows.
    """

    def __init__(
        self,
        corpus: Tokens,
        stages: Sequence[Stage],
        num_rows: Sequence[int | None],
        *,
        sequence_length: int,
        window: int,
        block_windows: int,
        seed: int,
    ) -> None:
        self.corpus = corpus
        self.stages = stages
        self.sequence_length = sequence_length
        self.window = window
        self.seed = seed
        self.orders: list[RowOrder] = []
        origin = 0
        for stage, rows in zip(stages, num_rows, strict=True):
            stride = stage.input_bag_size * sequence_length
            order = RowOrder(origin, stride, corpus.num_tokens, rows, window // stride, block_windows)
            self.orders.append(order)
            origin = origin if rows is None else order.end()

    def starts(self, stage_index: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the first token of each row of a stage; rows count from 0 in each stage."""
        return self._locate(self.orders[stage_index].units(rows))[0]

    def read(self, stage_index: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, None]:
        """Return the inputs (B, L, s) and targets (B, L, k) of rows of a stage; None stands for the usual positions."""
        stage = self.stages[stage_index]
        ids_BLs, targets_BLk = split_inputs_and_targets(
            torch.from_numpy(self.raw_rows(stage_index, rows)), stage.bag_size, stage.mode
        )
        return ids_BLs, targets_BLk, None

    def raw_rows(self, stage_index: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token ids of rows of a stage, (B, s * L + look-ahead)."""
        stride, look_ahead = self.orders[stage_index].stride, self.stages[stage_index].bag_size
        raw = np.empty((len(rows), stride + look_ahead), dtype=np.int64)
        units = self.orders[stage_index].units(rows)
        for row, unit, start, available in zip(raw, units, *self._locate(units), strict=True):
            done = 0
            while done + available < stride:  # the row continues in another window
                row[done : done + available] = self.corpus.read(int(start), int(available))
                done += int(available)
                start, available = (part[0] for part in self._locate(np.array([unit + done])))
            self._read_around(int(start), row[done:])
        return raw

    def tokens_read(self, stage_index: int, num_rows: int) -> int:
        """Return the number of tokens in the first `num_rows` rows of a stage."""
        return num_rows * self.orders[stage_index].stride

    def _read_around(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill `out` with the tokens from `start` on; the first token follows the last token of the corpus."""
        done = 0
        while done < len(out):
            length = min(len(out) - done, self.corpus.num_tokens - start)
            out[done : done + length] = self.corpus.read(start, length)
            done, start = done + length, 0

    def _locate(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each unit (a token number in reading order) its place in the corpus and the tokens left there."""
        total = self.corpus.num_tokens
        epochs, within = np.divmod(units, total)
        places, available = np.empty_like(within), np.empty_like(within)
        for epoch in np.unique(epochs):  # one or two
            here = epochs == epoch
            unit, shift = within[here], self._shift(int(epoch))
            index, offset = np.divmod(unit - shift, self.window)
            count = (total - shift) // self.window
            inside = (index >= 0) & (index < count)
            place, left = unit.copy(), np.where(unit < shift, shift, total) - unit
            if inside.any():
                window = permute(index[inside], count, self.seed, int(epoch))
                place[inside] = shift + window * self.window + offset[inside]
                left[inside] = self.window - offset[inside]
            places[here], available[here] = place, left
        return places, available

    def _shift(self, epoch: int) -> int:
        """Return the number of first tokens of an epoch that belong to the last row of the epoch before."""
        start = epoch * self.corpus.num_tokens
        order = [order for order in self.orders if order.origin <= start][-1]
        return (order.origin - start) % order.stride


_Ints = Any  # an int or an int64 array: the arithmetic is the same


@dataclass(frozen=True)
class RowOrder:
    """The order of the rows of one stage.

    Attributes:
        origin: the first unit of the stage, counted through all epochs.
        stride: units per row.
        epoch: units per epoch, at least one row.
        num_rows: rows of the stage; None for the last stage of a run.
        window_rows: m, rows per window.
        block_windows: windows per block.
    """

    origin: int
    stride: int
    epoch: int
    num_rows: int | None
    window_rows: int
    block_windows: int

    def units(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the first unit of each row; rows count from 0 in reading order."""
        return self.origin + self._places(rows) * self.stride

    def end(self) -> int:
        """Return the unit after the last row of the stage; only for a stage that ends."""
        return self.origin + (self.num_rows or 0) * self.stride

    def block_start(self, row: int) -> int:
        """Return the first row of the block of a row; the rows before the block cover all units before it."""
        rows = np.array([row])
        first, _, _, start, _ = self._blocks(rows)
        return int((first + start)[0])

    def _places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each row in the order of the corpus."""
        first, count, within, start, size = self._blocks(rows)
        spread = _spread(within - start, size, self.window_rows)
        return np.where(within < count, first + start + spread, rows)

    def _blocks(self, rows: NDArray[np.int64]) -> tuple[_Ints, _Ints, _Ints, _Ints, _Ints]:
        """Return for each row its epoch and its block, as five arrays.

        They are the first row of the epoch, the number of shuffled rows in the epoch, the number of the row in the
        epoch, the first row of the block in the epoch, and the number of rows in the block.
        """
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
        """Return the first row that starts in an epoch."""
        return np.maximum(0, -((self.origin - epoch * self.epoch) // self.stride))


def _spread(row: _Ints, size: _Ints, stride: int) -> NDArray[np.int64]:
    """Return the position of each row if rows 0 .. size - 1 are read with a stride: 0, m, 2m, ..., 1, m + 1, ..."""
    short, extra = np.divmod(size, stride)  # the first `extra` of the m passes are one row longer
    short, long = np.maximum(short, 1), short + 1
    late = row - extra * long
    pass_number = np.where(late < 0, row // long, extra + late // short)
    spread: NDArray[np.int64] = np.where(late < 0, row % long, late % short) * stride + pass_number
    return spread


_ROUNDS = 6


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Map each index through a seeded permutation of 0 .. size - 1.

    Args:
        index: integers in [0, size), any shape.
        size: the number of elements, at least 1.
        seed, epoch: each pair gives a different permutation.

    Returns:
        int64 of the same shape.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch, size]).generate_state(_ROUNDS, np.uint64).astype(np.uint64)
    value = index.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        value[outside] = _feistel(value[outside], half_bits, keys)
        outside = value >= size
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finalizer of SplitMix64: every input bit changes every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
