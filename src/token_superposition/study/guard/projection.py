"""Will superposition be ahead at the end? A forecast from its guards, with a probability.

**The gap** of a guard is its branch's loss, after the decay, less the baseline's after as many steps (the compute is
the same: a step costs the same in both). The baseline's curve is its mean final loss over the logarithm of its steps.
With three lengths and more it is read on the parabola through the three nearest, between two on a straight line; never
beyond its ends. A straight line lies above a curve that flattens and so flatters superposition: by 0.01 nats on a power
law at budgets that double, where the parabola is within 0.003; a forecast multiplies such an error.

**The forecast** takes the gap as linear in the logarithm of the recovery steps: superposition comes out of the switch
far behind and closes in, fast at first. The line through the guards (least squares, where there are more than two) is
carried to the run's end. Nothing of the baseline is read there, so it need not have been trained that far.

**The noise** is the baseline's, from seed to seed: its standard deviation about the mean of each length, pooled over
lengths, each a degree of freedom less than its seeds. How far the gap comes out from its forecast is a sum of losses
with known coefficients: the run's own last one, each guard's, and of the baseline's means those that were read. Its
variance is the deviation's square times the sum of the coefficients' squares (a mean's over its seeds). Student's t
with the pooled degrees of freedom then gives the interval that the run will end in, and the probability that its gap
will be below zero.

**What this takes for granted.** That the gap is a line: where the gain levels off the forecast is too hopeful, the
more so the earlier the guards. That superposition is as noisy as the baseline. That losses are independent of each
other: branches of one run, and lengths that share a trunk, are not, and what they share cancels in the slope, so the
interval is if anything too wide, while the degrees of freedom are counted too high. Where all of it holds the
probabilities are true (`tests/study/test_guard_forecast.py`); on many real runs they have not been checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from token_superposition.study.significance import t_probability, t_quantile

LEVEL = 0.95
ONE_BASELINE_SEED = "every length of the baseline has one seed, so its noise is not known: no probability can be had"
_ONE_GUARD = "one guard shows no direction; the gap closes as recovery goes on, so it is expected to end below this one"

Curve = Mapping[int, Sequence[float]]  # by a run's steps, its final loss a seed


@dataclass(frozen=True)
class GuardReading:
    """What a guard came to.

    Attributes:
        total_steps: of its branch, from the run's start to the end of the decay.
        recovery_steps: those of them after the switch.
        loss: the branch's final validation loss.
    """

    total_steps: int
    recovery_steps: int
    loss: float


def baseline_loss(curve: Curve, steps: int) -> float:
    """The baseline's mean final loss after so many steps, read off its curve.

    Raises:
        ValueError: where the curve does not reach there.
    """
    return math.fsum(weight * _mean(curve[at]) for at, weight in _weights(curve, steps).items())


def pooled_deviation(curve: Curve) -> tuple[float, int] | None:
    """The losses' standard deviation from seed to seed, and its degrees of freedom; None of one seed a length."""
    degrees = sum(len(losses) - 1 for losses in curve.values())
    if degrees < 1:
        return None
    squares = math.fsum((loss - _mean(losses)) ** 2 for losses in curve.values() for loss in losses)
    return math.sqrt(squares / degrees), degrees


def forecast(readings: Sequence[GuardReading], curve: Curve, recovery_steps: int) -> dict[str, Any]:
    """Where the gap will be when the run ends.

    Args:
        readings: the guards', at least one, in the order of their steps.
        curve: the baseline's losses.
        recovery_steps: of the whole run.

    Returns:
        `gap_at_end` (nats, below zero where superposition is ahead), `interval`, `confidence_level`,
        `probability_ahead`, `bound` (the gap of a single guard, in place of a forecast), and `reasons` by the key of
        what is null.

    Raises:
        ValueError: where the curve does not reach a guard.
    """
    result: dict[str, Any] = {
        "gap_at_end": None,
        "interval": None,
        "confidence_level": LEVEL,
        "probability_ahead": None,
        "bound": None,
        "reasons": {},
    }
    gaps = [reading.loss - baseline_loss(curve, reading.total_steps) for reading in readings]
    if len(readings) == 1:
        reasons = dict.fromkeys(("gap_at_end", "interval", "probability_ahead"), _ONE_GUARD)
        return result | {"bound": gaps[0], "reasons": reasons}
    shares = _carry([math.log(reading.recovery_steps) for reading in readings], math.log(recovery_steps))
    gap = math.fsum(share * each for share, each in zip(shares, gaps, strict=True))
    result["gap_at_end"] = gap
    noise = pooled_deviation(curve)
    if noise is None:
        return result | {"reasons": dict.fromkeys(("interval", "probability_ahead"), ONE_BASELINE_SEED)}
    deviation, degrees = noise
    error = deviation * math.sqrt(_squares(readings, curve, shares))
    margin = t_quantile(LEVEL, degrees) * error
    away = -gap / error if error > 0 else math.copysign(math.inf, -gap)
    return result | {"interval": [gap - margin, gap + margin], "probability_ahead": t_probability(away, degrees)}


def _carry(at: Sequence[float], end: float) -> list[float]:
    """What each value of a line through points counts for its value at `end`, by least squares."""
    middle = _mean(at)
    spread = math.fsum((each - middle) ** 2 for each in at)
    return [1 / len(at) + (end - middle) * (each - middle) / spread for each in at]


def _squares(readings: Sequence[GuardReading], curve: Curve, shares: Sequence[float]) -> float:
    """The variance of what the gap comes to less its forecast, in that of a loss."""
    means: dict[int, float] = {}
    for reading, share in zip(readings, shares, strict=True):
        for at, weight in _weights(curve, reading.total_steps).items():
            means[at] = means.get(at, 0.0) + share * weight
    own = math.fsum(share**2 for share in shares)
    return 1.0 + own + math.fsum(weight**2 / len(curve[at]) for at, weight in means.items())


def _weights(curve: Curve, steps: int) -> dict[int, float]:
    """What the curve's means count for its value at `steps`: Lagrange's weights of the two or three that are read."""
    lengths = sorted(curve)
    if len(lengths) < 2 or not lengths[0] <= steps <= lengths[-1]:
        raise ValueError(f"a curve of {lengths} steps does not reach {steps}")
    right = max(1, next(number for number, length in enumerate(lengths) if length >= steps))
    left = right - 1
    around = [lengths[number] for number in (left - 1, right + 1) if 0 <= number < len(lengths)]
    third = min(around, key=lambda length: abs(math.log(length / steps)), default=None)
    nodes = [lengths[left], lengths[right], *([] if third is None else [third])]
    return {
        node: math.prod(math.log(steps / other) / math.log(node / other) for other in nodes if other != node)
        for node in nodes
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
