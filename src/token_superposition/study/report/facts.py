"""What is computed from arms for several parts of a study: bands of means, and whether seconds can be compared.

The band of a mean loss is the t-interval over seeds; of two seeds, for which a t-interval would be twelve deviations
wide, their range; of one seed there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from token_superposition.formatting import finite
from token_superposition.study.report.parts import Arm, SeedRun
from token_superposition.study.significance import t_interval

FEWEST_FOR_INTERVAL = 3


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
