"""The figures of the results: final loss and difference at every budget, and the difference seed by seed.

Left, every arm's final loss at every budget, over compute on a logarithmic axis, with the speed-up as an arrow. Right,
each arm's difference to the baseline, paired by seed; these intervals, not the bands on the left, say whether two arms
differ. Budgets far shorter than the longest may be above the frame, since they would flatten the part that decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from token_superposition.formatting import compared, count, decimal, digits_of, interval
from token_superposition.study.report.curves import Figure
from token_superposition.study.report.facts import FEWEST_FOR_INTERVAL, Placed, placed
from token_superposition.study.report.model import Report
from token_superposition.study.report.panel import (
    CHARACTER,
    LEFT,
    End,
    Panel,
    Scale,
    arm_class,
    axis_title,
    engineering,
    free_place,
    log_ticks,
    marker,
    short,
    tick_labels,
    ticks,
)
from token_superposition.study.report.parts import Difference, Speedup
from token_superposition.study.report.sentences import saving, saving_interval

_INSET = 16.0  # between the frame and the first and last points


@dataclass(frozen=True)
class _Line:
    """An arm's final losses; `index` is its place in the report."""

    index: int
    name: str
    points: list[Placed]


def budgets_figure(report: Report) -> Figure | None:
    """Final losses and differences at every budget; None if no final loss is finite."""
    drawn = [panel for panel in (_losses_panel(report), _gaps_panel(report)) if panel]
    return Figure(drawn, _budgets_caption(report)) if drawn else None


def _losses_panel(report: Report) -> str:
    lines = [_Line(index, arm.name, placed(arm)) for index, arm in enumerate(report.arms)]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    points = [point for line in lines for point in line.points]
    said = "; ".join(f"{line.name}: {', '.join(map(_said, line.points))}" for line in lines)
    words = f"Final validation loss in {report.unit}. {said}."
    panel = Panel("budgets-loss", "Final loss at every budget", words, [line.name for line in lines])
    flops = [point.flops for point in points]
    panel.set_x(min(flops), max(flops), inset=_INSET, log=True)
    first = report.shortest_in_full
    limits = [limit for point in points if point.steps >= first for limit in point.band or (point.loss,)]
    room = 0.05 * max(max(limits) - min(limits), 1e-3)
    panel.set_y(min(limits) - room, max(limits) + room, f"Final validation loss ({report.unit})")
    x, y = panel.x, panel.y
    _budget_marks(report, panel, {point.steps: x(point.flops) for point in points})
    power = engineering(max(flops))
    shown = [(x(value), f"{value / 10.0**power:g}") for value in log_ticks(min(flops), max(flops))]
    panel.x_axis(shown, axis_title("Training compute", "FLOPs", power))
    for line in lines:
        panel.band(line.index, [(x(p.flops), y(p.band[0]), y(p.band[1])) for p in line.points if p.band])
        panel.line(line.index, [(x(p.flops), y(p.loss)) for p in line.points])
    reading = report.shown_reading
    if reading:
        _arrow(panel, reading, lines)
    for line in lines:
        for point in line.points:
            if point.loss <= y.high:
                words = f"{line.name}, {_said(point)}"
                panel.point(line.index, x(point.flops), y(point.loss), words, ring=point.equal_data)
    lasts = [line.points[-1] for line in lines]
    panel.end_names(
        [
            End(line.index, name, x(last.flops), y(last.loss))
            for line, name, last in zip(lines, panel.names, lasts, strict=True)
        ]
    )
    return panel.svg()


def _said(point: Placed) -> str:
    return f"{decimal(point.loss)} at {count(point.steps)} steps"


def _budget_marks(report: Report, panel: Panel, places: dict[int, float]) -> None:
    """A line down at each budget, with its steps above; those of equal data give way if room is short."""
    taken: list[tuple[float, float]] = []
    for steps in [*reversed(report.compared_steps), *report.equal_data_steps]:
        if steps not in places:
            continue
        at = places[steps]
        text = count(steps) + (" steps" if not taken else "")
        half = len(text) * CHARACTER / 2
        panel.rule("grid", at, panel.top, at, panel.bottom)
        if all(at + half < left or at - half > right for left, right in taken):
            taken.append((at - half - 3, at + half + 3))
            panel.label("tick", at, panel.top - 6, text)


