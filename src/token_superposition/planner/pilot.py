"""How long a step takes, measured on this machine: a pilot of some seconds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from token_superposition.bench.bench_progress import BenchProgress
from token_superposition.bench.bench_run import opened
from token_superposition.bench.rounds import measure
from token_superposition.bench.step_table import device_name
from token_superposition.planner.speed import Speed, share_of_peak

# `--pilot`: what a step of the planned run takes on this machine, with and without superposition.
#
# It is `tst bench` on the run's own configuration, of as many rows as are computed at once: a step of more is that
# many times longer. The optimizer's update is then counted once for each micro-batch, so that a step is rather
# overstated.
SECONDS = 20.0


def measure_speed(
    values: Mapping[str, Any],
    bag_size: int,
    *,
    num_devices: int,
    peak_flops: float | None,
    flops_per_step: float,
    quiet: bool,
) -> Speed:
    """Seconds a step here, shared by so many devices without loss.

    Args:
        values: the run's configuration.
        bag_size: of a superposition step.
        num_devices, peak_flops: what the run will be trained on; FLOPs a second of one.
        flops_per_step: of a whole step.
        quiet: show no progress.

    Raises:
        UserError: where a step does not fit this machine, or is faster than the named devices can be.
    """
    train = values.get("train", {})
    rows = train.get("micro_batch_size") or train.get("batch_size")
    keys = {} if rows is None else {"train.batch_size": rows}
    parts = 1 if rows is None else train["batch_size"] // rows
    with tempfile.TemporaryDirectory(prefix="tst-plan-") as place:
        file = Path(place) / "run.yaml"
        file.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        with opened(file, keys, sorted({1, bag_size})) as subject, BenchProgress(quiet=quiet) as progress:
            trainer = subject.trainer()
            rounds = measure(trainer, progress, steps=None, seconds=SECONDS)
            where = device_name(trainer.device)
            random_data = ", reading random tokens" if subject.random_data else ""
    ordinary, superposed = (
        statistics.median(rounds.step_seconds(size)) * parts / num_devices for size in (1, bag_size)
    )
    basis = f"measured here ({where}{random_data}), bags of {bag_size} and ordinary steps"
    if parts > 1:
        basis += f"; {parts} micro-batches of {rows} rows a step"
    if num_devices > 1:
        basis += f"; {num_devices} devices taken as {num_devices} times as fast"
    mfu = share_of_peak(flops_per_step, ordinary, peak_flops=peak_flops, num_devices=num_devices, basis=basis)
    return Speed(ordinary, superposed, mfu, basis)
