"""The forecast alone: by hand, and on simulated runs whose end is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.synthetic import power_law
from token_superposition.study.guard_forecast import (
    Curve,
    Forecast,
    GuardReading,
    baseline_loss,
    forecast,
    pooled_deviation,
)
from token_superposition.study.significance import t_quantile

FLAT: Curve = {100: [2.0, 2.0], 400: [2.0, 2.0]}


def forecast_of(readings: Sequence[GuardReading], curve: Curve, recovery_steps: int) -> Forecast:
    found = forecast(readings, curve, recovery_steps)
    assert found is not None
    return found


def test_the_curve_is_straight_between_two_lengths_and_a_parabola_through_three() -> None:
    assert baseline_loss({100: [2.0, 3.0], 400: [1.0, 2.0]}, 200) == pytest.approx(2.0)  # half way in the logarithm
    for steps in (100, 400):
        assert baseline_loss({100: [2.0, 3.0], 400: [1.0, 2.0]}, steps) == {100: 2.5, 400: 1.5}[steps]
    bent = {steps: [(math.log(steps) - 9) ** 2] for steps in (100, 200, 400, 800)}
    for steps in (100, 130, 200, 350, 700, 800):
        assert baseline_loss(bent, steps) == pytest.approx((math.log(steps) - 9) ** 2)


def test_budgets_that_double_are_close_enough() -> None:
    three = {steps: [power_law(steps)] for steps in (1000, 2000, 4000)}
    errors = [baseline_loss(three, steps) - power_law(steps) for steps in range(1000, 4001, 50)]
    assert max(map(abs, errors)) < 0.003
    two = {steps: [power_law(steps)] for steps in (1000, 2000)}
    assert baseline_loss(two, 1414) - power_law(1414) > 0.008  # a straight line flatters superposition


@pytest.mark.parametrize("steps", [99, 401])
def test_nothing_is_read_beyond_the_curve(steps: int) -> None:
    with pytest.raises(ValueError, match="does not reach"):
        baseline_loss(FLAT, steps)


def test_a_line_in_the_logarithm_of_recovery_by_hand() -> None:
    # Gaps 0.10 after 10 and 0.06 after 20 steps of recovery: 0.04 less a doubling, so -0.02 after 80.
    readings = [GuardReading(110, 10, 2.10), GuardReading(120, 20, 2.06)]
    found = forecast_of(readings, FLAT, 80)
    assert found.gap_at_end == pytest.approx(-0.02)
    assert found.interval == pytest.approx((-0.02, -0.02))  # a baseline without any noise
    third = [*readings, GuardReading(140, 40, 2.02)]  # on the line: least squares changes nothing
    assert forecast_of(third, FLAT, 80).gap_at_end == pytest.approx(-0.02)
    assert forecast(readings[:1], FLAT, 80) is None


def test_the_interval_by_hand() -> None:
    """Guards at the curve's ends, so that each is held against a mean of its own."""
    curve: Curve = {100: [1.99, 2.01], 400: [1.98, 2.00, 2.02]}
    noise = math.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 3)
    assert pooled_deviation(curve) == (pytest.approx(noise), 3)
    found = forecast_of([GuardReading(100, 10, 2.10), GuardReading(400, 20, 2.06)], curve, 80)
    # The end is 3 times the second gap less twice the first, and a loss itself.
    error = noise * math.sqrt(1 + 9 + 4 + 9 / 3 + 4 / 2)
    margin = t_quantile(0.95, 3) * error
    assert found.interval == pytest.approx((-0.02 - margin, -0.02 + margin))


def test_one_seed_gives_no_interval() -> None:
    found = forecast([GuardReading(100, 10, 2.1), GuardReading(400, 20, 2.0)], {100: [2.0], 400: [2.0]}, 80)
    assert found == Forecast(pytest.approx(-0.2), None)


@given(st.floats(-0.2, 0.2), st.floats(0, 0.1), st.integers(2, 4))
def test_what_is_on_a_line_is_forecast_exactly(end: float, slope: float, number: int) -> None:
    curve: Curve = {steps: [power_law(steps)] * 2 for steps in (500, 1000, 2000)}
    recovery = [100 * 2**k for k in range(number)]
    readings = [
        GuardReading(700 + n, n, baseline_loss(curve, 700 + n) + end - slope * math.log(n / 1600)) for n in recovery
    ]
    assert forecast_of(readings, curve, 1600).gap_at_end == pytest.approx(end, abs=1e-9)


def simulate(
    dice: random.Random, lengths: Sequence[int], num_seeds: int, at: Sequence[float], noise: float = 0.01
) -> bool:
    """Whether the interval holds the end of a guarded run in which all assumptions of the forecast hold."""
    switch, total = 1200, 4000
    end, slope = dice.uniform(-0.2, 0.2), dice.uniform(0.0, 0.2)
    truth: Curve = {steps: [power_law(steps)] for steps in lengths}
    curve = {steps: [truth[steps][0] + dice.gauss(0, noise) for _ in range(num_seeds)] for steps in lengths}
    readings = []
    for fraction in at:
        step = switch + round(fraction * (total - switch))
        steps = round(step / 0.8)
        recovery = steps - switch
        gap = end - slope * math.log(recovery / (total - switch))
        readings.append(GuardReading(steps, recovery, baseline_loss(truth, steps) + gap + dice.gauss(0, noise)))
    found = forecast_of(readings, curve, total - switch)
    assert found.interval is not None
    return found.interval[0] <= end + dice.gauss(0, noise) <= found.interval[1]


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("lengths", [(1500, 3600), (1000, 2000, 4000)])
@pytest.mark.parametrize("at", [(0.1, 0.25), (0.1, 0.2, 0.3), (0.3, 0.6)])
def test_the_interval_holds_the_end_as_often_as_it_says(
    lengths: tuple[int, ...], num_seeds: int, at: tuple[float, ...]
) -> None:
    dice = random.Random(1)
    held = sum(simulate(dice, lengths, num_seeds, at) for _ in range(3000)) / 3000
    assert 0.93 < held < 0.97
