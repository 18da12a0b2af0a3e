"""The figure of the curves: validation loss over what training cost, the whole run and its end enlarged.

The whole run is cut at the top if only its first steps need more room. The end is enlarged because arms differ by
hundredths of a nat there. The mean line is over the steps that all seeds of an arm share, so a seed that ended early
cannot bend it. Losses that are missing or not finite are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from token_superposition.formatting import count, decimal, finite
from token_superposition.study.report.facts import FEWEST_FOR_INTERVAL, band_of
from token_superposition.study.report.model import Report
from token_superposition.study.report.panel import (
    CHARACTER,
    WIDTH,
    End,
    Panel,
    axis_title,
    engineering,
    tick_labels,
    ticks,
)
from token_superposition.study.report.parts import Arm, Validation

_FIRST_STEPS = (0.04, 0.12)  # of the run: what the whole-run panel may cut off, and where curves must go on
_ZOOM = 2 / 3
_FEWEST = 3  # points of each arm that the enlarged part shows


@dataclass(frozen=True)
class Axis:
    """What runs along x: a field of the curve's points, its name, its unit ("" for a plain count)."""

    key: str
    title: str
    unit: str


COMPUTE = Axis("flops", "Training compute", "FLOPs")
DATA = Axis("raw_tokens", "Raw tokens read", "")


@dataclass(frozen=True)
class Figure:
    """Panels as SVG, and the caption of the figure."""

    panels: list[str]
    caption: str


@dataclass(frozen=True)
class Point:
    """One validation: where on the x axis, at which step, with what loss."""

    x: float
    step: int
    loss: float


@dataclass(frozen=True)
class Series:
    """An arm's lines: one per seed, their mean with its band, and x of the switch."""

    name: str
    index: int
    seeds: tuple[tuple[Point, ...], ...]
    mean: tuple[Point, ...]
    bands: tuple[tuple[float, float], ...]
    switch: float | None


@dataclass(frozen=True)
class Window:
    """The part of the plane that a panel shows; `clipped` if lines go on above it."""

    x: tuple[float, float]
    y: tuple[float, float]
    clipped: bool


def all_series(report: Report, key: str) -> list[Series]:
    """The lines of every arm that has a curve, over `key` (`flops` or `raw_tokens`)."""
    made = (_series(arm, index, key) for index, arm in enumerate(report.arms))
    return [series for series in made if series is not None]


def _series(arm: Arm, index: int, key: str) -> Series | None:
    lines = [line for run in arm.seeds if (line := _line(run.curve, key))]
    by_step = [{point.step: point for point in line} for line in lines]
    shared = sorted(set.intersection(*map(set, by_step))) if by_step else []
    if not shared:
        return None
    found = [[points[step] for points in by_step] for step in shared]
    mean = tuple(
        Point(math.fsum(p.x for p in each) / len(each), each[0].step, math.fsum(p.loss for p in each) / len(each))
        for each in found
    )
    bands = [band_of([point.loss for point in each]) for each in found]
    known = tuple(band for band in bands if band is not None)
    return Series(arm.name, index, tuple(lines), mean, known, _x_at(mean, arm.switch_step))


def _line(curve: Sequence[Validation], key: str) -> tuple[Point, ...]:
    points = [
        Point(float(getattr(p, key)), p.step, p.validation_loss)
        for p in curve
        if p.validation_loss is not None and finite(p.validation_loss) and finite(getattr(p, key))
    ]
    return tuple(sorted(points, key=lambda point: point.step))


def _x_at(line: tuple[Point, ...], step: int) -> float | None:
    """Where on the x axis a step is, between the points beside it; None for step 0 or outside the line."""
    for before, after in itertools.pairwise(line):
        if step > 0 and before.step <= step <= after.step:
            return before.x + (after.x - before.x) * (step - before.step) / (after.step - before.step)
    return None


def whole_window(series: list[Series]) -> Window:
    """All of x; in y everything after the first steps, which start near log(vocabulary).

    Nothing is cut off a curve of so few points that its first steps cannot be told from the rest.
    """
    right = max(point.x for s in series for point in s.mean)
    last = max(point.step for s in series for point in s.mean)
    first, dense_until = _FIRST_STEPS[0] * last, _FIRST_STEPS[1] * last
    everything = [p.loss for s in series for line in s.seeds for p in line]
    shown = [p.loss for s in series for line in s.seeds for p in line if p.step >= first]
    dense = all(any(first <= p.step <= dense_until for p in s.mean) for s in series)
    start = max(s.mean[0].loss for s in series)  # a run that goes astray above it does not set the range
    top = min(max(shown), max(start, min(shown))) if dense else max(everything)
    return _window((0.0, right), min(everything), top, max(everything))


def end_window(series: list[Series], whole: Window) -> Window | None:
    """The last third of x, counted at the arm that ends first; None if an arm has too few points there for a line."""
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


