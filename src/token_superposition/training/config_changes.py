"""Which configuration keys of a started run may change.

To resume with another configuration would give a result that belongs to neither configuration, so a changed key is
refused by name. These keys may change:

    logging                     except the numbers of validation tokens
    data.validation_sets
    data.verify
    train.max_skipped_steps
    paths of the data           the fingerprint shows that the data is the same
    threads, micro-batch size   a warning says that the last bits may differ
    train.parallel              also the number of processes, which is no key
    train.device                only to a device of the same kind; with the same warning
    train.total_steps           only before the decay of the learning rate, and only after a warm-up that is a share of
                                the steps; the recovery gets longer or shorter, the switch and the warm-up do not change
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from token_superposition.models.device import device_type
from token_superposition.training.config import RunConfig
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
    "train.parallel.",
)
_RESULT = ("logging.validation_tokens", "logging.interim_validation_tokens")  # the tokens on which results are measured
# Keys that change the order of additions, and an addition to the warning.
_ROUNDING = {
    "train.micro_batch_size": "; router losses of experts are averages over a micro-batch, so they differ more",
    "train.num_threads": "",
    "train.device": "",
}
ABSENT = object()


def may_change(key: str, old: Any, new: Any) -> bool:
    """Whether a started run may continue with another value of a key."""
    if key == "train.device":  # another kind of device draws other random numbers
        return isinstance(old, str) and isinstance(new, str) and device_type(old) == device_type(new)
    moved = key.startswith("data.sources.") and key.endswith(".path")
    return (key.startswith(_FREE) or moved) and key not in _RESULT


def rounding_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """Warnings about changed keys of a resumed run that change the order of additions."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return [
        f"{key} changes from {_word(value_at(before, key))} to {_word(value_at(after, key))}: results differ in "
        f"rounding from those of an unchanged run{_ROUNDING[key]}"
        for key in changed_keys(before, after)
        if key in _ROUNDING
    ]


def value_at(values: Mapping[str, Any], dotted: str, otherwise: Any = None) -> Any:
    """The value at a dotted path in nested dictionaries, or `otherwise` if the path does not exist."""
    found: Any = values
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return otherwise
        found = found[key]
    return found


def _word(value: Any) -> Any:
    return "null" if value is None else value
