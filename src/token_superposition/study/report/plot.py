"""The figures: validation loss over what training cost, as SVG that stands alone.

A figure has two panels over the same axis, each its own SVG so that they stack on a narrow screen. The
first shows the whole run; its top is cut where only the first steps would need it. The second enlarges the
end, where the arms differ by hundredths of a nat that the first panel cannot show. Every arm has a bold mean
line, a thin line a seed, a colour and an end marker, and its name at the line's end, so nothing depends on
colour alone. Colours come from the page's style sheet (`arm-0`, `arm-1`, ...), which knows light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from token_superposition.formatting import MINUS, decimal, exponent
from token_superposition.study.report.curves import Point, Series

WIDTH, HEIGHT = 480.0, 348.0
LEFT, TOP, BOTTOM = 42.0, 56.0, 46.0
_LINE, CHARACTER = 15.0, 7.0  # a label's height, and about the width of a letter
LONGEST_NAME = 20
_FIRST_STEPS = (0.04, 0.12)  # of the run: what the whole-run panel may cut off, and where curves must go on
_ZOOM = 2 / 3
_FEWEST = 3  # points of each arm that the enlarged part shows


@dataclass(frozen=True)
class Axis:
    """What runs along x: `key` of a curve's points, its name, its unit ("" for a plain count)."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True)
class Window:
    """The part of the plane that a panel shows; `clipped` where lines go on above it."""

    x: tuple[float, float]
    y: tuple[float, float]
    clipped: bool


def whole_window(series: list[Series]) -> Window:
    """All of x; in y all that happens after the first steps, which start near log(vocabulary).

    Nothing is cut off a curve of so few points that its first steps cannot be told from the rest.
    """
    right = max(point.x for s in series for point in s.mean)
    last = max(point.step for s in series for point in s.mean)
    everything = [p.loss for s in series for line in s.seeds for p in line]
    shown = [p.loss for s in series for line in s.seeds for p in line if p.step >= _FIRST_STEPS[0] * last]
    dense = all(any(_FIRST_STEPS[0] * last <= p.step <= _FIRST_STEPS[1] * last for p in s.mean) for s in series)
    start = max(s.mean[0].loss for s in series)  # a run that goes astray above it does not set the range
    top = min(max(shown), max(start, min(shown))) if dense else max(everything)
    return _window((0.0, right), min(everything), top, max(everything))


def end_window(series: list[Series], whole: Window) -> Window | None:
    """The last third of x, counted at the arm that ends first; in y what its best line leaves worth seeing.

    None where an arm has too few points there for a line.
    """
    left = _ZOOM * min(s.mean[-1].x for s in series)
    if any(sum(point.x >= left for point in s.mean) < _FEWEST for s in series):
        return None
    inside = [[p.loss for line in s.seeds for p in line if p.x >= left] for s in series]
    losses = [loss for arm in inside for loss in arm]
    ends = [s.mean[-1].loss for s in series]
    # An arm still far above, in superposition or just out of it, must not flatten the others.
    flattest = min(max(arm) - min(arm) for arm in inside)
    top = min(losses) + max(2 * flattest, 2.5 * (max(ends) - min(losses)), 0.005)
    return _window((left, whole.x[1]), min(losses), min(top, max(losses)), max(losses))


def _window(x: tuple[float, float], low: float, high: float, highest: float) -> Window:
    high = max(high, low + 1e-3)
    pad = 0.05 * (high - low)
    x = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
    return Window(x, (low - pad, high + pad), highest > high + pad)


def panel(
    series: list[Series], axis: Axis, window: Window, *, name: str, heading: str, unit: str, box: Window | None = None
) -> str:
    """One panel as SVG.

    Args:
        series: the arms' lines.
        axis: what runs along x.
        window: the part to show.
        name: unique in the page; a prefix of element ids.
        heading: the panel's first line.
        unit: of the loss.
        box: another panel's window, outlined in this one.
    """
    names = short_names([s.name for s in series], LONGEST_NAME)
    right = WIDTH - max(map(len, names)) * CHARACTER - 16
    x, y = AxisScale(*window.x, LEFT, right), AxisScale(*window.y, HEIGHT - BOTTOM, TOP)
    ends = "; ".join(f"{s.name} ends at {decimal(s.mean[-1].loss)}" for s in series)
    description = f"Next-token validation loss in {unit} over {axis.title.lower()}. {ends}."
    power = engineering(max(abs(end) for end in window.x))
    parts = [
        *opening(name, heading, description),
        clip(name, right),
        f'<text class="axis" x="0" y="32">Validation loss ({escape(unit)})</text>',
        *_grid(x, y, power, axis_title(axis.title, axis.unit, power)),
        *([_box(x, y, box)] if box else []),
        *_switches(series, x),
        f'<g clip-path="url(#{name}-c)">',
        *(_lines(s, x, y) for s in series),
        "</g>",
        *_ends(series, names, x, y),
        *_hits(series, x, y),
        *closing(),
    ]
    return "\n".join(parts)


