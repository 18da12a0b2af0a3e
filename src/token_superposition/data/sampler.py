"""Rows of plain text: a corpus as one sequence of tokens, each of which is read once an epoch.

An epoch's tokens are dealt out in windows of W = L * lcm(the run's input bag sizes) tokens, so that a window holds a
whole number of rows of every stage, in the order of a stateless seeded permutation, another one each epoch. The
corpus's end that fills no window comes last, and the row that does not fit into it goes on at the corpus's
beginning, as if the corpus were a ring; the next epoch's windows start behind it, so that its rows do not lie across
their edges. Where a stage's bag size does not divide what the stage before left of a window, rows do go on in the
next window, for the rest of that epoch: the text has a seam there, as it has between documents.

A row's look-ahead, the targets past its last bag, is what follows it physically in the corpus.
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
    """What the stream reads: a prepared corpus, or anything that copies out a span of token ids."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> NDArray[np.int64]: ...


class WindowRows:
    """The rows that the stages of a run take from one corpus.

    Args:
        corpus: the training tokens, at least a row's.
        stages: of the run.
        num_rows: that each takes from this corpus; None for the last, which may get longer.
        sequence_length: L, latent positions a row.
        window: W, in tokens.
        block_windows: windows that rows are shuffled over.
        seed: of the windows' order.
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
        """The tokens that rows of a stage start with; rows count from 0 in each stage."""
        return self._locate(self.orders[stage_index].units(rows))[0]

    def read(self, stage_index: int, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, None]:
        """Inputs (B, L, s) and targets (B, L, k) of rows of a stage; positions are the usual ones."""
        stage = self.stages[stage_index]
        ids_BLs, targets_BLk = split_inputs_and_targets(
            torch.from_numpy(self.raw_rows(stage_index, rows)), stage.bag_size, stage.mode
        )
        return ids_BLs, targets_BLk, None

    def raw_rows(self, stage_index: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The token ids of rows of a stage, (B, s * L + look-ahead)."""
        stride, look_ahead = self.orders[stage_index].stride, self.stages[stage_index].bag_size
        raw = np.empty((len(rows), stride + look_ahead), dtype=np.int64)
        units = self.orders[stage_index].units(rows)
        for row, unit, start, room in zip(raw, units, *self._locate(units), strict=True):
            done = 0
            while done + room < stride:  # the row goes on in another window
                row[done : done + room] = self.corpus.read(int(start), int(room))
                done += int(room)
                start, room = (part[0] for part in self._locate(np.array([unit + done])))
            self._read_around(int(start), row[done:])
        return raw

    def tokens_read(self, stage_index: int, num_rows: int) -> int:
        """Tokens of the first rows of a stage."""
        return num_rows * self.orders[stage_index].stride

    def _read_around(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill `out` with the tokens from `start` on; after the corpus's last comes its first."""
        done = 0
        while done < len(out):
            length = min(len(out) - done, self.corpus.num_tokens - start)
            out[done : done + length] = self.corpus.read(start, length)
            done, start = done + length, 0

    def _locate(self, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where units, tokens in the order they are dealt out in, lie in the corpus, and how many follow there."""
        total = self.corpus.num_tokens
        epochs, within = np.divmod(units, total)
        places, room = np.empty_like(within), np.empty_like(within)
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
            places[here], room[here] = place, left
        return places, room

    def _shift(self, epoch: int) -> int:
        """Tokens at an epoch's start that belong to the row across the end of the epoch before."""
        start = epoch * self.corpus.num_tokens
        order = [order for order in self.orders if order.origin <= start][-1]
        return (order.origin - start) % order.stride


# The order in which a stage reads its rows: arithmetic, with nothing to remember.
#
# A stage's rows lie side by side along the epochs of a corpus, counted in units (tokens, or bags where documents are
# kept apart): row i starts at unit `origin + i * stride`, and the next stage starts where the last row ends. So
# nothing is left between stages, and none is read twice.
#
# Rows are not read in that order, for neighbours share a document. The rows of an epoch are cut into blocks of
# `block_windows * window_rows` of them, the last one up to twice as large, and a block is read with a stride of
# `window_rows`: its rows 0, m, 2m, ..., then 1, m + 1, ... Rows that are read one after another then come from
# different windows. A block reaches neither into the next epoch nor into the next stage; the one row that lies across
# an epoch's end is the epoch's last. So an epoch is read to its end before the next one begins.
#
# The last stage has no end here: a run that is made longer goes on, and has read the same until then.


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


# A stateless seeded permutation of 0 .. n - 1.
#
# A shuffled list of a corpus's windows would cost memory and start-up time that grow with the corpus, and would have
# to be remembered across a resume. A Feistel network needs neither: it is a bijection on the next power of four by
# construction, and walking its cycle until a value under n comes up ("cycle walking") makes it a bijection on 0 .. n
# - 1. Any element is computed on its own from (seed, epoch, index).


_ROUNDS = 6


def permute(index: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where a seeded permutation of 0 .. size - 1 sends each index.

    Args:
        index: integers in [0, size), any shape.
        size: how many there are, at least 1.
        seed, epoch: each pair is another permutation.

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
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
