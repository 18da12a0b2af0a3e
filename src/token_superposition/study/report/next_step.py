"""What a reader of the report does next, with the time that it takes.

The time is an estimate from the measured seconds of the runs: those that are to be trained, at as many at once as
before. Steps that a run shares with another run are trained once, so they count once.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from token_superposition.formatting import about_duration
from token_superposition.study.arms import budgets, quoted
from token_superposition.study.report.budget_facts import has_budgets, reference_steps
from token_superposition.study.report.facts import Report, best, num_seeds, outcome

ENOUGH_SEEDS = 5
_NUMBERS = {5: "five", 10: "ten"}


def next_step(report: Report) -> str:
    """One sentence that says what to do now, and mostly the command for it."""
    broken = broken_runs(report)
    if broken == "unfinished":
        return f"Next step: start the same command again, it continues the runs where they stopped: {_command(report)}"
    if broken == "diverged":
        return "Next step: lower the learning rate of the arm that diverged, or remove the arm, and compare again."
    seeds, came_out = num_seeds(report), outcome(report)
    if seeds < ENOUGH_SEEDS:
        return _more_seeds(report, ENOUGH_SEEDS)
    if came_out == "undecided":
        return _more_seeds(report, 2 * seeds)
    if came_out == "won" and not has_budgets(report):
        total = reference_steps(report)
        listed = ",".join(str(total * part // 4) for part in (1, 2, 4))
        command = _command(report, "--budgets", listed)
        return f"Next step: measure how much compute it saves, with runs of several lengths: {command}"
    if came_out == "won":
        arm = best(report)
        return (
            f"Next step: train the full run with the settings of {quoted(arm['name'])} (superposition.bag_size "
            f"{arm['bag_size']}, superposition.ratio {arm['ratio']:.3g}); tst plan says what that costs and saves."
        )
    return (
        "Next step: train without superposition at this length, or compare again with more steps or with smaller bags."
    )


def broken_runs(report: Report) -> str | None:
    """`unfinished` where a run has no final loss yet, `diverged` where a loss is no finite number, else None."""
    runs = [run for arm in report["arms"] for run in arm["seeds"]]
    losses = [run.get("final_validation_loss") for run in runs]
    delta = report["equal_flops"]["delta_nats"]
    if any(loss is None for loss in losses):
        return "unfinished"
    if delta is None or not math.isfinite(delta):
        return "diverged"
    return None


def _more_seeds(report: Report, number: int) -> str:
    new = number - num_seeds(report)
    words = _NUMBERS.get(number, str(number))
    seconds = _seconds_of_a_seed(report)
    time = ""
    if seconds is not None:
        runs = new * sum(len(budgets(arm)) for arm in report["arms"])
        time = f" ({about_duration(new * seconds / min(report.get('runs_at_once') or 1, runs))} on this machine)"
    return f"Next step: run {words} seeds{time}: {_command(report, '--seeds', str(number))}"


def _seconds_of_a_seed(report: Report) -> float | None:
    """What all runs of one more seed take, as a mean over the seeds that were run; None where it was not measured."""
    total = 0.0
    for arm in report["arms"]:
        for budget in budgets(arm):
            seconds = [_own_seconds(run) for run in budget["seeds"]]
            known = [each for each in seconds if each is not None and math.isfinite(each)]
            if not known or len(known) < len(seconds):
                return None
            total += math.fsum(known) / len(known)
    return total


def _own_seconds(run: Mapping[str, Any]) -> float | None:
    seconds, steps = run.get("wall_seconds"), run.get("steps")
    if seconds is None or not steps:
        return None
    return float(seconds) * (1 - (run.get("shared_steps") or 0) / steps)


def _command(report: Report, option: str | None = None, value: str = "") -> str:
    """The command that made the report, with another value of an option."""
    words = shlex.split(report.get("command") or f"tst compare CONFIG.yaml --seeds {num_seeds(report)} --out FOLDER")
    if option in words[:-1]:
        words[words.index(option) + 1] = value
    elif option is not None:
        words += [option, value]
    return shlex.join(words)
