"""The speed-up at equal loss: the truth is found, the interval covers it, and nothing is extrapolated."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.study import one_budget
from tests.study.reports import to_arms
from tests.study.synthetic import make_arms, power_law
from token_superposition.study.report.parts import Speedup
from token_superposition.study.significance import ONE_SEED
from token_superposition.study.speedup import ONE_BUDGET, choose_headline, iso_loss_all

MANY = (1000, 1414, 2000, 2828, 4000)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation curves have no part in a speed-up, and are most of the work."""
    monkeypatch.setattr(one_budget, "curve", lambda *_: [])


def read(arms: Sequence[dict[str, Any]], read_at: str = "baseline_end", unit: str = "flops") -> Speedup:
    """The one reading of the first superposition arm."""
    found = [r for r in iso_loss_all(to_arms(arms)) if (r.read_at, r.unit) == (read_at, unit)]
    return found[0]


def with_losses(baseline: Sequence[float], arm: Sequence[float], spread: Sequence[float] = (0.0,)) -> Any:
    """Arms at 1,000, 2,000, 4,000, ... steps with these mean losses; `spread` shifts the arm's seeds."""
    budgets = tuple(1000 * 2**number for number in range(len(baseline)))
    arms = make_arms(budgets=budgets, num_seeds=len(spread), noise=0, shared=0, equal_data=False)
    for made, losses, shifts in ((arms[0], baseline, [0.0] * len(spread)), (arms[1], arm, spread)):
        for budget, loss in zip(made["budgets"], losses, strict=True):
            for run, shift in zip(budget["seeds"], shifts, strict=True):
                run["final_validation_loss"] = loss + shift
    return arms


@pytest.mark.parametrize("truth", [0.6, 0.8, 1.0, 1.2, 1.43, 1.8])
def test_the_true_speedup_of_power_laws_is_found(truth: float) -> None:
    budgets = (*MANY, 5657, 8000) if truth < 1 else MANY
    arms = make_arms([("s", 4, 0.3, truth)], budgets=budgets, num_seeds=1, noise=0, shared=0)
    if truth < 1:  # its curve must reach the baseline's end
        arms[0]["budgets"] = [b for b in arms[0]["budgets"] if b["total_steps"] <= 4000]
        arms[0]["seeds"] = arms[0]["budgets"][-1]["seeds"]
    # A chord lies above a convex curve: between budgets a factor of 1.41 apart by under 1.5% in cost.
    assert read(arms).speedup == pytest.approx(truth, rel=0.015)
    if 1 < truth < 1.9:  # the baseline's longest run is 1.9 times its reference
        at_end = read(arms, "superposition_end")
        assert at_end.speedup == pytest.approx(truth, rel=0.04)  # read between budgets a factor of 1.9 apart
        assert at_end.loss == pytest.approx(power_law(4000 * truth))
    assert read(arms).loss == pytest.approx(power_law(4000))


def test_a_reading_by_hand() -> None:
    # The baseline ends at 1.5; superposition falls from 1.6 to 1.4 over one doubling and passes 1.5 half way.
    found = read(with_losses([2.0, 1.5], [1.6, 1.4]))
    assert found.speedup == pytest.approx(math.sqrt(2))
    assert found.baseline_cost / found.arm_cost == pytest.approx(math.sqrt(2))
    assert found.loss == 1.5
    assert "between its budgets of 1,000 and 2,000 steps" in found.basis
    # Seeds at -0.01, 0 and +0.01 around it: the slope is -0.2 a doubling, so logs differ by 0.05 doublings.
    found = read(with_losses([2.0, 1.5], [1.6, 1.4], (-0.01, 0.0, 0.01)))
    assert [math.log2(value) for value in found.speedups] == pytest.approx([0.55, 0.5, 0.45])
    margin = 4.30265 * 0.05 / math.sqrt(3)
    assert [math.log2(limit) for limit in found.confidence_interval] == pytest.approx(
        [0.5 - margin, 0.5 + margin], abs=1e-5
    )


def test_what_a_seed_does_to_both_arms_cancels() -> None:
    arms = with_losses([2.0, 1.5], [1.6, 1.4], (-0.05, 0.0, 0.05))
    for budget in arms[0]["budgets"]:
        for run, shift in zip(budget["seeds"], (-0.05, 0.0, 0.05), strict=True):
            run["final_validation_loss"] += shift
    low, high = read(arms).confidence_interval
    assert high / low == pytest.approx(1)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("read_at", ["baseline_end", "superposition_end"])