def y_grid(x: AxisScale, y: AxisScale, *, unsigned: bool = False) -> list[str]:
    """Lines across at round values of y, and their labels."""
    parts = []
    values = ticks(y.low, y.high, 5)
    for value, label in zip(values, tick_labels(values, unsigned=unsigned), strict=True):
        parts.append(f'<line class="grid" x1="{x.start:g}" x2="{x.end:.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{x.start - 7:g}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    return parts


def _grid(x: AxisScale, y: AxisScale, power: int, title: str) -> list[str]:
    parts, bottom = y_grid(x, y), HEIGHT - BOTTOM
    parts.append(f'<line class="base" x1="{x.start:g}" x2="{x.end:.1f}" y1="{bottom:g}" y2="{bottom:g}"/>')
    values = ticks(x.low, x.high, max(3, round((x.end - x.start) / 70)))
    for value, label in zip(values, tick_labels(values, 10.0**power), strict=True):
        parts.append(
            f'<line class="base" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
        )
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{bottom + 18:g}" text-anchor="middle">{label}</text>')
    middle = (x.start + x.end) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 7:g}" text-anchor="middle">{escape(title)}</text>')
    return parts


def _box(x: AxisScale, y: AxisScale, box: Window) -> str:
    left, right = x(max(box.x[0], x.low)), x(min(box.x[1], x.high))
    top, bottom = y(min(box.y[1], y.high)), y(max(box.y[0], y.low))
    return f'<path class="box" d="M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}z"/>'


def _switches(series: list[Series], x: AxisScale) -> list[str]:
    """A dashed line at each switch in sight; arms that switch together share one."""
    found: dict[float, list[Series]] = {}
    for s in series:
        if s.switch is not None and x.low < s.switch < x.high:
            found.setdefault(s.switch, []).append(s)
    text = "switch to next-token" if len(found) == 1 else "switch"
    parts, row, last = [], 0, -math.inf
    for place, arms in sorted(found.items()):
        at = x(place)
        row = row + 1 if at - last < len(text) * CHARACTER + 10 else 0
        last = at
        style = arm_class(arms[0].index) if len(arms) == 1 else ""
        edge, bottom, line = f"{at:.1f}", HEIGHT - BOTTOM, TOP + 3 + 14 * (row % 4)
        parts.append(f'<line class="switch {style}" x1="{edge}" x2="{edge}" y1="{TOP - 8:g}" y2="{bottom:g}"/>')
        to_left = at + 5 + len(text) * CHARACTER > WIDTH
        offset, anchor = (-5, "end") if to_left else (5, "start")
        parts.append(
            f'<text class="note {style}" x="{at + offset:.1f}" y="{line:g}" text-anchor="{anchor}">{text}</text>'
        )
    return parts


def _lines(series: Series, x: AxisScale, y: AxisScale) -> str:
    style = arm_class(series.index)
    thin = series.seeds if len(series.seeds) > 1 else ()
    edges = [(x(point.x), y(low), y(high)) for point, (low, high) in zip(series.mean, series.bands, strict=False)]
    paths = [band_area(series.index, edges)] if len(edges) > 1 else []
    paths += [f'<path class="seed {style}" d="{_path(line, x, y)}"/>' for line in thin]
    return "\n".join([*paths, f'<path class="mean {style}" d="{_path(series.mean, x, y)}"/>'])


def band_area(index: int, edges: Sequence[tuple[float, float, float]]) -> str:
    """The band along a line: an area through (x, low, high) of its points, in places of the drawing."""
    there = "L".join(f"{at:.1f} {low:.1f}" for at, low, _ in edges)
    back = "L".join(f"{at:.1f} {high:.1f}" for at, _, high in reversed(edges))
    return f'<path class="band {arm_class(index)}" d="M{there}L{back}z"/>'


def _path(line: tuple[Point, ...], x: AxisScale, y: AxisScale) -> str:
    return "M" + "L".join(f"{x(point.x):.1f} {y(point.loss):.1f}" for point in line)


def _ends(series: list[Series], names: list[str], x: AxisScale, y: AxisScale) -> list[str]:
    """Markers and names at the lines' ends; a line that ends early is carried on to its name by dots."""
    ends = [
        LineEnd(s.index, name, x(s.mean[-1].x), min(max(y(s.mean[-1].loss), y.end), y.start))
        for s, name in zip(series, names, strict=True)
    ]
    return [*end_names(ends, x.end), *(marker(end.arm, end.x, end.y) for end in ends)]


class LineEnd(NamedTuple):
    """Where an arm's line ends, in places of the drawing; `arm` is its place in the report."""

    arm: int
    name: str
    x: float
    y: float


