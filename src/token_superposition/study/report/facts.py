"""What several parts of the report ask of it.

The band of a mean loss is the t-interval over seeds; of two seeds, for which a t-interval would be twelve deviations
wide, their range; of one seed there is none. Differences are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from token_superposition.formatting import finite
from token_superposition.study.report.model import Arm, Difference, ReadAt, Report, SeedRun, Speedup, Switch, Trained
from token_superposition.study.significance import (
    OUTCOME_WORDS,
    Outcome,
    outcome_of,
    paired_difference,
    t_interval,
)

FEWEST_FOR_INTERVAL = 3
_IN_FULL = 1 / 8  # of the longest budget


def token_word(report: Report) -> str:
    """What a token of this run is called."""
    return "byte" if report.data.tokenizer == "bytes" else "token"


def unit(report: Report) -> str:
    """The unit of a loss."""
    return f"nats per {token_word(report)}"


def baseline(report: Report) -> Arm:
    """The arm that the others are compared with."""
    return report.arms[0]


def best(report: Report) -> Arm:
    """The arm that the headline is about."""
    return arm_named(report, report.equal_flops.arm)


def arm_named(report: Report, name: str) -> Arm:
    """The arm of that name."""
    return next(arm for arm in report.arms if arm.name == name)


def differences(report: Report) -> tuple[Difference, ...]:
    """Every arm's difference to the baseline."""
    return report.equal_flops_all or (report.equal_flops,)


def outcome(report: Report) -> Outcome:
    """What the headline says of its arm."""
    return outcome_of(report.equal_flops, len(differences(report)))


def outcome_words(report: Report, difference: Difference) -> str:
    """What the seeds say of a difference: `clearly better`, `level, within noise`, `undecided`."""
    return OUTCOME_WORDS[outcome_of(difference, len(differences(report)))]


def num_seeds(report: Report) -> int:
    """Seeds of each arm."""
    return max(len(arm.seeds) for arm in report.arms)


def ratio(report: Report, arm: Trained, key: str) -> float | None:
    """An arm's mean divided by the baseline's."""
    above, below = arm.mean(key), baseline(report).mean(key)
    return above / below if above is not None and below else None


def broken_runs(report: Report) -> Literal["unfinished", "diverged"] | None:
    """`unfinished` if a run has no final loss yet, `diverged` if a loss is not finite, else None."""
    if any(run.final_validation_loss is None for arm in report.arms for run in arm.seeds):
        return "unfinished"
    return None if report.equal_flops.known else "diverged"


# Several budgets.


def has_budgets(report: Report) -> bool:
    """Whether an arm was trained at more than one length."""
    return any(len(arm.all_budgets) > 1 for arm in report.arms)


def compared_steps(report: Report) -> list[int]:
    """The budgets at which arms are compared, the shortest first."""
    return sorted({b.total_steps for arm in report.arms for b in arm.all_budgets if b.kind == "budget"})


def equal_data_steps(report: Report) -> list[int]:
    """The budgets that only the baseline has, for equal data."""
    return [budget.total_steps for budget in baseline(report).all_budgets if budget.kind != "budget"]


def reference_steps(report: Report) -> int:
    """The longest budget, which the headline is about."""
    return baseline(report).reference.total_steps


def shortest_in_full(report: Report) -> int:
    """The shortest budget that the range of a figure must contain: much shorter ones would flatten the rest."""
    return min(steps for steps in compared_steps(report) if steps >= reference_steps(report) * _IN_FULL)


def difference_at(report: Report, arm: Arm, steps: int) -> Difference | None:
    """The arm's final loss minus the baseline's at the same budget; None if one of them was not trained there."""
    ours, theirs = arm.budget_at(steps), baseline(report).budget_at(steps)
    if ours is None or theirs is None:
        return None
    a, b = ours.by_seed, theirs.by_seed
    pairs = [(a[seed].final_validation_loss, b[seed].final_validation_loss) for seed in a if seed in b]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not known or len(known) < len(pairs):
        return None
    return make_difference(baseline(report).name, [other for _, other in known], arm.name, [one for one, _ in known])


def make_difference(baseline_name: str, theirs: Sequence[float], arm: str, ours: Sequence[float]) -> Difference:
    """The difference of final losses, one per seed in the same order."""
    found = paired_difference(ours, theirs)
    return Difference(
        baseline=baseline_name,
        arm=arm,
        delta_nats=found.mean,
        confidence_interval=found.interval,
        confidence_level=0.95,
        deltas=found.differences,
        reason=found.reason,
    )


def equal_data_of(report: Report, arm: Arm) -> Difference | None:
    """The arm's difference to the baseline that read as much text."""
    listed = report.equal_data_all or ((report.equal_data,) if report.equal_data else ())
    return next((found for found in listed if found.arm == arm.name), None)


def readings(report: Report, arm: str, read_at: ReadAt) -> dict[str, Speedup]:
    """An arm's speed-ups at one end, by their unit."""
    return {each.unit: each for each in report.iso_loss_all if each.arm == arm and each.read_at == read_at}


def shown_reading(report: Report) -> Speedup | None:
    """The speed-up that the figure shows: the headline's, or else that at superposition's loss."""
    if report.iso_loss:
        return report.iso_loss
    found = readings(report, best(report).name, "superposition_end").get("flops")
    return found if found and found.speedup is not None else None


def switch_of(report: Report, arm: Arm) -> Switch | None:
    """What happened at an arm's switch."""
    return next((found for found in report.switch if found.arm == arm.name), None)


@dataclass(frozen=True)
class Placed:
    """An arm's final loss at a budget: mean over seeds, and its band if there is one."""

    steps: int
    equal_data: bool
    flops: float
    loss: float
    band: tuple[float, float] | None


def placed(arm: Arm) -> list[Placed]:
    """The arm's final losses at its budgets, those that are finite."""
    points = []
    for budget in arm.all_budgets:
        losses = [run.final_validation_loss for run in budget.seeds]
        known = [loss for loss in losses if loss is not None and finite(loss)]
        flops = budget.mean("flops")
        if known and len(known) == len(losses) and flops is not None and finite(flops) and flops:
            mean = math.fsum(known) / len(known)
            points.append(Placed(budget.total_steps, budget.kind != "budget", flops, mean, band_of(known)))
    return points


def band_of(losses: Sequence[float]) -> tuple[float, float] | None:
    """The band of losses after as many steps, one per seed; None of one seed."""
    if len(losses) >= FEWEST_FOR_INTERVAL:
        return t_interval(losses)
    return (min(losses), max(losses)) if len(losses) > 1 else None


# Whether the seconds of runs can be compared.


def num_threads(arms: Sequence[Arm]) -> list[int]:
    """The different numbers of threads that runs had, as far as they were recorded."""
    return sorted({run.num_threads for run in _runs(arms) if run.num_threads is not None})


def why_seconds_differ(arms: Sequence[Arm]) -> str | None:
    """Why the measured seconds of the runs cannot be compared: other threads or other machines; else None."""
    threads = num_threads(arms)
    if len(threads) > 1:
        listed = f"{', '.join(map(str, threads[:-1]))} or {threads[-1]}"
        return f"the runs had different numbers of threads ({listed})"
    machines = sorted({run.machine for run in _runs(arms) if run.machine is not None})
    if len(machines) > 1:
        return f"the runs were trained on different machines ({'; '.join(machines)})"
    return None


def _runs(arms: Sequence[Arm]) -> list[SeedRun]:
    return [run for arm in arms for budget in arm.all_budgets for run in budget.seeds]
