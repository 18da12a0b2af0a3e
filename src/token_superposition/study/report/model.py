"""The report of a comparison as a typed object: its fields are the schema of `report.json`.

What trains makes a `Report`, and what tells reads it. The keys of `report.json` are the names of the fields, and the
text below a field is its documentation. Optional keys may be missing: reports of version 0.1 have fewer of them.

Losses are next-token losses in nats per token. A difference is superposition minus baseline, so a number below zero is
better. A number that was not measured is null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from token_superposition.study.report.parts import (
    Arm,
    Cost,
    Data,
    Difference,
    Model,
    Part,
    ReadAt,
    Settings,
    Speedup,
    SweepReport,
    Switch,
    Trained,
)
from token_superposition.study.significance import OUTCOME_WORDS, Outcome, outcome_of

SCHEMA_VERSION = 2
_IN_FULL = 1 / 8  # of the longest budget


class Report(Part):
    """The report of a comparison."""

    schema_version: int = SCHEMA_VERSION
    title: str
    created: str
    """ISO date."""
    command: str | None = None
    """The command that made it."""
    model: Model
    data: Data
    settings: Settings
    arms: tuple[Arm, ...] = Field(min_length=2)
    """The baseline first."""
    equal_flops: Difference
    """At the longest budget, of the arm that the headline is about: the one that decides the most."""
    equal_flops_all: tuple[Difference, ...] = ()
    """Of every arm but the baseline."""
    equal_data: Difference | None = None
    """Of the best arm, against the baseline that read as much text."""
    equal_data_all: tuple[Difference, ...] = ()
    iso_loss: Speedup | None = None
    """The best arm's speed-up at the baseline's final loss."""
    iso_loss_all: tuple[Speedup, ...] = ()
    """Every speed-up; in seconds only if the seconds of the runs can be compared."""
    switch: tuple[Switch, ...] = ()
    cost: Cost | None = None
    sweep: SweepReport | None = None
    runs_at_once: int | None = None
    """How many runs were trained at a time."""
    mutual_information: dict[str, Any] | None = None
    """Measured on the data, for slot weights, by arm."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """Why `equal_data` and `iso_loss` are null."""

    def as_dict(self) -> dict[str, Any]:
        """The values for JSON, without the keys that were not given."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def token_word(self) -> str:
        """What a token of this run is called."""
        return "byte" if self.data.tokenizer == "bytes" else "token"

    @property
    def unit(self) -> str:
        """The unit of a loss."""
        return f"nats per {self.token_word}"

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def best(self) -> Arm:
        """The arm that the headline is about."""
        return self.arm_named(self.equal_flops.arm)

    def arm_named(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Every arm's difference to the baseline."""
        return self.equal_flops_all or (self.equal_flops,)

    @property
    def outcome(self) -> Outcome:
        """What the headline says of its arm."""
        return outcome_of(self.equal_flops, len(self.differences))

    def outcome_words(self, difference: Difference) -> str:
        """What the seeds say of a difference: `clearly better`, `level, within noise`, `undecided`."""
        return OUTCOME_WORDS[outcome_of(difference, len(self.differences))]

    @property
    def num_seeds(self) -> int:
        """Seeds of each arm."""
        return max(len(arm.seeds) for arm in self.arms)

    def ratio(self, arm: Trained, key: str) -> float | None:
        """An arm's mean divided by the baseline's."""
        above, below = arm.mean(key), self.baseline.mean(key)
        return above / below if above is not None and below else None

    @property
    def broken_runs(self) -> Literal["unfinished", "diverged"] | None:
        """`unfinished` if a run has no final loss yet, `diverged` if a loss is not finite, else None."""
        if any(run.final_validation_loss is None for arm in self.arms for run in arm.seeds):
            return "unfinished"
        return None if self.equal_flops.known else "diverged"

    # Several budgets.

    @property
    def has_budgets(self) -> bool:
        """Whether an arm was trained at more than one length."""
        return any(len(arm.all_budgets) > 1 for arm in self.arms)

    @property
    def compared_steps(self) -> list[int]:
        """The budgets at which arms are compared, the shortest first."""
        return sorted({b.total_steps for arm in self.arms for b in arm.all_budgets if b.kind == "budget"})

    @property
    def equal_data_steps(self) -> list[int]:
        """The budgets that only the baseline has, for equal data."""
        return [budget.total_steps for budget in self.baseline.all_budgets if budget.kind != "budget"]

    @property
    def reference_steps(self) -> int:
        """The longest budget, which the headline is about."""
        return self.baseline.reference.total_steps

    @property
    def shortest_in_full(self) -> int:
        """The shortest budget that the range of a figure must contain: much shorter ones would flatten the rest."""
        return min(steps for steps in self.compared_steps if steps >= self.reference_steps * _IN_FULL)

    def difference_at(self, arm: Arm, steps: int) -> Difference | None:
        """The arm's final loss minus the baseline's at the same budget; None if one of them was not trained there."""
        ours, theirs = arm.budget_at(steps), self.baseline.budget_at(steps)
        if ours is None or theirs is None:
            return None
        a, b = ours.by_seed, theirs.by_seed
        pairs = [(a[seed].final_validation_loss, b[seed].final_validation_loss) for seed in a if seed in b]
        known = [(one, other) for one, other in pairs if one is not None and other is not None]
        if not known or len(known) < len(pairs):
            return None
        return Difference.of(self.baseline.name, [other for _, other in known], arm.name, [one for one, _ in known])

    def equal_data_of(self, arm: Arm) -> Difference | None:
        """The arm's difference to the baseline that read as much text."""
        listed = self.equal_data_all or ((self.equal_data,) if self.equal_data else ())
        return next((found for found in listed if found.arm == arm.name), None)

    def readings(self, arm: str, read_at: ReadAt) -> dict[str, Speedup]:
        """An arm's speed-ups at one end, by their unit."""
        return {each.unit: each for each in self.iso_loss_all if each.arm == arm and each.read_at == read_at}

    @property
    def shown_reading(self) -> Speedup | None:
        """The speed-up that the figure shows: the headline's, or else that at superposition's loss."""
        if self.iso_loss:
            return self.iso_loss
        found = self.readings(self.best.name, "superposition_end").get("flops")
        return found if found and found.speedup is not None else None

    def switch_of(self, arm: Arm) -> Switch | None:
        """What happened at an arm's switch."""
        return next((found for found in self.switch if found.arm == arm.name), None)
