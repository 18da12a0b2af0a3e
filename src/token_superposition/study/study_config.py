"""A study's file: a run's file, with what is compared besides.

    arms:
      baseline: {superposition.bag_size: 1}
      superposition: {superposition.bag_size: 2, superposition.ratio: 0.3}
    budgets: [1000, 2000, 4000]
    equal_data: true
    seeds: 5
    price_per_hour: 2.5

Without `arms` they are the run as it stands and the same run without its `superposition` section. Without `budgets`
there is one, `train.total_steps`; without `seeds` there is one. `price_per_hour` is what a device costs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError
from token_superposition.files import user_path
from token_superposition.study.prices import parse_price
from token_superposition.training.config import (
    RunConfig,
    changed_keys,
    parse_config,
    parse_override,
    read_yaml,
    with_keys,
)
from token_superposition.yaml_files import child
from token_superposition.yaml_values import boolean_word

MOST_SEEDS = 1000
# Keys that arms share, by their beginnings, and why.
_EQUAL = {
    "model.": "arms share their model and its initialisation",
    "train.total_steps": "arms are compared at equal compute, and at other numbers of steps by budgets",
    "train.sequence_length": "positions a step are the arms' compute, and rows what they are validated on",
    "train.batch_size": "positions a step are the arms' compute",
    "logging.validation_tokens": "figures on other text cannot be compared",
    "logging.interim_validation_tokens": "curves on other text cannot be compared",
}


@dataclass(frozen=True)
class Study:
    """The arms of a comparison, the baseline first.

    Attributes:
        arms: each arm's configuration at the reference budget, by its name.
        given: keys that an arm or the command line sets itself, and where: a sweep may not set them too.
        budgets: numbers of steps, in rising order; empty where `train.total_steps` is the only one.
        equal_data: whether the baseline is trained on the raw tokens of each other arm too.
        num_seeds: of each arm; None where the file does not say.
        price_per_hour: of a device, for the cost in the report; None where no price was given.
    """

    arms: Mapping[str, RunConfig]
    given: Mapping[str, str] = field(default_factory=dict)
    budgets: tuple[int, ...] = ()
    equal_data: bool = False
    num_seeds: int | None = None
    price_per_hour: float | None = None

    @property
    def branches(self) -> bool:
        """Whether runs share their steps: with one length of run there is nothing to share."""
        return bool(self.budgets) or self.equal_data

    def at_budgets(self, config: RunConfig) -> list[RunConfig]:
        """An arm's configuration at every budget."""
        return [at_budget(config, steps) for steps in self.budgets] or [config]


def load_study(
    path: Path, overrides: Mapping[str, Any], *, budgets: str | None = None, equal_data: bool = False
) -> Study:
    """Read a study's file; keys of `overrides` hold for every arm, and none of those that an arm sets may be there.

    Budgets take the place of the file's.

    Raises:
        UserError: for what a run's file would be refused for, or arms or budgets that make no comparison.
    """
    values, lines = read_yaml(path)
    return make_study(values, overrides, source=str(path), lines=lines, budgets=budgets, equal_data=equal_data)


def make_study(
    values: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    source: str = "configuration",
    lines: yaml.Node | None = None,
    budgets: str | None = None,
    equal_data: bool = False,
) -> Study:
    """The study that nested dictionaries describe; see `load_study`."""
    values, overrides = dict(values), dict(overrides or {})
    arms = values.pop("arms", None)
    steps, values, overrides = _take_budgets(values, overrides, budgets, source)
    equal_data = _take_equal_data(values, source) or equal_data
    num_seeds = _take_seeds(values, source)
    price = values.pop("price_per_hour", None)
    price = None if price is None else parse_price(price, f"{source}: price_per_hour")
    given = {key: f"--{key}" for key in overrides}
    shared = parse_config(values, overrides, source=source, lines=lines)
    if arms is None:
        if shared.schedule().switch_step == 0:
            raise UserError(
                f"{source}: nothing to compare: the run has no superposition (set superposition.bag_size, or name arms)"
            )
        plain = parse_config(values, {**overrides, "superposition": {}}, source=source)
        study = Study({"baseline": plain, "superposition": shared}, given, steps, equal_data, num_seeds, price)
    else:
        configs = _read_arms(arms, values, overrides, source, lines)
        given = {str(key): f"{source}: arms.{name}" for name, keys in arms.items() for key in keys} | given
        study = Study(configs, given, steps, equal_data, num_seeds, price)
    for name, config in study.arms.items():
        for budget in steps:
            at_budget(config, budget, f"{name}, budgets")
    _check_different(study, source)
    return study


