"""What to expect of superposition on a run: the nearest measured runs, a setting, ranges, and a verdict.

Near means within ten times in parameters and within ten times in tokens per parameter. A range spans the nearest runs
that measured the setting (only those of the same size, if there are any), with their errors. Without a near run there
is no range: nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from token_superposition.formatting import better_or_worse, better_or_worse_range, count_in_words, three_figures
from token_superposition.planner.measured_runs import (
    Cell,
    Comparison,
    RunSize,
    SpeedupReading,
    comparisons,
    paper_runs,
    speedups,
)
from token_superposition.planner.workload import Workload
from token_superposition.schedule import Mode, Schedule
from token_superposition.study.significance import NOISE

Verdict = Literal["use", "try", "none"]
LARGEST_BAG = 8  # larger bags read more text for no more gain, and uniform slot weights are no longer the best
_SAME_SIZE = 0.1  # as a power of ten
_NEAREST = 3
_SHOWN = 4
_FEWER_STEPS = 0.8  # of the shortest near run that gained; a run below that has doubtful prospects


class _Sized(Protocol):
    @property
    def scale(self) -> RunSize: ...


_S = TypeVar("_S", bound=_Sized)


@dataclass(frozen=True)
class Setting:
    """How a run is superposed; bag size 1 is ordinary training."""

    bag_size: int = 1
    ratio: float = 0.0
    mode: Mode = "full"
    slot_weights: str = "uniform"

    def schedule(self, total_steps: int) -> Schedule:
        """The stages of a run of this length."""
        return Schedule.two_phase(
            total_steps, self.bag_size, self.ratio, mode=self.mode, slot_weights=self.slot_weights
        )

    @property
    def cell(self) -> Cell:
        """Its place in a sweep."""
        return self.bag_size, self.ratio


@dataclass(frozen=True)
class Estimate:
    """A range, and what it is based on; `low` and `high` are None if there is no range, and `basis` says why."""

    low: float | None
    high: float | None
    basis: str


@dataclass(frozen=True)
class Advice:
    """What to do and what to expect.

    Attributes:
        verdict: `use` if all near runs gained, `none` if none did, else `try`.
        setting: the recommended setting, or the user's.
        reasons: for the verdict and the setting, one sentence each.
        caveats: in a few words, what limits the saving.
        gain: nats at equal FLOPs; positive is better.
        speedup: at equal loss.
        nearest: the nearest measured runs, each at its best setting.
        shortest: steps of the shortest near run that gained; 0 without one.
    """

    verdict: Verdict
    setting: Setting
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    gain: Estimate
    speedup: Estimate
    nearest: tuple[Comparison, ...]
    shortest: int


@dataclass(frozen=True)
class _Study:
    """The comparisons of one model at one length."""

    scale: RunSize
    runs: tuple[Comparison, ...]

    @property
    def best(self) -> Comparison:
        return max(self.runs, key=lambda run: run.gain)

    @property
    def cells(self) -> set[Cell]:
        return {run.cell for run in self.runs if run.cell is not None and run.cell[0] <= LARGEST_BAG}

    def gain_at(self, cell: Cell) -> float | None:
        """The gain at a setting, or between two measured ratios of the same bag size; None if not measured."""
        known = {run.ratio: run.gain for run in self.runs if run.bag_size == cell[0] and run.ratio is not None}
        for ratio, gain in known.items():
            if math.isclose(ratio, cell[1], abs_tol=1e-6):
                return gain
        below = max((ratio for ratio in known if ratio < cell[1]), default=None)
        above = min((ratio for ratio in known if ratio > cell[1]), default=None)
        if below is None or above is None:
            return None
        return known[below] + (cell[1] - below) / (above - below) * (known[above] - known[below])

    def noise_at(self, cell: Cell) -> float:
        return max(run.noise for run in self.runs if run.bag_size == cell[0])


def advise(workload: Workload, total_steps: int, given: Setting | None = None) -> Advice:
    """Advice for a run of so many steps. A `given` setting is judged and not replaced."""
    scale = workload.scale(total_steps)
    studies = _studies(workload)
    near = _closest(studies, scale)
    shown = tuple(study.best for study in sorted(studies, key=lambda study: study.scale.distance(scale))[:_SHOWN])
    gained = [study.best.total_steps for study in near if study.best.gain > study.best.noise]
    shortest = min(gained, default=0)

    def without(reason: str, gain: Estimate | None = None) -> Advice:
        no = Estimate(None, None, "superposition is not advised for this run")
        return Advice("none", given or Setting(), (reason,), (), gain or no, no, shown, shortest)

    against = _why_not(workload, total_steps, studies, near)
    if against is not None:
        return without(against)
    setting, reasons = (given, []) if given is not None else _choose(workload, total_steps, studies, near)
    if setting.bag_size == 1:
        return without(reasons[0] if reasons else "a bag_size of 1, or superposition for no step, is ordinary training")
    gain = _gain(workload, setting, near)
    if gain.high is not None and gain.high < -NOISE:
        return without(f"the measured runs near it lose with this setting: {gain_in_words(gain)} at equal FLOPs", gain)
    gains = gain.low is not None and gain.low > NOISE
    if gain.low is None:
        reasons.append(gain.basis)
    elif gains:
        reasons.append(f"every measured run near it gains: {gain_in_words(gain)} at equal FLOPs")
    else:
        reasons.append(f"the measured runs near it range from {gain_in_words(gain)}, so it may not help")
    caveats = []
    if gain.low is None:
        caveats.append("no gain at equal compute is known for it")
    if near and total_steps < _FEWER_STEPS * shortest:
        caveats.append("never measured at so few steps")
        reasons.append(f"no near run of fewer than {shortest:,} steps gained, and this one has {total_steps:,}")
    corpus = workload.corpus
    raw_tokens = setting.schedule(total_steps).raw_tokens(workload.positions_per_step)
    if corpus is not None and not corpus.holds(raw_tokens):
        caveats.append("no run that repeats text was measured")
        times = three_figures(raw_tokens / corpus.scarcest.once)
        reasons.append(f"it reads {corpus} {times} times, and no run that repeats text was measured")
    if workload.unit == "bytes":
        reasons.append("tokens are bytes: four are about one subword, and bytes may gain more than subwords do")
    verdict: Verdict = "use" if gains and not caveats else "try"
    speedup = _speedup(workload, scale, setting, gain)
    return Advice(verdict, setting, tuple(reasons), tuple(caveats), gain, speedup, shown, shortest)


def gain_in_words(gain: Estimate) -> str:
    """The range of a gain, such as `0.067 to 0.134 nats better`."""
    assert gain.low is not None
    assert gain.high is not None
    return better_or_worse_range(-gain.high, -gain.low)


def _studies(workload: Workload) -> list[_Study]:
    """The measured studies with the workload's kind of tokens and start."""
    gathered = defaultdict(list)
    for run in comparisons():
        if (run.unit, run.start) == (workload.unit, workload.start):
            gathered[run.study].append(run)
    return [_Study(scale, tuple(runs)) for (_, scale), runs in gathered.items()]


