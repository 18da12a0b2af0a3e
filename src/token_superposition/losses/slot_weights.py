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

from token_superposition.schedule import MEASURED, describe_slot_weights, parse_slot_weights

__all__ = ["MEASURED", "describe_slot_weights", "parse_slot_weights", "slot_weights"]


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
