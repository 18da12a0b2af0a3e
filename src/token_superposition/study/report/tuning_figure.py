"""The sweep's figure: for every swept key, each arm's final loss over the key's values.

Rings are what was tried, the filled marker is what the arm was given. Learning rates and other positive numbers
lie on a logarithmic axis. Losses far above the rest would flatten the part that decides, so the top is cut:
what lies above it is written there with an arrow, and what diverged with a cross. Of a grid each panel shows
the best over the other keys' values.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from token_superposition.formatting import as_typed, decimal, finite
from token_superposition.study.report.facts import Report, unit
from token_superposition.study.report.plot import WIDTH, AxisScale, arm_class, marker, short, spread, y_grid

_HEIGHT, _LEFT, _TOP, _BOTTOM, _SIDE = 310.0, 42.0, 56.0, 46.0, 26.0
_LINE, _CHARACTER, _LONGEST_NAME = 15.0, 7.0, 20


@dataclass(frozen=True)
class _Line:
    """An arm's losses over a key's values: None where it diverged; `chosen` counts the values from 0."""

    name: str
    index: int
    losses: Sequence[float | None]
    seeds: Sequence[Sequence[float | None]]
    chosen: int


def key_words(key: str) -> str:
    """`learning rate` for `train.learning_rate`."""
    return key.rpartition(".")[2].replace("_", " ")


def is_cut(report: Report) -> bool:
    """Whether a panel's top cuts off a loss."""
    return any(_cut(_lines(report, key)) for key in report["sweep"]["keys"])


def has_gaps(report: Report) -> bool:
    """Whether a panel marks a value at which every run of an arm diverged."""
    lines = [line for key in report["sweep"]["keys"] for line in _lines(report, key)]
    return any(loss is None for line in lines for loss in line.losses)


def panels(report: Report, *, name: str, heading: str) -> list[str]:
    """A panel a key, as SVG; none where every run diverged.

    Args:
        report: the report's dictionary, its sweep the one to draw.
        name: unique in the page; a prefix of element ids.
        heading: what the panels' first lines end with.
    """
    keys = report["sweep"]["keys"]
    drawn = [_panel(report, key, f"{name}{number}", heading) for number, key in enumerate(keys)]
    return [panel for panel in drawn if panel]


def _lines(report: Report, key: str) -> list[_Line]:
    sweep, values = report["sweep"], report["sweep"]["values"][key]
    order = {arm["name"]: index for index, arm in enumerate(report["arms"])}
    alone = len(sweep["keys"]) == 1 and sweep["num_seeds"] > 1
    return [
        _Line(
            tried["name"],
            order[tried["name"]],
            [_lowest([s for s in tried["settings"] if s["values"][key] == value]) for value in values],
            [
                [_finite(setting["seeds"][number]["final_validation_loss"]) for setting in tried["settings"]]
                for number in range(sweep["num_seeds"] if alone else 0)
            ],
            values.index(tried["best"][key]),
        )
        for tried in sweep["arms"]
    ]


def _lowest(settings: Sequence[Mapping[str, Any]]) -> float | None:
    kept = [s for s in settings if not s["diverged_when_compared"]] or settings
    return min((s["mean_validation_loss"] for s in kept if finite(s["mean_validation_loss"])), default=None)


def _finite(value: Any) -> float | None:
    return value if finite(value) else None


def _known(lines: Sequence[_Line]) -> list[float]:
    return [loss for line in lines for loss in line.losses if loss is not None]


def _top(lines: Sequence[_Line]) -> float:
    """The highest loss shown: what decides lies near the lowest, and the chosen values are always in sight."""
    known = _known(lines)
    low = min(known)
    chosen = max(line.losses[line.chosen] or low for line in lines)
    return min(max(known), max(low + 4 * (statistics.median(known) - low), chosen + 0.25 * (chosen - low), low + 0.01))


def _cut(lines: Sequence[_Line]) -> bool:
    return bool(_known(lines)) and max(_known(lines)) > _top(lines)