def _closest(found: Sequence[_S], scale: RunSize) -> list[_S]:
    """Of the near ones those of the same size, or else the nearest three."""
    near = sorted((each for each in found if each.scale.near(scale)), key=lambda each: each.scale.distance(scale))
    return [each for each in near if each.scale.distance(scale) < _SAME_SIZE] or near[:_NEAREST]


def _why_not(workload: Workload, total_steps: int, studies: Sequence[_Study], near: Sequence[_Study]) -> str | None:
    """The reason against any superposition of this run, if there is one."""
    corpus = workload.corpus
    if corpus is not None and not corpus.holds(total_steps * workload.positions_per_step):
        return _too_little_text(workload)
    if not any(study.best.gain > study.best.noise for study in studies):
        words = "; ".join(_in_words(study.best) for study in studies)
        return f"no measured run {_kind(workload)} gained: {words or 'there is none'}"
    won = min(study.best.total_steps for study in studies if study.best.gain > study.best.noise)
    lost = max((study.best for study in studies if -study.best.gain > study.best.noise), key=_steps, default=None)
    if lost is not None and total_steps < min(won, lost.total_steps):
        few = f"no measured run {_kind(workload)} of fewer than {won:,} steps gained, and this one has {total_steps:,}"
        return f"{few}; {_in_words(lost)}"
    if near and all(study.best.gain <= 0 for study in near):
        return f"no measured run near it gained: {'; '.join(_in_words(study.best) for study in near)}"
    return None


def _choose(
    workload: Workload, total_steps: int, studies: Sequence[_Study], near: Sequence[_Study]
) -> tuple[Setting, list[str]]:
    """The setting within noise of the best mean gain that reads the least text, if the corpus suffices for it.

    A setting with a measured speed-up near the run's size comes first. If no setting of the near runs fits the corpus,
    or there are no near runs, the settings of all sweeps are tried.
    """
    corpus = workload.corpus

    def fits(cell: Cell) -> bool:
        raw_tokens = Setting(*cell).schedule(total_steps).raw_tokens(workload.positions_per_step)
        return corpus is None or corpus.holds(raw_tokens)

    read = {reading.cell for reading in _closest(_speedups(workload), workload.scale(total_steps))}
    sweeps = [study for study in studies if len({bag_size for bag_size, _ in study.cells}) > 2]
    pools = [pool for pool in (near, sweeps or studies) if pool]
    best = _best_setting(pools[0], lambda _: True, read)
    chosen = next((cell for pool in pools if (cell := _best_setting(pool, fits, read)) is not None), None)
    if chosen is None:
        what = "" if best is None else f": {corpus} is too small to read bags of {best[0]} for {best[1]:.0%} once"
        return Setting(), [f"no measured setting that gains fits this run{what}"]
    where = "the measured runs near it" if near else f"the sweeps {_kind(workload)}"
    reason = f"bags of {chosen[0]} for {chosen[1]:.0%} of the steps: within {NOISE} nats of the best setting of {where}"
    if chosen != best and best is not None:
        reason = (
            f"{corpus} is too small to read bags of {best[0]} for {best[1]:.0%} of the steps once; "
            f"bags of {chosen[0]} for {chosen[1]:.0%} fit"
        )
    return Setting(*chosen), [reason]