def _take_budgets(
    values: dict[str, Any], overrides: dict[str, Any], option: str | None, source: str
) -> tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]:
    """The budgets, and the keys with the largest budget as `train.total_steps`, whatever the file says there.

    A `--train.total_steps` that is none of the budgets contradicts them, and is refused.
    """
    given = values.pop("budgets", None)
    if option is None and given is None:
        return (), values, overrides
    place = f"{source}: budgets" if option is None else "--budgets"
    budgets = parse_budgets(given if option is None else option, place)
    total = overrides.pop("train.total_steps", budgets[-1])
    if total not in budgets:
        listed = ",".join(map(str, budgets))
        raise UserError(
            f"--train.total_steps: is {str(total)[:60]}, which is none of the budgets {listed} ({place}); remove "
            "--train.total_steps, or add its value to the budgets"
        )
    return budgets, with_keys(values, {"train.total_steps": budgets[-1]}, f"{source}: "), overrides


def _take_equal_data(values: dict[str, Any], source: str) -> bool:
    given = boolean_word(values.pop("equal_data", False))
    if not isinstance(given, bool):
        raise UserError(f"{source}: equal_data: is true or false, not {str(given)[:60]!r}")
    return given


def _take_seeds(values: dict[str, Any], source: str) -> int | None:
    given = values.pop("seeds", None)
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST_SEEDS):
        raise UserError(f"{source}: seeds: is a whole number from 1 to {MOST_SEEDS}, not {str(given)[:60]!r}")
    return given


def _read_arms(
    arms: Any, values: dict[str, Any], overrides: dict[str, Any], source: str, lines: yaml.Node | None
) -> dict[str, RunConfig]:
    """The configurations of named arms, the baseline's first."""
    if not isinstance(arms, dict) or len(arms) < 2:
        raise UserError(f"{source}: arms: needs at least two names, each with the keys it changes")
    for name, keys in arms.items():
        if not isinstance(keys, dict):
            raise UserError(
                f"{source}: arms.{name}: needs the keys that the arm changes, such as {{superposition.bag_size: 2}}, "
                f"not {str(keys)[:60]!r}"
            )
    for name in arms:  # it will be a folder's
        if not isinstance(name, str) or not re.fullmatch(r"[\w=,+-][\w.=,+ -]{0,99}", name):
            raise UserError(
                f"{source}: arms.{name!r}: a name has at most 100 letters, digits and . = , + - _, and no point first"
            )
        try:
            user_path(name)
        except UserError as error:
            raise UserError(f"{source}: arms: {error}") from None
    for name, keys in arms.items():
        changed = with_keys({}, keys, f"{source}: arms.{name}: ")
        for key in ("data", "train.seed", "model.init_from"):
            section, _, part = key.partition(".")
            place = changed.get(section)
            if section in changed and (not part or (isinstance(place, dict) and part in place)):
                raise UserError(
                    f"{source}: arms.{name}: {key}: arms share their seeds, their data and what they go on from, or "
                    "they cannot be compared seed by seed; give it outside of arms"
                )
        for own, key in itertools.product(map(str, keys), overrides):
            if own == key or own.startswith(f"{key}.") or key.startswith(f"{own}."):
                raise UserError(
                    f"{source}: arms.{name}: {own}: is set here, and --{key} would put one value in its place in every "
                    "arm; change it in the file, or take it out of one of the two"
                )
    configs = {
        name: parse_config(
            with_keys(values, keys, f"{source}: arms.{name}: "),
            overrides,
            source=source,
            prefix=f"arms.{name}: ",
            lines=child(child(lines, "arms"), name),
        )
        for name, keys in arms.items()
    }
    baseline = [name for name, config in configs.items() if config.schedule().switch_step == 0]
    if len(baseline) != 1:
        listed = " and ".join(f"arms.{name}" for name in baseline) or "no arm"
        steps = next(iter(configs.values())).train.total_steps
        raise UserError(
            f"{source}: arms: exactly one arm has no superposition (superposition.bag_size 1, or a "
            f"superposition.ratio that gives no step of {steps:,}); here that is true of {listed}"
        )
    configs = {baseline[0]: configs[baseline[0]], **configs}
    _check_equal(configs, source)
    return configs


