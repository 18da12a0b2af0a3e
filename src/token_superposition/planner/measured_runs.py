"""What has been measured of superposition so far: the paper's runs and sweeps, and this project's own comparisons.

All of it lies in `evidence/`, as tables whose first lines say where they come from; a row more is a measurement more.
A `Comparison` is a baseline and a superposition run at equal FLOPs. A `MeasuredStudy` gathers the comparisons of one
model and length, over bag sizes and ratios.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from token_superposition.study.significance import NOISE, t_quantile

Unit = Literal["subwords", "bytes"]
Start = Literal["fresh", "trained"]
Cell = tuple[int, float]  # bag size, ratio

# Nats that one seed of ours may be off by, as NOISE is of the paper's sweeps, of a model of which no length was trained
# with several seeds: twice the deviation of gains from seed to seed, 0.004 to 0.011 where there are five.
OWN_NOISE = 0.015
PAPER = "the paper, arXiv 2605.06546"


@dataclass(frozen=True)
class RunSize:
    """How large a run is: parameters that a position visits, and positions."""

    parameters: float
    positions: float

    def distance(self, other: RunSize) -> float:
        """In powers of ten, of parameters and of positions together."""
        return sum(abs(math.log10(ratio)) for ratio in self._ratios(other))

    def near(self, other: RunSize) -> bool:
        """Whether neither differs by more than ten times."""
        return self._apart(other) <= 1

    def of_one_regime(self, other: RunSize) -> bool:
        """Whether neither differs by more than a hundred times: how a gain changes further away says nothing here."""
        return self._apart(other) <= 2

    def _apart(self, other: RunSize) -> float:
        return max(abs(math.log10(ratio)) for ratio in self._ratios(other))

    def _ratios(self, other: RunSize) -> tuple[float, float]:
        return self.parameters / other.parameters, self.positions / other.positions


@dataclass(frozen=True)
class Comparison:
    """A baseline and a superposition run of the same FLOPs.

    Attributes:
        name: of the model or the study.
        unit, start: what tokens are; and whether weights were fresh.
        scale, total_steps: of both runs.
        bag_size, ratio: of the superposition run; None where they were not written down.
        seeds: how many of each.
        baseline_loss, loss: final validation loss, nats a token.
        half_width: of the 95% interval of the difference; None where it cannot be had.
        seed_noise: what one seed of this model may be off by.
        speedup: at equal loss, where it was measured.
        source: in words.
    """

    name: str
    unit: Unit
    start: Start
    scale: RunSize
    total_steps: int
    bag_size: int | None
    ratio: float | None
    seeds: int
    baseline_loss: float
    loss: float
    half_width: float | None
    seed_noise: float
    speedup: float | None
    source: str

    @property
    def noise(self) -> float:
        """What the gain may be off by: half of its interval, or what one seed may be."""
        return self.seed_noise if self.half_width is None else self.half_width

    @property
    def gain(self) -> float:
        """Nats that superposition was better by."""
        return self.baseline_loss - self.loss

    @property
    def won(self) -> bool:
        """Whether it was better beyond its interval, or beyond noise where there is none."""
        return self.gain > self.noise

    @property
    def lost(self) -> bool:
        """The same, worse."""
        return -self.gain > self.noise


@dataclass(frozen=True)
class MeasuredStudy:
    """The comparisons of one model at one length, by bag size and ratio: the gain, and what it may be off by."""

    name: str
    unit: Unit
    start: Start
    scale: RunSize
    total_steps: int
    source: str
    gains: Mapping[Cell, tuple[float, float]]

    def gain_at(self, bag_size: int, ratio: float) -> float | None:
        """The gain there; on a sweep's grid also between its ratios (at a ratio of 0 there is none). None outside."""
        known = {cell[1]: gain for cell, (gain, _) in self.gains.items() if cell[0] == bag_size}
        for measured, gain in known.items():
            if math.isclose(measured, ratio, abs_tol=1e-6):
                return gain
        if len(known) < 2 or ratio <= 0:
            return None
        known[0.0] = 0.0
        below = max(at for at in known if at < ratio)
        above = min((at for at in known if at > ratio), default=None)
        if above is None:
            return None
        return known[below] + (ratio - below) / (above - below) * (known[above] - known[below])

    @property
    def is_sweep(self) -> bool:
        """Whether it says how the gain depends on bag size and ratio."""
        return len({bag_size for bag_size, _ in self.gains}) > 2


@dataclass(frozen=True)
class PaperRun:
    """A line of the paper's tables; `superposed` is False of baselines. Hours are of one B200."""

    model: str
    parameters: int
    scale: RunSize
    positions_per_step: int
    learning_rate: float
    arm: str
    total_steps: int
    superposition_steps: int
    bag_size: int
    raw_tokens: int
    b200_hours: float
    final_loss: float


@cache
def paper_runs() -> tuple[PaperRun, ...]:
    """Every run that the paper's tables give hours of."""
    return tuple(
        PaperRun(
            model=row["model"],
            parameters=int(row["parameters"]),
            scale=RunSize(int(row["active_parameters"]), int(row["positions_per_step"]) * int(row["total_steps"])),
            positions_per_step=int(row["positions_per_step"]),
            learning_rate=float(row["learning_rate"]),
            arm=row["arm"],
            total_steps=int(row["total_steps"]),
            superposition_steps=int(row["superposition_steps"]),
            bag_size=int(row["bag_size"]),
            raw_tokens=int(row["raw_tokens"]),
            b200_hours=float(row["b200_hours"]),
            final_loss=float(row["final_loss"]),
        )
        for row in read_table("evidence/paper_runs.csv")
    )


