"""Step times of several bag sizes, measured so that their ratios can be believed.

The bag sizes take turns, in rounds, and the order rotates from round to round: a machine whose speed drifts, or
that others use too, changes all of them. A ratio is of two turns of one round; reported is the median of the
ratios with an interval that supposes nothing of how they are distributed.

A turn is what training is: its own thread makes batches ready, from an empty queue. The first batch and the first
step are not timed. From there on a loader slower than the step has nothing in stock, so its waits show; and a loader
that is faster makes one batch a step beside the computation, so what it takes from the cores is in the step time
of its own bag size.
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

LEAST_ROUNDS = 6  # fewer give no 95% interval of a median
_MOST_ROUNDS = 1000
_TURN_SECONDS, _MOST_TURN_STEPS = 0.5, 8
_MATRIX_SIZES = {"cpu": (512, 1024, 2048)}
_MATRIX_SIZES_ELSEWHERE = (2048, 4096, 8192)
_MATRIX_SECONDS = 0.3


class Turn(NamedTuple):
    """Some steps of one bag size, one after the other."""

    steps: int
    seconds: float
    waited: float

    @property
    def step_seconds(self) -> float:
        """The mean over its steps, waits included."""
        return self.seconds / self.steps


@dataclass
class Rounds:
    """What was measured.

    Attributes:
        turns: of each bag size, one a round, in the rounds' order.
        peak_bytes: of each bag size, the most GPU memory that a step took; empty elsewhere.
    """

    turns: dict[int, list[Turn]]
    peak_bytes: dict[int, int] = field(default_factory=dict)

    def step_seconds(self, bag_size: int) -> list[float]:
        """Seconds a step, one value a round."""
        return [turn.step_seconds for turn in self.turns[bag_size]]

    def ratios(self, bag_size: int, base: int = 1) -> list[float]:
        """Step time over that of `base`, round by round."""
        return [a / b for a, b in zip(self.step_seconds(bag_size), self.step_seconds(base), strict=True)]

    def data_wait_fraction(self, bag_size: int) -> float:
        """The share of all its timed steps that was spent waiting for a batch."""
        turns = self.turns[bag_size]
        return sum(turn.waited for turn in turns) / sum(turn.seconds for turn in turns)


def matrix_peak_of_sizes(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """FLOPs a second of the fastest of several sizes of square matrix product, and that size.

    A size counts by the median of its runs: MFU is to be a fraction of what the device keeps up.
    """
    sizes = _MATRIX_SIZES.get(device.type, _MATRIX_SIZES_ELSEWHERE)
    peak = max((statistics.median(matrix_speeds(device, dtype, size, _MATRIX_SECONDS)), size) for size in sizes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return peak


def measure(trainer: Trainer, progress: BenchProgress, *, steps: int | None, seconds: float) -> Rounds:
    """Time every stage of a trainer's schedule, in rounds.

    Args:
        trainer: with a stage for each bag size.
        progress: is told how far it is.
        steps: timed steps of each bag size, rounded up to whole rounds; without it as many as the time allows.
        seconds: to measure for, where `steps` is not given; LEAST_ROUNDS rounds are done however long they take.
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
        clocks[bag_size].take_turn(1)  # what the first step of a kind sets up
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
    """Rounds until there are enough, or the time is over."""
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
        # The least rounds may take longer than the time given: the bar then shows their share.
        least_left = spent / done * (LEAST_ROUNDS - done)
        progress.at(spent, max(seconds, spent + least_left))
        if done >= LEAST_ROUNDS and spent >= seconds:
            return


class _Clock:
    """Takes turns of one stage, each going on where the one before it stopped."""

    def __init__(self, trainer: Trainer, first_step: int) -> None:
        self._trainer = trainer
        self._step = first_step

    def take_turn(self, steps: int) -> Turn:
        """Train one step that warms up, then `steps` that are timed."""
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
    """The 10% and the 90% quantile."""
    if len(values) == 1:
        return values[0], values[0]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """A confidence interval of the median by the sign test, whatever the distribution; None for too few values.

    A value lies under the median with probability 1/2. So the k-th smallest and k-th largest enclose the median unless
    fewer than k of n values fall on one side: the largest k for which that is improbable enough is taken.
    """
    ordered, count = sorted(values), len(values)
    tail, place = 0.0, 0  # tail: the probability that at most place - 1 of the values lie on a given side
    while (more := tail + math.comb(count, place) / 2**count) <= (1 - level) / 2:
        tail, place = more, place + 1
    return (ordered[place - 1], ordered[count - place]) if place else None
