"""A model in small: the same family with the same switches, at a size that is built in no time.

What a family's code does with a row does not depend on how wide it is, so what is tried on the small model holds for
the large one: whether attention can be kept within documents is asked before anything of the run's size is built.
Which sizes fit each other every family says in its own way. So the smallest is tried first, then one that keeps the
width; a family that takes neither has no miniature, and is asked when its own model is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from token_superposition.errors import UserError
from token_superposition.models.build import known_keys
from token_superposition.models.spec import ModelSpec
from token_superposition.models.superposed import SuperposedLM

_LAYERS, _HEADS = 4, 2
_MOST_PARAMETERS = 3 * 10**7
_IDS = 64
# At most so much of what nothing else has to fit. A scan without its kernel costs chunk * chunk * state a head.
_MOST = {
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_intermediate_size", "ffn_dim"), 64),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state"), 16),
}


def refuses_documents_apart(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Why a model's attention cannot be kept within documents; None where it can, or its miniature does not tell.

    Args:
        architecture: a transformers `model_type`.
        config: that family's configuration keys.
    """
    model = miniature(architecture, config)
    if model is None:
        return None
    try:
        SuperposedLM(model, verify=False, loss_backend="plain").keep_documents_apart()
    except TypeError as error:
        return str(error)
    except Exception:  # of a family's own code, at a size that it was never meant to have
        return None
    return None


def miniature(architecture: str, config: Mapping[str, Any]) -> nn.Module | None:
    """The model in small, or None where there is none."""
    for values in _smaller(architecture, config):
        try:
            spec = ModelSpec(architecture, values, vocab_size=_IDS, eos_id=0, scale_residual_init=False)
            outline = spec.meta()
            if outline is None or sum(p.numel() for p in outline.parameters()) > _MOST_PARAMETERS:
                continue
            return spec.build(seed=0)
        except UserError:  # sizes that do not fit each other
            continue
    return None


def _smaller(architecture: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Configurations of the same family, the smallest first."""
    own = ModelSpec(architecture, {**config, "vocab_size": _IDS}, vocab_size=_IDS, eos_id=0).resolved()
    known, names = known_keys(architecture), getattr(own, "attribute_map", {})

    def changed(values: Mapping[str, Any]) -> dict[str, Any]:
        other = {names.get(key, key): value for key, value in config.items()}
        other |= {names.get(key, key): value for key, value in values.items() if key in known or key in names}
        return other

    layers = own.num_hidden_layers
    few = min(layers, _LAYERS)
    shallow: dict[str, Any] = {"vocab_size": _IDS, "num_hidden_layers": few}
    for key, value in own.to_dict().items():
        if isinstance(value, list) and len(value) == layers:  # an entry a layer
            shallow[key] = value[:few]
    for key, most in _MOST.items():
        value = getattr(own, key, None)
        if isinstance(value, int):
            shallow[key] = min(value, most)
    narrow = _narrow(own)
    if narrow:
        yield changed({**shallow, **narrow})
    yield changed(shallow)


def _narrow(own: Any) -> dict[str, int]:
    """A width of two heads that are as wide as they were; nothing where a family counts its heads otherwise."""
    heads, state_heads = getattr(own, "num_attention_heads", None), getattr(own, "num_heads", None)
    if isinstance(heads, int) and heads > 0:
        fewer = min(heads, _HEADS)
        narrow = {"num_attention_heads": fewer, "hidden_size": fewer * _head_size(own, heads)}
        groups = getattr(own, "num_key_value_heads", None)
        return narrow | ({"num_key_value_heads": math.gcd(groups, fewer)} if isinstance(groups, int) else {})
    if isinstance(state_heads, int) and isinstance(expand := getattr(own, "expand", None), int):  # Mamba-2
        fewer = _HEADS * expand
        return {"num_heads": fewer, "hidden_size": _HEADS * own.head_dim, "n_groups": math.gcd(own.n_groups, fewer)}
    return {}


def _head_size(own: Any, heads: int) -> int:
    return int(getattr(own, "head_dim", None) or own.hidden_size // heads)
