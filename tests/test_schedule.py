"""Stages, the schedule, and what a run reads."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_superposition import Schedule, Stage
from token_superposition.models.flops import ModelCost, bits_per_byte

stages = st.lists(
    st.builds(
        Stage,
        bag_size=st.integers(1, 16),
        steps=st.integers(1, 50),
        mode=st.sampled_from(["full", "output_only", "input_only"]),
    ),
    min_size=1,
    max_size=5,
)


def test_the_papers_two_phases() -> None:
    schedule = Schedule.two_phase(20_000, bag_size=6, ratio=0.3)
    assert schedule.switch_step == 6_000
    assert schedule.bag_size_at(0) == schedule.bag_size_at(5_999) == 6
    assert schedule.bag_size_at(6_000) == schedule.bag_size_at(19_999) == 1
    assert schedule.lookup(5_999).phase == "superposition"
    assert schedule.lookup(6_000).phase == "recovery"
    positions = 2**21
    assert schedule.positions(positions) == 20_000 * positions
    # The paper prints 105 billion raw tokens for this run.
    assert round(schedule.raw_tokens(positions) / 1e9) == 105
    assert schedule.raw_tokens(positions, 6_001) == 6_000 * 6 * positions + positions


def test_ratio_and_steps_say_the_same() -> None:
    assert Schedule.two_phase(4000, 2, 0.3) == Schedule.two_phase(4000, 2, superposition_steps=1200)
    assert Schedule.two_phase(7, 2, 0.5).switch_step == round(0.5 * 7)


@pytest.mark.parametrize(("bag_size", "ratio"), [(1, 0.3), (4, 0.0), (4, 0.01)])
def test_without_superposition_the_run_is_one_recovery(bag_size: int, ratio: float) -> None:
    schedule = Schedule.two_phase(20, bag_size, ratio)
    assert schedule.switch_step == 0
    assert schedule.stages == (Stage(1, 20),)


@given(stages)
def test_every_step_has_the_stage_that_counting_gives(plan: list[Stage]) -> None:
    schedule = Schedule(plan)
    by_counting = [stage for stage in plan for _ in range(stage.steps)]
    assert [schedule.lookup(step) for step in range(schedule.total_steps)] == by_counting
    for step in (0, len(by_counting) // 2, len(by_counting)):
        assert schedule.raw_tokens(7, step) == 7 * sum(s.input_bag_size for s in by_counting[:step])
    superposed = [step for step, stage in enumerate(by_counting) if stage.bag_size > 1]
    assert schedule.switch_step == (superposed[-1] + 1 if superposed else 0)
    assert Schedule.from_dicts(schedule.as_dicts()) == schedule


@given(
    raw_tokens=st.integers(1, 2000),
    positions=st.integers(1, 20),
    bag_size=st.integers(1, 16),
    ratio=st.floats(0, 0.99),
)
def test_steps_for_a_raw_token_budget_is_the_largest_that_fits(
    raw_tokens: int, positions: int, bag_size: int, ratio: float
) -> None:
    def reads(steps: int) -> int:
        superposed = round(ratio * steps)
        return positions * (superposed * bag_size + steps - superposed)

    largest = max(steps for steps in range(raw_tokens // positions + 1) if reads(steps) <= raw_tokens)
    if largest == 0 or round(ratio * largest) == largest:  # nothing fits, or no step is left for recovery
        with pytest.raises(ValueError, match=r"less than one step|must end with recovery"):
            Schedule.steps_for_raw_tokens(raw_tokens, positions, bag_size, ratio)
    else:
        assert Schedule.steps_for_raw_tokens(raw_tokens, positions, bag_size, ratio) == largest


def test_a_small_budget() -> None:
    assert Schedule.steps_for_raw_tokens(5, 1, 4, 0.6) == 2


def test_a_new_total_does_not_move_the_switch() -> None:
    schedule = Schedule.two_phase(100, 4, 0.3)
    longer = schedule.with_total_steps(200)
    assert (longer.switch_step, longer.total_steps) == (30, 200)
    assert schedule.with_total_steps(31).switch_step == 30
    with pytest.raises(ValueError, match="switches at step 30"):
        schedule.with_total_steps(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 10, "bag_size": 0, "ratio": 0.3}, "bag_size must be at least 1"),
        ({"total_steps": 0, "bag_size": 2, "ratio": 0.3}, "total_steps must be at least 1"),
        ({"total_steps": 10, "bag_size": 2, "ratio": 1.0}, "below 1"),
        ({"total_steps": 10, "bag_size": 2, "ratio": -0.1}, "at least 0"),
        ({"total_steps": 10, "bag_size": 2, "ratio": math.nan}, "ratio must be at least 0"),
        ({"total_steps": 10, "bag_size": 2}, "give one of"),
        ({"total_steps": 10, "bag_size": 2, "ratio": 0.3, "superposition_steps": 3}, "give one of"),
        ({"total_steps": 10, "bag_size": 2, "superposition_steps": 10}, "must end with recovery"),
        ({"total_steps": 10, "bag_size": 2, "ratio": 0.3, "mode": "sideways"}, "mode must be one of"),
    ],
)
def test_bad_schedules_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.two_phase(**arguments)  # type: ignore[arg-type]


def test_steps_outside_the_run_are_refused() -> None:
    schedule = Schedule.two_phase(10, 2, 0.3)
    for step in (-1, 10):
        with pytest.raises(ValueError, match="outside the run's 10 steps"):
            schedule.lookup(step)
    with pytest.raises(ValueError, match="at least one stage"):
        Schedule([])


def test_flops_count_the_head_and_attention_but_do_not_know_bags() -> None:
    cost = ModelCost(multiplied_parameters=1000, attention_width=10)
    assert cost.flops_per_position(128) == 6 * 1000 + 6 * 128 * 10


def test_bits_per_byte() -> None:
    assert bits_per_byte(math.log(2) * 30, 10) == pytest.approx(3.0)
    assert math.isnan(bits_per_byte(1.0, 0))


def test_a_staged_run_is_its_stages() -> None:
    assert Schedule.staged((8, 3), Stage(2, 4, "output_only"), (1, 5)) == Schedule(
        [Stage(8, 3), Stage(2, 4, "output_only"), Stage(1, 5)]
    )
    with pytest.raises(ValueError, match="at least one stage"):
        Schedule.staged()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.staged((8, 3, 1)), "a pair .bag_size, steps., not .8, 3, 1."),
        (lambda: Schedule.staged([(8, 3), (1, 5)]), "a pair .bag_size, steps."),
        (lambda: Schedule.staged((8, 0.25)), "steps must be an integer, not 0.25"),
        (lambda: Schedule.two_phase(1e4, 4, 0.25), "total_steps must be an integer, not 10000.0"),
        (lambda: Schedule.two_phase(100, 4.0, 0.25), "bag_size must be an integer, not 4.0"),
        (lambda: Schedule.two_phase(100, 4, superposition_steps=0.25), "superposition_steps must be an integer"),
    ],
)
def test_what_is_no_number_of_steps_is_named(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()
