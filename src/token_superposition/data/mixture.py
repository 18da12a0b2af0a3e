"""Several corpora in one stream, by weight: which row of a run comes from which source.

A source of weight w has a share of w * n of the first n rows, and never has a whole row more or less than that, at
any n. Giving each row to the source that is furthest behind does not keep to this with three sources or more. What does
is known from scheduling (Baruah, Cohen, Plaxton, Varvel, "Proportionate progress", 1996): the j-th row of a source may
come once the source's share is above j - 1, and must have come when its share is j; of the rows that may come, take
the one that must come first.

Weights are taken as whole numbers of equal parts, at most 10,000 of them (others are rounded to that), so that the rule
repeats itself after as many rows as there are parts: one period is a table, and the counts at any row of any run follow
from its number.
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
    """Weights as the smallest whole numbers of the same proportions, or nearly, where these add up to over 10,000.

    Then the parts are 10,000 in all, as near to the weights as whole numbers can be, and at least one for each source.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    whole = [int(part * math.lcm(*(each.denominator for each in fractions))) for part in fractions]
    parts = [part // math.gcd(*whole) for part in whole]
    return parts if sum(parts) <= _MOST_PARTS else _rounded(parts)


def rounded_shares(weights: Sequence[float]) -> list[float] | None:
    """The share of the rows that each source has, where it is not exactly what the weights say; else None."""
    parts = weight_parts(weights)
    fractions = [Fraction(str(weight)) for weight in weights]
    if all(Fraction(part, sum(parts)) == each / sum(fractions) for part, each in zip(parts, fractions, strict=True)):
        return None
    return [part / sum(parts) for part in parts]


def _rounded(parts: list[int]) -> list[int]:
    """10,000 parts in nearly the same proportions: what is left after rounding down goes to the largest remainders."""
    exact = [Fraction(part * _MOST_PARTS, sum(parts)) for part in parts]
    whole = [max(1, int(each)) for each in exact]
    order = sorted(range(len(parts)), key=lambda source: (whole[source] - exact[source], source))
    for source in order[: max(0, _MOST_PARTS - sum(whole))]:
        whole[source] += 1
    while sum(whole) > _MOST_PARTS:  # every tiny source has been given a part of its own
        whole[whole.index(max(whole))] -= 1
    divisor = math.gcd(*whole)
    return [each // divisor for each in whole]


class Interleaving:
    """Which source each row comes from.

    Args:
        weights: of the sources, in any proportion.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        parts = weight_parts(weights)
        self.period = sum(parts)
        self._sources = np.empty(self.period, dtype=np.int64)
        counts = [0] * len(parts)
        for row in range(self.period):
            due = [
                (-(-(count + 1) * self.period // part), source)  # when it must have come
                for source, (count, part) in enumerate(zip(counts, parts, strict=True))
                if part * (row + 1) > count * self.period
            ]
            source = min(due)[1]
            self._sources[row] = source
            counts[source] += 1
        # (sources, period + 1): rows of each before every row of the period
        taken = self._sources == np.arange(len(parts))[:, None]
        self._before = np.concatenate([np.zeros((len(parts), 1), np.int64), taken.cumsum(axis=1)], axis=1)

    def sources(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the source that each row of the run comes from."""
        return self._sources[rows % self.period]

    def count(self, source: int, rows: _Ints) -> _Ints:
        """How many rows before a row of the run come from a source."""
        periods, within = np.divmod(rows, self.period)
        return periods * self._before[source][-1] + self._before[source][within]
