"""How long a step takes: by FLOPs and an assumed MFU, from the hours of a run that was measured, or from a pilot."""

from __future__ import annotations

from dataclasses import dataclass

from token_superposition.errors import UserError
from token_superposition.plan.stages import Schedule

ASSUMED_MFU = 0.4


@dataclass(frozen=True)
class Speed:
    """Seconds a step of all devices together.

    Attributes:
        ordinary, superposed: of a next-token step and of a superposition step, which costs the same FLOPs.
        mfu: the share of the devices' peak that this is; None where the peak is not known.
        basis: where it is from, in words.
    """

    ordinary: float
    superposed: float
    mfu: float | None
    basis: str

    def hours(self, schedule: Schedule) -> float:
        """Of a whole run."""
        superposed = sum(stage.steps for stage in schedule.stages if stage.phase == "superposition")
        return (superposed * self.superposed + (schedule.total_steps - superposed) * self.ordinary) / 3600


def speed_by_mfu(flops_per_step: float, peak_flops: float, num_devices: int, mfu: float | None) -> Speed:
    """By the devices' peak, of one each, and the share of it that training reaches."""
    share = ASSUMED_MFU if mfu is None else mfu
    seconds = flops_per_step / (peak_flops * num_devices * share)
    words = f"an MFU of {share:g}{' (assumed: --mfu says better, --pilot measures)' if mfu is None else ''}"
    return Speed(seconds, seconds, share, words)


def speed_by_hours(
    hours: float, steps: int, *, flops_per_step: float, peak_flops: float | None, num_devices: int
) -> Speed:
    """From what a run of the same model and batch took on the same devices; UserError where none can be so fast."""
    seconds = hours * 3600 / steps
    basis = f"a run of {steps:,} steps that took {hours:g} hours on these devices"
    mfu = share_of_peak(flops_per_step, seconds, peak_flops=peak_flops, num_devices=num_devices, basis=basis)
    return Speed(seconds, seconds, mfu, basis)


def share_of_peak(
    flops_per_step: float, seconds: float, *, peak_flops: float | None, num_devices: int, basis: str
) -> float | None:
    """The MFU of steps that take so long; None where the peak is not known.

    Raises:
        UserError: where it is more than the devices can do.
    """
    if peak_flops is None:
        return None
    mfu = flops_per_step / (seconds * peak_flops * num_devices)
    if mfu > 1:
        raise UserError(
            f"{basis}: that is {mfu:.3g} times the peak of {num_devices} x {peak_flops:.3g} FLOPs a second, which no "
            "run reaches; is it this model, this batch, this hardware and --num-devices?"
        )
    return mfu
