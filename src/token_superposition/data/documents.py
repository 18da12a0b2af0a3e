"""Rows that keep documents apart: no bag and no target crosses the end of a document.

Each document is split into its own bags. The last bag of a document can be short. Its empty slots are padding (-100),
which has no weight in the mean of the bag and in the loss. A bag predicts the next bag of its document; the last bag of
a document predicts nothing. A row is L adjacent bags, which may belong to several documents, so the latent shape does
not change. A run reads fewer tokens because of the padding, and the padding is counted.

The documents are read in windows of whole documents. A window holds the documents that start within W tokens of the
corpus. A seeded permutation orders the windows, a different one in each epoch. The unit of `sampler` is here a bag of
the stage's own size, numbered in this order. A stage that starts inside a document splits bags from its first token, so
here too every token is an input exactly once per epoch, for any combination of bag sizes: no token is left out between
stages or epochs.

The document of a bag is found by a search in cumulative counts: one number per document and bag size, and one number
per window and epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from token_superposition.bags import PADDING, split_inputs_and_targets
from token_superposition.data.sampler import RowOrder, Tokens, permute
from token_superposition.schedule import Stage

_Ints = NDArray[np.int64]
_MOST_LAYOUTS = 8


class Documents(Tokens, Protocol):
    """Tokens with the ends of their documents; a `TokenDataset` has an index of them."""

    def document_ends(self) -> _Ints: ...


class _Bags(NamedTuple):
    """The places of bags.

    Attributes:
        starts: the number of the first token of each bag.
        ends: the number of the token after the last token of its document.
        before: the number of tokens that are read before the bag, over all epochs.
    """

    starts: _Ints
    ends: _Ints
    before: _Ints


class _Origin(NamedTuple):
    """The start of a stage: its epoch, document and token, and the number of bags to the end of the document."""

    epoch: int
    document: int
    token: int
    num_bags: int


class DocumentRows:
    """The rows that the stages of a run read from one corpus; the arguments are those of `WindowRows`."""

    def __init__(
        self,
        corpus: Documents,
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
        self.seed = seed
        self.ends = corpus.document_ends()
        if not len(self.ends) or self.ends[-1] != corpus.num_tokens:  # the tokens after the last end are a document too
            self.ends = np.append(self.ends, corpus.num_tokens)
        self._starts = np.concatenate([[0], self.ends[:-1]])
        first = np.unique(np.searchsorted(self._starts, np.arange(0, corpus.num_tokens, window)))
        self._edges = np.append(first[first < len(self.ends)], len(self.ends))  # the first document of each window
        lengths = self.ends - self._starts
        # for each bag size: the number of bags before each document
        self._bags_before = {
            size: np.concatenate([[0], np.cumsum(-(-lengths // size))])
            for size in {stage.input_bag_size for stage in stages}
        }
        self._layouts: dict[tuple[int, int], tuple[_Ints, _Ints]] = {}
        self.orders: list[RowOrder] = []
        self._origins: list[_Origin] = []
        before = 0
        for index, (stage, rows) in enumerate(zip(stages, num_rows, strict=True)):
            size = stage.input_bag_size
            unit, origin = self._origin(before, size)
            per_window = max(1, window // (size * sequence_length))
            epoch = int(self._bags_before[size][-1])
            order = RowOrder(unit, sequence_length, epoch, rows, per_window, block_windows)
            self.orders.append(order)
            self._origins.append(origin)
            if rows is not None:
                before = int(self._bags(index, np.array([order.end()])).before[0])

    def starts(self, stage_index: int, rows: _Ints) -> _Ints:
        """Return the number of the first token of each row of a stage; rows count from 0 in each stage."""
        return self._bags(stage_index, self.orders[stage_index].units(rows)).starts

    def read(self, stage_index: int, rows: _Ints) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows of a stage.

        Returns:
            Inputs (B, L, s), with -100 for padding; targets (B, L, k), with -100 for a missing target; and positions
            (B, L), which restart with each document.
        """
        stage, length = self.stages[stage_index], self.sequence_length
        size = stage.input_bag_size
        units = self.orders[stage_index].units(rows)[:, None] + np.arange(length)
        starts, ends, _ = self._bags(stage_index, units)
        begins = np.ones_like(units, dtype=bool)  # whether a document or the row begins here
        begins[:, 1:] = (ends[:, 1:] != ends[:, :-1]) | (starts[:, 1:] <= starts[:, :-1])
        places = np.broadcast_to(np.arange(length), units.shape)
        positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
        ids_BLs = torch.empty(*units.shape, size, dtype=torch.int64)
        targets_BLk = torch.empty(*units.shape, stage.num_targets, dtype=torch.int64)
        pieces = np.flatnonzero(begins)
        for piece, after in zip(pieces, np.append(pieces[1:], units.size), strict=True):
            row, place = divmod(int(piece), length)
            num_bags, start = int(after - piece), int(starts[row, place])
            raw = np.full(num_bags * size + stage.bag_size, PADDING, dtype=np.int64)
            there = min(len(raw), int(ends[row, place]) - start)
            raw[:there] = self.corpus.read(start, there)
            parts = split_inputs_and_targets(torch.from_numpy(raw)[None], stage.bag_size, stage.mode)
            for whole, part in zip((ids_BLs, targets_BLk), parts, strict=True):
                whole[row, place : place + num_bags] = part[0]
        return ids_BLs, targets_BLk, torch.from_numpy(positions)

    def tokens_read(self, stage_index: int, num_rows: int) -> int:
        """Return the number of tokens in the first `num_rows` rows of a stage."""
        if num_rows == 0:
            return 0
        order = self.orders[stage_index]
        whole = order.block_start(num_rows - 1)  # the rows before the block cover all units before it
        units = order.units(np.arange(whole, num_rows))
        marks = np.concatenate([units, units + order.stride, [order.origin, order.origin + whole * order.stride]])
        before = self._bags(stage_index, marks).before
        first, last = before[: len(units)], before[len(units) : -2]
        return int((last - first).sum() + before[-1] - before[-2])

    def _bags(self, stage_index: int, units: _Ints) -> _Bags:
        """Return the places of bags of a stage, given their numbers."""
        size, origin = self.stages[stage_index].input_bag_size, self._origins[stage_index]
        bags_before = self._bags_before[size]
        epochs, within = np.divmod(units, bags_before[-1])
        starts, ends, before = (np.empty_like(units) for _ in range(3))
        for epoch in np.unique(epochs).tolist():  # one or two
            here = epochs == epoch
            windows, counts = self._layout(epoch, size)
            place = np.searchsorted(counts, within[here], side="right") - 1
            window = self._edges[windows[place]]
            number = bags_before[window] + within[here] - counts[place]
            document = np.searchsorted(bags_before, number, side="right") - 1
            start = self._starts[document] + (number - bags_before[document]) * size
            if epoch == origin.epoch:  # the bags of the stage's first document start at the stage's first token
                late = number - (bags_before[document + 1] - origin.num_bags)
                start = np.where(document == origin.document, origin.token + late * size, start)
            starts[here], ends[here] = start, self.ends[document]
            tokens_before = self._layout(epoch, 1)[1][place] + start - self._starts[window]
            before[here] = epoch * self.corpus.num_tokens + tokens_before
        return _Bags(starts, ends, before)

    def _origin(self, before: int, size: int) -> tuple[int, _Origin]:
        """Return the number and the place of the bag that starts after `before` tokens, over all epochs."""
        epoch, within = divmod(before, self.corpus.num_tokens)
        windows, counts = self._layout(epoch, 1)
        place = int(np.searchsorted(counts, within, side="right")) - 1
        window = int(self._edges[windows[place]])
        token = int(self._starts[window] + within - counts[place])
        document = int(np.searchsorted(self.ends, token, side="right"))
        num_bags = -(-(int(self.ends[document]) - token) // size)
        bags_before, bag_counts = self._bags_before[size], self._layout(epoch, size)[1]
        number = bag_counts[place] + bags_before[document + 1] - bags_before[window] - num_bags
        return int(epoch * bags_before[-1] + number), _Origin(epoch, document, token, num_bags)

    def _layout(self, epoch: int, size: int) -> tuple[_Ints, _Ints]:
        """Return the windows of an epoch in reading order, and the number of bags (tokens for size 1) before each."""
        if (epoch, size) not in self._layouts:
            count = len(self._edges) - 1
            order = permute(np.arange(count), count, self.seed, epoch)
            before = self._bags_before[size][self._edges] if size > 1 else self._token_edges()
            counts = np.concatenate([[0], np.cumsum(np.diff(before)[order])[:-1]])
            while len(self._layouts) >= _MOST_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[epoch, size] = order, counts
        return self._layouts[epoch, size]

    def _token_edges(self) -> _Ints:
        return np.append(self._starts, self.corpus.num_tokens)[self._edges]