def test_the_interval_covers_what_it_claims(num_seeds: int, read_at: str) -> None:
    # 1,000 studies: a standard error of 0.007 around 0.95. The truth is that of the mean curves, read the same way.
    truth = read(make_arms(num_seeds=1, noise=0, shared=0), read_at).speedup
    covered, samples = 0, 1000
    for seed in range(samples):
        ends = read(make_arms(num_seeds=num_seeds, noise=0.006, seed=seed), read_at).confidence_interval
        if ends is None:  # the noise hid the slope, or carried the loss out of range: nothing was claimed
            samples -= 1
        else:
            covered += ends[0] <= truth <= ends[1]
    assert samples > 950
    assert 0.92 < covered / samples < 0.98


@pytest.mark.parametrize(
    ("read_at", "baseline", "arm", "words", "bounds"),
    [
        (
            "baseline_end",
            [2.0, 1.8, 1.6],
            [1.5, 1.4, 1.3],
            "superposition is below that loss already at 1,000 steps, its shortest budget, so the speed-up is more "
            "than 4.00; a shorter budget would tell",
            [4.0, None],
        ),
        (
            "baseline_end",
            [2.0, 1.8, 1.6],
            [2.2, 1.9, 1.7],
            "superposition is still above that loss at 4,000 steps, the longest it was trained, so the speed-up is "
            "less than 1.00; a longer budget would tell",
            [None, 1.0],
        ),
        (
            "superposition_end",
            [2.0, 1.8, 1.6],
            [2.4, 2.3, 2.2],
            "baseline is below that loss already at 1,000 steps, its shortest budget, so the speed-up is less than "
            "0.25; a shorter budget would tell",
            [None, 0.25],
        ),
        (
            "superposition_end",
            [2.0, 1.8, 1.6],
            [1.7, 1.6, 1.5],
            "baseline is still above that loss at 4,000 steps, the longest it was trained, so the speed-up is more "
            "than 1.00; a longer budget would tell",
            [1.0, None],
        ),
    ],
)
def test_nothing_is_extrapolated(
    read_at: str, baseline: list[float], arm: list[float], words: str, bounds: list[float | None]
) -> None:
    found = read(with_losses(baseline, arm, (-0.001, 0.0, 0.001)), read_at)
    assert found.speedup is None
    assert found.confidence_interval is None
    assert found.speedups == ()
    assert found.reason == words
    assert found.bounds == pytest.approx(tuple(bounds))
    one = read(with_losses(baseline, arm), read_at)
    assert one.reason == words.replace("so the", "so in this one seed, which gives no interval, the")
    assert one.bounds == pytest.approx(bounds)


def test_one_seed_has_a_speedup_and_no_interval() -> None:
    found = read(make_arms(num_seeds=1))
    assert found.speedup > 1
    assert found.speedups == pytest.approx([found.speedup])
    assert found.confidence_interval is None
    assert found.reason == ONE_SEED


def test_a_curve_too_flat_for_its_noise_has_no_interval() -> None:
    found = read(with_losses([2.0, 1.55], [1.6, 1.5], (-0.01, 0.0, 0.01)))
    assert found.confidence_interval is not None  # seeds shift the whole curve: its fall is sure
    arms = with_losses([2.0, 1.55], [1.6, 1.5], (0.0, 0.0, 0.0))
    for run, shift in zip(arms[1]["budgets"][0]["seeds"], (-0.1, 0.0, 0.1), strict=True):
        run["final_validation_loss"] += shift
    found = read(arms)
    assert found.speedup == pytest.approx(math.sqrt(2))
    assert found.confidence_interval is None
    assert "does not clearly fall from 1,000 to 2,000 steps" in found.reason


def test_seconds_are_the_runs_own() -> None:
    arms = make_arms(noise=0, shared=0)
    for budget in arms[1]["budgets"]:
        for run in budget["seeds"]:
            run["wall_seconds"] *= 1.25  # a step of it takes longer
    flops, seconds = read(arms), read(arms, unit="seconds")
    ratio = arms[0]["seeds"][0]["wall_seconds"] / arms[1]["seeds"][0]["wall_seconds"]
    assert seconds.speedup == pytest.approx(flops.speedup * ratio, rel=0.01)
    for number, run in enumerate(arms[0]["seeds"]):
        run["wall_seconds"] *= 1 + 0.02 * number
    seconds = read(arms, unit="seconds")
    shares = [run["wall_seconds"] for run in arms[0]["seeds"]]  # nothing else differs between the seeds
    theirs = [budget["seeds"][number]["wall_seconds"] for number in range(5) for budget in arms[1]["budgets"][:1]]
    expected = [ours / others for ours, others in zip(shares, theirs, strict=True)]
    found = seconds.speedups
    assert [value / found[0] for value in found] == pytest.approx([value / expected[0] for value in expected], rel=1e-6)
    arms[0]["seeds"][2]["wall_seconds"] = None
    unknown = read(arms, unit="seconds")
    assert unknown.speedup is None
    assert unknown.reason.startswith("baseline has no finite loss and wall time of every seed at 4,000 steps")
    assert read(arms).speedup == flops.speedup