def _check_different(study: Study, source: str) -> None:
    """Refuse two arms that would train the same at every budget, whatever the words: one run under two names."""
    seen: dict[str, str] = {}
    for name, config in study.arms.items():
        stages = [each.schedule().merged().as_dicts() for each in study.at_budgets(config)]
        same = json.dumps([stages, config.model_dump(mode="json", exclude={"superposition"})])
        if same in seen:
            raise UserError(
                f"{source}: arms.{name}: is the same as arms.{seen[same]}: they would be one run under two names; "
                "change one of them, or take it out"
            )
        seen[same] = name


def _check_equal(configs: Mapping[str, RunConfig], source: str) -> None:
    """Refuse arms that differ in what must be equal, naming the key and why."""
    (first, baseline), *others = ((name, config.model_dump(mode="json")) for name, config in configs.items())
    for name, values in others:
        for key in changed_keys(baseline, values):
            reason = next((why for beginning, why in _EQUAL.items() if key.startswith(beginning)), None)
            if reason:
                raise UserError(
                    f"{source}: arms.{name}: {key}: is not what {first} has, and {reason}; give it outside of arms"
                )


# Several budgets: the numbers of optimizer steps that every arm is trained for.
#
# The largest one is the reference: what is compared at equal compute is compared there. A configuration says ratios
# of `train.total_steps`; at another budget superposition and decay are the same shares of that one. Warm-up is not:
# it is as many steps at every budget as at the reference, for only runs that begin alike have steps to share.


LEAST_STEPS = 10


def parse_budgets(given: Any, place: str) -> tuple[int, ...]:
    """The budgets in rising order.

    Args:
        given: a list, or what the command line has of it, `1000,2000,4000`.
        place: where it was given, for messages.

    Raises:
        UserError: where it is no list of different numbers of steps.
    """
    budgets = given
    if isinstance(given, str):
        try:
            budgets = parse_override(f"[{given}]")
        except UserError:
            budgets = None
    if not isinstance(budgets, list) or not budgets:
        raise UserError(f"{place}: needs numbers of steps with commas between them, such as 1000,2000,4000")
    for number, steps in enumerate(budgets):
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise UserError(f"{place}: {str(steps)[:60]!r} is not a whole number of steps")
        if steps < LEAST_STEPS:
            raise UserError(f"{place}: {steps} steps are too few: a budget has at least {LEAST_STEPS}")
        if steps in budgets[:number]:
            raise UserError(f"{place}: {steps} is there twice; give it once")
    return tuple(sorted(budgets))


def at_budget(config: RunConfig, total_steps: int, place: str = "budgets") -> RunConfig:
    """A configuration at another number of steps, with the warm-up that it has at its own.

    Args:
        config: at the reference budget.
        total_steps: the other number.
        place: what to name where it does not fit.

    Raises:
        UserError: where warm-up, superposition and decay do not fit into it.
    """
    values = config.model_dump(mode="json", exclude_unset=True)
    train = values.setdefault("train", {})
    train.pop("warmup_ratio", None)
    train |= {"total_steps": total_steps, "warmup_steps": config.train.num_warmup_steps}
    return parse_config(values, source=f"{place}: {total_steps} steps")


def budget_words(budgets: str | None, equal_data: bool) -> list[str]:
    """The options as one types them, for the command that a report shows."""
    return [*([] if budgets is None else ["--budgets", budgets]), *(["--equal-data"] if equal_data else [])]
