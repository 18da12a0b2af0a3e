"""What superposition should gain on a run, as a range, from what was measured near it.

**Gain at equal FLOPs.** The range is spanned by the three nearest measured runs with their intervals; by those at the
same size alone, where there are any. Of runs that differ more than a hundred times in parameters or in positions from
the nearest nothing is taken. Outside the sizes measured near it, it opens, for each power of ten in parameters or
positions, by as much as the gain changed between any two measured runs of its kind (the steepest): far away it soon
holds zero. Where every model that was measured at two lengths gained less at the longer, a longer run is not promised
more. A run with one setting (the paper's 3B) is carried to another by how the sweeps of its regime depend on bag size
and ratio; without such a sweep it says nothing of another. Beyond ten times in either there is no range.

**Speed-up at equal loss.** Of the paper's runs the baseline's curve is read at superposition's end, between two of its
runs, in the logarithm of compute; of ours it stands in the table. Few such readings exist, so the range is what the
nearest three span, carried to another setting in the same way, but never upwards. Outside their sizes its cautious end
falls, towards no saving, by as much as such readings change. Between two runs far apart the reading flatters: the real
curve sags below the chord. A loss below every baseline's gives a lower bound, which is taken as it stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from token_superposition.planner.measured_runs import (
    Cell,
    MeasuredStudy,
    RunSize,
    Start,
    Unit,
    comparisons,
    of_kind,
    paper_runs,
)
from token_superposition.study.significance import NOISE

APART = 0.1  # powers of ten: nearer runs differ by noise, and say nothing of how fast a gain changes
_INSIDE = 0.05  # the same, of what still counts as inside the measured sizes
_NEAREST = 3


@dataclass(frozen=True)
class Range:
    """From `low` to `high`; `extrapolated` beyond the measured sizes; `basis` in words."""

    low: float
    high: float
    extrapolated: bool
    basis: str


@dataclass(frozen=True)
class CurveReading:
    """A speed-up at equal loss: of which model, a baseline of which scale, which setting, and how it was found."""

    name: str
    scale: RunSize
    cell: Cell
    speedup: float
    how: str


def gain_range(scale: RunSize, cell: Cell, unit: Unit, start: Start) -> Range | None:
    """Nats a token that superposition gains at equal FLOPs; None where nothing near was measured."""
    kind = of_kind(unit, start)
    home = _nearest(scale, kind)
    regime = [(study, carried_gain(study, cell, kind)) for study in kind if study.scale.of_one_regime(home)]
    gains = [(study, gain) for study, gain in regime if gain is not None]
    changes = _changes(regime)
    steepest, falls = _steepest(changes), _falls_with_length(changes)
    near = sorted(
        ((study.scale.distance(scale), study, gain) for study, gain in gains if study.scale.near(scale)),
        key=lambda found: found[0],
    )
    taken = [found for found in near if found[0] < APART] or near[:_NEAREST]
    shorter, longer, sideways = _outside(scale, [study.scale for _, study, _ in near])
    if not taken or (steepest is None and shorter + longer + sideways > 0):
        return None
    ends = [(gain - half, gain + half) for _, study, gain in taken for half in [_half_width(study, cell)]]
    below = (steepest or 0.0) * (shorter + longer + sideways)
    above = (steepest or 0.0) * (shorter + sideways + (0.0 if falls else longer))
    names = [_words(study, cell) for _, study, _ in taken]
    return Range(
        min(low for low, _ in ends) - below,
        max(high for _, high in ends) + above,
        shorter + longer + sideways > 0,
        ", ".join(dict.fromkeys(names)),
    )


def speedup_range(scale: RunSize, cell: Cell, unit: Unit, start: Start) -> Range | None:
    """How many times less compute the same loss takes; None where nothing of the kind was measured near."""
    kind = of_kind(unit, start)
    home = _nearest(scale, kind)
    found = sorted(
        (
            (reading, share)
            for reading in readings(unit, start)
            if reading.scale.of_one_regime(home)
            and (share := _share(reading.scale, reading.cell, cell, kind)) is not None
        ),
        key=lambda carried: carried[0].scale.distance(scale),
    )
    if not any(reading.scale.near(scale) for reading, _ in found):
        return None
    values = [reading.speedup ** min(1.0, max(0.0, share)) for reading, share in found[:_NEAREST]]
    taken = [reading for reading, _ in found[:_NEAREST]]
    outside = sum(_outside(scale, [each.scale for each in taken]))
    steepest = _steepest(
        [(a.scale, b.scale, math.log(b.speedup / a.speedup)) for (a, _), (b, _) in itertools.combinations(found, 2)]
    )
    if steepest is None and outside > 0:
        return None
    low = max(1.0, min(values) * math.exp(-(steepest or 0.0) * outside))
    return Range(low, max(values), outside > 0, "; ".join(f"{each.name}: {each.how}" for each in taken))


def readings(unit: Unit, start: Start) -> list[CurveReading]:
    """Every speed-up at equal loss that the tables hold."""
    found = [
        CurveReading(
            f"{each.name} at {each.total_steps:,} steps",
            each.scale,
            (each.bag_size, each.ratio),
            each.speedup,
            f"{each.speedup:.3g}x ({each.source})",
        )
        for each in comparisons()
        if each.speedup is not None and each.bag_size is not None and each.ratio is not None
        if (each.unit, each.start) == (unit, start)
    ]
    if (unit, start) != ("subwords", "fresh"):
        return found
    for run in paper_runs():
        if run.arm != "tst":
            continue
        curve = sorted(
            (r.total_steps, r.final_loss) for r in paper_runs() if (r.model, r.arm) == (run.model, "baseline")
        )
        read = read_curve(curve, run.final_loss)
        if read is None:
            continue
        steps, how = read
        speedup = steps / run.total_steps
        if speedup > 1.01:  # a baseline no longer than the run bounds nothing
            words = f"{how}{speedup:.2g}x less ({round(steps / 1000):,}k -> {round(run.total_steps / 1000):,}k steps)"
            cell = (run.bag_size, run.superposition_steps / run.total_steps)
            scale = RunSize(run.scale.parameters, steps * run.positions_per_step)
            found.append(CurveReading(run.model, scale, cell, speedup, words))
    return found


def read_curve(curve: Sequence[tuple[int, float]], loss: float) -> tuple[float, str] | None:
    """The steps at which a falling curve of (steps, loss) reaches a loss, and how that is known; None above it."""
    if not curve or loss > curve[0][1]:
        return None
    for (first, above), (last, below) in itertools.pairwise(curve):
        if below <= loss <= above:
            share = (above - loss) / (above - below)
            steps = math.exp(math.log(first) + share * math.log(last / first))
            at_a_run = min(above - loss, loss - below) <= NOISE
            return steps, "" if at_a_run else "at most, on the line between two baselines, "
    return curve[-1][0], "at least "


def carried_gain(study: MeasuredStudy, cell: Cell, kind: Sequence[MeasuredStudy]) -> float | None:
    """A study's gain at a setting, measured there or carried there by sweeps of its kind and regime; None without."""
    gain = study.gain_at(*cell)
    if gain is not None or len(study.gains) > 1:
        return gain
    ((measured, (at, _)),) = study.gains.items()
    share = _share(study.scale, measured, cell, kind)
    if share is None:
        return None
    return at * share if at > 0 else at  # a loss is no share of a gain


