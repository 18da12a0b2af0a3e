"""The baseline that a guarded run is held against: what is read of it, and whether the two can be compared.

It comes from a study (its folder, or its `report.json`, whose first arm it is), or from finished runs without
superposition, each given by its folder: any lengths, several seeds of each for a probability.

What must be equal is what would change a loss after as many steps without being superposition: the model, the
positions of a step, the optimizer, how the learning rate decays, the data type, the data, the tokens validated on. The
learning rate itself may differ, and so may warm-up, weight decay, betas and clipping: each of the two at its best is
the fair comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.files import read_object
from token_superposition.study.guard.projection import Curve, pooled_deviation
from token_superposition.study.report.files import parse_report
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

_KEYS_OF_MODEL = "model.config."
_KEYS_OF_TRAINING = ("optimizer", "decay_ratio", "final_learning_rate_ratio", "dtype")
_COMPARE = "tst compare with --budgets trains such a baseline"


@dataclass(frozen=True)
class Baseline:
    """A baseline's losses, and what they were measured on.

    Attributes:
        source: as it was given.
        curve: final losses by steps, one a seed.
        facts: by where they were read, what a run that is compared must have too, by what to call it.
    """

    source: str
    curve: Curve
    facts: Mapping[str, Mapping[str, Any]]

    def check_comparable(self, ours: Mapping[str, Any]) -> None:
        """Refuse a run of other facts; UserError names the first that differs.

        What one of the two does not say is not compared: keys of the model's configuration may be its defaults.
        """
        for place, facts in self.facts.items():
            for name, theirs in facts.items():
                if ours.get(name, theirs) != theirs:
                    raise UserError(
                        f"--guard {place}: is no baseline for this run: {name} is {theirs!r} there and {ours[name]!r} "
                        "here; take one of the same model, batch, data and validation"
                    )

    def check_reach(self, first: int, last: int) -> None:
        """Refuse a curve that is not as short and as long as the guards' branches; UserError says both."""
        shortest, longest = min(self.curve), max(self.curve)
        if not shortest <= first <= last <= longest:
            ends = f"{first:,}" if first == last else f"{first:,} to {last:,}"
            raise UserError(
                f"--guard {self.source}: its baseline was trained for {shortest:,} to {longest:,} steps, and the "
                f"guards' branches end at {ends}: a curve is never read beyond its ends; train the baseline for "
                "shorter or longer too, or move the guards (--guard-at)"
            )

    def as_dict(self) -> dict[str, Any]:
        """For `guard.json`."""
        noise = pooled_deviation(self.curve)
        return {
            "source": self.source,
            "losses": {str(steps): list(losses) for steps, losses in sorted(self.curve.items())},
            "standard_deviation": None if noise is None else noise[0],
        }


def model_facts(architecture: Any, config: Mapping[str, Any], init_from: object) -> dict[str, Any]:
    """The facts that a configuration's model has."""
    keys = {_KEYS_OF_MODEL + key: value for key, value in config.items()}
    return {"model.architecture": architecture, **keys, "a trained model to go on from": bool(init_from)}


def size_facts(batch_size: int, sequence_length: int, parameters: int, validation_tokens: int) -> dict[str, Any]:
    """The facts that are numbers."""
    return {
        "train.sequence_length": sequence_length,
        "positions a step (train.batch_size * train.sequence_length)": batch_size * sequence_length,
        "the number of parameters": parameters,
        "tokens of the last validation (logging.validation_tokens)": validation_tokens,
    }


