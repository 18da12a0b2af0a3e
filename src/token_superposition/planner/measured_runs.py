"""The runs that were measured so far: the paper's runs and sweeps, and this project's own comparisons.

The tables in `evidence/` name their sources in their first lines. A `Comparison` is a baseline and a superposition run
of equal FLOPs. A `SpeedupReading` says how many times less compute superposition took for the baseline's loss.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from token_superposition.study.significance import NOISE, t_quantile

Unit = Literal["subwords", "bytes"]
Start = Literal["fresh", "trained"]
Bound = Literal["exact", "at most", "at least"]
Cell = tuple[int, float]  # bag size and ratio

# Error in nats of one seed of our small models, if no length was trained with several seeds. It is twice the deviation
# of gains from seed to seed, which is 0.004 to 0.011 with five seeds. NOISE is the same for the paper's sweeps.
OWN_NOISE = 0.015
PAPER = "the paper, arXiv 2605.06546"


@dataclass(frozen=True)
class RunSize:
    """The size of a run: parameters that are active per position, and positions."""

    parameters: float
    positions: float

    @property
    def tokens_per_parameter(self) -> float:
        """Positions divided by parameters."""
        return self.positions / self.parameters

    def distance(self, other: RunSize) -> float:
        """The larger difference in parameters and in tokens per parameter, as a power of ten: 1 is ten times."""
        return max(
            abs(math.log10(self.parameters / other.parameters)),
            abs(math.log10(self.tokens_per_parameter / other.tokens_per_parameter)),
        )

    def near(self, other: RunSize) -> bool:
        """Whether parameters and tokens per parameter both differ by at most ten times."""
        return self.distance(other) <= 1


@dataclass(frozen=True)
class Comparison:
    """A baseline and a superposition run of the same FLOPs.

    Attributes:
        name, source: the model or study, and where it is described.
        unit, start: the kind of tokens; fresh or trained weights.
        scale, total_steps: of both runs.
        bag_size, ratio: of the superposition run; None if they were not recorded.
        seeds: the number of runs of each arm.
        gain: baseline loss minus superposition loss, nats per token.
        half_width: of the 95% interval of the gain; None with one seed.
        noise: the error of the gain: the half width, or for one seed an estimate from other runs.
    """

    name: str
    source: str
    unit: Unit
    start: Start
    scale: RunSize
    total_steps: int
    bag_size: int | None
    ratio: float | None
    seeds: int
    gain: float
    half_width: float | None
    noise: float

    @property
    def cell(self) -> Cell | None:
        """The setting, or None if it was not recorded."""
        return None if self.bag_size is None or self.ratio is None else (self.bag_size, self.ratio)

    @property
    def study(self) -> tuple[str, RunSize]:
        """What the comparisons of one sweep have in common."""
        return self.name, self.scale


@dataclass(frozen=True)
class SpeedupReading:
    """The compute of the baseline divided by that of superposition, at equal loss.

    Attributes:
        name: of the model.
        unit, start, scale: of the baseline that it was read from.
        cell: the setting.
        speedup, bound: the figure, and if it is only a bound.
    """

    name: str
    unit: Unit
    start: Start
    scale: RunSize
    cell: Cell
    speedup: float
    bound: Bound


@dataclass(frozen=True)
class PaperRun:
    """A row of the paper's tables. The hours are of one B200."""

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

    @property
    def cell(self) -> Cell:
        """The setting."""
        return self.bag_size, self.superposition_steps / self.total_steps


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table of the package, such as `hardware.csv` or `evidence/own_runs.csv`."""
    text = resources.files("token_superposition.planner").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def paper_runs() -> tuple[PaperRun, ...]:
    """Every run of which the paper states the hours."""
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
    """Every comparison at equal FLOPs with uniform slot weights."""
    runs = paper_runs()
    scales = {(run.model, run.total_steps): run.scale for run in runs}
    baselines = {(run.model, run.total_steps): run.final_loss for run in runs if run.arm == "baseline"}
    swept = set()
    found = []
    for row in read_table("evidence/paper_grid.csv"):
        at = (row["model"], int(row["total_steps"]))
        if row["slot_weights"] != "uniform":
            continue
        swept.add(at)
        for key, loss in row.items():
            if key.startswith("r0."):
                cell = (int(row["bag_size"]), float(key[1:]))
                found.append(_of_paper(at, scales[at], cell, float(row["baseline"]) - float(loss)))
    for run in runs:
        at = (run.model, run.total_steps)
        if run.arm == "tst" and at in baselines and at not in swept:
            found.append(_of_paper(at, run.scale, run.cell, baselines[at] - run.final_loss))
    ours = read_table("evidence/own_runs.csv")
    noise = {name: _seed_noise([row for row in ours if row["name"] == name]) for name in {row["name"] for row in ours}}
    return (*found, *(_of_ours(row, noise[row["name"]]) for row in ours))


@cache
def speedups() -> tuple[SpeedupReading, ...]:
    """Every speed-up at equal loss: our own from the table, the paper's read from the curve of its baselines."""
    found = [
        SpeedupReading(
            row["name"],
            _unit(row),
            _start(row),
            _own_size(row),
            (int(row["bag_size"]), float(row["ratio"])),
            float(row["speedup"]),
            "exact",
        )
        for row in read_table("evidence/own_runs.csv")
        if row["speedup"]
    ]
    for run in (run for run in paper_runs() if run.arm == "tst"):
        curve = sorted(
            (b.total_steps, b.final_loss) for b in paper_runs() if (b.model, b.arm) == (run.model, "baseline")
        )
        steps, bound = read_curve(curve, run.final_loss)
        if steps > 1.01 * run.total_steps:  # a baseline that is no longer than the run bounds nothing
            scale = RunSize(run.scale.parameters, steps * run.positions_per_step)
            speedup = steps / run.total_steps
            found.append(SpeedupReading(run.model, "subwords", "fresh", scale, run.cell, speedup, bound))
    return tuple(found)


