"""The switch: its spike, how long that lasts, and from where superposition is ahead for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.study.reports import switch_dicts, to_arms
from tests.study.synthetic import make_arms
from token_superposition.study.loss_spike import mean_gaps

SWITCH = 1200
GAPS = {1000: 2.0, 1200: 2.0, 1400: 0.5, 1600: 0.1, 1800: 0.01, 2000: -0.01, 2200: 0.0, 2400: -0.02}


def with_gaps(*seeds: Mapping[int, float | None], spread: Sequence[float] = (0.0,)) -> list[dict[str, Any]]:
    """Two arms whose curves differ by these gaps, a seed each."""
    arms = make_arms(num_seeds=len(seeds), noise=0, equal_data=False)
    for number, gaps in enumerate(seeds):
        for arm, share in ((arms[0], 0), (arms[1], 1)):
            arm["seeds"][number]["curve"] = [
                {
                    "step": step,
                    "phase": "recovery",
                    "bag_size": 1,
                    "flops": step,
                    "raw_tokens": step,
                    "validation_loss": None if gap is None else 1.5 + share * gap + spread[0],
                }
                for step, gap in gaps.items()
            ]
    return arms


def facts(*seeds: Mapping[int, float | None]) -> dict[str, Any]:
    (found,) = switch_dicts(with_gaps(*seeds))
    return found


def test_spike_and_crossing_by_hand() -> None:
    assert facts(GAPS) == {
        "arm": "superposition",
        "switch_step": SWITCH,
        "spike_nats": pytest.approx(2.0),
        "spike_steps": 400,  # 0.5 at 1,400 is more than a tenth of 2.0; 0.1 at 1,600 is less
        "crossing_step": 2000,
        "crossing_recovery_steps": 800,
        "ahead_at_end": True,
        "reason": None,
    }


def test_it_is_the_mean_of_the_seeds_that_crosses() -> None:
    found = facts({**GAPS, 2000: 0.01, 2200: -0.03}, {**GAPS, 2000: 0.0, 2200: 0.02})
    assert found["crossing_step"] == 2200
    assert found["spike_nats"] == pytest.approx(2.0)


def test_a_dip_that_does_not_stay_is_no_crossing() -> None:
    found = facts({**GAPS, 2400: 0.03})
    assert found["crossing_step"] is None
    assert found["crossing_recovery_steps"] is None
    assert found["reason"] == (
        "superposition did not get ahead: at step 2,400 it was still 0.030 nats worse (it was ahead at step 2,000, "
        "and did not stay so)"
    )


def test_a_spike_that_lasts_is_said() -> None:
    found = facts({1200: 2.0, 1400: 1.0, 1600: 0.9})
    assert (found["spike_nats"], found["spike_steps"]) == (2.0, None)
    assert "did not fall below 10% of its height" in found["reason"]
    assert "at step 1,600 it was still 0.900 nats worse" in found["reason"]


def test_no_spike() -> None:
    found = facts({1200: -0.1, 1400: -0.1})
    assert found["spike_nats"] == pytest.approx(-0.1)
    assert found["spike_steps"] is None
    assert found["crossing_step"] == 1400
    assert "no spike" in found["reason"]


def test_the_baseline_need_not_be_validated_at_the_switch() -> None:
    arms = with_gaps(GAPS)
    curve = arms[0]["seeds"][0]["curve"]
    for point in curve:  # it falls by 0.4 from step 1,000 to 1,400
        point["validation_loss"] = 1.5 + 0.001 * (1200 - point["step"])
    whole = switch_dicts(arms)
    arms[0]["seeds"][0]["curve"] = [point for point in curve if point["step"] != SWITCH]
    assert switch_dicts(arms)[0]["spike_nats"] == pytest.approx(whole[0]["spike_nats"]) == pytest.approx(2.0)
    arms[0]["seeds"][0]["curve"] = [point for point in curve if point["step"] > SWITCH]
    (beyond,) = switch_dicts(arms)
    assert beyond["spike_nats"] is None
    assert "or the baseline not near it" in beyond["reason"]


def test_no_other_step_is_interpolated() -> None:
    gaps = {step: gap for step, gap in GAPS.items() if step != SWITCH}
    found = facts(gaps)
    assert found["spike_nats"] is None
    assert found["spike_steps"] is None
    assert "superposition was not validated at step 1,200, the switch" in found["reason"]
    assert found["crossing_step"] == 2000
    assert facts(GAPS, {**GAPS, 2000: None})["crossing_step"] == 2200  # a seed has no loss there


@pytest.mark.parametrize("steps", [(0, 4000), (0, 1100, 4000), (0, 1300, 4000), (0, 1400, 1500, 1600, 4000), (0, 200)])
def test_no_spike_is_read_off_a_line_between_distant_validations(steps: Sequence[int]) -> None:
    arms = with_gaps(dict.fromkeys(range(0, 4001, 100), 0.5))
    curve = arms[0]["seeds"][0]["curve"]
    arms[0]["seeds"][0]["curve"] = [point for point in curve if point["step"] in steps]
    (found,) = switch_dicts(arms)
    assert (found["spike_nats"], found["spike_steps"]) == (None, None)
    assert "the spike is not known" in found["reason"]


@pytest.mark.parametrize(
    "gaps", [{0: 0.0, 1200: 2.0, 4000: -0.1}, {1000: 0.5, 1100: 0.5, 1200: 2.0, 1300: 0.9, 4000: -1.0}]
)
def test_no_crossing_and_no_end_of_the_spike_are_named_where_no_validation_is_near(gaps: Mapping[int, float]) -> None:
    found = facts(gaps)
    assert found["spike_nats"] == 2.0
    assert (found["spike_steps"], found["crossing_step"], found["crossing_recovery_steps"]) == (None, None, None)
    assert found["ahead_at_end"] is True
    assert "how long the spike lasted is not known" in found["reason"]
    assert "where superposition got ahead is not known" in found["reason"]


def test_no_recovery_and_no_curves_have_their_reasons() -> None:
    found = facts({1000: 2.0, 1200: 2.0})
    assert found["spike_nats"] == 2.0
    assert "not both validated after the switch" in found["reason"]
    found = facts({})
    assert (found["spike_nats"], found["crossing_step"]) == (None, None)
    assert found["reason"].count(";") == 1


def test_every_superposition_arm_has_its_facts() -> None:
    arms = make_arms([("s2", 2, 0.3, 1.2), ("s4", 4, 0.2, 1.5)])
    assert [(f["arm"], f["switch_step"]) for f in switch_dicts(arms)] == [("s2", 1200), ("s4", 800)]
    for arm in arms:
        del arm["budgets"]  # a report of before
    assert [f["switch_step"] for f in switch_dicts(arms)] == [1200, 800]


def test_a_run_without_a_curve_is_passed_over() -> None:
    arms = with_gaps(GAPS, GAPS)
    arms[1]["seeds"][1]["curve"] = []
    assert dict(mean_gaps(*to_arms(arms))) == pytest.approx(GAPS)
