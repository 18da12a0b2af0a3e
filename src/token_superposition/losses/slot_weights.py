"""Slot weights: the weights of the s targets of a bag.

A short name describes a set of slot weights in a YAML file, a log line or a report:

- `uniform` is the default of the paper;
- `power_law` or `power_law:1.25` is 1 / k**exponent for k = 1..s;
- `exponential` or `exponential:0.5` is decay**(k - 1);
- `first_token` counts only the nearest target;
- `mutual_information` follows the decay of the mutual information in the corpus.

Only the ratios of the weights matter, because the loss divides by the sum of the weights.

The name `mutual_information` alone has no numbers until the corpus was measured (`data.mutual_information`). A run
measures the corpus when it starts and records the name `mutual_information:C0,a,k`, for weights of C0 + a * d**k at
distance d. From then on, the run has the same weights on every machine.

In the paper, the loss of the power law is 0.006-0.010 nats worse than that of uniform weights up to s = 4, equal near
s = 8, and 0.001-0.005 nats better above (arXiv 2605.06546, slot weight ablation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from token_superposition.schedule import MEASURED, describe_slot_weights, parse_slot_weights

__all__ = ["MEASURED", "describe_slot_weights", "parse_slot_weights", "slot_weights"]


def slot_weights(name: str, bag_size: int) -> Tensor | None:
    """Return the weights of the s targets of a bag, nearest target first.

    Args:
        name: `uniform`, `power_law[:exponent]`, `exponential[:decay]`, `first_token` or `mutual_information:C0,a,k`.
        bag_size: s.

    Returns:
        (s,) float32 with the first weight 1; None for `uniform`, which every loss treats as equal weights.

    Raises:
        ValueError: if the name is unknown, or is `mutual_information` without measured numbers.

    Example:
        >>> slot_weights("exponential:0.5", 3).tolist(), slot_weights("uniform", 3)
        ([1.0, 0.5, 0.25], None)
    """
    kind, parameters = parse_slot_weights(name)
    if bag_size < 1:
        raise ValueError(f"bag_size must be at least 1, not {bag_size}")
    slots = torch.arange(1, bag_size + 1, dtype=torch.float32)
    if kind == MEASURED:
        if not parameters:
            raise ValueError(
                f"slot_weights {MEASURED!r} needs measured numbers here, as in {MEASURED}:0.02,1.2,-1.3; "
                "fit_mutual_information(tokens, bag_size).slot_weights gives the name with its numbers"
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
