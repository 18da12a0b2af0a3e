"""How the s targets of a bag are weighted against each other.

A set of slot weights is named by a short text, so that it can stand in a YAML file, a log line and a
report: `uniform` (the paper's default), `power_law` or `power_law:1.25` (1 / k**exponent, k = 1..s),
`exponential` or `exponential:0.5` (decay**(k - 1)), `first_token` (only the nearest target counts).
Only the ratios matter: the loss divides by the sum of the weights.

In the paper power law loses to uniform by 0.006-0.010 nats up to s = 4, equals it near s = 8 and wins by
0.001-0.005 above (arXiv 2605.06546, slot weight ablation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from token_superposition.errors import did_you_mean

_DEFAULTS = {"uniform": None, "power_law": 1.0, "exponential": 0.5, "first_token": None}


def parse_slot_weights(name: str) -> tuple[str, float | None]:
    """Split `power_law:1.25` into its kind and its parameter.

    Raises:
        ValueError: for an unknown kind, a parameter that is not a number, or one out of range.
    """
    kind, colon, text = name.partition(":")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ValueError(f"slot_weights is one of {known}, not {name!r}{did_you_mean(kind, _DEFAULTS)}")
    parameter = _DEFAULTS[kind]
    if not colon:
        return kind, parameter
    if parameter is None:
        raise ValueError(f"slot_weights {kind!r} takes no parameter, but {name!r} has one")
    try:
        parameter = float(text)
    except ValueError:
        raise ValueError(f"the parameter of slot_weights {name!r} is not a number") from None
    if kind == "exponential" and not 0 < parameter <= 1:
        raise ValueError(f"the decay of slot_weights {name!r} is above 0 and at most 1")
    if kind == "power_law" and not 0 <= parameter < 100:
        raise ValueError(f"the exponent of slot_weights {name!r} is at least 0 and under 100")
    return kind, parameter


def slot_weights(name: str, bag_size: int) -> Tensor | None:
    """The weights of a bag's s targets, nearest first.

    Args:
        name: `uniform`, `power_law[:exponent]`, `exponential[:decay]` or `first_token`.
        bag_size: s.

    Returns:
        (s,) float32, the first weight 1; None for uniform, which every loss takes as "all equal".

    Raises:
        ValueError: for a name that is not one of these.
    """
    kind, parameter = parse_slot_weights(name)
    if bag_size < 1:
        raise ValueError(f"bag_size is at least 1, not {bag_size}")
    slots = torch.arange(bag_size, dtype=torch.float32)
    if kind == "power_law":
        return (slots + 1) ** -(parameter or 0.0)
    if kind == "exponential":
        return (parameter or 1.0) ** slots
    if kind == "first_token":
        return (slots == 0).float()
    return None