def training_facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that `train` or a report's settings have, of those that a branch's end depends on."""
    return {f"train.{key}": settings[key] for key in _KEYS_OF_TRAINING if key in settings}


def data_facts(tokenizer: str, train_tokens: int, train_bytes: int) -> dict[str, Any]:
    """The facts of the data."""
    return {"the tokenizer": tokenizer, "training tokens": train_tokens, "training bytes": train_bytes}


def fingerprint_fact(fingerprint: str) -> dict[str, Any]:
    """The one fact that is all of the data."""
    return {"the data's fingerprint": fingerprint}


def read_baseline(places: Sequence[Path]) -> Baseline:
    """The baseline that was given.

    Args:
        places: one study's folder or `report.json`, or several finished runs' folders.

    Raises:
        UserError: where there is none, it is damaged, or it has fewer than two lengths of run.
    """
    runs = [place for place in places if RunFolder(place).config_file.exists()]
    if len(places) > 1 or runs:
        for place in places:
            if place not in runs:
                raise UserError(
                    f"--guard {place}: is not a run's folder; give one study, or several finished runs "
                    "without superposition, each with a --guard of its own"
                )
        found = _of_runs(places)
    else:
        found = _of_report(places[0])
    if len(found.curve) < 2:
        lengths = ", ".join(f"{steps:,}" for steps in found.curve) or "no"
        raise UserError(
            f"--guard {found.source}: its baseline has {lengths} steps as its only length of run with finite losses, "
            f"and a curve needs two or more; {_COMPARE}"
        )
    return found


def _of_report(place: Path) -> Baseline:
    file = place / "report.json" if place.is_dir() else place
    try:
        values = read_object(file, "give a study's folder or its report.json")
    except FileNotFoundError:
        raise UserError(
            f"--guard {file}: is not there; give a study's folder, its report.json, or finished runs; {_COMPARE}"
        ) from None
    try:
        report = parse_report(values, str(file))
    except UserError as error:
        raise UserError(f"--guard {error}") from None
    arm, model, data, settings = report.arms[0], report.model, report.data, report.settings
    if arm.switch_step > 0:
        raise UserError(f"--guard {file}: its first arm, {arm.name!r}, is no baseline: it has superposition")
    curve = {budget.total_steps: [run.loss for run in budget.seeds] for budget in arm.all_budgets}
    facts = {
        **model_facts(model.architecture, model.config or {}, model.init_from),
        **size_facts(settings.batch_size, settings.sequence_length, model.parameters, data.validation_tokens_used),
        **data_facts(data.tokenizer, data.train_tokens, data.train_bytes),
        **training_facts(settings.model_dump(mode="json")),
    }
    runs = sorted((file.parent / "runs" / arm.name).glob("**/seed-*/run.json"))
    record = RunFolder(runs[0].parent).read_record() if runs else None
    if record is not None:
        facts |= fingerprint_fact(record.data_fingerprint)
    return Baseline(str(place), _finite(curve), {str(file): facts})


def _of_runs(places: Sequence[Path]) -> Baseline:
    curve: dict[int, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    seen: dict[tuple[int, int], Path] = {}
    rates: dict[int, Any] = {}
    for place in places:
        stored = StoredRun.read(RunFolder(place))
        if stored is None or stored.summary is None:
            raise UserError(f"--guard {place}: this run is not done; finish it first")
        config, summary = stored.config, stored.summary
        train, steps = config.train, int(summary["steps"])
        if stored.record.schedule.switch_step > 0:
            raise UserError(f"--guard {place}: is no baseline: it has superposition")
        if (steps, train.seed) in seen:
            raise UserError(
                f"--guard {place}: has the steps and the seed of {seen[steps, train.seed]}: give one of the two"
            )
        seen[steps, train.seed] = place
        rate = stored.learning_rate
        if rates.setdefault(steps, rate) != rate:
            raise UserError(
                f"--guard {place}: has another learning rate or warm-up than the other runs of {steps:,} steps, so "
                "what they differ by is not their seeds' noise; leave it out"
            )
        facts[str(place)] = {
            **model_facts(config.model.architecture, config.model.config, config.model.init_from),
            **size_facts(train.batch_size, train.sequence_length, summary["parameters"], summary["validation_tokens"]),
            **fingerprint_fact(stored.record.data_fingerprint),
            **training_facts(train.model_dump(mode="json")),
        }
        curve.setdefault(steps, []).append(float(summary["final_validation_loss"]))
    return Baseline(", ".join(map(str, places)), _finite(curve), facts)


def _finite(curve: Curve) -> Curve:
    """Without the lengths at which a run came to no number: a mean over other seeds would be another curve's."""
    return {steps: losses for steps, losses in curve.items() if losses and all(map(math.isfinite, losses))}