def test_longer_runs_that_took_less_time_cannot_be_read_between() -> None:
    arms = with_losses([2.0, 1.5], [1.6, 1.4])
    arms[1]["budgets"][0]["seeds"][0]["wall_seconds"] = 1e6
    assert "took no more wall time for 2,000 steps than for 1,000 steps" in read(arms, unit="seconds").reason


@pytest.mark.parametrize("read_at", ["baseline_end", "superposition_end"])
def test_no_bound_is_claimed_where_seeds_do_not_tell_two_ends_apart(read_at: str) -> None:
    ends = {"baseline_end": [1.9, 1.8, 1.601], "superposition_end": [1.7, 1.65, 1.599]}[read_at]
    found = read(with_losses([2.0, 1.8, 1.6], ends, (-0.01, 0.0, 0.01)), read_at)
    assert (found.speedup, found.bounds) == (None, None)
    assert "these seeds do not decide" in found.reason
    level = read(with_losses([2.0, 1.8, 1.6], ends, (-0.0007, 0.0, 0.0007)), read_at)
    assert level.bounds is None
    assert "level" in level.reason
    assert "decide" not in level.reason
    sure = read(with_losses([2.0, 1.8, 1.6], ends, (-0.0001, 0.0, 0.0001)), read_at)
    assert sure.bounds is not None
    one = read(with_losses([2.0, 1.8, 1.6], ends), read_at)  # which cannot tell how far apart seeds lie
    assert (one.speedup, one.bounds) == (None, None)
    assert "but by less than 0.003 nats, which one seed does not tell from noise, so no bound is sure" in one.reason


def test_a_curve_that_is_not_monotone_is_read_where_it_passes_for_good() -> None:
    # It passes 1.5 between 1,000 and 2,000 steps, is above it at 4,000, and passes again before 8,000.
    found = read(with_losses([2.0, 1.9, 1.7, 1.5], [1.6, 1.4, 1.6, 1.4]))
    assert found.arm_cost / found.baseline_cost == pytest.approx(math.sqrt(0.5))
    assert "passes that loss more than once, and is read where it passes for good" in found.basis
    assert "more than once" not in read(with_losses([2.0, 1.9, 1.7, 1.5], [1.6, 1.65, 1.6, 1.4])).basis
    # It was below once, and ends above: out of range, whatever it was between.
    found = read(with_losses([2.0, 1.9, 1.5], [1.6, 1.4, 1.6]))
    assert found.speedup is None
    assert "(it was below it at 2,000 steps and rose again)" in found.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_run_without_a_finite_loss_is_left_out_and_named(bad: float | None) -> None:
    arms = make_arms(budgets=MANY)
    arms[1]["budgets"][2]["seeds"][1]["final_validation_loss"] = bad
    found = read(arms)
    assert found.speedup == pytest.approx(1.43, rel=0.1)
    assert "(without 2,000 steps, where a run has no finite loss or compute)" in found.basis
    arms[0]["budgets"][4]["seeds"][0]["final_validation_loss"] = bad
    found = read(arms)
    assert found.speedup is None
    assert found.reason.startswith("baseline has no finite loss and cost of every seed at 4,000 steps")
    assert choose_headline(iso_loss_all(to_arms(arms)), "superposition")[0] is None


def test_one_budget_or_a_report_of_before_has_a_reason() -> None:
    for arms in (make_arms(budgets=[4000], equal_data=False), make_arms(equal_data=False)):
        for arm in arms:
            arm.pop("budgets") if len(arm["budgets"]) > 1 else None
        assert [r.reason for r in iso_loss_all(to_arms(arms))] == [ONE_BUDGET] * 4
        assert choose_headline(iso_loss_all(to_arms(arms)), "superposition") == (None, ONE_BUDGET)


def test_equal_data_alone_is_enough_for_the_reading_at_superposition_s_end() -> None:
    arms = make_arms(budgets=[4000])
    assert read(arms).reason == ONE_BUDGET
    assert read(arms, "superposition_end").speedup == pytest.approx(1.43, rel=0.1)


def test_the_headline_is_of_the_arm_that_is_asked_for() -> None:
    arms = make_arms([("s2", 2, 0.3, 1.2), ("s4", 4, 0.3, 1.5)])
    results = iso_loss_all(to_arms(arms))
    assert len(results) == 8
    before = copy.deepcopy(results)
    found, reason = choose_headline(results, "s4")
    assert reason is None
    assert found is not None
    assert (found.arm, found.read_at, found.unit) == ("s4", "baseline_end", "flops")
    assert results == before
    assert re.match("“s4” reaches that loss", found.basis)
