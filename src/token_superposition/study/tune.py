"""Trains a sweep, chooses for each arm its own best values, and trains the comparison there.

**Seeds.** The best of several noisy losses is too good by chance, and the arm whose losses are the flatter over
the values gains more by that. So a sweep has seeds of its own, counted from the run's seed and 1,000, and the
seeds that are compared (the run's and those after it) have no part in the choice: their losses and the interval
need no correction for it. It costs one more run an arm than comparing on the sweep's seeds would. The choice
itself may rest on one seed: a choice that is a little off makes an arm a little worse, not its figure too good.

**Choice.** For each arm the setting with the lowest mean of the final validation losses. A setting at which any
run diverged counts as worst. That holds for the compared seeds too: where one of them diverges at the chosen
setting, the next best takes its place, and the report says so. So a study ends with a result unless an arm
diverges everywhere.

**Folders.** `runs/ARM/SETTING/seed-N`. What is done is never trained again, and neither is what has diverged, so
more values, more seeds of either kind, or a study that was stopped cost only the runs that are new.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.run.folder import RunFolder
from token_superposition.run.metrics import is_number
from token_superposition.study.sweep import Setting, Sweep, at_setting, setting_name
from token_superposition.study.workers import Job, run_jobs, share_cores, write_job
from token_superposition.train.config import RunConfig
from token_superposition.train.progress import warn

FIRST_SWEEP_SEED = 1000  # after a run's own: far from the seeds compared, so that more of these can be added later


@dataclass(frozen=True)
class Tuned:
    """What the arms are compared at.

    Attributes:
        arms: each arm's configuration at its best setting.
        places: the folder that holds its runs.
        report: the sweep, as in `report.json`.
    """

    arms: dict[str, RunConfig]
    places: dict[str, Path]
    report: dict[str, Any]


def tune(
    arms: Mapping[str, RunConfig], sweep: Sweep, folder: Path, *, num_seeds: int, jobs: int | None, quiet: bool
) -> Tuned:
    """Train every arm at every setting, then the seeds that are compared at its best.

    Args:
        arms: the arms, before the sweep.
        sweep: what to try.
        folder: the study's.
        num_seeds: seeds compared.
        jobs, quiet: as in `compare`.

    Raises:
        UserError: where the seeds compared would reach those of the sweep.
        TrainingDivergedError: where an arm diverges at every setting.
    """
    if num_seeds > FIRST_SWEEP_SEED:
        raise UserError(f"--seeds is at most {FIRST_SWEEP_SEED} with --sweep, whose own follow them; not {num_seeds}")
    tried = {
        name: [
            _Point(name, setting, at_setting(config, setting), folder / "runs" / name) for setting in sweep.settings()
        ]
        for name, config in arms.items()
    }
    sweep_seeds = range(FIRST_SWEEP_SEED, FIRST_SWEEP_SEED + sweep.num_seeds)
    compared = range(num_seeds)
    side_by_side = [points[number] for number in range(len(sweep.settings())) for points in tried.values()]
    _train(side_by_side, sweep_seeds, jobs, quiet)
    while True:
        best = {name: _best(points, sweep_seeds, compared) for name, points in tried.items()}
        _train(list(best.values()), compared, jobs, quiet)
        if not any(point.diverged(compared) for point in best.values()):
            break
    report: dict[str, Any] = {
        "keys": list(sweep.values),
        "values": {key: list(values) for key, values in sweep.values.items()},
        "num_seeds": sweep.num_seeds,
        "arms": [_as_dict(best[name], points, sweep, sweep_seeds, compared) for name, points in tried.items()],
    }
    for arm in report["arms"]:
        for key, end in arm["at_edge"].items():
            warn(f"{arm['name']}: the best {key} is the {end} tried: the best may lie outside; widen the sweep")
    return Tuned(
        {name: point.config for name, point in best.items()},
        {name: point.folder for name, point in best.items()},
        report,
    )


@dataclass(frozen=True)
class _Point:
    """An arm at a setting: where its runs are, and what came of them. Seeds count from the configuration's."""

    arm: str
    setting: Setting
    config: RunConfig
    place: Path

    @property
    def folder(self) -> Path:
        return self.place / setting_name(self.setting)

    def run(self, seed: int) -> RunFolder:
        return RunFolder(self.folder / f"seed-{self.config.train.seed + seed}")

    def job(self, seed: int) -> Job:
        name = f"{self.arm}, {setting_name(self.setting)}"
        return write_job(self.folder, name, self.config, self.config.train.seed + seed)

    def loss(self, seed: int) -> float | None:
        """The final validation loss; None of a run that has none, or none yet."""
        summary = self.run(seed).read_summary()
        return None if summary is None else float(summary["final_validation_loss"])

    def diverged(self, seeds: Iterable[int]) -> list[int]:
        """Those of the seeds that diverged."""
        runs = {seed: self.run(seed) for seed in seeds}
        return [seed for seed, run in runs.items() if run.diverged_file.exists() and not run.summary_file.exists()]

    def mean(self, seeds: Iterable[int]) -> float:
        """The mean loss; infinite where a seed diverged."""
        losses = [self.loss(seed) for seed in seeds]
        known = [loss for loss in losses if loss is not None]
        return math.fsum(known) / len(known) if len(known) == len(losses) else math.inf


def _train(points: Sequence[_Point], seeds: Iterable[int], jobs: int | None, quiet: bool) -> None:
    """Train every point with every seed, in one queue."""
    runs = [point.job(seed) for seed in seeds for point in points]
    at_once, threads = share_cores(points[0].config, len(runs), jobs)
    run_jobs(runs, at_once=at_once, threads=threads, quiet=quiet, may_diverge=True)


def _best(points: Sequence[_Point], sweep_seeds: Iterable[int], compared: Iterable[int]) -> _Point:
    """The point of the lowest mean loss among those at which nothing diverged."""
    good = [point for point in points if not point.diverged([*sweep_seeds, *compared])]
    if not good:
        tried = "; ".join(setting_name(point.setting) for point in points)
        raise TrainingDivergedError(
            f"{points[0].arm}: diverged at every setting of the sweep ({tried}); sweep lower ones"
        )
    return min(good, key=lambda point: point.mean(sweep_seeds))


def _as_dict(
    best: _Point, points: Sequence[_Point], sweep: Sweep, sweep_seeds: Iterable[int], compared: Iterable[int]
) -> dict[str, Any]:
    """What was tried for an arm, what came of it, and what was chosen."""
    first = best.config.train.seed
    settings = []
    for point in points:
        mean = point.mean(sweep_seeds)
        settings.append(
            {
                "values": dict(point.setting),
                "seeds": [
                    {
                        "seed": first + seed,
                        "final_validation_loss": point.loss(seed),
                        "diverged": bool(point.diverged([seed])),
                    }
                    for seed in sweep_seeds
                ],
                "mean_validation_loss": mean if math.isfinite(mean) else None,
                "diverged_when_compared": [first + seed for seed in point.diverged(compared)],
            }
        )
    return {
        "name": best.arm,
        "settings": settings,
        "best": dict(best.setting),
        "at_edge": {key: end for key, values in sweep.values.items() if (end := _edge(best.setting[key], values))},
    }


def _edge(value: Any, values: Sequence[Any]) -> str | None:
    """`lowest` or `highest`, where better values may lie beyond; no key goes below zero."""
    if not all(map(is_number, values)):
        return None
    if value == max(values):
        return "highest"
    return "lowest" if value == min(values) and value != 0 else None