def _arrow(panel: Panel, reading: Speedup, lines: Sequence[_Line]) -> None:
    """The speed-up: an arrow at its loss from superposition's compute to the baseline's, and its label."""
    if reading.arm_cost is None or reading.baseline_cost is None or reading.loss is None:
        return
    start, end, level = panel.x(reading.arm_cost), panel.x(reading.baseline_cost), panel.y(reading.loss)
    left, right = min(start, end), max(start, end)
    panel.path("drop", f"M{left:.1f} {level:.1f}V{panel.bottom:g}M{right:.1f} {level:.1f}V{panel.bottom:g}")
    panel.path("arrow", f"M{start:.1f} {level:.1f}H{end:.1f}")
    head = 5.0 if end >= start else -5.0
    if right - left > 3 * abs(head):
        tip = end - head  # clear of the marker at the line's end
        back = tip - head
        panel.path("arrow", f"M{back:.1f} {level - 4:.1f}L{tip:.1f} {level:.1f}L{back:.1f} {level + 4:.1f}")
    number, words = saving(reading)
    ends = saving_interval(reading)
    more = f"{reading.confidence_level:.0%} interval {ends}" if ends else "no interval"
    title = f"{number}× {words}"
    width, height = max(8.2 * len(title), 6.6 * len(more)), 34.0
    covered = [(left + (right - left) * k / 20, level) for k in range(21)]
    covered += [(at, level + (panel.bottom - level) * k / 20) for at in (left, right) for k in range(21)]
    for line in lines:
        found = [(panel.x(p.flops), panel.y(p.loss)) for p in line.points]
        for (x0, y0), (x1, y1) in itertools.pairwise(found):
            covered += [(x0 + k / 40 * (x1 - x0), y0 + k / 40 * (y1 - y0)) for k in range(41)]
        covered += found * 8
    edge = panel.right
    places = [
        (at, top)
        for at in (left - width - 8, LEFT + 6, right + 8, (left + right - width) / 2, edge - width)
        for top in (level + 6, level + 30, level - 40, panel.bottom - height - 6, panel.top + 6)
        if LEFT + 4 <= at <= edge - width and panel.top <= top <= panel.bottom - height
    ]
    if not places:
        places = [(LEFT + 6, panel.bottom - height - 6)]
    at, top = free_place(
        (width, height), places, covered, lambda at, top: (abs(at + width / 2 - left) + abs(top - level)) / 1000
    )
    panel.note(None, at, top + 14, title, kind="speedup")
    panel.note(None, at, top + 29, more)


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
        ends = f" ({interval(self.ends)})" if self.ends else ""
        return f"{self.where}: {compared(self.mean, digits_of(self.mean))}{ends}"


def _gaps(report: Report) -> list[tuple[int, str, list[_Gap]]]:
    """Every arm that has a finite difference anywhere: its place in the report, its name, its differences."""
    rows = []
    for index, arm in enumerate(report.arms[1:], 1):
        found = [
            (place, f"{count(steps)} steps", report.difference_at(arm, steps))
            for place, steps in enumerate(report.compared_steps)
        ]
        every = [*found, (None, "equal data", report.equal_data_of(arm))]
        gaps = [
            _Gap(place, where, each.delta_nats, each.confidence_interval)
            for place, where, each in every
            if each is not None and each.known and each.delta_nats is not None
        ]
        if gaps:
            rows.append((index, arm.name, gaps))
    return rows


def _gaps_panel(report: Report) -> str:
    rows, steps = _gaps(report), report.compared_steps
    if not rows:
        return ""
    said = "; ".join(f"{name}: {', '.join(gap.words for gap in gaps)}" for _, name, gaps in rows)
    words = f"Difference to the baseline’s final loss in {report.unit}. {said}."
    panel = Panel("budgets-gap", "Difference to the baseline", words, [name for _, name, _ in rows])
    first = steps.index(report.shortest_in_full)
    shown = [gap for _, _, gaps in rows for gap in gaps if gap.place is None or gap.place >= first]
    values = [0.0, *(value for gap in shown for value in (gap.mean, *(gap.ends or ())))]
    room = 0.08 * (max(values) - min(values)) or 0.01
    title = f"Difference to the baseline ({report.unit}): better below the line, worse above"
    panel.set_y(min(values) - room, max(values) + room, title, unsigned=True)
    panel.rule("zero", LEFT, panel.y(0), panel.right, panel.y(0))
    dodge, middle = min(9.0, 34.0 / len(rows)), (len(rows) - 1) / 2
    inset = _INSET + 6 + dodge * middle
    has_data = any(gap.place is None for _, _, gaps in rows for gap in gaps)
    data_at = panel.right - inset
    last = data_at - 62 if has_data else data_at
    scale = Scale(steps[0], steps[-1], LEFT + inset, last, log=True)
    places = [scale(each) for each in steps] if len(steps) > 1 else [last]
    labels = [(at, count(each)) for at, each in zip(places, steps, strict=True)]
    panel.x_axis(labels[::-1], "Optimizer steps, at equal compute", end=data_at - 31 if has_data else None)
    if has_data:
        panel.rule("apart", data_at - 31, panel.top, data_at - 31, panel.bottom + 22)
        panel.label("tick", data_at, panel.bottom + 18, "equal")
        panel.label("tick", data_at, panel.bottom + 32, "data")
    ends = []
    for row, ((index, name, gaps), short_name) in enumerate(zip(rows, panel.names, strict=True)):
        at = {gap.place: (data_at if gap.place is None else places[gap.place]) + dodge * (row - middle) for gap in gaps}
        panel.line(index, [(at[gap.place], panel.y(gap.mean)) for gap in gaps if gap.place is not None])
        for gap in gaps:
            if panel.y.holds(gap.mean):
                x, y = at[gap.place], panel.y(gap.mean)
                if gap.ends is not None:
                    panel.whisker(index, x, panel.y(gap.ends[0]), panel.y(gap.ends[1]))
                panel.point(index, x, y, f"{name}, {gap.words}", ring=gap.place is None)
        ends.append(End(index, short_name, at[gaps[-1].place] + 5, panel.y(gaps[-1].mean)))
    panel.end_names(ends)
    return panel.svg()


