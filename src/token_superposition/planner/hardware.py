"""Accelerators by name: peak, and a public list price with its date. What a user gives comes before both."""

from __future__ import annotations

from dataclasses import dataclass

from token_superposition.errors import UserError, did_you_mean
from token_superposition.planner.tables import read_table


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
