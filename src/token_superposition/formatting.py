"""How numbers are written for people: true minus signs, powers of ten, counts in words.

Every function gives plain text; what goes into HTML or SVG is escaped there.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from token_superposition.study.significance import NOISE

MINUS = "\u2212"
WIDTH = 118  # of text on a terminal
NOT_RECORDED = "not recorded"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SCALES = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def finite(value: object) -> bool:
    """Whether it is a number that can be drawn: neither missing nor NaN nor infinite."""
    return isinstance(value, int | float) and math.isfinite(value)


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with a fixed count of decimals."""
    if value is None:
        return NOT_RECORDED
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:.{digits}f}"
    if text.startswith("-"):
        return text[1:] if float(text) == 0 else MINUS + text[1:]
    return text


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign, unless it rounds to zero."""
    text = decimal(value, digits)
    return f"+{text}" if text[0].isdigit() and float(text) > 0 else text


def compared(value: float | None, digits: int = 3) -> str:
    """A difference to the baseline where its unit is said elsewhere: `0.0520 better`, `0.0210 worse`, `0.0000`."""
    text = decimal(None if value is None else abs(value), digits)
    if value is None or not math.isfinite(value) or float(text) == 0:
        return text
    return f"{text} {'better' if value < 0 else 'worse'}"


def in_nats(delta: float, unit: str) -> str:
    """`0.052 nats per byte better`: a fourth decimal where it is noise, which three may show as none, or as more."""
    digits = digits_of(delta)
    if abs(delta) < 0.5 * 10**-digits:  # no "level", which is said of what is known to be level only
        return f"less than {10**-digits:.{digits}f} {unit} apart"
    return better_or_worse(delta, unit, digits)


def digits_of(delta: float | None) -> int:
    """Decimals of a difference of losses."""
    return 4 if delta is not None and abs(delta) < NOISE else 3


def interval(ends: tuple[float, float] | list[float]) -> str:
    """`0.009 to 0.087 better`, or `0.012 better to 0.030 worse` where it holds zero.

    A fourth decimal where an end would read as zero, as its side of zero is what counts.
    """
    digits = 4 if any(abs(end) < 0.0005 for end in ends) else 3
    low, high = (f"{abs(end):.{digits}f}" for end in ends)
    if ends[1] <= 0:
        return f"{high} to {low} better"
    return f"{low} to {high} worse" if ends[0] >= 0 else f"{low} better to {high} worse"


def count(value: float | None) -> str:
    """A whole number with its thousands apart: `8,192,000`."""
    if value is None:
        return NOT_RECORDED
    return f"{round(value):,}" if math.isfinite(value) else "not finite"


def count_in_words(value: float | None) -> str:
    """A large count to three figures, in words: `8.19 million`."""
    if value is None or not math.isfinite(value):
        return NOT_RECORDED
    for scale, name in _SCALES:
        if value >= scale * 0.9995:
            return f"{three_figures(value / scale)} {name}"
    return count(value)


def three_figures(value: float) -> str:
    """Three significant figures without an exponent, for 0.001 to 999,999."""
    if value == 0:
        return "0"
    power = int(f"{value:.2e}".split("e")[1])  # after rounding: 999,999 is 1.00e6
    digits = max(0, 2 - power)
    return f"{value:,.{digits}f}"


def exponent(power: int) -> str:
    """`10¹⁴`."""
    return f"10{str(power).translate(_SUPERSCRIPTS)}"


def power_of_ten(value: float | None) -> str:
    """Three figures times a power of ten: `2.47 × 10¹⁴`; a number under 10,000 stays as it is."""
    if value is None or not math.isfinite(value):
        return NOT_RECORDED
    if abs(value) < 1e4:
        return three_figures(value)
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa} × {exponent(int(power))}"


def duration(seconds: float | None) -> str:
    """`38 s`, `4 min 12 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_RECORDED
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about_duration(seconds: float) -> str:
    """`about 40 seconds`, `about 12 minutes`, `about 2 hours`: for an estimate."""
    for size, noun in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 0.95 * size * (1 if noun == "minute" else 1.5):
            return f"about {plural(max(1, round(seconds / size)), noun)}"
    return f"about {plural(max(1, round(seconds)), 'second')}"


def memory(num_bytes: float | None) -> str:
    """`612 MiB`, `1.42 GiB`."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return NOT_RECORDED
    mebibytes = num_bytes / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{three_figures(mebibytes / 1024)} GiB"


def plain(value: object) -> str:
    """A setting as a user would type it: `0.003`, `float32`, `true`."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_typed(value: object) -> str:
    """A value of a sweep, where `null` is one: `0.002`, `null`, `[0.9, 0.95]`."""
    if value is None:
        return "null"
    return f"[{', '.join(map(as_typed, value))}]" if isinstance(value, list | tuple) else plain(value)


def joined(names: Sequence[str]) -> str:
    """`one`, `one and two`, `one, two and three`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plural(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def wrapped(text: str, indent: str = "") -> str:
    """Text for a terminal, in lines of at most 118 characters; the lines after the first begin with `indent`."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


# How the text output states a difference between two losses: in words, never with a sign.


def better_or_worse(difference: float, unit: str = "nats", digits: int = 3) -> str:
    """State ``difference`` (superposition minus baseline, lower is better) in words, without a sign.

    -0.061 gives "0.061 nats better", and 0.021 gives "0.021 nats worse". A difference that rounds to zero at
    ``digits`` digits gives "level (less than 0.001 nats apart)". NaN gives "not known".
    """
    if difference != difference:
        return "not known"
    size = f"{abs(difference):.{digits}f}"
    if float(size) == 0:
        return f"level (less than {10**-digits:.{digits}f} {unit} apart)"
    return f"{size} {unit} {'better' if difference < 0 else 'worse'}"


def better_or_worse_range(low: float, high: float, unit: str = "nats", digits: int = 3) -> str:
    """State a range of differences (superposition minus baseline) in words, without a sign.

    (-0.13, -0.07) gives "0.070 to 0.130 nats better", and (-0.13, 0.02) gives "0.020 nats worse to 0.130 nats better".
    """
    if low != low or high != high:
        return "not known"
    if round(low, digits) < 0 < round(high, digits):
        return f"{better_or_worse(high, unit, digits)} to {better_or_worse(low, unit, digits)}"
    near, far = sorted((abs(low), abs(high)))
    if round(far, digits) == 0:
        return better_or_worse(0.0, unit, digits)
    return f"{near:.{digits}f} to {better_or_worse(min(low, high, key=lambda end: -abs(end)), unit, digits)}"
