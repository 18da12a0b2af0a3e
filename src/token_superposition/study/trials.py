"""What a study trains: an arm at a budget and, in a sweep, at a setting, with every seed.

**Folders.** A study of one budget has `runs/ARM/seed-N`, and one of several budgets `runs/ARM/4000-steps/seed-N`. The
setting of a sweep is a folder before the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from token_superposition.study.study_config import Study, at_budget
from token_superposition.study.sweep import Setting, at_setting, setting_name
from token_superposition.training.config import RunConfig
from token_superposition.training.datasets import Corpora
from token_superposition.training.run_folder import RunFolder

Kind = Literal["budget", "equal_data"]


@dataclass(frozen=True)
class Trial:
    """An arm at a budget. Seeds are counted from the configuration's.

    Attributes:
        arm: its name.
        config: its configuration at this budget.
        base: the folder that holds its runs of all budgets.
        alone: whether the study has one budget only.
        setting: of a sweep; empty without.
        kind: a budget of all arms, or the baseline on the raw tokens of another arm.
    """

    arm: str
    config: RunConfig
    base: Path
    alone: bool
    setting: Setting = field(default_factory=dict)
    kind: Kind = "budget"

    @property
    def total_steps(self) -> int:
        """The budget."""
        return self.config.train.total_steps

    def seeded(self, seed: int) -> RunConfig:
        """The configuration of one seed."""
        number = self.config.train.seed + seed
        return self.config.model_copy(update={"train": self.config.train.model_copy(update={"seed": number})})

    def name(self, seed: int) -> str:
        """What to call the run of a seed."""
        steps = "" if self.alone else f"{self.total_steps} steps"
        number = f"seed {self.config.train.seed + seed}"
        return ", ".join(filter(None, (self.arm, setting_name(self.setting), steps, number)))

    def run(self, seed: int) -> RunFolder:
        """The folder of the run of a seed."""
        name = f"seed-{self.config.train.seed + seed}"
        return RunFolder(self.base / name if self.alone else self.base / f"{self.total_steps}-steps" / name)

    def loss(self, seed: int) -> float | None:
        """The final validation loss; None of a run that has none, or none yet."""
        summary = self.run(seed).read_summary()
        return None if summary is None else float(summary["final_validation_loss"])

    def diverged(self, seeds: Iterable[int]) -> list[int]:
        """Those of the seeds that diverged."""
        runs = {seed: self.run(seed) for seed in seeds}
        return [seed for seed, run in runs.items() if run.diverged_file.exists() and not run.summary_file.exists()]

    def mean(self, seeds: Iterable[int]) -> float:
        """The mean loss; infinite where a seed diverged."""
        losses = [self.loss(seed) for seed in seeds]
        known = [loss for loss in losses if loss is not None]
        return math.fsum(known) / len(known) if len(known) == len(losses) else math.inf


def arm_trials(study: Study, arm: str, folder: Path, setting: Setting | None = None) -> list[Trial]:
    """An arm at every budget, the longest last.

    Args:
        study, arm: the arm's name in the study.
        folder: the study's.
        setting: of a sweep.

    Raises:
        UserError: where the setting does not fit a budget.
    """
    config, base = study.arms[arm], folder / "runs" / arm
    if setting:
        config, base = at_setting(config, setting), base / setting_name(setting)
    return [Trial(arm, each, base, not study.budgets, setting or {}) for each in study.at_budgets(config)]


def equal_data_steps(study: Study) -> dict[str, int]:
    """For each arm but the baseline, the steps in which that reads the raw tokens of the arm's reference run.

    Without `equal_data` there is none. A batch of the baseline has a raw token a position; where documents are kept
    apart, superposition reads less than its bags could hold, and what counts is what it reads.
    """
    steps = {}
    for name, config in list(study.arms.items())[1:] if study.equal_data else ():
        stream = Corpora.open(config.data).stream(config, config.schedule())
        steps[name] = round(stream.coverage().raw_tokens / config.train.positions_per_step)
    return steps


def with_equal_data(trials: Sequence[Trial], steps: Mapping[str, int]) -> list[Trial]:
    """The trials, and the first arm's at the steps of equal data, as the longest of it is otherwise.

    Args:
        trials: of all arms, each arm's in rising order of their budgets, the baseline's first.
        steps: as `equal_data_steps` says.
    """
    baseline = [trial for trial in trials if trial.arm == trials[0].arm]
    new = sorted(set(steps.values()) - {trial.total_steps for trial in baseline})
    configs = [at_budget(baseline[-1].config, total, "equal_data") for total in new]
    return [*trials, *(replace(baseline[-1], config=config, alone=False, kind="equal_data") for config in configs)]
