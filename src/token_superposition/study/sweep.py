"""What a sweep tries: `--sweep train.learning_rate=1e-3,2e-3,4e-3`, checked against the arms.

Several keys make a grid. Every arm is trained at every setting of it, so each gets the same number of tries;
what the arms are then compared at is chosen in `tune`.

Only what tunes a run may be swept: the optimizer and its schedule. What makes runs incomparable is refused
with its reason, and so is a key that an arm or the command line sets itself: the two contradict each other,
and dropping one in silence would report under an arm's name a run that its file does not describe.

A setting's name, such as `train.learning_rate=0.002`, is the name of its folder. It is made from the value as
the configuration understands it, so `2e-3` and `0.002` are one run, and from the keys in alphabetic order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from token_superposition.errors import UserError
from token_superposition.training.config import RunConfig, parse_config, parse_override, with_keys
from token_superposition.training.metrics import is_number

Setting = Mapping[str, Any]

FIRST_SWEEP_SEED = 1000  # after a run's own: far from the seeds compared, so that more of these can be added later

# Keys of `train` that make runs incomparable, or do not change what a step does.
_NOT_TUNED = {
    *("total_steps", "sequence_length", "batch_size", "micro_batch_size", "seed", "device", "dtype", "num_threads"),
}


@dataclass(frozen=True)
class Sweep:
    """Keys with the values that each arm is tried at.

    Attributes:
        values: of each key, numbers in rising order.
        num_seeds: seeds that every setting is tried with.
    """

    values: Mapping[str, Sequence[Any]]
    num_seeds: int = 1

    def settings(self) -> list[Setting]:
        """Every combination of the values."""
        return [
            dict(zip(self.values, combination, strict=True)) for combination in itertools.product(*self.values.values())
        ]


def parse_sweep(
    options: Sequence[str],
    arms: Mapping[str, RunConfig],
    *,
    num_seeds: int = 1,
    given: Mapping[str, str] | None = None,
) -> Sweep:
    """Read `--sweep` options, each a key and its values.

    Args:
        options: such as `train.learning_rate=1e-3,2e-3`.
        arms: the arms' configurations, in which every setting must be valid.
        num_seeds: seeds that every setting is tried with.
        given: keys that are set already, and where.

    Raises:
        UserError: for a key that does not exist or cannot be swept, or a value that does not fit or comes twice.
    """
    if num_seeds < 1:
        raise UserError(f"--sweep-seeds is at least 1, not {num_seeds}")
    raw: dict[str, list[Any]] = {}
    for option in options:
        key, values = _read(option)
        if key in raw:
            raise UserError(f"--sweep: {key}: is given twice; list all its values in one")
        _check_key(key, given or {})
        raw[key] = values
    sweep = Sweep(raw, num_seeds)
    understood: Mapping[str, Any] = {}
    found: dict[str, list[Any]] = {key: [None] * len(values) for key, values in raw.items()}
    places = itertools.product(*(range(len(values)) for values in raw.values()))
    for place, setting in zip(places, sweep.settings(), strict=True):
        for config in arms.values():
            understood = at_setting(config, setting).model_dump(mode="json")
        for key, index in zip(raw, place, strict=True):
            found[key][index] = _value(understood, key)
    for key, values in found.items():
        for index, value in enumerate(values):
            if value in values[:index]:
                raise UserError(f"--sweep: {key}: has the value {value_text(value)} twice; give it once")
        if len(values) < 2:
            raise UserError(
                f"--sweep: {key}: a sweep has at least two values; to set the key, give --{key} {raw[key][0]}"
            )
        if all(is_number(value) for value in values):
            values.sort()
    return Sweep(found, num_seeds)


def sweep_words(options: Sequence[str], num_seeds: int) -> list[str]:
    """The options as one types them, for the command that a report shows."""
    words = [word for option in options for word in ("--sweep", option)]
    return [*words, "--sweep-seeds", str(num_seeds)] if options and num_seeds != 1 else words


def at_setting(config: RunConfig, setting: Setting) -> RunConfig:
    """An arm's configuration with a setting's values.

    Raises:
        UserError: where they are not valid in it.
    """
    source = "--sweep" if len(setting) == 1 else f"--sweep, {setting_name(setting)}"
    return parse_config(with_keys(config.model_dump(mode="json", exclude_unset=True), setting), source=source)


def setting_name(setting: Setting) -> str:
    """`train.learning_rate=0.002,train.weight_decay=0.1`, which may be a folder's name."""
    return ",".join(f"{key}={quote(value_text(setting[key]), safe='[],:+ ')}" for key in sorted(setting))


def value_text(value: Any) -> str:
    """A value as a configuration has it: `0.002`, `null`, `[0.9,0.95]`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_text, value))}]"
    return repr(value) if isinstance(value, float) else str(value)


def _read(option: str) -> tuple[str, list[Any]]:
    """An option's key and its values, as YAML reads them."""
    key, equals, text = option.partition("=")
    key = key.strip()
    if not equals or not key or not text.strip():
        raise UserError(f"--sweep: {option!r} is not a key with its values, such as train.learning_rate=1e-3,2e-3")
    try:
        values = parse_override(f"[{text}]")
    except UserError:
        values = None
    if not isinstance(values, list) or not values or any(isinstance(value, dict) for value in values):
        raise UserError(f"--sweep: {key}: {text!r} cannot be read as values with commas between them")
    return key, values


def _check_key(key: str, given: Mapping[str, str]) -> None:
    section, _, name = key.partition(".")
    if section in RunConfig.model_fields and not name:
        raise UserError(f"--sweep: {key}: is a section; name one of its keys, such as train.learning_rate")
    if (section in RunConfig.model_fields and section != "train") or (section == "train" and name in _NOT_TUNED):
        raise UserError(
            f"--sweep: {key}: cannot be swept: only keys of train that tune the optimizer and its schedule can; arms "
            "share all else, and differ in superposition (name an arm for each value)"
        )
    for other, place in given.items():
        if other == key or key.startswith(f"{other}."):
            raise UserError(f"--sweep: {key}: is set by {place} too; take it out of one of the two")


def _value(values: Mapping[str, Any], dotted: str) -> Any:
    found: Any = values
    for key in dotted.split("."):
        found = found[key]
    return found
