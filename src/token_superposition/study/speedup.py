"""The speed-up at equal loss: the compute that the baseline needs for a loss over what superposition needs for it.

An arm trained at several budgets gives a curve: its final loss, after the decay, over the logarithm of what the run
cost; the mean over seeds, straight between neighbouring budgets. A loss is taken from one arm's end, and the other
arm's curve is asked what it cost there:

    baseline_end       the baseline's loss at its longest budget; superposition's cost for it is read off (the headline)
    superposition_end  superposition's loss at its longest budget; the baseline's cost for it is read off, on a curve
                       that its equal-data runs carry further

Nothing is extrapolated: a loss outside the curve has no speed-up, only a bound and what would mend it, and not even a
bound where the seeds do not tell it from the curve's end. One seed cannot tell: there a bound is named where the two
are further apart than noise, in words that keep it to that seed. Between budgets a straight line lies above a curve
that flattens, so what is read off costs a little too much: the headline errs on the side of the baseline, by about 3%
where budgets double, the other reading as much the other way.

**Where a curve is not monotone** it may pass the loss several times. It is read where it passes for good: at the last
budget above the loss and the one after it.

**Interval.** By the delta method, over seeds. Where the other arm is read, between two budgets, its mean curve has the
slope b (nats per unit of log cost, below zero). A seed whose own loss there lies e above the mean, e' above it at the
end that gave the loss, would have read the cost (e - e') / |b| higher in the log. So a seed's log speed-up is that of
the mean curves less (e - e') / |b|, plus, in seconds, what its own costs differ. A seed's two arms are one pair:
what the seed does to both cancels. The interval is Student's t on these logs. It takes the slope as known, which is
fair while the slope is far from zero; where the loss does not clearly fall between the two budgets (the paired
t-interval of its fall holds zero), no finite interval would be true, and none is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from token_superposition.study.report.parts import Arm, Budget, ReadAt, Speedup, Unit
from token_superposition.study.significance import NOISE, ONE_SEED, t_interval

LEVEL = 0.95
ONE_BUDGET = "one budget was trained, and a speed-up at equal loss needs several (such as --budgets 1000,2000,4000)"
_COST_WORDS: Mapping[Unit, str] = {"flops": "compute", "seconds": "wall time"}


@dataclass(frozen=True)
class _Point:
    """A budget on a curve: the log of its cost and its final loss, a value a seed."""

    steps: int
    log_costs: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def log_cost(self) -> float:
        return _mean(self.log_costs)

    @property
    def loss(self) -> float:
        return _mean(self.losses)


@dataclass(frozen=True)
class _Reading:
    """The log of a cost read off a curve, and what each seed's deviates from it; None: no interval can be had."""

    log_cost: float
    deviations: tuple[float, ...]
    basis: str
    no_interval: str | None