def mean_gain(cell: Cell, among: Sequence[MeasuredStudy]) -> float | None:
    """The mean gain at a setting over the studies that were measured there; None where none was."""
    gains = [gain for study in among if (gain := study.gain_at(*cell)) is not None]
    return math.fsum(gains) / len(gains) if gains else None


def _share(scale: RunSize, measured: Cell, cell: Cell, kind: Sequence[MeasuredStudy]) -> float | None:
    """The gain at a setting over that at another, by the sweeps of a regime that have both; None where none has."""
    if measured == cell:
        return 1.0
    both = [
        (there, here)
        for study in kind
        if study.is_sweep
        and study.scale.of_one_regime(scale)
        and (there := study.gain_at(*measured)) is not None
        and (here := study.gain_at(*cell)) is not None
    ]
    measured_sum = math.fsum(there for there, _ in both)
    return math.fsum(here for _, here in both) / measured_sum if measured_sum > 0 else None


def _nearest(scale: RunSize, kind: Sequence[MeasuredStudy]) -> RunSize:
    """Of the measured sizes the nearest; what lies a hundred times from it is of another regime."""
    return min((study.scale for study in kind), key=scale.distance, default=scale)


def _words(study: MeasuredStudy, cell: Cell) -> str:
    """Which study, and from which setting its gain is carried, if from another."""
    name = f"{study.name} at {study.total_steps:,} steps"
    if study.gain_at(*cell) is not None:
        return name
    ((bag_size, ratio),) = study.gains
    return f"{name} (carried from bags of {bag_size} for {ratio:.0%})"


def _half_width(study: MeasuredStudy, cell: Cell) -> float:
    """What the gain there may be off by, or that from which it is carried."""
    here = [noise for at, (_, noise) in study.gains.items() if at == cell]
    same_bags = [noise for at, (_, noise) in study.gains.items() if at[0] == cell[0]]
    return max(here or same_bags or [noise for _, noise in study.gains.values()])


def _changes(regime: Sequence[tuple[MeasuredStudy, float | None]]) -> list[tuple[RunSize, RunSize, float]]:
    """How the gain changed from the shorter of any two studies to the longer.

    At the setting asked for, where both say it; else wherever both were measured.
    """
    found = []
    by_length = sorted(regime, key=lambda known: known[0].scale.positions)
    for (short, before), (long, after) in itertools.combinations(by_length, 2):
        known = [(before, after)]
        if before is None or after is None:
            known = [(short.gain_at(*cell), long.gain_at(*cell)) for cell in {*short.gains, *long.gains}]
        found += [(short.scale, long.scale, b - a) for a, b in known if a is not None and b is not None]
    return found


def _steepest(changes: Sequence[tuple[RunSize, RunSize, float]]) -> float | None:
    """The largest change for each power of ten; None where none is known between sizes that are apart."""
    slopes = [abs(change) / distance for a, b, change in changes if (distance := a.distance(b)) >= APART]
    return max(slopes, default=None)


def _falls_with_length(changes: Sequence[tuple[RunSize, RunSize, float]]) -> bool:
    """Whether every model that was measured at two lengths gained less at the longer."""
    found = [
        change
        for short, long, change in changes
        if abs(math.log10(long.parameters / short.parameters)) < APART
        and math.log10(long.positions / short.positions) >= APART
    ]
    return bool(found) and all(change < 0 for change in found)


def _outside(scale: RunSize, among: Sequence[RunSize]) -> tuple[float, float, float]:
    """Powers of ten by which a run is shorter than all of them, longer, and smaller or larger; 0 inside."""

    def beyond(size: float, sizes: Sequence[float]) -> tuple[float, float]:
        under, over = math.log10(min(sizes) / size), math.log10(size / max(sizes))
        return (under if under > _INSIDE else 0.0), (over if over > _INSIDE else 0.0)

    if not among:
        return 0.0, 0.0, 0.0
    shorter, longer = beyond(scale.positions, [each.positions for each in among])
    return shorter, longer, sum(beyond(scale.parameters, [each.parameters for each in among]))