def read_curve(curve: Sequence[tuple[int, float]], loss: float) -> tuple[float, Bound]:
    """The steps at which a falling curve of (steps, loss) reaches a loss, interpolated in the logarithm of steps.

    Between two distant points the true curve is below the line, so the reading is an upper bound. Below the last
    point, the last point is a lower bound. Above the first point there is no reading, and 0 is returned.
    """
    for (first, above), (last, below) in itertools.pairwise(curve):
        if below <= loss <= above:
            steps = math.exp(math.log(first) + (above - loss) / (above - below) * math.log(last / first))
            return steps, "exact" if min(above - loss, loss - below) <= NOISE else "at most"
    return (float(curve[-1][0]), "at least") if loss < curve[-1][1] else (0.0, "exact")


def _of_paper(at: tuple[str, int], scale: RunSize, cell: Cell, gain: float) -> Comparison:
    return Comparison(at[0], PAPER, "subwords", "fresh", scale, at[1], *cell, 1, gain, None, NOISE)


def _of_ours(row: Mapping[str, str], seed_noise: float) -> Comparison:
    half_width = float(row["half_width"]) if row["half_width"] else None
    return Comparison(
        name=row["name"],
        source=row["source"],
        unit=_unit(row),
        start=_start(row),
        scale=_own_size(row),
        total_steps=int(row["total_steps"]),
        bag_size=int(row["bag_size"]) if row["bag_size"] else None,
        ratio=float(row["ratio"]) if row["ratio"] else None,
        seeds=int(row["seeds"]),
        gain=float(row["baseline_loss"]) - float(row["loss"]),
        half_width=half_width,
        noise=seed_noise if half_width is None else half_width,
    )


def _unit(row: Mapping[str, str]) -> Unit:
    return "bytes" if row["unit"] == "bytes" else "subwords"


def _start(row: Mapping[str, str]) -> Start:
    return "trained" if row["start"] == "trained" else "fresh"


def _own_size(row: Mapping[str, str]) -> RunSize:
    return RunSize(int(row["parameters"]), int(row["positions_per_step"]) * int(row["total_steps"]))


def _seed_noise(rows: Sequence[Mapping[str, str]]) -> float:
    """Twice the deviation of one model's gains from seed to seed, computed from its intervals."""
    squares, degrees = 0.0, 0
    for row in rows:
        if row["half_width"]:
            free = int(row["seeds"]) - 1
            deviation = float(row["half_width"]) * math.sqrt(free + 1) / t_quantile(0.95, free)
            squares, degrees = squares + free * deviation**2, degrees + free
    return 2 * math.sqrt(squares / degrees) if degrees else OWN_NOISE