def _panel(report: Report, key: str, name: str, of_what: str) -> str:
    lines, values = _lines(report, key), report["sweep"]["values"][key]
    if not _known(lines):
        return ""
    words = key_words(key)
    heading = words[:1].upper() + words[1:]
    right = WIDTH - max(len(short(line.name, _LONGEST_NAME)) for line in lines) * _CHARACTER - 16
    low, high = min(_known(lines)), _top(lines)
    room = 0.08 * max(high - low, 1e-3)
    above = 2.5 * room if any(_off(line, high) for line in lines) else room  # where arrows and crosses are written
    y = AxisScale(low - room, high + above, _HEIGHT - _BOTTOM, _TOP)
    frame = AxisScale(0, 1, _LEFT, right)
    places = _places(values, _LEFT + _SIDE, right - _SIDE)
    said = "; ".join(f"{line.name}: best at {as_typed(values[line.chosen])}" for line in lines)
    parts = [
        f'<svg class="panel" viewBox="0 0 {WIDTH:g} {_HEIGHT:g}" role="img" aria-labelledby="{name}-t {name}-d">',
        f'<title id="{name}-t">{escape(heading + of_what)}</title>'
        f'<desc id="{name}-d">{escape(f"Final validation loss over {words}. {said}.")}</desc>',
        f'<clipPath id="{name}-c"><rect x="{_LEFT:g}" y="{_TOP:g}" width="{right - _LEFT:.1f}" '
        f'height="{_HEIGHT - _BOTTOM - _TOP:g}"/></clipPath>',
        f'<text class="heading" x="0" y="14">{escape(heading + of_what)}</text>',
        f'<text class="axis" x="0" y="32">Final validation loss ({escape(unit(report))})</text>',
        *y_grid(frame, y),
        *_axis(values, places, right, heading),
        f'<g clip-path="url(#{name}-c)">',
        *(_paths(line, places, y) for line in lines),
        "</g>",
        *(_marks(line, places, y, high) for line in lines),
        *_above(lines, places, high),
        *_names(lines, places, y, high),
        *_hits(lines, values, places, y, high),
        f'<line class="guide" y1="{_TOP:g}" y2="{_HEIGHT - _BOTTOM:g}" x1="0" x2="0"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def _places(values: Sequence[Any], left: float, right: float) -> list[float]:
    """Where the values lie: by their logarithm, as numbers, or side by side where they are none."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        scaled = [float(number) for number in range(len(values))]
    else:
        scaled = [math.log(value) for value in values] if min(values) > 0 else [float(value) for value in values]
    x = AxisScale(min(scaled), max(scaled), left, right)
    return [x(value) for value in scaled]


def _axis(values: Sequence[Any], places: Sequence[float], right: float, title: str) -> list[str]:
    bottom, free = _HEIGHT - _BOTTOM, -math.inf
    parts = [f'<line class="base" x1="{_LEFT:g}" x2="{right:.1f}" y1="{bottom:g}" y2="{bottom:g}"/>']
    for value, at in zip(values, places, strict=True):
        label = short(as_typed(value), 14)
        parts.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
        half = len(label) * _CHARACTER / 2
        if at - half >= free:
            free = at + half + 6
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{bottom + 18:g}" text-anchor="middle">{escape(label)}</text>'
            )
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 7:g}" text-anchor="middle">{escape(title)}</text>')
    return parts


def _paths(line: _Line, places: Sequence[float], y: AxisScale) -> str:
    style = arm_class(line.index)
    thin = [f'<path class="seed {style}" d="{_path(seed, places, y)}"/>' for seed in line.seeds if any(seed)]
    bold = [f'<path class="mean {style}" d="{_path(line.losses, places, y)}"/>'] if any(line.losses) else []
    return "\n".join([*thin, *bold])


def _path(losses: Sequence[float | None], places: Sequence[float], y: AxisScale) -> str:
    """Broken where a value diverged."""
    text, pen_down = "", False
    for loss, at in zip(losses, places, strict=True):
        if loss is not None:
            text += f"{'L' if pen_down else 'M'}{at:.1f} {y(loss):.1f}"
        pen_down = loss is not None
    return text


def _marks(line: _Line, places: Sequence[float], y: AxisScale, high: float) -> str:
    parts = []
    for number, (loss, at) in enumerate(zip(line.losses, places, strict=True)):
        if loss is None or loss > high:
            continue
        if number == line.chosen:
            parts.append(marker(line.index, at, y(loss)))
        else:
            parts.append(f'<circle class="tried {arm_class(line.index)}" cx="{at:.1f}" cy="{y(loss):.1f}" r="3.4"/>')
    return "\n".join(parts)


def _off(line: _Line, high: float) -> list[tuple[int, str]]:
    """The values that are not in sight, and what is written there."""
    return [
        (number, "× diverged" if loss is None else f"↑ {decimal(loss, 2)}")
        for number, loss in enumerate(line.losses)
        if loss is None or loss > high
    ]


def _above(lines: Sequence[_Line], places: Sequence[float], high: float) -> list[str]:
    parts, rows = [], [0] * len(places)
    gap = min((after - before for before, after in itertools.pairwise(sorted(places))), default=math.inf)
    for line in lines:
        for number, text in _off(line, high):
            text = text if gap > len(text) * _CHARACTER else text[0]  # values that lie close leave room for a sign
            first, last = number == 0 and len(text) > 1, number == len(places) - 1 and len(text) > 1
            anchor = "end" if last else "start" if first else "middle"
            at = places[number] + (_SIDE - 4 if last else 4 - _SIDE if first else 0)
            parts.append(
                f'<text class="note {arm_class(line.index)}" x="{at:.1f}" y="{_TOP + 11 + 14 * rows[number]:g}" '
                f'text-anchor="{anchor}">{escape(text)}</text>'
            )
            rows[number] += 1
    return parts


def _names(lines: Sequence[_Line], places: Sequence[float], y: AxisScale, high: float) -> list[str]:
    """Each arm's name at the last of its losses in sight; names at one place are kept apart."""
    ends: dict[int, list[tuple[_Line, float]]] = {}
    for line in lines:
        shown = [(n, loss) for n, loss in enumerate(line.losses) if loss is not None and loss <= high]
        if shown:
            number, loss = shown[-1]
            ends.setdefault(number, []).append((line, y(loss)))
    parts = []
    for number, found in ends.items():
        placed = spread([at for _, at in found], _HEIGHT - _BOTTOM - 8, _LINE)
        for (line, _), place in zip(found, placed, strict=True):
            text, at = escape(short(line.name, _LONGEST_NAME)), places[number] + 9
            parts.append(f'<text class="name {arm_class(line.index)}" x="{at:.1f}" y="{place + 4:.1f}">{text}</text>')
    return parts


def _hits(
    lines: Sequence[_Line], values: Sequence[Any], places: Sequence[float], y: AxisScale, high: float
) -> list[str]:
    """What the page's script reads out."""
    return [
        f'<circle class="hit {arm_class(line.index)}" cx="{at:.1f}" cy="{y(loss):.1f}" r="3.2" '
        f'data-arm="{line.index}" data-words="{escape(f"{line.name}, {as_typed(value)}: {decimal(loss)}")}"/>'
        for line in lines
        for value, at, loss in zip(values, places, line.losses, strict=True)
        if loss is not None and loss <= high
    ]
