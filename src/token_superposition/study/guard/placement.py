"""At which steps a run is guarded, by what branches, and what that costs: arithmetic on its stages.

A guard's branch is a whole run in small. It shares the guarded run's steps, then decays: over as large a share of its
steps as the configuration says of a run, so that its end and a baseline's of that length are alike. It needs the
learning rate not to have left its plateau: no guard lies in the warm-up or in the run's own decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from token_superposition.errors import UserError
from token_superposition.schedule import Schedule
from token_superposition.training.config import RunConfig, TrainConfig, parse_config
from token_superposition.training.optim import build_learning_rate

_LEAST_DECAY = 10


@dataclass(frozen=True)
class Guard:
    """A branch that leaves a run.

    Attributes:
        step: the run's steps that it shares.
        branch_steps: those of its own.
        fraction: of the recovery, where it leaves.
    """

    step: int
    branch_steps: int
    fraction: float

    @property
    def total_steps(self) -> int:
        """From the run's start to the branch's end."""
        return self.step + self.branch_steps


@dataclass(frozen=True)
class GuardPlan:
    """A run's guards and their price.

    Attributes:
        schedule: the run's.
        guards: in the order of their steps.
        flops_per_step: of the model and batch.
    """

    schedule: Schedule
    guards: tuple[Guard, ...]
    flops_per_step: int

    @property
    def steps(self) -> int:
        """What all branches take."""
        return sum(guard.branch_steps for guard in self.guards)

    def spent(self, number: int) -> int:
        """Steps trained by the end of guard `number`, the run's and the branches'; nothing after it counts."""
        return self.guards[number].step + sum(guard.branch_steps for guard in self.guards[: number + 1])

    def share(self, steps: int) -> float:
        """Of the run's steps."""
        return steps / self.schedule.total_steps

    def as_dict(self) -> dict[str, Any]:
        """For `--dry-run --json` and `guard.json`: where the guards are, their cost, and that of a failed attempt."""
        most = self.spent(len(self.guards) - 1)
        return {
            "switch_step": self.schedule.switch_step,
            "total_steps": self.schedule.total_steps,
            "guards": [
                {"step": guard.step, "branch_steps": guard.branch_steps, "fraction": guard.fraction}
                for guard in self.guards
            ],
            "cost": {"steps": self.steps, "share": self.share(self.steps), "flops": self.steps * self.flops_per_step},
            "cost_if_stopped": {"steps": most, "share": self.share(most), "flops": most * self.flops_per_step},
        }

    def describe(self) -> list[str]:
        """The same in words, before the run starts."""
        fractions = " and ".join(f"{guard.fraction:.0%}" for guard in self.guards)
        starts = " and ".join(f"{guard.step:,}" for guard in self.guards)
        lengths = " and ".join(f"{guard.branch_steps:,}" for guard in self.guards)
        many = len(self.guards) > 1
        most = self.spent(len(self.guards) - 1)
        return [
            f"guard{'s' * many} after step{'s' * many} {starts} of {self.schedule.total_steps:,} ({fractions} of the "
            f"recovery): {'branches' if many else 'a branch'} of {lengths} steps that decay{'s' * (not many)} at once, "
            f"{self.share(self.steps):.0%} of the run on top ({self.steps * self.flops_per_step:.3g} FLOPs)",
            f"if the {'last ' if many else ''}guard says stop, {most:,} steps are spent, {self.share(most):.0%} of the "
            f"run ({most * self.flops_per_step:.3g} FLOPs); the checkpoint at the switch, step "
            f"{self.schedule.switch_step:,}, is kept",
        ]


def parse_fractions(text: str) -> tuple[float, ...]:
    """`0.1,0.25` as shares of the recovery in rising order.

    Raises:
        UserError: where these are no different numbers between 0 and 1.
    """
    try:
        fractions = sorted(float(part) for part in text.split(","))
    except ValueError:
        fractions = []
    if not fractions or len(set(fractions)) < len(fractions) or not all(0 < part < 1 for part in fractions):
        raise UserError(
            f"--guard-at {text}: needs different shares of the recovery, above 0 and under 1, such as 0.1,0.25"
        )
    return tuple(fractions)


def place_guards(train: TrainConfig, schedule: Schedule, fractions: Sequence[float]) -> tuple[Guard, ...]:
    """The guards of a run.

    Args:
        train: its settings.
        schedule: its stages.
        fractions: of the recovery, in rising order.

    Raises:
        UserError: for a run without superposition; for guards in the warm-up or the decay, or at one step.
    """
    switch, total = schedule.switch_step, schedule.total_steps
    if switch == 0:
        raise UserError("--guard: this run has no superposition to be guarded (superposition.bag_size, ratio)")
    recovery, rate, ratio = total - switch, build_learning_rate(train), train.decay_ratio
    guards: list[Guard] = []
    for fraction in fractions:
        step = switch + max(1, round(fraction * recovery))
        if step > rate.steps_before_decay:
            raise UserError(
                f"--guard-at {fraction:g}: comes after step {step:,}, where the learning rate decays already (from "
                f"step {total - train.decay_steps:,} on); take earlier guards, or less superposition.ratio or "
                "train.decay_ratio"
            )
        if step < train.num_warmup_steps:
            raise UserError(
                f"--guard-at {fraction:g}: comes after step {step:,}, within the {train.num_warmup_steps:,} steps of "
                "warm-up; take later guards"
            )
        if guards and guards[-1].step == step:
            raise UserError(
                f"--guard-at: {guards[-1].fraction:g} and {fraction:g} of a recovery of {recovery:,} steps are the "
                "same step; take guards further apart"
            )
        guard = Guard(step, max(_LEAST_DECAY, round(step * ratio / (1 - ratio)) if ratio < 1 else 0), fraction)
        if guard.total_steps >= total:
            raise UserError(
                f"--guard-at {fraction:g}: its branch would end at step {guard.total_steps:,}, and the run at "
                f"{total:,} already; take earlier guards, or a longer run"
            )
        guards.append(guard)
    return tuple(guards)


def branch_settings(config: RunConfig, schedule: Schedule, guard: Guard) -> RunConfig:
    """The configuration of a guard's branch: the run's, but for its end and what it writes.

    Args:
        config: the run's, settled.
        schedule: its stages, as fixed when it started.
        guard: where the branch leaves.
    """
    values = config.model_dump(mode="json")
    kinds = schedule.as_dicts()[:-1]  # the last is the recovery, which gets what is left
    decay = guard.branch_steps / guard.total_steps if config.train.decay_steps else 0.0
    values["superposition"] = {"stages": kinds}
    values["train"] |= {
        "total_steps": guard.total_steps,
        "warmup_ratio": None,
        "warmup_steps": config.train.num_warmup_steps,
        "decay_ratio": decay,
    }
    values["logging"] |= {
        "validation_interval": guard.total_steps,
        "keep_checkpoints": 1,
        "keep_checkpoint_steps": [],
        "trackers": [],
    }
    return parse_config(values)