def _best_setting(pool: Sequence[_Study], allowed: Callable[[Cell], bool], read: set[Cell]) -> Cell | None:
    """Of the allowed settings within noise of the best, one in `read`, or else the one that reads least text."""
    means = {}
    for cell in {cell for study in pool for cell in study.cells}:
        gains = [gain for study in pool if (gain := study.gain_at(cell)) is not None]
        means[cell] = (len(gains), math.fsum(gains) / len(gains))
    # Settings that every run of the pool measured are comparable; the others only count if there are none of these.
    most = max((number for number, _ in means.values()), default=0)
    good = {cell: gain for cell, (number, gain) in means.items() if number == most and gain > 0 and allowed(cell)}
    best = [cell for cell, gain in good.items() if gain >= max(good.values()) - NOISE]
    return min(best, key=lambda cell: (cell not in read, cell[1] * (cell[0] - 1), cell), default=None)


def _gain(workload: Workload, setting: Setting, near: Sequence[_Study]) -> Estimate:
    other = _not_measured(setting)
    if other is not None:
        return Estimate(None, None, other)
    known = [(study, gain) for study in near if (gain := study.gain_at(setting.cell)) is not None]
    if not near:
        apart = "within ten times in parameters and in tokens per parameter"
        return Estimate(None, None, f"no measured run near: none {_kind(workload)} is {apart}")
    if not known:
        return Estimate(None, None, "no measured run near has this bag size and ratio")
    ends = [(gain - study.noise_at(setting.cell), gain + study.noise_at(setting.cell)) for study, gain in known]
    basis = ", ".join(f"{study.best.name} at {study.best.total_steps:,} steps" for study, _ in known)
    return Estimate(min(low for low, _ in ends), max(high for _, high in ends), basis)


def _speedup(workload: Workload, scale: RunSize, setting: Setting, gain: Estimate) -> Estimate:
    other = _not_measured(setting)
    if other is not None:
        return Estimate(None, None, other)
    if gain.low is not None and gain.low <= NOISE:
        return Estimate(None, None, "it may not gain at all")
    read = [reading for reading in _speedups(workload) if math.dist(reading.cell, setting.cell) < 1e-6]
    found = _closest(read, scale)
    basis = "; ".join(_reading_in_words(reading) for reading in found)
    sure = [reading.speedup for reading in found if reading.bound != "at most"]
    if not found:
        return Estimate(None, None, "no speed-up with this bag size and ratio was measured near it")
    if not sure:
        return Estimate(None, None, f"only an upper bound of the speed-up was measured near it ({basis})")
    return Estimate(min(sure), max(reading.speedup for reading in found), basis)


def _speedups(workload: Workload) -> list[SpeedupReading]:
    return [each for each in speedups() if (each.unit, each.start) == (workload.unit, workload.start)]


def _reading_in_words(reading: SpeedupReading) -> str:
    bound = "" if reading.bound == "exact" else f"{reading.bound} "
    return f"{reading.name} against {count_in_words(reading.scale.positions)} positions: {bound}{reading.speedup:.3g}x"


def _not_measured(setting: Setting) -> str | None:
    """Why no figure holds for this kind of setting; None if figures can."""
    if setting.mode != "full":
        return f"no figures of mode {setting.mode} are known"
    if setting.slot_weights != "uniform":
        return f"the figures are of uniform slot weights, and this run has {setting.slot_weights}"
    return None


def _too_little_text(workload: Workload) -> str:
    """That ordinary training repeats the corpus, with what the paper measured at equal data."""
    runs = paper_runs()
    losses = "; ".join(
        f"{tst.model}: {tst.final_loss:.3f} against {plain.final_loss:.3f}"
        for tst in runs
        for plain in runs
        if (tst.arm, plain.arm) == ("tst", "baseline")
        and (tst.model, tst.raw_tokens) == (plain.model, plain.raw_tokens)
    )
    return (
        f"ordinary training already reads {workload.corpus} more than once: "
        f"text is short, not compute, and at equal data superposition loses ({losses})"
    )


def _kind(workload: Workload) -> str:
    return f"on {workload.unit}" + (", from trained weights," if workload.start == "trained" else "")


def _steps(run: Comparison) -> int:
    return run.total_steps


def _in_words(run: Comparison) -> str:
    size = f"{count_in_words(run.scale.parameters)} parameters, {run.total_steps:,} steps"
    return f"{run.name} ({size}): {better_or_worse(-run.gain)}"
