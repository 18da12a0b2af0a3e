"""Which arm a comparison's headline is about, and whether that arm won or lost.

**Whether.** An arm has lost where its interval over seeds lies above zero. It has won where the interval lies below
zero, and of several arms a wider one. One arm without any effect has its 95% interval below zero in 2.5% of studies;
the lowest of three has in 5.6%, of ten in 11% (five seeds, one baseline for all; simulated). At a level of 1 - 0.05/k
for k arms (Bonferroni) any of them has in 2.5% or less, however they depend on one another, so every arm that has can
be named. A loss needs no such care: choosing the best did not put it above zero.

Seeds that agree tell differences apart that are of no use: under what the paper takes for noise, neither is a gain nor
a loss, wherever the interval lies. Where it leaves out zero, or holds nothing but noise, the two ended level.

**Which.** The arm that decides the most, not the one that is the furthest below: a mean may lie far below zero because
its seeds are far apart, and would hide an arm that has won.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from token_superposition.study.statistics import t_interval

Difference = Mapping[str, Any]  # an entry of the report's `equal_flops_all`
Outcome = Literal["won", "lost", "level", "undecided"]
OUTCOME_WORDS: Mapping[Outcome, str] = {
    "won": "clearly better",
    "lost": "clearly worse",
    "level": "level, within noise",
    "undecided": "undecided",
}
NOISE = 0.003  # nats; what the paper takes for noise, for runs of 270 million parameters and more


def headline_of(differences: Sequence[Difference]) -> Difference:
    """The difference that the headline is about: one that won, else one that would have as the only one, else any.

    Among equals the furthest below the baseline.
    """

    def standing(difference: Difference) -> tuple[bool, bool, float]:
        won = outcome_of(difference, len(differences)) == "won"
        return not won, not would_have_won(difference), _delta(difference)

    return min(differences, key=standing)


def outcome_of(difference: Difference, num_arms: int) -> Outcome:
    """Whether the arm won, lost or ended level with the baseline, or none of these can be said.

    Args:
        difference: the arm's.
        num_arms: how many arms were compared with the baseline.
    """
    ends, delta = difference["confidence_interval"], _delta(difference)
    if ends is None:
        return "undecided"
    below, above = ends[1] < 0, ends[0] > 0
    if abs(delta) < NOISE:
        return "level" if below or above or (ends[0] > -NOISE and ends[1] < NOISE) else "undecided"
    if above:
        return "lost"
    return "won" if below and widened(difference, num_arms)[1] < 0 else "undecided"


def would_have_won(difference: Difference) -> bool:
    """Whether the arm won if it were the only one."""
    return outcome_of(difference, 1) == "won"


def is_lower(one: Difference, other: Difference) -> bool:
    """Whether one ended further below the baseline, on average, than the other."""
    return _delta(one) < _delta(other)


def widened(difference: Difference, num_arms: int) -> tuple[float, float]:
    """The interval that has to lie below zero for a gain; only of a difference that has an interval."""
    return t_interval(difference["deltas"], widened_level(difference, num_arms))


def widened_level(difference: Difference, num_arms: int) -> float:
    """That interval's confidence: 0.99 for five arms."""
    return 1 - (1 - float(difference["confidence_level"])) / num_arms


def _delta(difference: Difference) -> float:
    """Infinite where a run ended without a finite loss, which is worse than any."""
    delta = difference["delta_nats"]
    return float(delta) if delta is not None and math.isfinite(delta) else math.inf