def curves_figure(report: Report, axis: Axis, name: str) -> Figure | None:
    """The figure over an axis, its ids with the prefix `name`; None if no run has a curve."""
    series = all_series(report, axis.key)
    if not series:
        return None
    whole = whole_window(series)
    end = end_window(series, whole)
    panels = [_panel(report, series, axis, whole, name=f"{name}a", heading="The whole run", box=end)]
    if end:
        panels.append(_panel(report, series, axis, end, name=f"{name}b", heading="The end, enlarged"))
    return Figure(panels, _caption(report, axis, series, whole, end))


def _panel(
    report: Report,
    series: list[Series],
    axis: Axis,
    window: Window,
    *,
    name: str,
    heading: str,
    box: Window | None = None,
) -> str:
    ends = "; ".join(f"{s.name} ends at {decimal(s.mean[-1].loss)}" for s in series)
    words = f"Next-token validation loss in {report.unit} over {axis.title.lower()}. {ends}."
    panel = Panel(name, heading, words, [s.name for s in series])
    panel.set_x(*window.x)
    panel.set_y(*window.y, f"Validation loss ({report.unit})")
    x, y = panel.x, panel.y
    power = engineering(max(abs(end) for end in window.x))
    values = ticks(x.low, x.high, max(3, round((x.end - x.start) / 70)))
    labels = tick_labels(values, 10.0**power)
    panel.x_axis(
        [(x(value), label) for value, label in zip(values, labels, strict=True)],
        axis_title(axis.title, axis.unit, power),
    )
    if box:
        left, right = x(max(box.x[0], x.low)), x(min(box.x[1], x.high))
        top, bottom = y(min(box.y[1], y.high)), y(max(box.y[0], y.low))
        panel.box(left, top, right, bottom)
    _switches(panel, series)
    for s in series:
        panel.band(s.index, [(x(p.x), y(low), y(high)) for p, (low, high) in zip(s.mean, s.bands, strict=False)])
        for line in s.seeds if len(s.seeds) > 1 else ():
            panel.line(s.index, [(x(p.x), y(p.loss)) for p in line], "seed")
        panel.line(s.index, [(x(p.x), y(p.loss)) for p in s.mean])
        for p in s.mean:
            if x.holds(p.x) and y.holds(p.loss):
                panel.hover(s.index, x(p.x), y(p.loss), f"{s.name}, step {p.step:,}: {decimal(p.loss)}")
    last = [
        End(s.index, short, x(s.mean[-1].x), min(max(y(s.mean[-1].loss), y.end), y.start))
        for s, short in zip(series, panel.names, strict=True)
    ]
    panel.end_names(last)
    for each in last:
        panel.point(each.arm, each.x, each.y)
    return panel.svg()


def _switches(panel: Panel, series: list[Series]) -> None:
    """A dashed line at each switch in sight; arms that switch together share one."""
    found: dict[float, list[int]] = {}
    for s in series:
        if s.switch is not None and panel.x.low < s.switch < panel.x.high:
            found.setdefault(s.switch, []).append(s.index)
    text = "switch to next-token" if len(found) == 1 else "switch"
    row, last = 0, -math.inf
    for place, arms in sorted(found.items()):
        at = panel.x(place)
        row = row + 1 if at - last < len(text) * CHARACTER + 10 else 0
        last = at
        to_left = at + 5 + len(text) * CHARACTER > WIDTH
        panel.switch(arms[0] if len(arms) == 1 else None, at, 14.0 * (row % 4), text, to_left=to_left)


def _caption(report: Report, axis: Axis, series: list[Series], whole: Window, end: Window | None) -> str:
    longest = f" in the runs of {count(report.reference_steps)} steps" if report.has_budgets else ""
    over = "training compute" if axis is COMPUTE else "raw tokens read"
    lines = [f"Next-token validation loss{longest}, in the superposition phase too, over {over}."]
    if axis is DATA:
        lines.append("Dots carry the level of an arm that ends earlier to the right edge.")
    if report.num_seeds > 1:
        what = "95% interval of the mean" if report.num_seeds >= FEWEST_FOR_INTERVAL else "range of the seeds"
        lines.append(f"Bold: mean; thin: each seed; shaded: {what}.")
    lines.append("Dashed: the switch" + ("; box: the part that is enlarged." if end else "."))
    if whole.clipped or (end and end.clipped):
        lines.append("Losses above the frame are cut off at the top.")
    missing = [arm.name for arm in report.arms if arm.name not in {s.name for s in series}]
    if missing:
        lines.append(f"Without a curve: {', '.join(missing)}.")
    finals = [report.arm_named(s.name).mean("final_validation_loss") for s in series]
    if any(final is None or abs(s.mean[-1].loss - final) > 0.0005 for s, final in zip(series, finals, strict=True)):
        ends = ", ".join(f"{s.name} at {decimal(s.mean[-1].loss, 3)}" for s in series)
        lines.append(f"Curves use fewer validation tokens than the final losses, so they end elsewhere: {ends}.")
    return " ".join(lines)
