"""The forecast of a guarded run: where the gap to the baseline will be at the run's end.

The gap of a guard is the final loss of its branch minus the baseline's loss after as many steps. The baseline's curve
is its mean final loss over the logarithm of its steps: a straight line between two lengths, a parabola through the
nearest three if there are more. It is never read beyond its ends.

The forecast is the straight line through the guards' gaps in the logarithm of the recovery steps (least squares),
extended to the end of the run. The noise is the baseline's standard deviation from seed to seed, pooled over lengths.
The gap at the end, minus its forecast, is a sum of losses with known coefficients, so its standard deviation follows,
and Student's t gives the interval. If the gain levels off before the end, the forecast is too hopeful.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from token_superposition.study.significance import t_quantile

LEVEL = 0.95
Curve = Mapping[int, Sequence[float]]  # the final losses of the seeds, by the steps of a run


@dataclass(frozen=True)
class GuardReading:
    """The result of a guard.

    Attributes:
        total_steps: from the start of the run to the end of the branch.
        recovery_steps: those of them after the switch.
        loss: final validation loss of the branch.
    """

    total_steps: int
    recovery_steps: int
    loss: float


@dataclass(frozen=True)
class Forecast:
    """The gap at the end in nats, below zero if superposition is ahead; no interval if no length has two seeds."""

    gap_at_end: float
    interval: tuple[float, float] | None
    confidence_level: float = LEVEL


def baseline_loss(curve: Curve, steps: int) -> float:
    """The baseline's mean final loss after so many steps, which must be within the lengths of the curve."""
    return math.fsum(weight * _mean(curve[at]) for at, weight in _weights(curve, steps).items())


def pooled_deviation(curve: Curve) -> tuple[float, int] | None:
    """The standard deviation from seed to seed, and its degrees of freedom; None with one seed per length."""
    degrees = sum(len(losses) - 1 for losses in curve.values())
    if degrees < 1:
        return None
    squares = math.fsum((loss - _mean(losses)) ** 2 for losses in curve.values() for loss in losses)
    return math.sqrt(squares / degrees), degrees


def forecast(readings: Sequence[GuardReading], curve: Curve, recovery_steps: int) -> Forecast | None:
    """The gap at the end of a run with so many recovery steps; None with fewer than two guards."""
    if len(readings) < 2:
        return None
    gaps = [reading.loss - baseline_loss(curve, reading.total_steps) for reading in readings]
    logs = [math.log(reading.recovery_steps) for reading in readings]
    spread = math.fsum((each - _mean(logs)) ** 2 for each in logs)
    away = math.log(recovery_steps) - _mean(logs)
    shares = [1 / len(logs) + away * (each - _mean(logs)) / spread for each in logs]
    gap = math.fsum(share * each for share, each in zip(shares, gaps, strict=True))
    noise = pooled_deviation(curve)
    if noise is None:
        return Forecast(gap, None)
    deviation, degrees = noise
    means: dict[int, float] = {}
    for reading, share in zip(readings, shares, strict=True):
        for at, weight in _weights(curve, reading.total_steps).items():
            means[at] = means.get(at, 0.0) + share * weight
    # The run's own final loss, the guards' losses, and the means of the baseline that were read.
    squares = 1 + math.fsum(share**2 for share in shares)
    squares += math.fsum(weight**2 / len(curve[at]) for at, weight in means.items())
    margin = t_quantile(LEVEL, degrees) * deviation * math.sqrt(squares)
    return Forecast(gap, (gap - margin, gap + margin))


def _weights(curve: Curve, steps: int) -> dict[int, float]:
    """Lagrange's weights of the two or three lengths that the curve is read from at `steps`."""
    lengths = sorted(curve)
    if len(lengths) < 2 or not lengths[0] <= steps <= lengths[-1]:
        raise ValueError(f"a curve of {lengths} steps does not reach {steps}")
    right = max(1, next(number for number, length in enumerate(lengths) if length >= steps))
    around = [lengths[number] for number in (right - 2, right + 1) if 0 <= number < len(lengths)]
    nodes = [*lengths[right - 1 : right + 1], *sorted(around, key=lambda length: abs(math.log(length / steps)))[:1]]
    return {
        node: math.prod(math.log(steps / other) / math.log(node / other) for other in nodes if other != node)
        for node in nodes
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
