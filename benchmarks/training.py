"""Whole training, positions a second: ours, a bare PyTorch loop, and Hugging Face Trainer, on one model and batches.

    python benchmarks/training.py [--size demo] [--steps 60] [--rounds 5] [--threads 1] [--json]

Each kind trains the same number of ordinary steps (bag size 1), logging as it does by itself; ours is `tst train`'s own
loop, with its data stream, metrics and checks, and a superposed run besides. The Trainer runs with its defaults, and
with what makes it fastest here: fused AdamW, no saving, no tracker, logging as seldom as ours. Kinds take turns; the
first steps of each warm up, and the time from there to the last step counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from step import SIZES, bare_loop, prepared
from timing import Size, machine, ratio, show, spread
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainerCallback, TrainingArguments

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.stream import TokenStream
from token_superposition.models.spec import ModelSpec
from token_superposition.schedule import Schedule
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train
from token_superposition.training.metrics import read_metrics
from token_superposition.training.trainer import Trainer

WARM_UP = 10
LOG_INTERVAL = 10


def ours(data: Path, size: Size, steps: int, threads: int, bag_size: int) -> float:
    """Seconds of `tst train`; with bags, all but one of its steps are superposed."""
    values: dict[str, Any] = {
        "data": {"path": str(data), "verify": False},
        "model": {"architecture": "llama", "config": size.model},
        "train": {
            "total_steps": steps + (bag_size > 1),
            "batch_size": size.rows,
            "sequence_length": size.length,
            "num_threads": threads,
            "device": "cpu",
            "dtype": "float32",
        },
        "logging": {
            "log_interval": LOG_INTERVAL,
            "validation_interval": 10**9,
            "interim_validation_tokens": size.length,
            "validation_tokens": size.length,
            "checkpoint_interval": 10**9,
        },
    }
    if bag_size > 1:
        values["superposition"] = {"bag_size": bag_size, "superposition_steps": steps}
    with tempfile.TemporaryDirectory() as folder, _steps_timed() as ends:
        train(parse_config(values), Path(folder, "run"), quiet=True)
        waits = [
            line["data_wait_fraction"] for line in read_metrics(Path(folder, "run", "metrics.jsonl")) if "loss" in line
        ]
        DATA_WAITS.append(max(waits[1:] or waits))
    return ends[steps - 1] - ends[WARM_UP - 1]


DATA_WAITS: list[float] = []


@contextmanager
def _steps_timed() -> Iterator[list[float]]:
    """When each step of ours ends."""
    ends: list[float] = []
    step = Trainer.step

    def timed(self: Trainer, batch: Any) -> Any:
        result = step(self, batch)
        ends.append(time.perf_counter())
        return result

    Trainer.step = timed  # type: ignore[method-assign]
    try:
        yield ends
    finally:
        Trainer.step = step  # type: ignore[method-assign]


def rows_of(data: Path, size: Size, steps: int) -> list[torch.Tensor]:
    """The very rows that an ordinary run reads, one (L + 1,) tensor each."""
    dataset = TokenDataset.open(str(data), "train")
    stream = TokenStream(
        dataset, Schedule.two_phase(steps, 1, 0.0), sequence_length=size.length, batch_size=size.rows, seed=0
    )
    rows: list[torch.Tensor] = []
    for step in range(steps):
        batch = stream.batch(step)
        rows += list(torch.cat([batch.ids.squeeze(-1), batch.targets.squeeze(-1)[:, -1:]], dim=1))
    return rows


def bare(data: Path, size: Size, steps: int, threads: int) -> float:
    """Seconds of a loop written by hand, which looks at its loss as often as ours does."""
    torch.set_num_threads(threads)
    step, rows = bare_loop(size), rows_of(data, size, steps)
    for number in range(steps):
        if number == WARM_UP:
            start = time.perf_counter()
        batch = torch.stack(rows[number * size.rows :][: size.rows])
        step(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    return time.perf_counter() - start


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def hugging_face(data: Path, size: Size, steps: int, threads: int, *, best: bool) -> float:
    """Seconds of transformers.Trainer on the same rows."""
    torch.set_num_threads(threads)
    model = ModelSpec("llama", size.model, vocab_size=size.vocab_size, eos_id=0).build(seed=0)
    examples = [{"input_ids": row[:-1], "labels": row[:-1]} for row in rows_of(data, size, steps)]
    clock = _Clock()
    settings: dict[str, Any] = {"max_steps": steps, "per_device_train_batch_size": size.rows, "use_cpu": True}
    if best:
        settings |= {"optim": "adamw_torch_fused", "save_strategy": "no", "logging_steps": LOG_INTERVAL}
        settings |= {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, **settings)
        HuggingFaceTrainer(model=model, args=arguments, train_dataset=examples, callbacks=[clock]).train()
    return clock.ends[steps - 1] - clock.ends[WARM_UP - 1]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train with each kind in turns."""
    size, steps, threads = SIZES[options.size], options.steps, options.threads
    with tempfile.TemporaryDirectory() as name:
        data = prepared(Path(name))
        kinds: dict[str, Callable[[], float]] = {
            "ours": lambda: ours(data, size, steps, threads, 1),
            "ours, s=16": lambda: ours(data, size, steps, threads, 16),
            "bare loop": lambda: bare(data, size, steps, threads),
            "Trainer": lambda: hugging_face(data, size, steps, threads, best=False),
            "Trainer, best": lambda: hugging_face(data, size, steps, threads, best=True),
        }
        names = list(kinds)
        times: dict[str, list[float]] = {kind: [] for kind in names}
        for number in range(options.rounds):
            for kind in names[number % len(names) :] + names[: number % len(names)]:
                times[kind].append(kinds[kind]())
    positions = size.rows * size.length * (steps - WARM_UP)
    return {
        "size": options.size,
        "steps": steps,
        "rounds": options.rounds,
        "positions_per_second": {
            kind: spread([positions / value for value in values]) for kind, values in times.items()
        },
        # Speeds are the other way round than times: a kind's time over ours is our speed over its.
        "speed of ours over": {kind: ratio(times, kind, "ours") for kind in names if kind != "ours"},
        "largest_data_wait_fraction": max(DATA_WAITS),
        **machine(),
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps is more than the {WARM_UP} that warm up")
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    show("positions a second", result["positions_per_second"])
    show("speed of ours over", result["speed of ours over"])
    print(f"largest data_wait_fraction of ours: {result['largest_data_wait_fraction']:.4f}")


if __name__ == "__main__":
    main()