def _budgets_caption(report: Report) -> str:
    lines = ["Left: final validation loss at every budget, over training compute on a logarithmic axis."]
    if report.num_seeds >= FEWEST_FOR_INTERVAL:
        lines.append("Bands: 95% intervals of each mean over seeds.")
    elif report.num_seeds > 1:
        lines.append("Bands: from the lower seed to the higher.")
    if report.equal_data_steps:
        lines.append("Rings: the baseline trained on as much text as superposition reads.")
    if report.compared_steps[0] < report.shortest_in_full:
        lines.append(f"Runs under {count(report.shortest_in_full)} steps may be above the frame, which is cut off.")
    reading = report.shown_reading
    if reading:
        whose = "the baseline’s" if reading.read_at == "baseline_end" else "superposition’s"
        lines.append(f"Arrow: at {whose} final loss, from superposition’s compute for that loss to the baseline’s.")
    elif report.iso_loss_all:
        lines.append("No speed-up is drawn, because it is outside what was trained.")
    lines.append("Right: the difference to the baseline, paired by seed.")
    return " ".join(lines)


# The differences seed by seed.

_STRIP_WIDTH, _ROW, _STRIP_TOP, _STRIP_BOTTOM, _SIDE = 480.0, 62.0, 26.0, 46.0, 16.0


def seeds_figure(report: Report) -> Figure | None:
    """A ring for each seed's difference, the mean and its interval, against zero; None without several seeds."""
    rows = [r for r in report.differences if len(r.deltas) > 1 and all(map(math.isfinite, r.deltas))]
    if not rows:
        return None
    values = [0.0, *(value for row in rows for value in (*row.deltas, *(row.confidence_interval or ())))]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    height = _STRIP_TOP + _ROW * len(rows) + _STRIP_BOTTOM
    bottom = height - _STRIP_BOTTOM
    x = Scale(min(values) - pad, max(values) + pad, _SIDE, _STRIP_WIDTH - _SIDE)
    order = {arm.name: index for index, arm in enumerate(report.arms)}
    marks = ticks(x.low, x.high, 6)
    parts = []
    for value, label in zip(marks, tick_labels(marks, unsigned=True), strict=True):
        at = f"{x(value):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{_STRIP_TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 17:g}" text-anchor="middle">{label}</text>')
    words = "; ".join(map(_seeds_words, rows))
    drawn = "\n".join(
        [
            f'<svg class="panel strip" viewBox="0 0 {_STRIP_WIDTH:g} {height:g}" role="img" '
            'aria-labelledby="strip-t strip-d"><title id="strip-t">Difference to the baseline, seed by seed</title>'
            f'<desc id="strip-d">{escape(words)}.</desc>',
            *parts,
            f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{bottom:g}"/>',
            f'<text class="axis" x="{_STRIP_WIDTH / 2:g}" y="{height - 7:g}" text-anchor="middle">← better than the '
            f"baseline · difference ({escape(report.unit)}) · worse →</text>",
            *(_strip_row(row, order[row.arm], _STRIP_TOP + _ROW * place, x) for place, row in enumerate(rows)),
            "</svg>",
        ]
    )
    caption = "Difference to the baseline. Rings: one seed each; filled: their mean, with its confidence interval."
    return Figure([drawn], caption)


def _strip_row(row: Difference, index: int, top: float, x: Scale) -> str:
    style, middle, ends = arm_class(index), top + 31, row.confidence_interval
    side, anchor = (_STRIP_WIDTH - _SIDE, "end") if x(0) < _STRIP_WIDTH / 2 else (_SIDE, "start")
    text = escape(_seeds_words(row))
    parts = [f'<text class="name {style}" x="{side:g}" y="{top + 16:g}" text-anchor="{anchor}">{text}</text>']
    if ends is not None:
        low, high, cap = x(ends[0]), x(ends[1]), f"{middle - 6:g}v12"
        line = f"M{low:.1f} {cap}M{high:.1f} {cap}M{low:.1f} {middle:g}H{high:.1f}"
        parts.append(f'<path class="whisker {style}" d="{line}"/>')
    parts += [f'<circle class="dot {style}" cx="{x(each):.1f}" cy="{middle + 15:g}" r="4"/>' for each in row.deltas]
    return "\n".join([*parts, marker(index, x(row.delta_nats or 0.0), middle)])


def _seeds_words(row: Difference) -> str:
    ends = row.confidence_interval
    level = f" ({row.confidence_level:.0%} interval {interval(ends)})" if ends is not None else ""
    return f"{short(row.arm, 24)} {compared(row.delta_nats, digits_of(row.delta_nats))}{level}"
