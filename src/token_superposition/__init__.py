"""Token-Superposition Training for language models.

The public names below load what they need on first use, so that `import token_superposition` (and
`tst --help`) stay fast: torch is imported by the objective, transformers by the model. Each has an example in its
docstring.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Mode": "schedule",
    "Phase": "schedule",
    "Schedule": "schedule",
    "Stage": "schedule",
    "SuperposedLM": "models.superposed",
    "SuperposedOutput": "models.superposed",
    "SuperpositionArguments": "integrations.superposition_arguments",
    "SuperpositionTrainer": "integrations.transformers",
    "TokenStream": "data.stream",
    "bag_embedding": "bags",
    "compare": "api",
    "fit_mutual_information": "data.mutual_information",
    "fold_into_bags": "bags",
    "linear_multi_hot_cross_entropy": "losses.linear",
    "multi_hot_cross_entropy": "losses.multi_hot",
    "plan": "api",
    "prepare": "data.prepare",
    "read_report": "api",
    "slot_weights": "losses.slot_weights",
    "split_inputs_and_targets": "bags",
    "superpose": "models.plain_module",
    "train": "api",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from token_superposition.api import compare as compare
    from token_superposition.api import plan as plan
    from token_superposition.api import read_report as read_report
    from token_superposition.api import train as train
    from token_superposition.bags import bag_embedding as bag_embedding
    from token_superposition.bags import fold_into_bags as fold_into_bags
    from token_superposition.bags import split_inputs_and_targets as split_inputs_and_targets
    from token_superposition.data.mutual_information import fit_mutual_information as fit_mutual_information
    from token_superposition.data.prepare import prepare as prepare
    from token_superposition.data.stream import TokenStream as TokenStream
    from token_superposition.integrations.superposition_arguments import (
        SuperpositionArguments as SuperpositionArguments,
    )
    from token_superposition.integrations.transformers import SuperpositionTrainer as SuperpositionTrainer
    from token_superposition.losses.linear import (
        linear_multi_hot_cross_entropy as linear_multi_hot_cross_entropy,
    )
    from token_superposition.losses.multi_hot import multi_hot_cross_entropy as multi_hot_cross_entropy
    from token_superposition.losses.slot_weights import slot_weights as slot_weights
    from token_superposition.models.plain_module import superpose as superpose
    from token_superposition.models.superposed import SuperposedLM as SuperposedLM
    from token_superposition.models.superposed import SuperposedOutput as SuperposedOutput
    from token_superposition.schedule import Mode as Mode
    from token_superposition.schedule import Phase as Phase
    from token_superposition.schedule import Schedule as Schedule
    from token_superposition.schedule import Stage as Stage


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