class _Unreadable(Exception):  # noqa: N818 - an answer, not an error
    """Why a speed-up cannot be had, and the bounds that can be said of it."""

    def __init__(self, reason: str, bounds: list[float | None] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.bounds = reason, bounds


def iso_loss_all(arms: Sequence[Arm]) -> list[Speedup]:
    """The speed-up of every superposition arm, read at both ends, in FLOPs and in measured seconds.

    Args:
        arms: the report's, the baseline first.
    """
    units: tuple[Unit, ...] = ("flops", "seconds")
    ends: tuple[ReadAt, ...] = ("baseline_end", "superposition_end")
    return [_iso_loss(arms[0], arm, read_at, unit) for arm in arms[1:] for unit in units for read_at in ends]


def choose_headline(results: Sequence[Speedup], arm: str) -> tuple[Speedup | None, str | None]:
    """The speed-up that the report leads with, or None and the reason.

    Args:
        results: what `iso_loss_all` gave.
        arm: the arm that the report's `equal_flops` is about.
    """
    for result in results:
        if (result.arm, result.read_at, result.unit) == (arm, "baseline_end", "flops"):
            return (None, result.reason) if result.speedup is None else (result, None)
    return None, ONE_BUDGET


def _iso_loss(baseline: Arm, arm: Arm, read_at: ReadAt, unit: Unit) -> Speedup:
    result: dict[str, Any] = {name: field.get_default() for name, field in Speedup.model_fields.items()}
    result |= {"baseline": baseline.name, "arm": arm.name, "read_at": read_at, "unit": unit, "confidence_level": LEVEL}
    at_baseline = read_at == "baseline_end"
    ending, other = (baseline, arm) if at_baseline else (arm, baseline)
    ending_cost, other_cost = ("baseline_cost", "arm_cost") if at_baseline else ("arm_cost", "baseline_cost")
    try:
        seeds = [seed for seed in baseline.reference.by_seed if seed in arm.reference.by_seed]
        end = _end(ending, unit, seeds)
        result |= {"loss": end.loss, ending_cost: math.exp(end.log_cost)}
        reading = _read(other, end, unit, seeds, at_baseline=at_baseline)
    except _Unreadable as no:
        return Speedup(**result | {"reason": no.reason, "bounds": no.bounds})
    sign = 1 if at_baseline else -1
    center = sign * (end.log_cost - reading.log_cost)
    logs = [
        center + sign * (cost - end.log_cost - deviation)
        for cost, deviation in zip(end.log_costs, reading.deviations, strict=True)
    ]
    if reading.no_interval is None:
        result["confidence_interval"] = [math.exp(limit) for limit in t_interval(logs, LEVEL)]
    result |= {
        "speedup": math.exp(center),
        "speedups": [math.exp(value) for value in logs],
        other_cost: math.exp(reading.log_cost),
        "basis": reading.basis,
        "reason": reading.no_interval,
    }
    return Speedup(**result)


def _end(arm: Arm, unit: Unit, seeds: Sequence[int]) -> _Point:
    budget = arm.reference
    point = _point(budget, unit, seeds)
    if point is None:
        what = "loss and cost" if unit == "flops" else "loss and wall time"
        raise _Unreadable(
            f"{arm.quoted} has no finite {what} of every seed at {budget.total_steps:,} steps, its longest budget"
        )
    return point


def _point(budget: Budget, unit: Unit, seeds: Sequence[int]) -> _Point | None:
    """None where a seed's loss or cost is missing or not finite: a mean over other seeds would be another curve's."""
    runs = budget.by_seed
    if not seeds or any(seed not in runs for seed in seeds):
        return None
    losses = [_number(runs[seed].final_validation_loss) for seed in seeds]
    costs = [_number(runs[seed].flops if unit == "flops" else runs[seed].wall_seconds) for seed in seeds]
    if not all(map(math.isfinite, losses)) or not all(math.isfinite(cost) and cost > 0 for cost in costs):
        return None
    return _Point(budget.total_steps, tuple(map(math.log, costs)), tuple(losses))


def _read(arm: Arm, end: _Point, unit: Unit, seeds: Sequence[int], *, at_baseline: bool) -> _Reading:
    """What `arm` costs for the loss of `end`, on its mean curve.

    Raises:
        _Unreadable: where the curve does not pass that loss.
    """
    name, loss, cost = arm.quoted, end.loss, _COST_WORDS[unit]
    points = {budget.total_steps: _point(budget, unit, seeds) for budget in arm.all_budgets}
    curve = [point for point in points.values() if point is not None]
    left_out = [steps for steps, point in points.items() if point is None]
    without = f" (without {_steps(left_out)}, where a run has no finite loss or {cost})" if left_out else ""
    if len(points) < 2:
        raise _Unreadable(ONE_BUDGET)
    if len(curve) < 2:
        raise _Unreadable(f"{name} has fewer than two budgets to read between{without}")
    above = [number for number, point in enumerate(curve) if point.loss > loss]
    if not above:
        shortest = curve[0]
        words, bounds = _bound(end, shortest, at_baseline, more=at_baseline)
        raise _Unreadable(
            f"{name} is below that loss already at {_steps([shortest.steps])}, its shortest budget{without}, {words}; "
            "a shorter budget would tell",
            bounds,
        )
    last = above[-1]
    if last == len(curve) - 1:
        longest, before = curve[-1], [point.steps for point in curve if point.loss <= loss]
        rose = f" (it was below it at {_steps(before)} and rose again)" if before else ""
        words, bounds = _bound(end, longest, at_baseline, more=not at_baseline)
        raise _Unreadable(
            f"{name} is still above that loss at {_steps([longest.steps])}, the longest it was trained{without}{rose}, "
            f"{words}; a longer budget would tell",
            bounds,
        )
    left, right = curve[last], curve[last + 1]
    run = right.log_cost - left.log_cost
    if run <= 0:
        raise _Unreadable(
            f"{name} took no more {cost} for {_steps([right.steps])} than for {_steps([left.steps])}: other work may "
            "have slowed the shorter runs"
        )
    slope = (right.loss - left.loss) / run
    share = (loss - left.loss) / (right.loss - left.loss)
    deviations = []
    for number in range(len(seeds)):
        off_cost = _between(share, left.log_costs[number] - left.log_cost, right.log_costs[number] - right.log_cost)
        off_loss = _between(share, left.losses[number] - left.loss, right.losses[number] - right.loss)
        deviations.append(off_cost - (off_loss - (end.losses[number] - loss)) / slope)
    again = ""
    if above != list(range(last + 1)):
        again = "; its curve passes that loss more than once, and is read where it passes for good"
    seeds_words = "one seed" if len(seeds) == 1 else f"the mean of {len(seeds)} seeds"
    return _Reading(
        _between(share, left.log_cost, right.log_cost),
        tuple(deviations),
        f"{name} reaches that loss between its budgets of {left.steps:,} and {_steps([right.steps])}, read off "
        f"{seeds_words}, straight in the logarithm of {cost}{without}{again}",
        _why_no_interval(left, right),
    )


def _bound(end: _Point, point: _Point, at_baseline: bool, *, more: bool) -> tuple[str, list[float | None] | None]:
    """What is known where a curve ends at `point` short of the loss: in words, and as [low, high]; None is nothing."""
    ratio = math.exp(end.log_cost - point.log_cost if at_baseline else point.log_cost - end.log_cost)
    apart = [there - here for there, here in zip(point.losses, end.losses, strict=True)]
    bounds, limit = [ratio, None] if more else [None, ratio], f"{'more' if more else 'less'} than {ratio:.2f}"
    if len(apart) == 1:
        if abs(apart[0]) < NOISE:
            return f"but by less than {NOISE} nats, which one seed does not tell from noise, so no bound is sure", None
        return f"so in this one seed, which gives no interval, the speed-up is {limit}", bounds
    low, high = t_interval(apart, LEVEL)
    if low <= 0 <= high:
        if low > -NOISE and high < NOISE:
            return f"but the two losses are level there, within the noise of {NOISE} nats, so no bound is sure", None
        return (
            f"but these seeds do not decide it (the losses differ by {_mean(apart):.3f} nats, "
            f"uncertain by {(high - low) / 2:.3f}), so no bound is sure"
        ), None
    return f"so the speed-up is {limit}", bounds


def _why_no_interval(left: _Point, right: _Point) -> str | None:
    falls = [before - after for before, after in zip(left.losses, right.losses, strict=True)]
    if len(falls) < 2:
        return ONE_SEED
    if t_interval(falls, LEVEL)[0] > 0:
        return None
    return (
        f"the loss does not clearly fall from {left.steps:,} to {right.steps:,} steps over these seeds, so no interval "
        "can be had: more seeds, or budgets further apart, would mend it"
    )


def _between(share: float, left: float, right: float) -> float:
    return left + share * (right - left)


def _steps(numbers: Sequence[int]) -> str:
    return f"{', '.join(f'{number:,}' for number in numbers)} steps"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
