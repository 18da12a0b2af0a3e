"""One panel of a figure as SVG: frame, axes, lines, bands, points, names and what the page reads out on hover.

A panel is drawn in its own units (480 by 348) and scaled by the page. Colours come from the style sheet (`arm-0`,
`arm-1`, ...), which has them for light, dark and print. Every arm also has a mark of its own shape and its name at the
end of its line, so nothing depends on colour alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from token_superposition.formatting import MINUS, exponent

WIDTH, HEIGHT = 480.0, 348.0
LEFT, TOP, BOTTOM = 42.0, 56.0, 46.0  # margins of the frame
CHARACTER, LINE = 7.0, 15.0  # about the width of a letter, also of the widest fallback font; a label's height
LONGEST_NAME = 20
NUM_STYLES = 7  # colours in the style sheet; further arms share them, and still have their names
_COUNT_UNITS = {0: "", 3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}


@dataclass(frozen=True)
class Scale:
    """A map of [low, high] onto [start, end] of the drawing, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether the value is within the range."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class End:
    """The end of an arm's line in the drawing; `arm` is its place in the report."""

    arm: int
    name: str
    x: float
    y: float


class Panel:
    """A drawing that grows by what is added to it; places are in units of the drawing, from `x` and `y`.

    Args:
        name: unique in the page, the prefix of element ids.
        heading: the first line.
        words: what a screen reader says.
        names: of the arms that are named at the right edge.
    """

    def __init__(self, name: str, heading: str, words: str, names: Sequence[str]) -> None:
        self.name, self._heading, self._words = name, heading, words
        self.names = short_names(list(names), LONGEST_NAME)
        self.right = WIDTH - max((len(each) for each in self.names), default=0) * CHARACTER - 16
        self.top, self.bottom = TOP, HEIGHT - BOTTOM
        self.x = Scale(0, 1, LEFT, self.right)
        self.y = Scale(0, 1, self.bottom, self.top)
        self._frame: list[str] = []
        self._clipped: list[str] = []
        self._marks: list[str] = []
        self._hits: list[str] = []

    def set_x(self, low: float, high: float, *, inset: float = 0.0, log: bool = False) -> None:
        """What runs along x; `inset` keeps the first and last points off the frame."""
        self.x = Scale(low, high, LEFT + inset, self.right - inset, log)

    def set_y(self, low: float, high: float, title: str, *, unsigned: bool = False) -> None:
        """What runs along y, with lines at round values; `unsigned` if words say the side of zero."""
        self.y = Scale(low, high, self.bottom, self.top)
        values = ticks(low, high)
        self._frame.append(f'<text class="axis" x="0" y="32">{escape(title)}</text>')
        for value, label in zip(values, tick_labels(values, unsigned=unsigned), strict=True):
            at = self.y(value)
            self.rule("grid", LEFT, at, self.right, at)
            self.label("tick", LEFT - 7, at + 4, label, "end")

    def x_axis(self, labels: Sequence[tuple[float, str]], title: str, *, end: float | None = None) -> None:
        """The axis with its ticks, each a place and a label; a label without room is left out, the first first.

        Args:
            labels: places in the drawing, the most important first.
            title: below the axis.
            end: where the title's part of the axis ends; at the frame without it.
        """
        self.rule("base", LEFT, self.bottom, self.right, self.bottom)
        taken: list[tuple[float, float]] = []
        for at, text in labels:
            self.rule("base", at, self.bottom, at, self.bottom + 4)
            half = len(text) * CHARACTER / 2
            if all(at + half + 4 <= left or at - half - 4 >= right for left, right in taken):
                taken.append((at - half, at + half))
                self.label("tick", at, self.bottom + 18, text)
        self.label("axis", (LEFT + (self.right if end is None else end)) / 2, HEIGHT - 7, title)

    def rule(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """A straight line behind the curves."""
        self._frame.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def label(self, kind: str, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """A text."""
        self._frame.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, kind: str, data: str) -> None:
        """An SVG path in front of the curves."""
        self._marks.append(f'<path class="{kind}" d="{data}"/>')

    def line(self, arm: int, points: Sequence[tuple[float, float] | None], kind: str = "mean") -> None:
        """A line through points, cut at the frame and broken at None."""
        data, pen_down = "", False
        for point in points:
            if point is not None:
                data += f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}"
            pen_down = point is not None
        if data:
            self._clipped.append(f'<path class="{kind} {arm_class(arm)}" d="{data}"/>')

    def band(self, arm: int, edges: Sequence[tuple[float, float, float]]) -> None:
        """The area along a line through (x, low, high); a whisker if there is one point only."""
        if len(edges) == 1:
            self.whisker(arm, *edges[0], cap=0)
        elif edges:
            there = "L".join(f"{at:.1f} {low:.1f}" for at, low, _ in edges)
            back = "L".join(f"{at:.1f} {high:.1f}" for at, _, high in reversed(edges))
            self._clipped.append(f'<path class="band {arm_class(arm)}" d="M{there}L{back}z"/>')

    def whisker(self, arm: int, x: float, low: float, high: float, cap: float = 5) -> None:
        """An upright interval."""
        caps = f"M{x - cap:.1f} {low:.1f}h{2 * cap:g}M{x - cap:.1f} {high:.1f}h{2 * cap:g}" if cap else ""
        self.path(f"whisker {arm_class(arm)}", f"{caps}M{x:.1f} {low:.1f}V{high:.1f}")

    def point(self, arm: int, x: float, y: float, words: str | None = None, *, ring: bool = False) -> None:
        """An arm's mark, or a ring; `words` are read out on hover."""
        if ring:
            self._marks.append(f'<circle class="tried {arm_class(arm)}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        else:
            self._marks.append(marker(arm, x, y))
        if words is not None:
            self.hover(arm, x, y, words)

    def hover(self, arm: int, x: float, y: float, words: str) -> None:
        """A place whose words the page reads out."""
        self._hits.append(
            f'<circle class="hit {arm_class(arm)}" cx="{x:.1f}" cy="{y:.1f}" r="3.2" data-arm="{arm}" '
            f'data-words="{escape(words)}"/>'
        )

    def note(self, arm: int | None, x: float, y: float, text: str, anchor: str = "start", kind: str = "note") -> None:
        """A text in front of the curves, in an arm's colour or in none."""
        style = kind if arm is None else f"{kind} {arm_class(arm)}"
        self._marks.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def end_names(self, ends: Sequence[End]) -> None:
        """The names at the right edge, each at its line's level or near it, and what leads there."""
        for end, place in zip(ends, spread([end.y for end in ends], self.bottom, LINE), strict=True):
            style = arm_class(end.arm)
            if self.right - end.x > 3:
                self.rule(f"carry {style}", end.x, end.y, self.right, end.y)
            if abs(place - end.y) > 2:
                self.path(f"leader {style}", f"M{self.right + 5:.1f} {end.y:.1f}L{self.right + 10:.1f} {place:.1f}")
            self.note(end.arm, self.right + 13, place + 4, end.name, kind="name")

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        """The outline of a part of the plane."""
        self._frame.append(f'<path class="box" d="M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}z"/>')

    def switch(self, arm: int | None, at: float, down: float, text: str, *, to_left: bool) -> None:
        """A dashed line at the switch of an arm (None: of several) with a text beside it."""
        style = "" if arm is None else f" {arm_class(arm)}"
        self.rule(f"switch{style}", at, self.top - 8, at, self.bottom)
        self.note(arm, at - 5 if to_left else at + 5, self.top + 3 + down, text, "end" if to_left else "start")

    def svg(self) -> str:
        """The panel."""
        name, heading = self.name, escape(self._heading)
        return "\n".join(
            [
                f'<svg class="panel" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
                f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">{heading}</title>'
                f'<desc id="{name}-d">{escape(self._words)}</desc>',
                f'<clipPath id="{name}-c"><rect x="{LEFT:g}" y="{self.top:g}" width="{self.right - LEFT:.1f}" '
                f'height="{self.bottom - self.top:g}"/></clipPath>',
                f'<text class="heading" x="0" y="14">{heading}</text>',
                *self._frame,
                f'<g clip-path="url(#{name}-c)">',
                *self._clipped,
                "</g>",
                *self._marks,
                *self._hits,
                f'<line class="guide" y1="{self.top:g}" y2="{self.bottom:g}" x1="0" x2="0"/>',
                "</svg>",
            ]
        )


def arm_class(arm: int) -> str:
    """The style sheet's class for the arm at that place in the report."""
    return f"arm-{arm % NUM_STYLES}"


def marker(arm: int, x: float, y: float) -> str:
    """An arm's mark: circle, square, diamond, triangle, in turn."""
    style = f"mark {arm_class(arm)}"
    shapes = (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        f'<rect class="{style}" x="{x - 3.7:.1f}" y="{y - 3.7:.1f}" width="7.4" height="7.4"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
    )
    return shapes[arm % len(shapes)]


# Names.


def short(text: str, longest: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def short_names(names: list[str], longest: int) -> list[str]:
    """Names that fit, told apart: if beginnings are the same, the middle is left out instead of the end."""
    cut = [short(name, longest) for name in names]
    head, tail = (longest - 1) // 2, longest - 1 - (longest - 1) // 2
    return [
        f"{name[:head].rstrip()}…{name[-tail:].lstrip()}" if len(name) > longest and cut.count(text) > 1 else text
        for name, text in zip(names, cut, strict=True)
    ]


def spread(wanted: list[float], bottom: float, gap: float) -> list[float]:
    """Places near those wanted, at least `gap` apart and none below `bottom` (places count downwards)."""

    def first(group: list[int]) -> float:
        """Where a group starts, so that it is centred on what its members want."""
        return sum(wanted[i] for i in group) / len(group) - gap * (len(group) - 1) / 2

    groups: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        groups.append([index])
        while len(groups) > 1 and first(groups[-1]) < first(groups[-2]) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(wanted)
    for group in groups:
        for offset, index in enumerate(group):
            placed[index] = first(group) + gap * offset
    overhang = max([0.0, *(place - bottom for place in placed)])
    return [place - overhang for place in placed]


# Axes.


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], near `about` of them."""
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((1, 2, 5, 10), key=lambda m: abs(math.log(m * magnitude / raw))) * magnitude
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis within [low, high]: as few kinds of them as give at least three."""
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for mantissas in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = (times * 10.0**power for power, times in itertools.product(powers, mantissas))
        found = [value for value in values if low <= value <= high]
        if len(found) > 2:
            return found
    return ticks(low, high, 3)


def tick_labels(values: list[float], divisor: float = 1.0, *, unsigned: bool = False) -> list[str]:
    """The ticks over `divisor`, all with the decimals that tell them apart; `unsigned` if words say the side."""
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


def free_place(
    size: tuple[float, float],
    places: Sequence[tuple[float, float]],
    covered: Sequence[tuple[float, float]],
    away: Callable[[float, float], float],
) -> tuple[float, float]:
    """Of some places for a text of that size, the one that covers the fewest points; among equals the nearest."""
    width, height = size

    def cost(place: tuple[float, float]) -> float:
        at, top = place
        hidden = sum(at - 6 < x < at + width + 6 and top - 5 < y < top + height + 5 for x, y in covered)
        return hidden + away(at, top)

    return min(places, key=cost)
