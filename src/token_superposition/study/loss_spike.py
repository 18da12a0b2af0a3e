"""What happens at the switch to next-token training: the spike, how long it lasts, and where superposition gets ahead.

All three are read off the gap: superposition's next-token validation loss minus the baseline's at the same step and
seed, as a mean over seeds, at the steps of the reference budget that both were validated at.

    spike      the gap at the switch step itself, before any next-token training. The model has only seen bags until
               then, and its next-token loss is far above the baseline's. Superposition is always validated there. Where
               the baseline was not, its loss is read off the line between its validations on either side.
    its end    the first validation at which less than a tenth of the spike is left. A tenth, as the gap falls fast at
               first and then slowly; and as it may never reach zero.
    crossing   the first validation of the recovery from which the gap stays at or below zero to the end. That a curve
               dips below once and comes back is no crossing.

**Validations have to be near.** A line between two distant validations is not the loss curve: a line from an untrained
model to the end of a run lies nats above the curve. So a number is read off between two validations only if they are at
most two validation intervals apart (every step between them then has a validation within one interval), and at most a
quarter of the run. The interval is the usual distance of the validations. The validation of the untrained model is
never used. Otherwise the number is null, with the reason.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from token_superposition.study.report.parts import Arm, SeedRun, Switch

LEFT = 0.1  # of the spike, where it counts as over
_MOST_APART = 0.25  # of the run, whatever the interval


def switch_facts(arms: Sequence[Arm]) -> list[Switch]:
    """Spike and crossing of every superposition arm.

    Args:
        arms: the report's, the baseline first.
    """
    return [_facts(arms[0], arm) for arm in arms[1:]]


def mean_gaps(baseline: Arm, arm: Arm) -> list[tuple[int, float]]:
    """(step, mean over seeds of the arm's validation loss less the baseline's), at the steps all of them have."""
    theirs, ours = baseline.reference.by_seed, arm.reference.by_seed
    gaps = []
    for seed, run in ours.items():
        if seed in theirs:
            base, other = _losses(theirs[seed]), _losses(run)
            if base and other:  # a run without a curve says nothing about its steps
                gaps.append({step: loss - base[step] for step, loss in other.items() if step in base})
    shared = set.intersection(*map(set, gaps)) if gaps else set()
    return [(step, math.fsum(gap[step] for gap in gaps) / len(gaps)) for step in sorted(shared)]


def _most_apart(baseline: Arm, gaps: Sequence[tuple[int, float]]) -> float:
    """The most steps between two validations that are near to each other; 0 where there are no two validations."""
    distances = [after - before for (before, _), (after, _) in itertools.pairwise(gaps)]
    total = baseline.reference.total_steps
    return min(2 * statistics.median(distances), _MOST_APART * total) if distances else 0.0


def _mean_gap_at(baseline: Arm, arm: Arm, step: int, most_apart: float) -> float | None:
    """The mean gap at a step at which the arm was validated; None where the baseline was not near it."""
    theirs, gaps = baseline.reference.by_seed, []
    for seed, run in arm.reference.by_seed.items():
        base, ours = _losses(theirs[seed]) if seed in theirs else {}, _losses(run)
        if not base or not ours:  # as for the other steps
            continue
        loss = _loss_near(base, step, most_apart)
        if step not in ours or loss is None:
            return None  # a mean over other seeds would be another curve's
        gaps.append(ours[step] - loss)
    return math.fsum(gaps) / len(gaps) if gaps else None


def _loss_near(losses: Mapping[int, float], step: int, most_apart: float) -> float | None:
    """The loss at a step, or read off between the validations on either side where both are near."""
    if step in losses:
        return losses[step]
    before = max((at for at in losses if 0 < at < step), default=None)
    after = min((at for at in losses if at > step), default=None)
    if before is None or after is None or after - before > most_apart:
        return None
    share = (step - before) / (after - before)
    return losses[before] + share * (losses[after] - losses[before])


def _losses(run: SeedRun) -> dict[int, float]:
    """A run's validation losses by step, those that are numbers."""
    losses = {point.step: point.validation_loss for point in run.curve}
    return {step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)}


def _facts(baseline: Arm, arm: Arm) -> Switch:
    switch = arm.reference.switch_step
    gaps = mean_gaps(baseline, arm)
    most = _most_apart(baseline, gaps)
    at_switch = _mean_gap_at(baseline, arm, switch, most)
    recovery = [(step, gap) for step, gap in gaps if step > switch]
    # The validation before each one: what is found at a step happened after that validation.
    before = dict(zip((step for step, _ in recovery), (switch, *(step for step, _ in recovery)), strict=False))
    near = {step for step, last in before.items() if step - last <= most}
    spike, spike_steps, no_spike = _spike(at_switch, recovery, switch, near)
    crossing, no_crossing = _crossing(recovery, near, before)
    return Switch(
        arm=arm.name,
        switch_step=switch,
        spike_nats=spike,
        spike_steps=spike_steps,
        crossing_step=crossing,
        crossing_recovery_steps=None if crossing is None else crossing - switch,
        ahead_at_end=recovery[-1][1] <= 0 if recovery else None,
        reason="; ".join(reason for reason in (no_spike, no_crossing) if reason) or None,
    )


def _spike(
    gap: float | None, recovery: Sequence[tuple[int, float]], switch: int, near: Collection[int]
) -> tuple[float | None, int | None, str | None]:
    """The spike, the recovery steps it lasted, and why one of them is missing."""
    if gap is None:
        where = f"superposition was not validated at step {switch:,}, the switch, or the baseline not near it"
        return None, None, f"the spike is not known: {where}"
    if gap <= 0:
        return gap, None, "there was no spike: superposition was not behind at the switch"
    for step, left in recovery:
        if left < LEFT * gap:
            if step in near:
                return gap, step - switch, None
            return gap, None, f"how long the spike lasted is not known: no validation shortly before step {step:,}"
    return gap, None, f"the spike did not fall below {LEFT:.0%} of its height" if recovery else None


def _crossing(
    recovery: Sequence[tuple[int, float]], near: Collection[int], before: Mapping[int, int]
) -> tuple[int | None, str | None]:
    """The step from which the gap stays at or below zero, or why there is none."""
    if not recovery:
        return None, "there is no crossing: the two were not both validated after the switch"
    ahead = None
    for step, gap in reversed(recovery):
        if gap > 0:
            break
        ahead = step
    if ahead is not None and ahead not in near:
        place = f"steps {before[ahead]:,} and {ahead:,}"
        return None, f"where superposition got ahead is not known: the two were not both validated between {place}"
    if ahead is not None:
        return ahead, None
    step, gap = recovery[-1]
    best_step, best = min(recovery, key=lambda point: point[1])
    once = f" (it was ahead at step {best_step:,}, and did not stay so)" if best <= 0 else ""
    return None, f"superposition did not get ahead: at step {step:,} it was still {gap:.3f} nats worse{once}"
