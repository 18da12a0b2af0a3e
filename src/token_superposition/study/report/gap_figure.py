"""The figure's second panel: each arm's final loss less the baseline's, at every budget and at equal data.

Its differences are taken seed by seed, so their intervals, and not the bands of the first panel, say whether two arms
differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from token_superposition.formatting import compared, count, digits_of, finite, interval
from token_superposition.study.report.budget_facts import (
    compared_steps,
    difference_at,
    difference_at_equal_data,
    shortest_in_full,
)
from token_superposition.study.report.facts import Report, unit
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
    clip,
    closing,
    end_names,
    hit,
    marker,
    opening,
    short_names,
    y_grid,
)

_INSET = 22.0  # between the frame and the first and last points


@dataclass(frozen=True)
class _Gap:
    """A difference to the baseline: at the budget of that place, or (None) at equal data."""

    place: int | None
    where: str
    mean: float
    ends: tuple[float, float] | None

    @property
    def words(self) -> str:
        """What is read out."""
        return f"{self.where}: {compared(self.mean, digits_of(self.mean))}" + (
            f" ({interval(self.ends)})" if self.ends else ""
        )


@dataclass(frozen=True)
class _Row:
    """An arm's differences, by its place among the arms."""

    index: int
    name: str
    gaps: list[_Gap]


class _Layout:
    """Where what lies: arms stand side by side at every budget, the shortest budgets may lie above the frame."""

    def __init__(self, steps: Sequence[int], rows: Sequence[_Row], right: float, first: int) -> None:
        gaps = [gap for row in rows for gap in row.gaps]
        shown = [gap for gap in gaps if gap.place is None or gap.place >= first]
        values = [0.0, *(value for gap in shown for value in (gap.mean, *(gap.ends or ())))]
        room = 0.08 * (max(values) - min(values)) or 0.01
        self.y = AxisScale(min(values) - room, max(values) + room, HEIGHT - BOTTOM, TOP)
        self._dodge = min(9.0, 34.0 / len(rows))
        self._middle = (len(rows) - 1) / 2
        inset = _INSET + self._dodge * self._middle
        self.data_at = right - inset
        self.has_data = any(gap.place is None for gap in gaps)
        last = self.data_at - 62 if self.has_data else right - inset
        logs = [math.log(number) for number in steps]
        x = (
            AxisScale(logs[0], logs[-1], LEFT + inset, last)
            if len(logs) > 1
            else AxisScale(logs[0] - 1, logs[0], LEFT, last)
        )
        self.places = [x(log) for log in logs]

    def at(self, row: int, gap: _Gap) -> tuple[float, float]:
        """A point of that row of the arms."""
        base = self.data_at if gap.place is None else self.places[gap.place]
        return base + self._dodge * (row - self._middle), self.y(gap.mean)

    def holds(self, gap: _Gap) -> bool:
        """Whether it lies within the frame."""
        return self.y.low <= gap.mean <= self.y.high


def gaps_panel(report: Report) -> str:
    """The panel as SVG; empty where no difference is finite."""
    steps = compared_steps(report)
    rows = _rows(report, steps)
    if not rows:
        return ""
    names = short_names([row.name for row in rows], LONGEST_NAME)
    right = WIDTH - max(map(len, names)) * CHARACTER - 16
    layout = _Layout(steps, rows, right, steps.index(shortest_in_full(report)))
    y, at = layout.y, layout.at
    shown = [(number, row, gap) for number, row in enumerate(rows) for gap in row.gaps if layout.holds(gap)]
    said = "; ".join(f"{row.name}: {', '.join(gap.words for gap in row.gaps)}" for row in rows)
    ends = [(at(number, row.gaps[-1]), row, name) for number, (row, name) in enumerate(zip(rows, names, strict=True))]
    parts = [
        *opening(
            "budgets-gap",
            "Difference to the baseline",
            f"Difference to the baseline’s final loss in {unit(report)}. {said}.",
        ),
        clip("budgets-gap", right),
        f'<text class="axis" x="0" y="32">Difference to the baseline ({escape(unit(report))}): better below the line, '
        "worse above</text>",
        *y_grid(AxisScale(0, 1, LEFT, right), y, unsigned=True),
        f'<line class="zero" x1="{LEFT:g}" x2="{right:.1f}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>',
        *_steps_axis(steps, layout.places, right, layout.data_at if layout.has_data else None),
        *(
            _line(row, [at(number, gap) for gap in row.gaps if gap.place is not None])
            for number, row in enumerate(rows)
        ),
        *(mark for number, row, gap in shown for mark in _gap_marks(row.index, at(number, gap)[0], gap, y)),
        *end_names([LineEnd(row.index, name, x + 5, height) for (x, height), row, name in ends], right),
        *(hit(row.index, *at(number, gap), f"{row.name}, {gap.words}") for number, row, gap in shown),
        *closing(),
    ]
    return "\n".join(parts)


