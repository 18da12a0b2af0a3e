"""Mix several corpora into one stream by weight: decide which source each row of a run comes from.

A source with the relative weight w gets w * n of the first n rows, and its count differs from this by less than one
row, at every n. Simply giving each row to the source that is furthest behind does not guarantee this with three or more
sources. A rule from scheduling does (Baruah, Cohen, Plaxton, Varvel, "Proportionate progress", 1996): the j-th row of a
source may come as soon as the share w * n of the source is above j - 1, and must have come when this share reaches j.
Of the rows that may come, the rule takes the row with the earliest deadline.

The weights are converted to integers, at most 10,000 in total (other weights are rounded). The rule then repeats after
as many rows as this total. One period is stored as a table, and the counts at any row of any run follow from the row
number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_PARTS = 10_000

_Ints = Any  # an int or an int64 array: the arithmetic is the same


def weight_parts(weights: Sequence[float]) -> list[int]:
    """Return the weights as the smallest integers with the same proportions.

    If these integers sum to more than 10,000, they are rounded such that they sum to 10,000 before common factors are
    removed, and every source gets at least one.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    whole = [int(part * math.lcm(*(each.denominator for each in fractions))) for part in fractions]
    parts = [part // math.gcd(*whole) for part in whole]
    return parts if sum(parts) <= _MOST_PARTS else _rounded(parts)


def rounded_shares(weights: Sequence[float]) -> list[float] | None:
    """Return the share of each source in the rows if rounding changed it; None if all shares are exact."""
    parts = weight_parts(weights)
    fractions = [Fraction(str(weight)) for weight in weights]
    if all(Fraction(part, sum(parts)) == each / sum(fractions) for part, each in zip(parts, fractions, strict=True)):
        return None
    return [part / sum(parts) for part in parts]


def _rounded(parts: list[int]) -> list[int]:
    """Round to 10,000 parts: after rounding down, the sources with the largest remainders get the remaining parts."""
    exact = [Fraction(part * _MOST_PARTS, sum(parts)) for part in parts]
    whole = [max(1, int(each)) for each in exact]
    order = sorted(range(len(parts)), key=lambda source: (whole[source] - exact[source], source))
    for source in order[: max(0, _MOST_PARTS - sum(whole))]:
        whole[source] += 1
    while sum(whole) > _MOST_PARTS:  # sources below one part were raised to one part
        whole[whole.index(max(whole))] -= 1
    divisor = math.gcd(*whole)
    return [each // divisor for each in whole]


class Interleaving:
    """The assignment of rows to sources.

    Args:
        weights: the weights of the sources; only their proportions matter.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        parts = weight_parts(weights)
        self.period = sum(parts)
        self._sources = np.empty(self.period, dtype=np.int64)
        counts = [0] * len(parts)
        for row in range(self.period):
            due = [
                (-(-(count + 1) * self.period // part), source)  # the deadline of the next row of this source
                for source, (count, part) in enumerate(zip(counts, parts, strict=True))
                if part * (row + 1) > count * self.period
            ]
            source = min(due)[1]
            self._sources[row] = source
            counts[source] += 1
        # (sources, period + 1): the rows of each source before every row of the period
        taken = self._sources == np.arange(len(parts))[:, None]
        self._before = np.concatenate([np.zeros((len(parts), 1), np.int64), taken.cumsum(axis=1)], axis=1)

    def sources(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the source of each row of the run."""
        return self._sources[rows % self.period]

    def count(self, source: int, rows: _Ints) -> _Ints:
        """Return the number of rows from a source before a row of the run."""
        periods, within = np.divmod(rows, self.period)
        return periods * self._before[source][-1] + self._before[source][within]
