"""What the runs of a study cost: hours of a device, and money where its price is given.

Hours are measured: a run's `wall_seconds`, with validations and checkpoints. A run uses one device: a GPU, or on other
devices the machine. The hours of an arm are those of one run at the longest budget, as a mean over seeds; a run that
shares steps with another run counts these steps too. The saving is that of the speed-up in measured seconds at the
baseline's final loss: what one run of the baseline takes, minus what superposition takes for the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from token_superposition.errors import UserError
from token_superposition.study.report.facts import why_seconds_differ
from token_superposition.study.report.parts import Arm, ArmCost, Cost, Saving, Speedup

MUCH_FASTER = 1.1  # seconds a step from arm to arm: on a quiet machine they are within a few percent
_MOST = 1e9


def parse_price(given: Any, place: str) -> float:
    """The price of an hour of a device.

    Args:
        given: a number, or what the command line has of it.
        place: where it was given, for messages.

    Raises:
        UserError: if it is not a finite number above 0.
    """
    try:
        price = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 < price <= _MOST:
        raise UserError(f"{place}: is the price of an hour, a number above 0 such as 2.5, not {str(given)[:60]!r}")
    return price


def cost_of(
    arms: Sequence[Arm], speedups: Sequence[Speedup], best: str, device: str | None, price: float | None
) -> Cost:
    """Hours and money of every arm, and what the best arm saves.

    Args:
        arms: the report's, the baseline first.
        speedups: its `iso_loss_all`.
        best: the arm that the saving is of.
        device: what the runs computed on.
        price: of an hour of the device; None for hours only.
    """
    incomparable = why_seconds_differ(arms)
    paid = price if incomparable is None else None
    listed = []
    for arm in arms:
        seconds = [run.wall_seconds for run in arm.reference.seeds]
        known = [each for each in seconds if each is not None and math.isfinite(each)]
        hours = math.fsum(known) / len(known) / 3600 if known and len(known) == len(seconds) else None
        listed.append(ArmCost(name=arm.name, hours=hours, money=_times(hours, paid)))
    saving, reason = None, incomparable
    if reason is None:
        saving, reason = _saving(speedups, best, paid)
    return Cost(
        unit="GPU-hours" if (device or "").startswith("cuda") else "machine-hours",
        price_per_hour=price,
        arms=tuple(listed),
        saving=saving,
        reason=reason,
    )


def _saving(speedups: Sequence[Speedup], best: str, price: float | None) -> tuple[Saving | None, str | None]:
    """What the best arm saves, and why there is no saving, or no interval of it."""
    headline = {found.unit: found for found in speedups if (found.arm, found.read_at) == (best, "baseline_end")}
    found = headline.get("seconds")
    if found is None:
        return None, "no speed-up was measured"
    if found.speedup is None or found.baseline_cost is None:
        return None, found.reason
    flops = headline["flops"].speedup
    if flops is not None and found.speedup > MUCH_FASTER * flops:
        return None, (
            f"the baseline’s steps took {found.speedup / flops:.2f} times as long as superposition’s, which "
            "the method does not explain, so the machine was busier with them"
        )
    hours, share, ends = found.baseline_cost / 3600, 1 - 1 / found.speedup, found.confidence_interval
    shares = (1 - 1 / ends[0], 1 - 1 / ends[1]) if ends else None
    saving = Saving(
        arm=best,
        share=share,
        share_interval=shares,
        hours=hours * share,
        hours_interval=(hours * shares[0], hours * shares[1]) if shares else None,
        money=_times(hours * share, price),
        money_interval=(hours * shares[0] * price, hours * shares[1] * price) if shares and price else None,
    )
    return saving, found.reason


def _times(hours: float | None, price: float | None) -> float | None:
    return None if hours is None or price is None else hours * price
