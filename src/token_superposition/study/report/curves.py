"""The report's curves as lines to draw: a thin one a seed, their mean, and a band over the seeds around it.

A mean is taken over the steps that all seeds of the arm share, so that a seed that ended early cannot bend
it. Losses that are missing or not finite are left out of the lines.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from token_superposition.formatting import finite
from token_superposition.study.arms import Arm
from token_superposition.study.report.budget_facts import band_of
from token_superposition.study.report.facts import Report


@dataclass(frozen=True)
class Point:
    """One validation: where on the x axis, at which step, with what loss."""

    x: float
    step: int
    loss: float


@dataclass(frozen=True)
class Series:
    """An arm's lines.

    Attributes:
        name: the arm's.
        index: the arm's place in the report: its colour and marker.
        seeds: a line a seed.
        mean: the mean line; of a single seed, its line.
        bands: around each point of the mean, from where to where; empty of a single seed.
        switch: x of the switch to next-token training; None for an arm without one.
    """

    name: str
    index: int
    seeds: tuple[tuple[Point, ...], ...]
    mean: tuple[Point, ...]
    bands: tuple[tuple[float, float], ...]
    switch: float | None


def all_series(report: Report, key: str) -> list[Series]:
    """The lines of every arm that has a curve, over `key` (`flops` or `raw_tokens`)."""
    made = (_series(arm, index, key) for index, arm in enumerate(report["arms"]))
    return [series for series in made if series is not None]


def _series(arm: Arm, index: int, key: str) -> Series | None:
    lines = [_line(seed.get("curve") or [], key) for seed in arm["seeds"]]
    lines = [line for line in lines if line]
    mean = _mean(lines)
    if not mean:
        return None
    by_step = [{point.step: point.loss for point in line} for line in lines]
    bands = [band_of([losses[point.step] for losses in by_step]) for point in mean]
    known = tuple(band for band in bands if band is not None)
    return Series(arm["name"], index, tuple(lines), mean, known, _x_at(mean, int(arm["switch_step"])))


def _line(curve: list[dict[str, Any]], key: str) -> tuple[Point, ...]:
    points = [
        Point(float(p[key]), int(p["step"]), float(p["validation_loss"]))
        for p in curve
        if finite(p.get("validation_loss")) and finite(p.get(key))
    ]
    return tuple(sorted(points, key=lambda point: point.step))


def _mean(lines: list[tuple[Point, ...]]) -> tuple[Point, ...]:
    by_step = [{point.step: point for point in line} for line in lines]
    shared = set.intersection(*(set(points) for points in by_step)) if by_step else set()
    number = len(lines)
    return tuple(
        Point(
            math.fsum(points[step].x for points in by_step) / number,
            step,
            math.fsum(points[step].loss for points in by_step) / number,
        )
        for step in sorted(shared)
    )


def _x_at(line: tuple[Point, ...], step: int) -> float | None:
    """Where on the x axis a step lies, between the points beside it; None for step 0 or outside the line."""
    if step <= 0:
        return None
    for before, after in itertools.pairwise(line):
        if before.step <= step <= after.step:
            return before.x + (after.x - before.x) * (step - before.step) / (after.step - before.step)
    return None
