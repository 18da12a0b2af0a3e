"""Axes: round ticks, their labels, and the map from values to places in a drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from token_superposition.study.report.numbers import MINUS, exponent

_COUNT_UNITS = {0: "", 3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}


@dataclass(frozen=True)
class Scale:
    """A linear map of [low, high] onto [start, end] of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], near `about` of them."""
    step = _step(low, high, about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis within [low, high]: as few kinds of them as give at least three."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [times * 10.0**power for power in powers for times in mantissas if low <= times * 10.0**power <= high]
        if len(found) > 2:
            return found
    return ticks(low, high, 3)


def tick_labels(values: list[float], divisor: float = 1.0, *, unsigned: bool = False) -> list[str]:
    """The ticks over `divisor`, all with the decimals that tell them apart; `unsigned` where words say the side."""
    if unsigned:
        return [label.removeprefix(MINUS) for label in tick_labels(values, divisor)]
    if len(values) < 2:
        return [f"{value / divisor:.3g}" for value in values]
    step = (values[1] - values[0]) / divisor
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value / divisor:.{digits}f}".replace("-", MINUS) for value in values]


def engineering(largest: float) -> int:
    """The multiple of three whose power of ten brings `largest` to between 1 and 1,000."""
    return 3 * math.floor(math.log10(largest) / 3 + 1e-9) if largest > 0 else 0


def axis_title(what: str, unit: str, power: int) -> str:
    """`Training compute (10¹² FLOPs)`, or for a count `Raw tokens read (millions)`."""
    if unit:
        scale = f"{exponent(power)} " if power else ""
        return f"{what} ({scale}{unit})"
    word = _COUNT_UNITS.get(power, exponent(power))
    return f"{what} ({word})" if word else what


def _step(low: float, high: float, about: int) -> float:
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    return min((1, 2, 5, 10), key=lambda m: abs(math.log(m * magnitude / raw))) * magnitude
