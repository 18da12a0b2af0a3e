"""What several parts of the report read from its dictionary, asked for in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from token_superposition.study.arms import Arm, Budget
from token_superposition.study.significance import OUTCOME_WORDS, Outcome, outcome_of

Report = Mapping[str, Any]


def unit(report: Report) -> str:
    """What a loss is counted in."""
    return f"nats per {token_word(report)}"


def token_word(report: Report) -> str:
    """What a token of this run is called."""
    return "byte" if report["data"]["tokenizer"] == "bytes" else "token"


def arm_named(report: Report, name: str) -> Arm:
    """The arm of that name."""
    return next(arm for arm in report["arms"] if arm["name"] == name)


def baseline(report: Report) -> Arm:
    """The arm that the others are held against."""
    first: Arm = report["arms"][0]
    return first


def best(report: Report) -> Arm:
    """The arm that the headline is about."""
    return arm_named(report, report["equal_flops"]["arm"])


def differences(report: Report) -> list[Mapping[str, Any]]:
    """Every arm's difference to the baseline."""
    return list(report.get("equal_flops_all") or [report["equal_flops"]])


def outcome(report: Report) -> Outcome:
    """What the headline says of its arm."""
    return outcome_of(report["equal_flops"], len(differences(report)))


def outcome_words(report: Report, difference: Mapping[str, Any]) -> str:
    """What these seeds say of any difference to the baseline: `clearly better`, `level, within noise`, `undecided`."""
    return OUTCOME_WORDS[outcome_of(difference, len(differences(report)))]


def num_seeds(report: Report) -> int:
    """Seeds of each arm."""
    return max(len(arm["seeds"]) for arm in report["arms"])


def mean(arm: Arm | Budget, key: str) -> float | None:
    """The mean over the seeds of an arm, or of one of its budgets; None where a seed has no such number."""
    values = [seed.get(key) for seed in arm["seeds"]]
    if not values or any(value is None for value in values):
        return None
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def ratio(report: Report, arm: Arm, key: str) -> float | None:
    """An arm's mean over the baseline's."""
    above, below = mean(arm, key), mean(baseline(report), key)
    return above / below if above is not None and below else None


def recovery_steps(arm: Arm) -> int:
    """Steps of next-token training after the switch; all of them for a run without superposition."""
    return sum(stage["steps"] for stage in arm["stages"]) - int(arm["switch_step"])