def _rows(report: Report, steps: Sequence[int]) -> list[_Row]:
    """Every arm that has a finite difference anywhere."""
    rows = []
    for index, arm in list(enumerate(report["arms"]))[1:]:
        gaps = [
            _Gap(place, f"{count(number)} steps", found.mean, found.interval)
            for place, number in enumerate(steps)
            if (found := difference_at(report, arm, number)) is not None and math.isfinite(found.mean)
        ]
        data = difference_at_equal_data(report, arm)
        if data is not None and finite(data["delta_nats"]):
            ends = data["confidence_interval"]
            gaps.append(_Gap(None, "equal data", data["delta_nats"], (ends[0], ends[1]) if ends else None))
        if gaps:
            rows.append(_Row(index, arm["name"], gaps))
    return rows


def _line(row: _Row, points: Sequence[tuple[float, float]]) -> str:
    """Through an arm's budgets; nothing where it has none."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    if not path:
        return ""
    return f'<g clip-path="url(#budgets-gap-c)"><path class="mean {arm_class(row.index)}" d="M{path}"/></g>'


def _steps_axis(steps: Sequence[int], places: Sequence[float], right: float, data_at: float | None) -> list[str]:
    bottom, parts = HEIGHT - BOTTOM, []
    parts.append(f'<line class="base" x1="{LEFT:g}" x2="{right:.1f}" y1="{bottom:g}" y2="{bottom:g}"/>')
    free = math.inf  # the longest budget is labelled first
    for number, at in reversed(list(zip(steps, places, strict=True))):
        parts.append(f'<line class="base" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>')
        half = len(count(number)) * CHARACTER / 2
        if at + half <= free:
            free = at - half - 4
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{bottom + 18:g}" text-anchor="middle">{count(number)}</text>'
            )
    end = right
    if data_at is not None:
        end = data_at - 31
        parts.append(f'<line class="apart" x1="{end:.1f}" x2="{end:.1f}" y1="{TOP:g}" y2="{bottom + 22:g}"/>')
        parts += [
            f'<text class="tick" x="{data_at:.1f}" y="{bottom + line:g}" text-anchor="middle">{text}</text>'
            for line, text in ((18, "equal"), (32, "data"))
        ]
    middle = (LEFT + end) / 2
    title = "Optimizer steps, at equal compute"
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 7:g}" text-anchor="middle">{title}</text>')
    return parts


def _gap_marks(index: int, at: float, gap: _Gap, y: AxisScale) -> list[str]:
    style, parts = arm_class(index), []
    if gap.ends is not None:
        low, high = y(gap.ends[0]), y(gap.ends[1])
        parts.append(
            f'<path class="whisker {style}" d="M{at - 5:.1f} {low:.1f}h10M{at - 5:.1f} {high:.1f}h10M{at:.1f} '
            f'{low:.1f}V{high:.1f}"/>'
        )
    if gap.place is None:
        parts.append(f'<circle class="tried {style}" cx="{at:.1f}" cy="{y(gap.mean):.1f}" r="4"/>')
    else:
        parts.append(marker(index, at, y(gap.mean)))
    return parts
