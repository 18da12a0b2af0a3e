"""Which arm the headline is about, and how sure a gain has to be where it is the best of several."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from tests.study.reports import LOST, UNDECIDED, WON, difference_of
from token_superposition.study.report.parts import Difference
from token_superposition.study.significance import headline_of, outcome_of, widened

LOW_BUT_WIDE = (-0.136, -0.016, -0.016)  # mean -0.056, interval -0.228 to +0.116
CLEAR = (-0.0445, -0.045, -0.0455)
BARELY = (-0.045, -0.085, -0.080)  # its own interval lies below zero, that of the best of three does not


def difference(deltas: Sequence[float], arm: str = "arm") -> Difference:
    return Difference.model_validate(difference_of("baseline", [0.0] * len(deltas), arm, deltas))


@pytest.mark.parametrize(
    ("arms", "headline"),
    [
        ([LOW_BUT_WIDE, CLEAR], 1),
        ([CLEAR, LOW_BUT_WIDE], 0),
        ([LOW_BUT_WIDE, BARELY, CLEAR], 2),  # the only one that won
        ([UNDECIDED, BARELY, LOST], 1),
        ([[-0.02, -0.021, -0.022], CLEAR], 1),
        ([LOST, LOW_BUT_WIDE], 1),
        ([[0.01], [-0.01], [-0.02]], 2),
        ([[math.nan, -1.0, -1.0], CLEAR], 1),
        ([[math.nan, -1.0, -1.0], LOST], 1),
    ],
)
def test_the_headline_is_of_the_arm_that_decides_the_most(arms: Sequence[Sequence[float]], headline: int) -> None:
    found = [difference(deltas, f"arm {number}") for number, deltas in enumerate(arms)]
    assert headline_of(found) is found[headline]


def test_the_best_of_several_has_to_be_surer() -> None:
    assert [outcome_of(difference(BARELY), number) for number in (1, 3)] == ["won", "undecided"]
    assert widened(difference(BARELY), 1) == pytest.approx(difference(BARELY).confidence_interval)
    assert widened(difference(BARELY), 3)[1] > 0
    assert outcome_of(difference(WON), 10) == "won"
    assert [outcome_of(difference(LOST), number) for number in (1, 10)] == ["lost", "lost"]
    assert outcome_of(difference([-0.5]), 1) == "undecided"


@pytest.mark.parametrize(
    ("deltas", "outcome"),
    [
        ([-0.0003, -0.0002, -0.0004], "level"),  # they agree, on nothing that counts
        ([0.0029, 0.0028, 0.0029], "level"),
        ([-0.0003, 0.0002, -0.0001], "level"),  # zero is in it, and nothing but noise
        ([-0.002, 0.003, -0.004], "undecided"),  # zero is in it, and more than noise
        ([-0.0031, -0.0032, -0.0031], "won"),
        ([0.0031, 0.0032, 0.0031], "lost"),
        ([-0.0003], "undecided"),
    ],
)
def test_a_difference_within_the_noise_is_neither_gain_nor_loss(deltas: Sequence[float], outcome: str) -> None:
    assert [outcome_of(difference(deltas), number) for number in (1, 2)] == [outcome, outcome]


def test_an_arm_that_is_level_does_not_hide_one_that_may_have_won() -> None:
    found = [difference([-0.001, -0.0011, -0.0012], "level"), difference(LOW_BUT_WIDE, "low")]
    assert headline_of(found) is found[1]


@pytest.mark.parametrize("num_arms", [1, 3, 10])
def test_arms_without_an_effect_seldom_win(num_arms: int) -> None:
    # 2,000 studies of five seeds, one baseline for all arms: a standard error of 0.0035 around 0.025 or less.
    dice = random.Random(0)
    won, studies = 0, 2000
    for _ in range(studies):
        baseline, *arms = [[dice.gauss(0, 1) for _ in range(5)] for _ in range(num_arms + 1)]
        found = [Difference.of("baseline", baseline, str(number), arm) for number, arm in enumerate(arms)]
        won += outcome_of(headline_of(found), num_arms) == "won"
    assert 0.01 < won / studies < 0.035
