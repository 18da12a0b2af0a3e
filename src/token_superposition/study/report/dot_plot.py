"""The differences to the baseline, seed by seed: a dot each, the mean and its interval, against zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from token_superposition.formatting import compared, digits_of, interval
from token_superposition.study.report.facts import Report, differences, unit
from token_superposition.study.report.plot import AxisScale, arm_class, marker, short, tick_labels, ticks

_WIDTH, _ROW, _TOP, _BOTTOM, _SIDE = 480.0, 62.0, 26.0, 46.0, 16.0


def difference_strip(report: Report) -> str:
    """The figure as SVG; empty where no arm has differences of several seeds."""
    rows = [r for r in differences(report) if len(r["deltas"]) > 1 and all(map(math.isfinite, r["deltas"]))]
    if not rows:
        return ""
    values = [0.0]
    for row in rows:
        values += [*row["deltas"], *(row["confidence_interval"] or [])]
    pad = 0.06 * (max(values) - min(values)) or 0.01
    height = _TOP + _ROW * len(rows) + _BOTTOM
    x = AxisScale(min(values) - pad, max(values) + pad, _SIDE, _WIDTH - _SIDE)
    words = "; ".join(_words(row) for row in rows)
    order = {arm["name"]: index for index, arm in enumerate(report["arms"])}
    parts = [
        f'<svg class="panel strip" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-labelledby="strip-t strip-d">',
        '<title id="strip-t">Difference to the baseline, seed by seed</title>',
        f'<desc id="strip-d">{escape(words)}.</desc>',
        *_frame(x, height, unit(report)),
        *(_row(row, order[row["arm"]], _TOP + _ROW * place, x) for place, row in enumerate(rows)),
        "</svg>",
    ]
    return "\n".join(parts)


def _frame(x: AxisScale, height: float, unit_words: str) -> list[str]:
    bottom, zero = height - _BOTTOM, x(0)
    parts = []
    values = ticks(x.low, x.high, 6)
    for value, label in zip(values, tick_labels(values, unsigned=True), strict=True):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{bottom + 17:g}" text-anchor="middle">{label}</text>')
    parts += [
        f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{bottom:g}"/>',
        f'<text class="axis" x="{_WIDTH / 2:g}" y="{height - 7:g}" text-anchor="middle">'
        f"← better than the baseline · difference ({escape(unit_words)}) · worse →</text>",
    ]
    return parts


def _row(row: Mapping[str, Any], index: int, top: float, x: AxisScale) -> str:
    style, middle, ends = arm_class(index), top + 31, row["confidence_interval"]
    at_right = x(0) < _WIDTH / 2
    side, anchor = (_WIDTH - _SIDE, "end") if at_right else (_SIDE, "start")
    parts = [
        f'<text class="name {style}" x="{side:g}" y="{top + 16:g}" text-anchor="{anchor}">{escape(_words(row))}</text>'
    ]
    if ends is not None:
        low, high = x(ends[0]), x(ends[1])
        parts.append(
            f'<path class="whisker {style}" d="M{low:.1f} {middle - 6:g}v12M{high:.1f} {middle - 6:g}v12'
            f'M{low:.1f} {middle:g}H{high:.1f}"/>'
        )
    parts += [
        f'<circle class="dot {style}" cx="{x(delta):.1f}" cy="{middle + 15:g}" r="4"/>' for delta in row["deltas"]
    ]
    parts.append(marker(index, x(row["delta_nats"]), middle))
    return "\n".join(parts)


def _words(row: Mapping[str, Any]) -> str:
    ends = row["confidence_interval"]
    level = f" ({row['confidence_level']:.0%} interval {interval(ends)})" if ends is not None else ""
    return f"{short(row['arm'], 24)} {compared(row['delta_nats'], digits_of(row['delta_nats']))}{level}"
