"""The measured step times as JSON, as a table and as a sentence.

The MFU counts positions. A bag of s tokens costs the FLOPs of one position, so a larger s raises the raw tokens per
second, but not the MFU.
"""

from __future__ import annotations

import io
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from token_superposition.bench.rounds import LEAST_ROUNDS, Rounds, median_interval, middle_80
from token_superposition.formatting import count_in_words, memory, plural, wrapped
from token_superposition.schedule import Stage

_MOST_WAIT = 0.01
_LEVEL = 0.05  # if an interval around 1 is within this distance, two steps cost about the same


def row_of(
    stage: Stage,
    rounds: Rounds,
    *,
    positions_per_step: int,
    flops_per_position: int,
    peak_flops_per_second: float,
    peak_memory_bytes: int | None,
) -> dict[str, Any]:
    """The results of one bag size: medians over rounds, the middle 80% of step times, and ratios to ordinary steps.

    `ratio`, `ratio_interval` and `ratio_reason` (why one of them is null) compare with bag size 1.
    """
    times = rounds.step_seconds(stage.bag_size)
    seconds, (low, high) = statistics.median(times), middle_80(times)
    positions = positions_per_step / seconds
    ratio, interval, reason = None, None, None
    if 1 not in rounds.turns:
        reason = "bag size 1 was not measured"
    elif stage.bag_size == 1:
        reason = "this is the reference of the comparison"
    else:
        ratios = rounds.ratios(stage.bag_size)
        ratio, interval = statistics.median(ratios), median_interval(ratios)
        reason = None if interval else f"an interval needs at least {LEAST_ROUNDS} rounds"
    return {
        "bag_size": stage.bag_size,
        "mode": stage.mode,
        "step_seconds": seconds,
        "step_seconds_10_to_90": [low, high],
        "ratio": ratio,
        "ratio_interval": list(interval) if interval else None,
        "ratio_reason": reason,
        "positions_per_second": positions,
        "raw_tokens_per_second": positions * stage.input_bag_size,
        "mfu": positions * flops_per_position / peak_flops_per_second,
        "peak_memory_bytes": peak_memory_bytes,
        "data_wait_fraction": rounds.data_wait_fraction(stage.bag_size),
    }


def reading(result: dict[str, Any]) -> str:
    """The result in one or two sentences."""
    rows = result["bag_sizes"]
    last = rows[-1]
    if last["ratio"] is None:
        text = f"A step at s={last['bag_size']} takes {last['step_seconds']:.3g} s on this machine"
        text += ". For a comparison, measure bag size 1 too." if last["bag_size"] > 1 else "."
    else:
        text = _compared_step(last)
        times = round(last["raw_tokens_per_second"] / last["positions_per_second"])
        text += f" It reads {times} times as many tokens." if times > 1 else " It reads the same number of tokens."
    waits = [row for row in rows if row["data_wait_fraction"] > _MOST_WAIT]
    if waits:
        worst = max(waits, key=lambda row: row["data_wait_fraction"])
        text += f" At s={worst['bag_size']} training waits for data {worst['data_wait_fraction']:.1%} of the time."
    return text


def _compared_step(row: dict[str, Any]) -> str:
    """A sentence that compares a superposition step with an ordinary step; without a ratio if there is no interval."""
    start = f"A superposition step at s={row['bag_size']}"
    if not row["ratio_interval"]:
        return (
            f"There are too few steps to say whether {start[0].lower()}{start[1:]} costs more than an ordinary step: "
            "measure longer (--seconds), or remove --steps."
        )
    low, high = row["ratio_interval"]
    times = f"{row['ratio']:.2f} times an ordinary step (95% interval {low:.2f} to {high:.2f})"
    if low <= 1 <= high:
        near = "costs about as much as an ordinary step; " if max(1 - low, high - 1) < _LEVEL else ""
        return f"{start}: {near}there are too few steps to say which of the two costs more: {times}."
    return f"{start} costs {times} on this machine."


def table(result: dict[str, Any]) -> str:
    """The results as a table of plain text, with the hardware and the model."""
    size = f"{result['sequence_length']:,} positions, {result['batch_size']} rows"
    if result["micro_batch_size"]:
        size += f" in micro-batches of {result['micro_batch_size']}"
    lines = [
        f"{result['architecture']}, {count_in_words(result['parameters'])} parameters, {size}",
        f"{result['device_name']}, {result['dtype']}, {plural(result['num_threads'], 'thread')}: a matrix product with "
        f"{result['peak_matrix_size']:,} rows runs at {result['peak_flops_per_second'] / 1e12:.3g} TFLOP/s",
    ]
    if result["random_data"]:
        lines.append(result["random_data"])
    columns = ("s", "step, s", "10% to 90%", "times s=1", "95%", "positions/s", "raw tokens/s", "MFU", "memory", "wait")
    grid = Table(*columns, box=None, pad_edge=False)
    for column in grid.columns:
        column.justify, column.no_wrap = "right", True
    for row in result["bag_sizes"]:
        grid.add_row(
            str(row["bag_size"]),
            f"{row['step_seconds']:.4g}",
            " to ".join(f"{end:.4g}" for end in row["step_seconds_10_to_90"]),
            "" if row["ratio"] is None else f"{row['ratio']:.3f}",
            " to ".join(f"{end:.3f}" for end in row["ratio_interval"] or ()),
            count_in_words(row["positions_per_second"]),
            count_in_words(row["raw_tokens_per_second"]),
            f"{row['mfu']:.1%}",
            "" if row["peak_memory_bytes"] is None else memory(row["peak_memory_bytes"]),
            f"{row['data_wait_fraction']:.2%}",
        )
    text = io.StringIO()
    Console(file=text, width=200).print(grid)
    drawn = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*map(wrapped, lines), "", *drawn, "", wrapped(result["reading"])])


def batch_lines(found: dict[str, Any]) -> str:
    """The result of the search for a micro-batch, and the lines for the configuration."""
    taken = f"{memory(found['memory_bytes'])} of {memory(found['limit_bytes'])}"
    if found["micro_batch_size"] == found["batch_size"]:
        first = f"The whole batch of {found['batch_size']} rows fits into memory at s={found['bag_size']} ({taken})."
    else:
        first = (
            f"The largest micro-batch that fits into memory has {found['micro_batch_size']} of {found['batch_size']} "
            f"rows, at s={found['bag_size']} ({taken})."
        )
    return f"{wrapped(f'{first} For the configuration:')}\ntrain:\n  micro_batch_size: {found['micro_batch_size']}"


def device_name(device: torch.device) -> str:
    """The name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(device)