def end_names(ends: list[LineEnd], right: float) -> list[str]:
    """The names at the right edge, each at its line's level or near it, and what leads there."""
    places = spread([end.y for end in ends], HEIGHT - BOTTOM, _LINE)
    parts = []
    for (arm, name, x, y), place in zip(ends, places, strict=True):
        style = arm_class(arm)
        if right - x > 3:
            parts.append(f'<line class="carry {style}" x1="{x:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if abs(place - y) > 2:
            parts.append(f'<path class="leader {style}" d="M{right + 5:.1f} {y:.1f}L{right + 10:.1f} {place:.1f}"/>')
        parts.append(f'<text class="name {style}" x="{right + 13:.1f}" y="{place + 4:.1f}">{escape(name)}</text>')
    return parts


def _hits(series: list[Series], x: AxisScale, y: AxisScale) -> list[str]:
    """What the page's script reads out: a point and its words each."""
    return [
        hit(s.index, x(p.x), y(p.loss), f"{s.name}, step {p.step:,}: {decimal(p.loss)}")
        for s in series
        for p in s.mean
        if x.low <= p.x <= x.high and y.low <= p.loss <= y.high
    ]


def opening(name: str, heading: str, description: str) -> list[str]:
    """A panel's first elements; `name` is unique in the page, a prefix of element ids."""
    return [
        f'<svg class="panel" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(heading)}</title><desc id="{name}-d">{escape(description)}</desc>',
        f'<text class="heading" x="0" y="14">{escape(heading)}</text>',
    ]


def clip(name: str, right: float) -> str:
    """The plot's frame, which lines that go on above it are cut at; its id is the panel's name and `-c`."""
    return (
        f'<clipPath id="{name}-c"><rect x="{LEFT:g}" y="{TOP:g}" width="{right - LEFT:.1f}" '
        f'height="{HEIGHT - BOTTOM - TOP:g}"/></clipPath>'
    )


def closing() -> list[str]:
    """A panel's last elements."""
    return [f'<line class="guide" y1="{TOP:g}" y2="{HEIGHT - BOTTOM:g}" x1="0" x2="0"/>', "</svg>"]


def hit(index: int, at: float, level: float, words: str) -> str:
    """A point that the page's script reads out, with its words."""
    return (
        f'<circle class="hit {arm_class(index)}" cx="{at:.1f}" cy="{level:.1f}" r="3.2" data-arm="{index}" '
        f'data-words="{escape(words)}"/>'
    )


# The small things in a drawing: an arm's marker, and names kept from running into one another.


NUM_STYLES = 7  # colours in the style sheet; arms beyond that share them, and still have their names


def arm_class(index: int) -> str:
    """The style sheet's class for the arm at that place in the report."""
    return f"arm-{index % NUM_STYLES}"


def marker(index: int, x: float, y: float) -> str:
    """An arm's mark: circle, square, diamond, triangle, in turn."""
    style = f"mark {arm_class(index)}"
    shapes = (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        f'<rect class="{style}" x="{x - 3.7:.1f}" y="{y - 3.7:.1f}" width="7.4" height="7.4"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
    )
    return shapes[index % len(shapes)]


def short(text: str, longest: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def short_names(names: list[str], longest: int) -> list[str]:
    """Names that fit, told apart: where beginnings are the same, the middle is left out instead of the end."""
    cut = [short(name, longest) for name in names]
    head, tail = (longest - 1) // 2, longest - 1 - (longest - 1) // 2
    return [
        f"{name[:head].rstrip()}…{name[-tail:].lstrip()}" if len(name) > longest and cut.count(text) > 1 else text
        for name, text in zip(names, cut, strict=True)
    ]


def spread(wanted: list[float], bottom: float, gap: float) -> list[float]:
    """Places near those wanted, at least `gap` apart and none below `bottom` (places count downwards)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        groups.append([index])
        while len(groups) > 1 and _collide(groups[-2], groups[-1], wanted, gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(wanted)
    for group in groups:
        for offset, index in enumerate(group):
            placed[index] = _first(group, wanted, gap) + gap * offset
    overhang = max([0.0, *(place - bottom for place in placed)])
    return [place - overhang for place in placed]


def _first(group: list[int], wanted: list[float], gap: float) -> float:
    """Where a group's first member goes, so that the group is centred on what its members want."""
    return sum(wanted[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _collide(above: list[int], below: list[int], wanted: list[float], gap: float) -> bool:
    return _first(below, wanted, gap) < _first(above, wanted, gap) + gap * len(above)


# Axes: round ticks, their labels, and the map from values to places in a drawing.


_COUNT_UNITS = {0: "", 3: "thousands", 6: "millions", 9: "billions", 12: "trillions"}


@dataclass(frozen=True)
class AxisScale:
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
