"""Trains a sweep, chooses for each arm its own best values, and trains the comparison there.

**Seeds.** The best of several noisy losses is too good by chance, and the arm whose losses are the flatter over
the values gains more by that. So a sweep has seeds of its own, counted from the run's seed and 1,000, and the
seeds that are compared (the run's and those after it) have no part in the choice: their losses and the interval
need no correction for it. It costs one more run an arm than comparing on the sweep's seeds would. The choice
itself may rest on one seed: a choice that is a little off makes an arm a little worse, not its figure too good.

**Choice.** For each arm, at each budget by itself, the setting with the lowest mean of the final validation losses. A
setting at which any run diverged counts as worst. That holds for the compared seeds too: if one of them diverges at the
chosen setting, the next best takes its place, and the report says so. So a study ends with a result unless an arm
diverges everywhere. The baseline on equal data takes the values of its reference budget: a sweep of the longest runs of
all would cost the most, and the report says that it was not tuned.

**Folders.** `runs/ARM/SETTING/`, and in it as without a sweep (`trials`). What is done is never trained again, and
neither is what has diverged, so more values, more seeds of either kind, or a study that was stopped cost only the runs
that are new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.progress import warn
from token_superposition.study.runner import train_trials
from token_superposition.study.study_config import Study
from token_superposition.study.sweep import FIRST_SWEEP_SEED, Sweep, setting_name
from token_superposition.study.trials import Trial, arm_trials, equal_data_steps, with_equal_data
from token_superposition.training.metrics import is_number


@dataclass(frozen=True)
class Tuned:
    """What the arms are compared at.

    Attributes:
        trials: each arm at its best setting, budget by budget.
        report: the sweep, as in `report.json`.
        runs_at_once: how many of the compared runs were trained at a time.
    """

    trials: list[Trial]
    report: dict[str, Any]
    runs_at_once: int


def tune(study: Study, sweep: Sweep, folder: Path, *, num_seeds: int, jobs: int | None, quiet: bool) -> Tuned:
    """Train every arm at every setting and budget, then the seeds that are compared at its best.

    Args:
        study: the arms, before the sweep, and the budgets.
        sweep: what to try.
        folder: the study's.
        num_seeds: seeds compared.
        jobs, quiet: as in `compare`.

    Raises:
        UserError: where the seeds compared would reach those of the sweep, or a setting does not fit a budget.
        TrainingDivergedError: where an arm diverges at every setting.
    """
    sweep_seeds, compared = _seeds(sweep, num_seeds), range(num_seeds)
    choices = _choices(study, sweep, folder)
    train = partial(train_trials, branches=study.branches, jobs=jobs, quiet=quiet, may_diverge=True)
    train(_tried(choices), sweep_seeds)
    while True:
        best = [choice.best(sweep_seeds, compared) for choice in choices]
        chosen = [trial for choice, number in zip(choices, best, strict=True) for trial in choice.taken[number]]
        chosen.sort(key=lambda trial: trial.kind != "budget")  # equal data comes last
        runs_at_once = train(chosen, compared)
        if not any(trial.diverged(compared) for trial in chosen):
            break
    report = _report(choices, best, sweep, sweep_seeds, compared)
    if not study.budgets:
        del report["budgets"]
    for budget in report.get("budgets", [report]):
        at = f" at {budget['total_steps']} steps" if "total_steps" in budget else ""
        for arm in budget["arms"]:
            for key, end in arm["at_edge"].items():
                warn(f"{arm['name']}: the best {key}{at} is the {end} tried: the best may lie outside; widen the sweep")
    return Tuned(chosen, report, runs_at_once)


def sweep_runs(study: Study, sweep: Sweep, folder: Path, *, num_seeds: int) -> tuple[list[Trial], range, list[Trial]]:
    """What a sweep trains, before it does: the trials that are tried, their seeds, and what is compared in the end.

    That is at the settings which are the best so far; the first ones, where nothing was trained. Errors as in `tune`.
    """
    seeds = _seeds(sweep, num_seeds)
    choices = _choices(study, sweep, folder)
    taken = [choice.taken[choice.best(seeds, range(num_seeds))] for choice in choices]
    return _tried(choices), seeds, [trial for trials in taken for trial in trials]


def _seeds(sweep: Sweep, num_seeds: int) -> range:
    """The seeds of a sweep, which those that are compared must not reach."""
    if num_seeds > FIRST_SWEEP_SEED:
        raise UserError(f"--seeds is at most {FIRST_SWEEP_SEED} with --sweep, whose own follow them; not {num_seeds}")
    return range(FIRST_SWEEP_SEED, FIRST_SWEEP_SEED + sweep.num_seeds)


def _tried(choices: Sequence[_Choice]) -> list[Trial]:
    return [trial for trials in zip(*(choice.tried for choice in choices), strict=True) for trial in trials]


@dataclass(frozen=True)
class _Choice:
    """A setting is to be chosen for an arm.

    Attributes:
        tried: the arm at each setting, at the budget that decides.
        taken: for each setting, what is compared at it if it is chosen.
    """

    tried: Sequence[Trial]
    taken: Sequence[Sequence[Trial]]

    def best(self, sweep_seeds: Iterable[int], compared: Iterable[int]) -> int:
        """The setting of the lowest mean loss among those at which nothing diverged, compared seeds neither."""
        good = [
            number
            for number, (trial, taken) in enumerate(zip(self.tried, self.taken, strict=True))
            if not trial.diverged(sweep_seeds) and not any(each.diverged(compared) for each in taken)
        ]
        if not good:
            tried = "; ".join(setting_name(trial.setting) for trial in self.tried)
            raise TrainingDivergedError(
                f"{self.tried[0].arm}: diverged at every setting of the sweep ({tried}); sweep lower ones"
            )
        return min(good, key=lambda number: self.tried[number].mean(sweep_seeds))


def _choices(study: Study, sweep: Sweep, folder: Path) -> list[_Choice]:
    """What is to be chosen, for each arm at each budget. The baseline on equal data goes with its reference budget."""
    longer = equal_data_steps(study)
    choices = []
    for place, name in enumerate(study.arms):
        settings = [arm_trials(study, name, folder, setting) for setting in sweep.settings()]
        for tried in zip(*settings, strict=True):
            taken = [[trial] for trial in tried]
            if place == 0 and tried[0] is settings[0][-1]:
                taken = [with_equal_data(trials, longer) for trials in taken]
            choices.append(_Choice(tried, taken))
    return choices


def _report(
    choices: Sequence[_Choice],
    best: Sequence[int],
    sweep: Sweep,
    sweep_seeds: Iterable[int],
    compared: Iterable[int],
) -> dict[str, Any]:
    """What was tried and chosen at every budget; `arms` are those of the reference."""
    budgets: dict[int, list[dict[str, Any]]] = {}
    for choice, number in sorted(zip(choices, best, strict=True), key=lambda pair: pair[0].tried[0].total_steps):
        arm = _as_dict(choice, number, sweep, sweep_seeds, compared)
        budgets.setdefault(choice.tried[0].total_steps, []).append(arm)
    return {
        "keys": list(sweep.values),
        "values": {key: list(values) for key, values in sweep.values.items()},
        "num_seeds": sweep.num_seeds,
        "arms": budgets[max(budgets)],
        "budgets": [{"total_steps": steps, "arms": arms} for steps, arms in budgets.items()],
    }


def _as_dict(
    choice: _Choice, best: int, sweep: Sweep, sweep_seeds: Iterable[int], compared: Iterable[int]
) -> dict[str, Any]:
    """What was tried for an arm, what came of it, and what was chosen."""
    first = choice.tried[0].config.train.seed
    settings = []
    for trial, taken in zip(choice.tried, choice.taken, strict=True):
        mean = trial.mean(sweep_seeds)
        failed = sorted({seed for each in taken for seed in each.diverged(compared)})
        settings.append(
            {
                "values": dict(trial.setting),
                "seeds": [
                    {
                        "seed": first + seed,
                        "final_validation_loss": trial.loss(seed),
                        "diverged": bool(trial.diverged([seed])),
                    }
                    for seed in sweep_seeds
                ],
                "mean_validation_loss": mean if math.isfinite(mean) else None,
                "diverged_when_compared": [first + seed for seed in failed],
            }
        )
    chosen = choice.tried[best].setting
    return {
        "name": choice.tried[0].arm,
        "settings": settings,
        "best": dict(chosen),
        "at_edge": {key: end for key, values in sweep.values.items() if (end := _edge(chosen[key], values))},
    }


def _edge(value: Any, values: Sequence[Any]) -> str | None:
    """`lowest` or `highest`, where better values may lie beyond; no key goes below zero."""
    if not all(map(is_number, values)):
        return None
    if value == max(values):
        return "highest"
    return "lowest" if value == min(values) and value != 0 else None
