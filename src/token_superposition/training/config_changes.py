"""Which configuration keys of a started run may change, and a check that no other key has changed.

The state of a checkpoint includes the configuration, and checksums protect the checkpoint. `config.yaml` has no
checksum: a single changed digit could make a different model from the same weights.
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
_RESULT = ("logging.validation_tokens", "logging.interim_validation_tokens")  # the tokens on which results are measured
_ABSENT = object()


def may_change(key: str, old: Any, new: Any) -> bool:
    """Whether a started run may continue with another value of a key."""
    if key == "train.device":  # random generators of another kind of device have other states
        return isinstance(old, str) and isinstance(new, str) and device_type(old) == device_type(new)
    moved = key.startswith("data.sources.") and key.endswith(".path")
    return (key.startswith(_FREE) or moved) and key not in _RESULT


def check_trained_with(folder: RunFolder, checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Check that a configuration is the configuration that a checkpoint was trained with.

    Args:
        folder: the run folder.
        checkpoint: an intact checkpoint of the run.
        config: the content of the run's `config.yaml`.

    Raises:
        UserError: if a key differs that may not change; names the first such key.
    """
    trained = read_state(checkpoint).get("config")
    if not isinstance(trained, Mapping):
        return
    for key in changed_keys(trained, config):
        old, new = (value_at(values, key, _ABSENT) for values in (trained, config))
        # Another version of the package may lack a key. Keys under model.config are the user's and always count.
        lacks_key = _ABSENT in (old, new) and not key.startswith("model.config.")
        if lacks_key or may_change(key, old, new):
            continue
        now, before = ("absent" if value is _ABSENT else repr(value) for value in (new, old))
        raise UserError(
            f"{folder.config_file}: {key} is {now}, but {checkpoint.name} was trained with {before}; restore "
            "the old value"
        )


def value_at(values: Mapping[str, Any], dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted path in nested dictionaries, or `otherwise` if the path does not exist."""
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return otherwise
        found = found[key]
    return found
