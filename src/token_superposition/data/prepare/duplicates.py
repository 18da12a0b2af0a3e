"""Equal texts: merge the equal rows of a range of all runs, and write runs of the copies of repeated texts.

The place of the first copy of a text is its hash, so all equal texts are in the same range of the merge. If the other
copies were there too, a text whose copies make up gigabytes would have to be in memory at once, and training would read
its copies one after another. Therefore the place of copy number k, counted over the whole corpus, is a hash of seed,
text and k. The copies are then as far apart as different documents, and the pieces of the corpus change no place.
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
        rows: one row per text; `times` is the sum over all runs. Rows of copies are not merged.
        stretches: the stretches with the rows of the texts.
        chosen: the number of the row that represents each text, counted through all stretches.
    """

    rows: Rows
    stretches: Sequence[Stretch]
    chosen: NDArray[np.int64]

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> Texts:
        """Merge equal texts."""
        rows = np.concatenate([stretch.rows for stretch in stretches])
        order = np.lexsort((rows["low"], rows["high"], rows["place"]))
        rows = rows[order]
        # Among a billion copies of a text, two can share a place. A copy is never merged into a wrong text: copies are
        # in the last runs, and the sort is stable.
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
        """Return the ids of the wanted texts, in their order."""
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
    """Write more runs with the copies, after the first one, of each repeated training text.

    Args:
        folder, found, dtype: the folder, the runs and the dtype of the encoded texts.
        seed: the seed of the order.
        is_held_out: returns which texts are in the validation split; they get no copies here.
        report: called from time to time.
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
            available = min((runs.RUN_BYTES - size) // max(1, own.nbytes), runs.RUN_ROWS - len(ids))
            stop = min(times, number + max(1, available))
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
    """Yield each repeated text: its row and its ids."""
    for stretches in read_ranges(folder, found, dtype):
        texts = Texts.of(stretches)
        wanted = (texts.rows["times"] > 1) & ~is_held_out(texts.rows)
        yield from zip(texts.rows[wanted], texts.read(wanted), strict=True)
