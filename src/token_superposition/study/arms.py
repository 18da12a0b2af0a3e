"""What the parts of a study read from an arm of the report: its name in a sentence, its budgets, its runs by seed.

An arm trained at several budgets lists them under `budgets`, the shortest first; the reference budget, the longest
that is not there for equal data only, is also the arm's own `seeds`. A report of one budget has no such list, and
the arm is then its one budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Arm = Mapping[str, Any]
Budget = Mapping[str, Any]


def quoted(name: str) -> str:
    """An arm's name within a sentence: in quotes, unless it is a word that says what it is."""
    return name if name in ("baseline", "superposition") else f"“{name}”"


def budgets(arm: Arm) -> list[Budget]:
    """All that the arm was trained at, the shortest first."""
    listed = arm.get("budgets")
    if listed:
        return sorted(listed, key=lambda budget: int(budget["total_steps"]))
    steps = sum(int(stage["steps"]) for stage in arm["stages"])
    keys = ("stages", "switch_step", "ratio", "learning_rate", "seeds")
    return [{"total_steps": steps, "kind": "budget", **{key: arm.get(key) for key in keys}}]


def reference(arm: Arm) -> Budget:
    """The longest budget: what the headline is about."""
    return [budget for budget in budgets(arm) if budget["kind"] == "budget"][-1]


def num_threads(arms: Sequence[Arm]) -> list[int]:
    """The different numbers of threads that runs had, where they were recorded: more than one, and seconds differ."""
    runs = [run for arm in arms for budget in budgets(arm) for run in budget["seeds"]]
    return sorted({int(run["num_threads"]) for run in runs if run.get("num_threads") is not None})


def why_seconds_differ(arms: Sequence[Arm]) -> str | None:
    """Why the measured seconds of the runs cannot be compared, where they cannot: other threads, or other machines."""
    threads = num_threads(arms)
    if len(threads) > 1:
        listed = f"{', '.join(map(str, threads[:-1]))} or {threads[-1]}"
        return f"the runs had different numbers of threads ({listed})"
    runs = [run for arm in arms for budget in budgets(arm) for run in budget["seeds"]]
    machines = sorted({str(run["machine"]) for run in runs if run.get("machine") is not None})
    if len(machines) > 1:
        return f"the runs were trained on different machines ({'; '.join(machines)})"
    return None


def by_seed(budget: Budget) -> dict[int, Mapping[str, Any]]:
    """A budget's runs by their seed."""
    return {int(run["seed"]): run for run in budget["seeds"]}
