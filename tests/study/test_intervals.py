"""The paired t-interval: the quantile against tables, the interval by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_superposition.study.significance import (
    NOT_FINITE,
    ONE_SEED,
    paired_difference,
    t_quantile,
)


@pytest.mark.parametrize(
    ("level", "degrees", "value"),
    [  # two-sided: 0.95 is the tables' 0.975
        (0.95, 1, 12.7062047362),
        (0.95, 2, 4.3026527297),
        (0.95, 4, 2.7764451052),
        (0.95, 5, 2.5705818356),
        (0.95, 10, 2.2281388520),
        (0.95, 30, 2.0422724563),
        (0.90, 3, 2.3533634348),
    ],
)
def test_the_quantile_is_the_table_s(level: float, degrees: int, value: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(value, abs=1e-9)


@given(level=st.floats(0.001, 0.999), degrees=st.integers(1, 60))
def test_the_quantile_grows_with_the_level_and_falls_with_the_degrees(level: float, degrees: int) -> None:
    value = t_quantile(level, degrees)
    assert value > 0
    assert t_quantile(level + 0.0005, degrees) > value
    assert t_quantile(level, degrees + 1) < value


@pytest.mark.parametrize(("level", "degrees"), [(0.0, 3), (1.0, 3), (-0.1, 3), (95.0, 3), (math.nan, 3), (0.9, 0)])
def test_no_quantile_outside_its_range(level: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1|at least 1 degree"):
        t_quantile(level, degrees)


def test_a_paired_difference_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, half width 4.30265 * 0.1 / sqrt(3).
    result = paired_difference([1.1, 2.2, 3.3], [1.0, 2.0, 3.0])
    assert result.differences == pytest.approx((0.1, 0.2, 0.3))
    assert result.mean == pytest.approx(0.2)
    assert result.interval == pytest.approx((0.2 - 0.2484137712, 0.2 + 0.2484137712))
    assert result.reason is None


def test_the_level_sets_the_width() -> None:
    # At 90% and two degrees of freedom: 2.91998558.
    result = paired_difference([1.0, 2.0, 3.0], [1.1, 2.2, 3.3], level=0.9)
    assert result.interval == pytest.approx((-0.2 - 0.1685854461, -0.2 + 0.1685854461))


def test_equal_differences_give_an_interval_of_no_width() -> None:
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).interval == (1.0, 1.0)


def test_one_pair_has_a_mean_and_a_reason_for_no_interval() -> None:
    result = paired_difference([2.5], [2.75])
    assert result.mean == -0.25
    assert result.differences == (-0.25,)
    assert result.interval is None
    assert result.reason == ONE_SEED


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=6))
def test_the_interval_is_symmetric(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert there.interval is not None
    assert back.interval is not None
    assert there.mean == -back.mean
    assert there.interval == (-back.interval[1], -back.interval[0])
    assert sum(there.interval) / 2 == pytest.approx(there.mean, abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_leaves_no_interval(bad: float) -> None:
    result = paired_difference([1.0, bad, 2.0], [1.0, 1.0, 1.0])
    assert result.interval is None
    assert result.reason == NOT_FINITE
    assert not math.isfinite(result.mean)


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0]), ([1.0], [1.0, 2.0]), ([], [1.0])])
def test_figures_without_their_pair_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=f"not {len(a)} and {len(b)}"):
        paired_difference(a, b)


def test_no_figures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])


def test_the_interval_covers_what_it_claims_with_three_seeds() -> None:
    # 2,000 samples: a standard error of 0.005 around 0.95. A percentile bootstrap would cover about 0.75.
    generator = np.random.default_rng(0)
    truth, covered, samples = -0.05, 0, 2000
    for _ in range(samples):
        shared = generator.normal(3, 1, 3)  # what a seed does to both arms
        ours = shared + truth + generator.normal(0, 0.02, 3)
        theirs = shared + generator.normal(0, 0.02, 3)
        interval = paired_difference(ours.tolist(), theirs.tolist()).interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert 0.93 < covered / samples < 0.97
