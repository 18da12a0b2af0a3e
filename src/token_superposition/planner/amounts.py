"""Amounts as people write them: 300M parameters, 10B or 1.5T tokens, 6e20 FLOPs, $2.50 an hour.

Each function parses a command-line option, and raises argparse's error with one line that shows the right form.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

# A comma or an underscore only separates groups of three digits: "1,5B" is no number, and not 15 billion.
_AMOUNT = re.compile(
    r"([0-9]{1,3}(?:[,_][0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,3})?\s*([kmbt]?)",
    re.IGNORECASE,
)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_MOST = 1e30


def amount(text: str) -> float:
    """`300M`, `10B`, `1.5T`, `6e20` or `4,000` as a number above 0."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount above 0; write 300M, 10B, 1.5T or 6e20")
    value = float(re.sub("[_,]", "", found[1]) + (found[2] or "")) * _SCALES[found[3].lower()]
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(f"an amount above 0 and up to {_MOST:.0e} is needed, not {text}")
    return value


def between(low: float, high: float, what: str) -> Callable[[str], float]:
    """An `amount` from `low` to `high`; `what` names the amount with an example, such as `hours, such as 24`."""

    def parse(text: str) -> float:
        value = amount(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {low:g} and {high:g} {what}")
        return value

    return parse


def whole_amount(text: str) -> int:
    """A whole number of at least 1, such as `300M`; a fraction, such as `2.5`, is refused and not rounded."""
    value = amount(text)
    whole = round(value)
    if whole < 1 or abs(value - whole) > 1e-9 * value:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is needed, not {text}")
    return whole


def num_devices(text: str) -> int:
    """A whole number of devices, from 1 to a million."""
    return int(between(1, 1e6, "devices, such as 8")(str(whole_amount(text))))


def dollars(text: str) -> float:
    """A sum above 0, such as `5000`, `$5,000` or `5000 USD`.

    Other currencies are refused, because list prices are in dollars.
    """
    bare = re.sub(r"^\s*\$|\s*(USD|\$)\s*$", "", text, flags=re.IGNORECASE)
    try:
        value = amount(bare)
    except argparse.ArgumentTypeError:
        value = 0.0
    if not 0 < value <= 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a sum in dollars above 0; write 5000 or '$5,000'")
    return value


def price(text: str) -> float:
    """Dollars of one device and hour, from 0 (a machine of one's own) to a million."""
    if re.fullmatch(r"\$?0*\.?0*", text.strip()) and "0" in text:
        return 0.0
    try:
        value = dollars(text)
    except argparse.ArgumentTypeError:
        value = -1.0
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(
            f"a price of at least 0 is needed, in dollars, such as 2.50 or '$2.50' (at most a million), not {text!r}; "
            "convert other currencies"
        )
    return value


def share(text: str) -> float:
    """A share of a peak, from 0.001 to 1, such as `0.4` or `40%`."""
    try:
        value = amount(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except argparse.ArgumentTypeError:
        value = 0.0
    if not 1e-3 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"a number above 0 and at most 1 is needed, such as 0.4 (at least 0.001), not {text!r}"
        )
    return value
