"""How a set of slot weights is named, and what a name means; `objective.slot_weights` makes the weights.

Configurations are checked with this module, so it does not import torch.
"""

from __future__ import annotations

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
