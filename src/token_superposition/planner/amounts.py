"""Amounts as people write them: 300M parameters, 10B or 1.5T tokens, 6e20 FLOPs."""

from __future__ import annotations

import argparse
import re

from token_superposition.arguments import number

_AMOUNT = re.compile(r"(\d[\d_,]*(?:\.\d*)?|\.\d+)(e[+-]?\d{1,3})?\s*([kmbt]?)", re.IGNORECASE)
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_MOST = 1e30


def amount(text: str) -> float:
    """`300M`, `10B`, `1.5T`, `6e20` or `4,000` as a number above 0; of a command-line option."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount above 0; write 300M, 10B, 1.5T or 6e20")
    value = float(re.sub("[_,]", "", found[1]) + (found[2] or "")) * _SCALES[found[3].lower()]
    if not 0 < value <= _MOST:
        raise argparse.ArgumentTypeError(f"an amount above 0 and up to {_MOST:.0e} is needed, not {text}")
    return value


def whole_amount(text: str) -> int:
    """The same of what is counted: rounded, at least 1."""
    value = round(amount(text))
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1 is needed, not {text}")
    return value


def fraction(text: str) -> float:
    """A number above 0 and at most 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 1 is needed, such as 0.4, not {text}")
    return value


def price(text: str) -> float:
    """A number of at least 0; a machine of one's own may cost nothing."""
    value = number(text)
    if not 0 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"a price of at least 0 is needed, not {text}")
    return value
