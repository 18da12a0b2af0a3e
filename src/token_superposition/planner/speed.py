"""How long a step takes: from FLOPs and an MFU, from the hours of a run that was measured, or from a pilot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from token_superposition.errors import UserError, did_you_mean
from token_superposition.formatting import count_in_words
from token_superposition.planner.measured_runs import read_table
from token_superposition.schedule import Schedule


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


def speed_by_mfu(flops_per_step: float, peak_flops: float, num_devices: int, mfu: float, basis: str) -> Speed:
    """From the data-sheet peak of one device and the share of the peak that training reaches."""
    seconds = flops_per_step / (peak_flops * num_devices * mfu)
    return Speed(seconds, seconds, mfu, basis)


def measured_mfu(parameters: int, vocab_size: int, device: str | None) -> tuple[float, str]:
    """The MFU that was measured nearest in parameters, as a share of the data-sheet peak, and where it is from."""
    row = min(read_table("mfu.csv"), key=lambda row: abs(math.log(int(row["parameters"]) / parameters)))
    peak = next(float(each["peak_tflops"]) for each in read_table("hardware.csv") if each["name"] == row["device"])
    of_matrix_peak = float(row["mfu"])
    mfu = of_matrix_peak * float(row["matrix_peak_tflops"]) / peak
    measured = int(row["parameters"])
    differs = [
        name
        for name, same in (
            ("model", abs(parameters / measured - 1) < 0.1 and vocab_size == int(row["vocab_size"])),
            ("device", (device or "").lower() == row["device"]),
        )
        if not same
    ]
    yours = f"; your {' and '.join(differs)} {'differ' if len(differs) > 1 else 'differs'}" if differs else ""
    if not 0.1 <= parameters / measured <= 10:
        yours += ", the model by more than ten times in size, so hours are a guess"
    return mfu, (
        f"MFU {mfu:.2f} of the data-sheet peak ({of_matrix_peak:.2f} of the matrix peak): measured on one "
        f"{row['device'].upper()} with {count_in_words(measured)} parameters ({row['source']}){yours}; "
        "--mfu or --measured-hours gives yours, --pilot measures here"
    )


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


# Accelerators by name: peak, and a public list price with its date. What a user gives comes before both.


@dataclass(frozen=True)
class Hardware:
    """What a run's hours and cost are counted from; None stands for what is not known.

    Attributes:
        name: as the table or the user calls it.
        num_devices: that train the run together.
        peak_flops_per_second: of one device, dense bfloat16.
        price: of one device and hour.
        price_basis: where it is from, in words.
    """

    name: str | None
    num_devices: int
    peak_flops_per_second: float | None
    price: float | None
    price_basis: str | None

    def cost(self, hours: float | None) -> float | None:
        """Of so many hours of all devices."""
        return None if hours is None or self.price is None else hours * self.price * self.num_devices


def find_hardware(
    name: str | None, *, num_devices: int = 1, peak_flops: float | None = None, price: float | None = None
) -> Hardware:
    """The devices of that name, with whatever the user knows better.

    Raises:
        UserError: for a name that the table does not have, without `peak_flops`.
    """
    rows = {row["name"]: row for row in read_table("hardware.csv")}
    row = rows.get((name or "").lower())
    if name is not None and row is None and peak_flops is None:
        raise UserError(
            f"--hardware: {name!r} is not known{did_you_mean(name.lower(), rows)} (known: {', '.join(rows)}); "
            "of any other give --peak-flops (dense bfloat16, such as 989T) and --price"
        )
    if peak_flops is None and row is not None:
        peak_flops = float(row["peak_tflops"]) * 1e12
    basis = None if price is None else "as given"
    if price is None and row is not None and row["price"]:
        price, basis = float(row["price"]), row["price_basis"]
    return Hardware(name, num_devices, peak_flops, price, basis)