@cache
def comparisons() -> tuple[Comparison, ...]:
    """Every comparison at equal FLOPs: the paper's sweeps with uniform weights, its other pairs, and our own."""
    sweeps = [row for row in read_table("evidence/paper_grid.csv") if row["slot_weights"] == "uniform"]
    swept = {(row["model"], int(row["total_steps"])) for row in sweeps}
    runs = paper_runs()
    scales = {(run.model, run.total_steps): run.scale for run in runs}
    found = [
        _of_paper(row["model"], scales, int(row["total_steps"]), int(row["bag_size"]), float(key[1:]), loss, baseline)
        for row in sweeps
        for key, text in row.items()
        if key.startswith("r0.")
        for loss, baseline in [(float(text), float(row["baseline"]))]
    ]
    baselines = {(run.model, run.total_steps): run.final_loss for run in runs if run.arm == "baseline"}
    for run in runs:
        at = (run.model, run.total_steps)
        if run.arm == "tst" and at in baselines and at not in swept:
            ratio = run.superposition_steps / run.total_steps
            found.append(_of_paper(run.model, scales, at[1], run.bag_size, ratio, run.final_loss, baselines[at]))
    ours = read_table("evidence/own_runs.csv")
    noise = {name: _seed_noise([row for row in ours if row["name"] == name]) for name in {row["name"] for row in ours}}
    return (*found, *(_of_ours(row, noise[row["name"]]) for row in ours))


@cache
def studies() -> tuple[MeasuredStudy, ...]:
    """The comparisons whose bag size and ratio are known, gathered by model and length."""
    gathered: dict[tuple[str, Unit, Start, RunSize, int, str], dict[Cell, tuple[float, float]]] = defaultdict(dict)
    for each in comparisons():
        if each.bag_size is not None and each.ratio is not None:
            key = (each.name, each.unit, each.start, each.scale, each.total_steps, each.source)
            gathered[key][each.bag_size, each.ratio] = (each.gain, each.noise)
    return tuple(MeasuredStudy(*key, gains) for key, gains in gathered.items())


def of_kind(unit: Unit, start: Start) -> list[MeasuredStudy]:
    """The studies of one kind of tokens and of start."""
    return [study for study in studies() if (study.unit, study.start) == (unit, start)]


def best_of_each(unit: Unit, start: Start) -> list[Comparison]:
    """Of each study of a kind the comparison that gained most: a bad setting says nothing against the others."""
    best: dict[tuple[str, RunSize], Comparison] = {}
    for each in comparisons():
        key = (each.name, each.scale)
        if (each.unit, each.start) == (unit, start) and (key not in best or each.gain > best[key].gain):
            best[key] = each
    return list(best.values())


def _of_paper(
    model: str,
    scales: Mapping[tuple[str, int], RunSize],
    steps: int,
    bag_size: int,
    ratio: float,
    loss: float,
    baseline: float,
) -> Comparison:
    scale = scales[model, steps]
    return Comparison(
        model, "subwords", "fresh", scale, steps, bag_size, ratio, 1, baseline, loss, None, NOISE, None, PAPER
    )  # fmt: skip


def _seed_noise(rows: Sequence[Mapping[str, str]]) -> float:
    """Twice the deviation of the gains of one model from seed to seed, as its intervals imply it."""
    squares, degrees = 0.0, 0
    for row in rows:
        if row["half_width"]:
            free = int(row["seeds"]) - 1
            deviation = float(row["half_width"]) * math.sqrt(free + 1) / t_quantile(0.95, free)
            squares, degrees = squares + free * deviation**2, degrees + free
    return 2 * math.sqrt(squares / degrees) if degrees else OWN_NOISE


def _of_ours(row: Mapping[str, str], seed_noise: float) -> Comparison:
    unit: Unit = "bytes" if row["unit"] == "bytes" else "subwords"
    start: Start = "trained" if row["start"] == "trained" else "fresh"
    steps = int(row["total_steps"])
    return Comparison(
        name=row["name"],
        unit=unit,
        start=start,
        scale=RunSize(int(row["parameters"]), int(row["positions_per_step"]) * steps),
        total_steps=steps,
        bag_size=int(row["bag_size"]) if row["bag_size"] else None,
        ratio=float(row["ratio"]) if row["ratio"] else None,
        seeds=int(row["seeds"]),
        baseline_loss=float(row["baseline_loss"]),
        loss=float(row["loss"]),
        half_width=float(row["half_width"]) if row["half_width"] else None,
        seed_noise=seed_noise,
        speedup=float(row["speedup"]) if row["speedup"] else None,
        source=row["source"],
    )


# The package's small tables: CSV files whose first lines, after #, say where the figures come from.


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table in this room, such as `hardware.csv` or `evidence/own_runs.csv`."""
    text = resources.files("token_superposition.planner").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
