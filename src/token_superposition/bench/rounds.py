"""Measurement of the step times of several bag sizes, with reliable ratios.

Each round measures every bag size once (a turn), and the order rotates from round to round. A change of the machine's
speed, or other work on the machine, therefore affects all bag sizes. A ratio compares two turns of the same round. The
result is the median of the ratios, with an interval that assumes no distribution.

A turn works like training: a separate thread prepares batches, starting with an empty queue. The first batch and the
first step are not timed. After them, a loader that is slower than the step has no batch in its queue, so its waits are
measured. A loader that is faster makes one batch per step in parallel with the computation, so its use of the cores is
part of the step time of the same bag size.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from token_superposition.bench.bench_progress import BenchProgress
from token_superposition.data.prefetch import prefetch
from token_superposition.training.hardware import matrix_speeds, wait_for
from token_superposition.training.trainer import Trainer

LEAST_ROUNDS = 6  # a 95% interval of a median needs at least this many
_MOST_ROUNDS = 1000
_TURN_SECONDS, _MOST_TURN_STEPS = 0.5, 8
_MATRIX_SIZES = {"cpu": (512, 1024, 2048)}
_MATRIX_SIZES_ELSEWHERE = (2048, 4096, 8192)
_MATRIX_SECONDS = 0.3


class Turn(NamedTuple):
    """The timing of consecutive steps of one bag size."""

    steps: int
    seconds: float
    waited: float

    @property
    def step_seconds(self) -> float:
        """Mean seconds per step, including waits for data."""
        return self.seconds / self.steps


@dataclass
class Rounds:
    """The measured turns.

    Attributes:
        turns: the turns of each bag size, one per round, in order.
        peak_bytes: the peak GPU memory of a step at each bag size; empty on other devices.
    """

    turns: dict[int, list[Turn]]
    peak_bytes: dict[int, int] = field(default_factory=dict)

    def step_seconds(self, bag_size: int) -> list[float]:
        """Seconds per step, one value per round."""
        return [turn.step_seconds for turn in self.turns[bag_size]]

    def ratios(self, bag_size: int, base: int = 1) -> list[float]:
        """The step time divided by that of bag size `base`, one value per round."""
        return [a / b for a, b in zip(self.step_seconds(bag_size), self.step_seconds(base), strict=True)]

    def data_wait_fraction(self, bag_size: int) -> float:
        """The share of the time of all timed steps that was spent waiting for a batch."""
        turns = self.turns[bag_size]
        return sum(turn.waited for turn in turns) / sum(turn.seconds for turn in turns)


def matrix_peak_of_sizes(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """The FLOPs per second of the fastest of several sizes of square matrix products, and this size.

    The value of a size is the median of its runs, because the MFU should relate to a speed that the device sustains.
    """
    sizes = _MATRIX_SIZES.get(device.type, _MATRIX_SIZES_ELSEWHERE)
    peak = max((statistics.median(matrix_speeds(device, dtype, size, _MATRIX_SECONDS)), size) for size in sizes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return peak


def measure(trainer: Trainer, progress: BenchProgress, *, steps: int | None, seconds: float) -> Rounds:
    """Time every stage of a trainer's schedule, in rounds.

    Args:
        trainer: a trainer with a stage for each bag size.
        progress: shows the progress.
        steps: timed steps per bag size, rounded up to whole rounds; None for as many as `seconds` allows.
        seconds: duration of the measurement if `steps` is None; at least LEAST_ROUNDS rounds are always done.
    """
    schedule = trainer.schedule
    clocks = {
        stage.bag_size: _Clock(trainer, start) for stage, start in zip(schedule.stages, schedule.starts, strict=True)
    }
    bag_sizes = list(clocks)
    result = Rounds({bag_size: [] for bag_size in bag_sizes})
    longest = 0.0
    progress.phase("warming up", len(bag_sizes))
    for bag_size in bag_sizes:
        clocks[bag_size].take_turn(1)  # the first step of each bag size includes setup
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
        longest = max(longest, clocks[bag_size].take_turn(1).seconds)
        if trainer.device.type == "cuda":
            result.peak_bytes[bag_size] = torch.cuda.max_memory_allocated(trainer.device)
        progress.advance()
    turn_steps = min(_MOST_TURN_STEPS, math.ceil(_TURN_SECONDS / longest))
    if steps is not None:
        turn_steps = min(turn_steps, math.ceil(steps / LEAST_ROUNDS))
    num_rounds = _MOST_ROUNDS if steps is None else math.ceil(steps / turn_steps)
    _run(clocks, result, progress, num_rounds, turn_steps, None if steps is not None else seconds)
    return result


def _run(
    clocks: dict[int, _Clock],
    result: Rounds,
    progress: BenchProgress,
    num_rounds: int,
    turn_steps: int,
    seconds: float | None,
) -> None:
    """Do rounds until their number is reached, or the time is over."""
    bag_sizes, start = list(clocks), time.perf_counter()
    progress.phase("measuring", num_rounds if seconds is None else seconds, unit="rounds" if seconds is None else "s")
    for number in range(num_rounds):
        first = number % len(bag_sizes)
        for bag_size in (*bag_sizes[first:], *bag_sizes[:first]):
            result.turns[bag_size].append(clocks[bag_size].take_turn(turn_steps))
        spent, done = time.perf_counter() - start, number + 1
        if seconds is None:
            progress.advance()
            continue
        # If the minimum number of rounds takes longer than the given time, the bar shows the share of these rounds.
        least_left = spent / done * (LEAST_ROUNDS - done)
        progress.at(spent, max(seconds, spent + least_left))
        if done >= LEAST_ROUNDS and spent >= seconds:
            return


class _Clock:
    """Does the turns of one stage; each turn continues after the steps of the previous turn."""

    def __init__(self, trainer: Trainer, first_step: int) -> None:
        self._trainer = trainer
        self._step = first_step

    def take_turn(self, steps: int) -> Turn:
        """Do one step for warm-up, and then `steps` timed steps."""
        trainer, waited = self._trainer, 0.0
        batches = prefetch(trainer.batches(self._step))
        self._step += steps + 1
        try:
            trainer.step(next(batches))
            batch = next(batches)
            wait_for(trainer.device)
            start = time.perf_counter()
            for _ in range(steps):
                trainer.step(batch)
                fetch = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - fetch
            wait_for(trainer.device)
            return Turn(steps, time.perf_counter() - start, waited)
        finally:
            batches.close()  # type: ignore[attr-defined]


def middle_80(values: Sequence[float]) -> tuple[float, float]:
    """The 10% and the 90% quantiles."""
    if len(values) == 1:
        return values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """A confidence interval of the median from the sign test, for any distribution; None for too few values.

    A value is below the median with probability 1/2. The k-th smallest and the k-th largest value enclose the median
    unless fewer than k of the n values are on one side. The result uses the largest k for which this is improbable
    enough.
    """
    ordered, count = sorted(values), len(values)
    tail, place = 0.0, 0  # tail: the probability that at most place - 1 of the values are on a given side
    while (more := tail + math.comb(count, place) / 2**count) <= (1 - level) / 2:
        tail, place = more, place + 1
    return (ordered[place - 1], ordered[count - place]) if place else None
