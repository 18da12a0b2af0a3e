"""Texts: the rows of a range of all runs, equal ones taken together; and runs of the copies of what is there twice.

The first of equal texts lies where its hash says, and so in one range of the merge with all that equal it. Were
its copies to lie there too, a text that makes up gigabytes by its copies would have to be held at once, and would
be trained on in one go. So the copy of number k, counted over the whole corpus, has the place that a hash of seed,
text and k gives it: they lie as far apart as different documents, and how the corpus was cut changes no place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.prepare import spill as runs
from token_superposition.data.prepare.spill import Ids, Rows, Run, Stretch, places_of, read_ranges, write_run


@dataclass(frozen=True)
class Texts:
    """The different texts of a range, in the order of their places.

    Attributes:
        rows: of each; `times` of all its runs. Rows of copies are kept as they are.
        stretches: what they were found in.
        chosen: which of the rows in them, counted through all, stands for each text.
    """

    rows: Rows
    stretches: Sequence[Stretch]
    chosen: NDArray[np.int64]

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> Texts:
        """Take equal texts together."""
        rows = np.concatenate([stretch.rows for stretch in stretches])
        order = np.lexsort((rows["low"], rows["high"], rows["place"]))
        rows = rows[order]
        # Of a billion copies of a text two may share a place. A copy never comes before what it could be taken for:
        # copies are in the last runs, and the sort is stable.
        first = rows["times"] == 0
        first[:1] = True
        for part in ("place", "high", "low"):
            first[1:] |= rows[part][1:] != rows[part][:-1]
        starts = np.flatnonzero(first)
        texts = rows[starts]
        if len(texts):
            texts["times"] = np.add.reduceat(rows["times"], starts)
        return cls(texts, stretches, order[starts])

    def read(self, wanted: NDArray[np.bool_]) -> list[Ids]:
        """The ids of the wanted texts, in their order."""
        chosen = self.chosen[wanted]
        mask = np.zeros(sum(len(stretch.rows) for stretch in self.stretches), dtype=bool)
        mask[chosen] = True
        ids: list[Ids] = []
        start = 0
        for stretch in self.stretches:
            own = mask[start : start + len(stretch.rows)]
            if own.any():
                ids += stretch.read(own)
            start += len(own)
        place_in_ids = np.argsort(np.argsort(chosen))
        return [ids[place] for place in place_in_ids.tolist()]


def write_copies(
    folder: Path,
    found: Sequence[Run],
    dtype: np.dtype[Any],
    seed: int,
    is_held_out: Callable[[Rows], NDArray[np.bool_]],
    report: Callable[[], None],
) -> list[Run]:
    """Write further runs: of each training text that is there several times, its copies after the first.

    Args:
        folder, found, dtype: the runs of what was encoded.
        seed: of the order.
        is_held_out: of which texts none are wanted.
        report: called now and then.
    """
    written: list[Run] = []
    rows: list[Rows] = []
    ids: list[Ids] = []
    size = 0

    def flush() -> None:
        nonlocal size
        written.append(write_run(folder, f"copies-{len(written):06d}", np.concatenate(rows), ids))
        rows.clear()
        ids.clear()
        size = 0
        report()

    for row, own in _repeated(folder, found, dtype, is_held_out):
        number, times = 1, int(row["times"])
        own_hash = b"".join(int(row[half]).to_bytes(8, "big") for half in ("high", "low"))
        while number < times:
            room = min((runs.RUN_BYTES - size) // max(1, own.nbytes), runs.RUN_ROWS - len(ids))
            stop = min(times, number + max(1, room))
            copies = np.repeat(row.reshape(1), stop - number)
            copies["place"] = places_of([own_hash + copy.to_bytes(8, "big") for copy in range(number, stop)], seed)
            copies["times"] = 0
            rows.append(copies)
            ids += [own] * len(copies)
            size += own.nbytes * len(copies)
            number = stop
            if size >= runs.RUN_BYTES or len(ids) >= runs.RUN_ROWS:
                flush()
    if ids:
        flush()
    return written


def _repeated(
    folder: Path, found: Sequence[Run], dtype: np.dtype[Any], is_held_out: Callable[[Rows], NDArray[np.bool_]]
) -> Iterator[tuple[Rows, Ids]]:
    """Each text that is there several times: its row and its ids."""
    for stretches in read_ranges(folder, found, dtype):
        texts = Texts.of(stretches)
        wanted = (texts.rows["times"] > 1) & ~is_held_out(texts.rows)
        yield from zip(texts.rows[wanted], texts.read(wanted), strict=True)
