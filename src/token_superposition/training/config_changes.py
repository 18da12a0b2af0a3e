"""Which keys of a run's configuration may change once it has begun, and whether others did.

A checkpoint's state keeps the configuration that it was trained with, under the checkpoint's checksums. `config.yaml`
has no checksum: one digit changed there would make another model of the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.models.device import device_type
from token_superposition.training.checkpoint import read_state
from token_superposition.training.run_folder import RunFolder
from token_superposition.yaml_files import changed_keys

_FREE = (
    "logging.",
    "data.path",
    "data.validation_sets",
    "data.verify",
    "train.total_steps",
    "train.max_skipped_steps",
    "train.micro_batch_size",
    "train.num_threads",
)
_RESULT = ("logging.validation_tokens", "logging.interim_validation_tokens")  # what figures are taken on
_ABSENT = object()


def may_change(key: str, old: Any, new: Any) -> bool:
    """Whether a run that has begun may continue with another value of a key."""
    if key == "train.device":  # the generators of another kind of device have other states
        return isinstance(old, str) and isinstance(new, str) and device_type(old) == device_type(new)
    moved = key.startswith("data.sources.") and key.endswith(".path")
    return (key.startswith(_FREE) or moved) and key not in _RESULT


def check_trained_with(folder: RunFolder, checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that a checkpoint was not trained with.

    Args:
        folder: the run's.
        checkpoint: a whole one of it.
        config: what the run's `config.yaml` holds.

    Raises:
        UserError: names the first key that differs.
    """
    trained = read_state(checkpoint).get("config")
    if not isinstance(trained, Mapping):
        return
    for key in changed_keys(trained, config):
        old, new = (value_at(values, key, _ABSENT) for values in (trained, config))
        # Another version may lack a key. In the model's own configuration each key was given, and counts.
        lacks_key = _ABSENT in (old, new) and not key.startswith("model.config.")
        if lacks_key or may_change(key, old, new):
            continue
        now, before = ("absent" if value is _ABSENT else repr(value) for value in (new, old))
        raise UserError(
            f"{folder.config_file}: {key} is {now}, but {checkpoint.name} was trained with {before}; put the old "
            "value back"
        )


def value_at(values: Mapping[str, Any], dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted path of nested dictionaries, or `otherwise`."""
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return otherwise
        found = found[key]
    return found
