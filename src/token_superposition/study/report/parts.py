"""The parts of a report: runs, arms, differences, speed-ups, costs, the sweep, what was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from token_superposition.study.significance import paired_difference

Number = int | float
Interval = tuple[float, float]
ReadAt = Literal["baseline_end", "superposition_end"]
Unit = Literal["flops", "seconds"]


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Stage(Part):
    """A stage of a run's schedule."""

    bag_size: int
    """Tokens per bag; 1 is next-token training."""
    steps: int
    mode: str
    slot_weights: str


class Validation(Part):
    """A validation during a run."""

    step: int
    phase: str
    bag_size: int
    flops: Number
    raw_tokens: Number
    validation_loss: float | None


class SeedRun(Part):
    """One run: an arm at a budget with one seed."""

    seed: int
    final_validation_loss: float | None = None
    bits_per_byte: float | None = None
    steps: int | None = None
    positions: Number | None = None
    """Latent tokens: what the network computes."""
    raw_tokens: Number | None = None
    """Tokens read."""
    unique_raw_tokens: Number | None = None
    flops: Number | None = None
    wall_seconds: float | None = None
    """With validations and checkpoints."""
    peak_memory_bytes: Number | None = None
    curve: tuple[Validation, ...] = ()
    machine: str | None = None
    shared_steps: int | None = None
    """Steps that were trained once for several runs."""
    num_threads: int | None = None
    skipped_steps: int | None = None
    """Steps whose loss or gradient was not finite; the weights did not change."""
    first_total_steps: int | None = None
    """Steps the run was started with; others than `steps` if it was made longer or shorter later."""

    @property
    def loss(self) -> float:
        """The final validation loss; NaN if it is missing."""
        return math.nan if self.final_validation_loss is None else self.final_validation_loss


class Trained(Part):
    """What was trained with every seed: an arm at one budget."""

    stages: tuple[Stage, ...]
    switch_step: int
    """First next-token step; 0 for the baseline."""
    ratio: float
    """Share of the steps in superposition."""
    learning_rate: float | None = None
    seeds: tuple[SeedRun, ...]

    @property
    def by_seed(self) -> dict[int, SeedRun]:
        """The runs by their seed."""
        return {run.seed: run for run in self.seeds}

    @property
    def recovery_steps(self) -> int:
        """Steps of next-token training after the switch."""
        return sum(stage.steps for stage in self.stages) - self.switch_step

    def mean(self, key: str) -> float | None:
        """The mean over seeds of a field of `SeedRun`; None if a seed has no such number."""
        values = [getattr(run, key) for run in self.seeds]
        if not values or any(value is None for value in values):
            return None
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


class Budget(Trained):
    """An arm at one budget."""

    total_steps: int
    kind: Literal["budget", "equal_data"] = "budget"
    """`equal_data` for the baseline on as many raw tokens as another arm reads."""


class Arm(Trained):
    """An arm: its fields are those of its longest `budget`."""

    name: str
    mode: str
    slot_weights: str
    bag_size: int
    parameters: int | None = None
    validation_tokens: int | None = None
    changed: dict[str, Any] = {}
    """Keys besides those of superposition that differ from the baseline's configuration, with the arm's values."""
    budgets: tuple[Budget, ...] = ()
    """Everything the arm was trained at, the shortest first; may be missing in a report of one budget."""

    @property
    def all_budgets(self) -> list[Budget]:
        """Everything the arm was trained at, the shortest first."""
        if self.budgets:
            return sorted(self.budgets, key=lambda budget: budget.total_steps)
        steps = sum(stage.steps for stage in self.stages)
        shared = {name: getattr(self, name) for name in Trained.model_fields}
        return [Budget(total_steps=steps, **shared)]

    @property
    def reference(self) -> Budget:
        """The longest budget, which the headline is about."""
        return [budget for budget in self.all_budgets if budget.kind == "budget"][-1]

    def budget_at(self, steps: int) -> Budget | None:
        """The arm's budget of that many steps."""
        return next((budget for budget in self.all_budgets if budget.total_steps == steps), None)

    @property
    def quoted(self) -> str:
        """The name within a sentence: in quotes, unless it says what the arm is."""
        return quoted(self.name)


class Difference(Part):
    """An arm's final loss minus the baseline's."""

    baseline: str
    arm: str
    delta_nats: float | None
    """Mean over seeds; below zero is better."""
    confidence_interval: Interval | None
    """Paired t over seeds."""
    confidence_level: float = 0.95
    deltas: tuple[float, ...]
    """One per seed."""
    reason: str | None = None
    """Why there is no interval."""
    total_steps: int | None = None
    """At equal data: the steps of the baseline that read as much text."""
    raw_tokens: Number | None = None
    """At equal data: the tokens that both read."""

    @classmethod
    def of(cls, baseline: str, theirs: Sequence[float], arm: str, ours: Sequence[float]) -> Difference:
        """The difference of final losses, one per seed in the same order."""
        found = paired_difference(ours, theirs)
        return cls(
            baseline=baseline,
            arm=arm,
            delta_nats=found.mean,
            confidence_interval=found.interval,
            confidence_level=0.95,
            deltas=found.differences,
            reason=found.reason,
        )

    @property
    def known(self) -> bool:
        """Whether the mean is a finite number."""
        return self.delta_nats is not None and math.isfinite(self.delta_nats)


