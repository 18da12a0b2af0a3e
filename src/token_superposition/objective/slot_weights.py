"""How the s targets of a bag are weighted against each other.

A set of slot weights is named by a short text, so that it can stand in a YAML file, a log line and a
report: `uniform` (the paper's default), `power_law` or `power_law:1.25` (1 / k**exponent, k = 1..s),
`exponential` or `exponential:0.5` (decay**(k - 1)), `first_token` (only the nearest target counts),
`mutual_information` (the decay of the corpus's own mutual information). Only the ratios matter: the loss divides by the
sum of the weights.

`mutual_information` alone is a wish: what it comes to is known once a corpus was measured. A run writes it out when it
starts, as `mutual_information:C0,a,k` for weights of C0 + a * d**k at distance d, and has the same weights from then
on, on any machine (`data.mutual_information` measures).

In the paper power law loses to uniform by 0.006-0.010 nats up to s = 4, equals it near s = 8 and wins by
0.001-0.005 above (arXiv 2605.06546, slot weight ablation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from token_superposition.errors import did_you_mean

_DEFAULTS: dict[str, tuple[float, ...]] = {
    "uniform": (),
    "power_law": (1.0,),
    "exponential": (0.5,),
    "first_token": (),
    "mutual_information": (),
}
MEASURED = "mutual_information"


def parse_slot_weights(name: str) -> tuple[str, tuple[float, ...]]:
    """Split `power_law:1.25` into its kind and its parameters; `mutual_information` alone has none yet.

    Raises:
        ValueError: for an unknown kind, parameters that are not numbers or not as many, or one out of range.
    """
    kind, colon, text = name.partition(":")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ValueError(f"slot_weights is one of {known}, not {name!r}{did_you_mean(kind, _DEFAULTS)}")
    if not colon:
        return kind, _DEFAULTS[kind]
    if kind in ("uniform", "first_token"):
        raise ValueError(f"slot_weights {kind!r} takes no parameter, but {name!r} has one")
    try:
        parameters = tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"the parameter of slot_weights {name!r} is not a number") from None
    if len(parameters) != (3 if kind == MEASURED else 1):
        many = f"three numbers, as in {MEASURED}:0.02,1.2,-1.3" if kind == MEASURED else "one number"
        raise ValueError(f"slot_weights {kind!r} takes {many}, not {text!r}")
    if kind == "exponential" and not 0 < parameters[0] <= 1:
        raise ValueError(f"the decay of slot_weights {name!r} is above 0 and at most 1")
    if kind == "power_law" and not 0 <= parameters[0] < 100:
        raise ValueError(f"the exponent of slot_weights {name!r} is at least 0 and under 100")
    if kind == MEASURED:
        offset, scale, exponent = parameters
        if not (0 <= offset < 1e6 and 0 < scale < 1e6 and -100 < exponent < 0):
            raise ValueError(
                f"the numbers of slot_weights {name!r} are C0 of at least 0, a above 0 (both under a million) and k "
                "below 0 and above -100"
            )
    return kind, parameters


def describe_slot_weights(name: str) -> str:
    """The name as reports say it: `mutual_information (0.02 + 1.2 d^-1.3)`; other kinds' as it is."""
    kind, parameters = parse_slot_weights(name)
    if kind != MEASURED or not parameters:
        return name
    offset, scale, exponent = parameters
    return f"{kind} ({offset:.3g} + {scale:.3g} d^{exponent:.3g})"


def slot_weights(name: str, bag_size: int) -> Tensor | None:
    """The weights of a bag's s targets, nearest first.

    Args:
        name: `uniform`, `power_law[:exponent]`, `exponential[:decay]`, `first_token` or `mutual_information:C0,a,k`.
        bag_size: s.

    Returns:
        (s,) float32, the first weight 1; None for uniform, which every loss takes as "all equal".

    Raises:
        ValueError: for a name that is not one of these, and for `mutual_information` before it was measured.

    Example:
        >>> slot_weights("exponential:0.5", 3).tolist(), slot_weights("uniform", 3)
        ([1.0, 0.5, 0.25], None)
    """
    kind, parameters = parse_slot_weights(name)
    if bag_size < 1:
        raise ValueError(f"bag_size is at least 1, not {bag_size}")
    slots = torch.arange(1, bag_size + 1, dtype=torch.float32)
    if kind == MEASURED:
        if not parameters:
            raise ValueError(
                f"slot_weights {MEASURED!r} has no corpus to measure here: fit_mutual_information(tokens, bag_size)"
                f".slot_weights gives the numbers to write after it, as in {MEASURED}:0.02,1.2,-1.3"
            )
        offset, scale, exponent = parameters
        weights = offset + scale * slots.double() ** exponent
        return (weights / weights[0]).float()
    if kind == "power_law":
        return slots ** -parameters[0]
    if kind == "exponential":
        return parameters[0] ** (slots - 1)
    if kind == "first_token":
        return (slots == 1).float()
    return None
