"""Build a miniature of a model: the same family and the same options, but so small that it is built quickly.

The way in which a family's code handles a row does not depend on the width of the model. A result of the miniature
therefore holds for the large model. `refuses_documents_apart` uses this: it checks whether attention can be restricted
to documents before the model of the run is built.

Each family has its own rules for sizes that fit together. The smallest sizes are tried first, then sizes that keep the
width. If the family accepts neither, there is no miniature, and the check runs later on the model itself.
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
# The maximum of sizes that no other size depends on. A scan without its kernel costs chunk * chunk * state per head.
_MOST = {
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_intermediate_size", "ffn_dim"), 64),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state"), 16),
}


def refuses_documents_apart(architecture: str, config: Mapping[str, Any]) -> str | None:
    """Return why attention cannot be restricted to documents; None if it can, or if the miniature does not show it.

    Args:
        architecture: a transformers `model_type`.
        config: the configuration keys of this family.
    """
    model = miniature(architecture, config)
    if model is None:
        return None
    try:
        SuperposedLM(model, verify=False, loss_backend="plain").keep_documents_apart()
    except TypeError as error:
        return str(error)
    except Exception:  # the family's code can fail at a size for which it was not written
        return None
    return None


def miniature(architecture: str, config: Mapping[str, Any]) -> nn.Module | None:
    """Return a small model of the same family, or None if no small configuration works."""
    for values in _smaller(architecture, config):
        try:
            spec = ModelSpec(architecture, values, vocab_size=_IDS, eos_id=0, scale_residual_init=False)
            outline = spec.meta()
            if outline is None or sum(p.numel() for p in outline.parameters()) > _MOST_PARAMETERS:
                continue
            return spec.build(seed=0)
        except UserError:  # these sizes do not fit together
            continue
    return None


def _smaller(architecture: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield smaller configurations of the same family, the smallest first."""
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
        if isinstance(value, list) and len(value) == layers:  # one entry per layer
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
    """Return the keys for two heads of unchanged size; an empty dict if the family counts its heads differently."""
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