class Speedup(Part):
    """What the baseline needs for a loss divided by what superposition needs for it; see `study.speedup`."""

    baseline: str
    arm: str
    read_at: ReadAt
    """Whose final loss at its longest budget it is."""
    unit: Unit
    loss: float | None = None
    speedup: float | None = None
    confidence_interval: Interval | None = None
    confidence_level: float = 0.95
    speedups: tuple[float, ...] = ()
    """One per seed."""
    baseline_cost: float | None = None
    arm_cost: float | None = None
    bounds: tuple[float | None, float | None] | None = None
    """Low and high, one of them null, if the loss is outside the curve."""
    basis: str | None = None
    """How it was read."""
    reason: str | None = None
    """Why there is no speed-up, or no interval."""


class Switch(Part):
    """What happened at an arm's switch to next-token training; see `study.loss_spike`."""

    arm: str
    switch_step: int
    spike_nats: float | None
    spike_steps: int | None
    """Recovery steps until less than a tenth of the spike was left."""
    crossing_step: int | None
    """The validation from which the arm stayed at or below the baseline."""
    crossing_recovery_steps: int | None
    ahead_at_end: bool | None = None
    """Whether the arm was at or below the baseline at their last validation."""
    reason: str | None
    """Why one of these is null."""


class ArmCost(Part):
    """What one run of an arm costs at the longest budget."""

    name: str
    hours: float | None
    money: float | None


class Saving(Part):
    """What superposition saves for the baseline's final loss; below zero is a loss."""

    arm: str
    share: float
    """Of the baseline's cost."""
    share_interval: Interval | None
    hours: float
    hours_interval: Interval | None
    money: float | None
    money_interval: Interval | None


class Cost(Part):
    """Hours of a device, and money if a price was given; see `study.prices`."""

    unit: Literal["GPU-hours", "machine-hours"]
    price_per_hour: float | None
    arms: tuple[ArmCost, ...]
    saving: Saving | None
    reason: str | None
    """Why there is no saving, or no money."""


class SweepSeed(Part):
    """A run of the sweep."""

    seed: int
    final_validation_loss: float | None
    diverged: bool


class Setting(Part):
    """A setting that an arm was tried at."""

    values: dict[str, Any]
    seeds: tuple[SweepSeed, ...]
    mean_validation_loss: float | None
    """Null if a seed diverged."""
    diverged_when_compared: tuple[int, ...] = ()
    """Seeds of the comparison that diverged at this setting."""

    @property
    def diverged(self) -> bool:
        """Whether a seed of the sweep diverged."""
        return any(seed.diverged for seed in self.seeds)


class Tried(Part):
    """What an arm was tried at."""

    name: str
    settings: tuple[Setting, ...]
    best: dict[str, Any]
    """The values that the arm was compared at."""
    at_edge: dict[str, Literal["lowest", "highest"]] = {}
    """Keys whose best value is at an end of its range."""


class SweepAt(Part):
    """What the arms were tried at, at one budget."""

    total_steps: int | None = None
    arms: tuple[Tried, ...]


class SweepReport(SweepAt):
    """How each arm was tuned; `arms` are those of the longest budget, or of `total_steps` if it is there."""

    keys: tuple[str, ...]
    values: dict[str, list[Any]]
    num_seeds: int
    budgets: tuple[SweepAt, ...] = ()


class Model(Part):
    """The model."""

    architecture: str | None
    parameters: int
    config: dict[str, Any] | None = None
    init_from: dict[str, Any] | None = None
    """The trained model that all runs started from: path, weights (checksum), origin; null for fresh weights."""


class Data(Part):
    """The corpus."""

    path: str
    tokenizer: str
    train_tokens: int
    train_bytes: int
    validation_tokens_used: int
    text_lost: float | None = None
    """Share of the characters that the tokenizer lost; if it is large, bits per byte are too low."""


class Settings(Part):
    """The baseline's settings at the longest budget."""

    total_steps: int
    batch_size: int
    """Rows."""
    sequence_length: int
    """Latent positions."""
    optimizer: str = "adamw"
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    decay_ratio: float | None = None
    final_learning_rate_ratio: float | None = None
    weight_decay: float
    device: str | None
    dtype: str | None
    num_threads: int | None = None
    """Null if runs had different numbers of them."""


def quoted(name: str) -> str:
    """An arm's name within a sentence: in quotes, unless it says what the arm is."""
    return name if name in ("baseline", "superposition") else f"“{name}”"
