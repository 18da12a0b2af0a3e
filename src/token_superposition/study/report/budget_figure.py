"""The figure of the budgets: final loss over compute, with the speed-up read off on it.

Every arm has a point for every budget, on a logarithmic axis of FLOPs, with a band over seeds. The arrow lies at the
loss that the speed-up is read at, and runs from what superposition spent for it to what the baseline did; its label
goes where it hides the least.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from token_superposition.formatting import count, decimal
from token_superposition.study.report.budget_facts import (
    Placed,
    compared_steps,
    equal_data_steps,
    placed,
    shortest_in_full,
)
from token_superposition.study.report.facts import Report, unit
from token_superposition.study.report.findings import Reading, saving, saving_interval, shown_reading
from token_superposition.study.report.plot import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    LEFT,
    LONGEST_NAME,
    TOP,
    WIDTH,
    AxisScale,
    LineEnd,
    arm_class,
    axis_title,
    band_area,
    clip,
    closing,
    end_names,
    engineering,
    hit,
    log_ticks,
    marker,
    opening,
    short_names,
    y_grid,
)

_INSET = 16.0  # between the frame and the first and last points


def losses_panel(report: Report) -> str:
    """The panel as SVG; empty where no final loss is finite."""
    lines = [(index, arm["name"], placed(arm)) for index, arm in enumerate(report["arms"])]
    lines = [line for line in lines if line[2]]
    if not lines:
        return ""
    points = [point for _, _, found in lines for point in found]
    names = short_names([name for _, name, _ in lines], LONGEST_NAME)
    right = WIDTH - max(map(len, names)) * CHARACTER - 16
    flops = [point.flops for point in points]
    first = shortest_in_full(report)
    ends = [limit for point in points if point.steps >= first for limit in point.band or (point.loss,)]
    low, high = min(ends), max(ends)
    room = 0.05 * max(high - low, 1e-3)
    x = _LogScale(AxisScale(math.log(min(flops)), math.log(max(flops)) + 1e-9, LEFT + _INSET, right - _INSET))
    y = AxisScale(low - room, high + room, HEIGHT - BOTTOM, TOP)
    reading = shown_reading(report)
    arrow = _arrow(reading, lines, x, y) if reading else []
    said = "; ".join(f"{name}: {', '.join(_said(point) for point in found)}" for _, name, found in lines)
    power = engineering(max(flops))
    parts = [
        *opening("budgets-loss", "Final loss at every budget", f"Final validation loss in {unit(report)}. {said}."),
        clip("budgets-loss", right),
        f'<text class="axis" x="0" y="32">Final validation loss ({escape(unit(report))})</text>',
        *y_grid(AxisScale(0, 1, LEFT, right), y),
        *_budget_marks(report, points, x),
        *_compute_axis(x, power, right),
        '<g clip-path="url(#budgets-loss-c)">',
        *(_band(index, found, x, y) for index, _, found in lines),
        *(_line(index, found, x, y) for index, _, found in lines),
        "</g>",
        *arrow,
        *(_mark(index, point, x, y) for index, _, found in lines for point in found if point.loss <= y.high),
        *end_names(
            [LineEnd(i, name, x(f[-1].flops), y(f[-1].loss)) for (i, _, f), name in zip(lines, names, strict=True)],
            right,
        ),
        *(
            hit(index, x(point.flops), y(point.loss), f"{name}, {_said(point)}")
            for index, name, found in lines
            for point in found
            if point.loss <= y.high
        ),
        *closing(),
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class _LogScale:
    """A scale of logarithms that takes the numbers themselves."""

    of_logs: AxisScale

    def __call__(self, value: float) -> float:
        return self.of_logs(math.log(value))


def _said(point: Placed) -> str:
    return f"{decimal(point.loss)} at {count(point.steps)} steps"


def _budget_marks(report: Report, points: Sequence[Placed], x: _LogScale) -> list[str]:
    """A line down at each budget, with its steps above; those of equal data give way where room is short."""
    flops = {point.steps: point.flops for point in points}
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for steps in [*reversed(compared_steps(report)), *equal_data_steps(report)]:
        if steps not in flops:
            continue
        at = x(flops[steps])
        text = count(steps) + (" steps" if not taken else "")
        half = len(text) * CHARACTER / 2
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP:g}" y2="{HEIGHT - BOTTOM:g}"/>')
        if all(at + half < left or at - half > right for left, right in taken):
            taken.append((at - half - 3, at + half + 3))
            parts.append(f'<text class="tick" x="{at:.1f}" y="{TOP - 6:g}" text-anchor="middle">{text}</text>')
    return parts


def _compute_axis(x: _LogScale, power: int, right: float) -> list[str]:
    bottom, free = HEIGHT - BOTTOM, -math.inf
    parts = [f'<line class="base" x1="{LEFT:g}" x2="{right:.1f}" y1="{bottom:g}" y2="{bottom:g}"/>']
    per_unit = (x.of_logs.high - x.of_logs.low) / (x.of_logs.end - x.of_logs.start)
    edges = (math.exp(end + side * _INSET * per_unit) for end, side in ((x.of_logs.low, -1), (x.of_logs.high, 1)))
    for value in log_ticks(*edges):
        at, label = x(value), f"{value / 10.0**power:g}"
        parts.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
        half = len(label) * CHARACTER / 2
        if at - half >= free:
            free = at + half + 4
            parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 18:g}" text-anchor="middle">{label}</text>')
    title = axis_title("Training compute", "FLOPs", power)
    middle = (LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 7:g}" text-anchor="middle">{escape(title)}</text>')
    return parts


def _band(index: int, points: Sequence[Placed], x: _LogScale, y: AxisScale) -> str:
    """The band over seeds: an area along the line, or a stroke where there is one point only."""
    known = [(x(point.flops), y(point.band[0]), y(point.band[1])) for point in points if point.band]
    if not known:
        return ""
    if len(known) == 1:
        at, low, high = known[0]
        return f'<path class="whisker {arm_class(index)}" d="M{at:.1f} {low:.1f}V{high:.1f}"/>'
    return band_area(index, known)


def _line(index: int, points: Sequence[Placed], x: _LogScale, y: AxisScale) -> str:
    path = "L".join(f"{x(point.flops):.1f} {y(point.loss):.1f}" for point in points)
    return f'<path class="mean {arm_class(index)}" d="M{path}"/>'


def _mark(index: int, point: Placed, x: _LogScale, y: AxisScale) -> str:
    at, level = x(point.flops), y(point.loss)
    if point.equal_data:
        return f'<circle class="tried {arm_class(index)}" cx="{at:.1f}" cy="{level:.1f}" r="4"/>'
    return marker(index, at, level)


def _arrow(reading: Reading, lines: Sequence[tuple[int, str, list[Placed]]], x: _LogScale, y: AxisScale) -> list[str]:
    """The speed-up: an arrow at its loss from superposition's compute to the baseline's, and its label."""
    start, end, level = x(reading["arm_cost"]), x(reading["baseline_cost"]), y(reading["loss"])
    bottom, left, right = HEIGHT - BOTTOM, min(start, end), max(start, end)
    number, words = saving(reading)
    ends = saving_interval(reading)
    more = f"{reading['confidence_level']:.0%} interval {ends}" if ends else "no interval"
    head = 5.0 if end >= start else -5.0
    parts = [
        f'<path class="drop" d="M{left:.1f} {level:.1f}V{bottom:g}M{right:.1f} {level:.1f}V{bottom:g}"/>',
        f'<path class="arrow" d="M{start:.1f} {level:.1f}H{end:.1f}"/>',
    ]
    if right - left > 3 * abs(head):
        tip = end - head  # clear of the marker at the line's end
        parts.append(
            f'<path class="arrow" d="M{tip - head:.1f} {level - 4:.1f}L{tip:.1f} {level:.1f}L{tip - head:.1f} '
            f'{level + 4:.1f}"/>'
        )
    width = max(7.4 * len(f"{number}× {words}"), 6.0 * len(more))
    at, top = _free_place(width, left, right, level, lines, x, y)
    parts += [
        f'<text class="speedup" x="{at:.1f}" y="{top + 14:.1f}">{number}× {words}</text>',
        f'<text class="note" x="{at:.1f}" y="{top + 29:.1f}">{escape(more)}</text>',
    ]
    return parts


def _free_place(
    width: float,
    left: float,
    right: float,
    level: float,
    lines: Sequence[tuple[int, str, list[Placed]]],
    x: _LogScale,
    y: AxisScale,
) -> tuple[float, float]:
    """Left and top of where the label covers the least of the lines and of the arrow, near it by preference."""
    height, bottom, edge = 34.0, HEIGHT - BOTTOM, x.of_logs.end + _INSET
    covered = [(left + (right - left) * k / 20, level) for k in range(21)]
    covered += [(at, level + (bottom - level) * k / 20) for at in (left, right) for k in range(21)]
    for _, _, points in lines:
        for before, after in itertools.pairwise(points):
            for k in range(41):
                share = k / 40
                covered.append(
                    (
                        x(before.flops) + share * (x(after.flops) - x(before.flops)),
                        y(before.loss) + share * (y(after.loss) - y(before.loss)),
                    )
                )
        covered += [(x(point.flops), y(point.loss)) for point in points for _ in range(8)]
    places = [
        (at, top)
        for at in (left - width - 8, LEFT + 6, right + 8, (left + right - width) / 2, edge - width)
        for top in (level + 6, level + 30, level - 40, bottom - height - 6, TOP + 6, (level + bottom) / 2)
        if LEFT + 4 <= at <= edge - width and TOP <= top <= bottom - height
    ]

    def cost(place: tuple[float, float]) -> float:
        at, top = place
        hidden = sum(at - 6 < px < at + width + 6 and top - 5 < py < top + height + 5 for px, py in covered)
        return hidden + (abs(at + width / 2 - left) + abs(top - level)) / 1000

    return min(places, key=cost)
