"""What the report reads from an arm's budgets: where its final losses lie, and the difference at each.

A point's band is the t-interval of its mean over seeds; of two seeds, whose interval would be twelve deviations wide,
their range; of one, nothing. Differences are paired, seed by seed, as at the reference budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from token_superposition.formatting import finite
from token_superposition.study.arms import Arm, Budget, budgets, by_seed, reference
from token_superposition.study.report.facts import Report, mean
from token_superposition.study.significance import PairedDifference, paired_difference, t_interval

FEWEST_FOR_INTERVAL = 3
_IN_FULL = 1 / 8  # of the longest budget


@dataclass(frozen=True)
class Placed:
    """An arm's final loss at a budget: mean over seeds, and its band where there is one."""

    steps: int
    equal_data: bool
    flops: float
    loss: float
    band: tuple[float, float] | None


def has_budgets(report: Report) -> bool:
    """Whether any arm was trained for more than one length."""
    return any(len(budgets(arm)) > 1 for arm in report["arms"])


def compared_steps(report: Report) -> list[int]:
    """The budgets at which arms are compared, shortest first."""
    return sorted({int(b["total_steps"]) for arm in report["arms"] for b in budgets(arm) if b["kind"] == "budget"})


def equal_data_steps(report: Report) -> list[int]:
    """The budgets that only the baseline has, for equal data."""
    return [int(b["total_steps"]) for b in budgets(report["arms"][0]) if b["kind"] != "budget"]


def budget_at(arm: Arm, steps: int) -> Budget | None:
    """The arm's budget of that many steps."""
    return next((budget for budget in budgets(arm) if budget["total_steps"] == steps), None)


def placed(arm: Arm) -> list[Placed]:
    """The arm's final losses at its budgets, those that are finite."""
    points = []
    for budget in budgets(arm):
        losses = [run.get("final_validation_loss") for run in budget["seeds"]]
        flops = mean(budget, "flops")
        if losses and all(map(finite, losses)) and finite(flops) and flops:
            loss = math.fsum(losses) / len(losses)
            steps, equal_data = int(budget["total_steps"]), budget["kind"] != "budget"
            points.append(Placed(steps, equal_data, flops, loss, band_of(losses)))
    return points


def band_of(losses: Sequence[float]) -> tuple[float, float] | None:
    """Of losses after as many steps, one a seed; None of one seed."""
    if len(losses) >= FEWEST_FOR_INTERVAL:
        return t_interval(losses)
    return (min(losses), max(losses)) if len(losses) > 1 else None


def difference_at(report: Report, arm: Arm, steps: int) -> PairedDifference | None:
    """The arm's final loss less the baseline's at the same budget; None where one of them was not trained there."""
    ours, theirs = budget_at(arm, steps), budget_at(report["arms"][0], steps)
    if ours is None or theirs is None:
        return None
    return _paired(by_seed(ours), by_seed(theirs))


def as_difference(found: PairedDifference) -> Mapping[str, Any]:
    """The same as an entry of the report's `equal_flops_all`, for what decides who won."""
    return {
        "delta_nats": found.mean,
        "confidence_interval": found.interval,
        "confidence_level": 0.95,
        "deltas": found.differences,
    }


def difference_at_equal_data(report: Report, arm: Arm) -> Mapping[str, Any] | None:
    """The report's own entry: the arm less the baseline that read as much text."""
    listed = report.get("equal_data_all") or [report.get("equal_data")]
    return next((found for found in listed if found and found.get("arm") == arm["name"]), None)


def reference_steps(report: Report) -> int:
    """The longest budget: what the headline is about."""
    return int(reference(report["arms"][0])["total_steps"])


def shortest_in_full(report: Report) -> int:
    """The shortest budget that the figure's range has to hold: far shorter ones would flatten what decides."""
    return min(steps for steps in compared_steps(report) if steps >= reference_steps(report) * _IN_FULL)


def is_cut(report: Report) -> bool:
    """Whether there are budgets that the figure's range need not hold."""
    return compared_steps(report)[0] < shortest_in_full(report)


def _paired(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> PairedDifference | None:
    pairs = [
        (ours[seed]["final_validation_loss"], theirs[seed]["final_validation_loss"]) for seed in ours if seed in theirs
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known or len(known) < len(pairs):
        return None
    return paired_difference([a for a, _ in known], [b for _, b in known])
