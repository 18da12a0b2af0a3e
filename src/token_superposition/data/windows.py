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
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.data.order import RowOrder
from token_superposition.data.permutation import permute
from token_superposition.objective.bags import split_inputs_and_targets
from token_superposition.plan.stages import Stage


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
