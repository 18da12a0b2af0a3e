"""Devices with their peaks and list prices, and the MFU that was measured nearest in size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from token_superposition.errors import UserError, did_you_mean
from token_superposition.formatting import count_in_words
from token_superposition.planner.measured_runs import read_table


@dataclass(frozen=True)
class Hardware:
    """What a run is trained on. None means not known.

    Attributes:
        name: as in the table, or as the user calls it.
        num_devices: that train the run together.
        peak_flops_per_second: of one device, dense bfloat16.
        price, price_basis: dollars per device and hour, and where the price is from.
    """

    name: str | None
    num_devices: int
    peak_flops_per_second: float | None
    price: float | None
    price_basis: str | None


@dataclass(frozen=True)
class Speed:
    """The time of a step on all devices. Superposition steps take the same FLOPs and the same time.

    Attributes:
        step_seconds: of one step.
        mfu: the share of the devices' data-sheet peak.
        basis: where the MFU is from, in words.
    """

    step_seconds: float
    mfu: float
    basis: str


def find_hardware(
    name: str | None, *, num_devices: int = 1, peak_flops: float | None = None, price: float | None = None
) -> Hardware:
    """The device of that name; a peak or price that is given replaces the table's.

    Raises:
        UserError: for a name that the table does not have, without `peak_flops`.
    """
    rows = {row["name"]: row for row in read_table("hardware.csv")}
    row = rows.get((name or "").lower())
    if name is not None and row is None and peak_flops is None:
        raise UserError(
            f"--hardware: {name!r} is not known{did_you_mean(name.lower(), rows)} (known: {', '.join(rows)}); "
            "for another device give --peak-flops (dense bfloat16, such as 989T) and --price"
        )
    if peak_flops is None and row is not None:
        peak_flops = float(row["peak_tflops"]) * 1e12
    basis = None if price is None else "as given"
    if price is None and row is not None and row["price"]:
        price, basis = float(row["price"]), row["price_basis"]
    return Hardware(name, num_devices, peak_flops, price, basis)


def speed_of(
    hardware: Hardware, *, flops_per_step: float, parameters: int, vocab_size: int, mfu: float | None
) -> Speed | None:
    """The time of a step from the peak and the MFU; without an `mfu` a measured one. None without a peak."""
    if hardware.peak_flops_per_second is None:
        return None
    basis = "your MFU (--mfu)"
    if mfu is None:
        mfu, basis = measured_mfu(parameters, vocab_size, hardware.name)
    return Speed(flops_per_step / (hardware.peak_flops_per_second * hardware.num_devices * mfu), mfu, basis)


def measured_mfu(parameters: int, vocab_size: int, device: str | None) -> tuple[float, str]:
    """The MFU measured nearest in parameters, as a share of the data-sheet peak, and where it is from."""
    row = min(read_table("mfu.csv"), key=lambda row: abs(math.log(int(row["parameters"]) / parameters)))
    peak = next(float(each["peak_tflops"]) for each in read_table("hardware.csv") if each["name"] == row["device"])
    mfu = float(row["mfu"]) * float(row["matrix_peak_tflops"]) / peak
    measured = int(row["parameters"])
    same_model = abs(parameters / measured - 1) < 0.1 and vocab_size == int(row["vocab_size"])
    differs = [] if same_model else ["model"]
    if (device or "").lower() != row["device"]:
        differs.append("device")
    yours = f"; your {' and '.join(differs)} {'differ' if len(differs) > 1 else 'differs'}" if differs else ""
    if not 0.1 <= parameters / measured <= 10:
        yours += ", the model by more than ten times in size, so the hours are a guess"
    return mfu, (
        f"measured on one {row['device'].upper()} with {count_in_words(measured)} parameters ({row['source']}){yours}; "
        "give yours with --mfu"
    )
