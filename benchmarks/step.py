"""What a training step costs: superposition over recovery, and ours over a bare PyTorch loop, in time and memory.

    python benchmarks/step.py [--size demo] [--rounds 40] [--bag-size 16] [--threads 1]
        [--memory-runs 5] [--json]

Three sizes, on random tokens: `demo` (bytes, a vocabulary of 320; width 96, 3 layers, 2,048 positions), `medium`
(32,768; 256; 4; 512) and `large` (128,256; 576; 2; 256). Steps of the compared kinds take turns in one process, and
every ratio is of two steps that stood next to each other, so a machine whose speed drifts changes both. Reported are
medians and quartiles. Memory is measured in a process for each kind: how far its resident set rises above the loaded
model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import Size, machine, ratio, report, spread, take_turns, write_corpus
from torch import Tensor

from token_superposition.data.prepare import prepare
from token_superposition.data.stream import Batch
from token_superposition.models.spec import ModelSpec
from token_superposition.training.config import parse_config
from token_superposition.training.hardware import peak_memory_bytes
from token_superposition.training.trainer import Trainer

MEMORY_STEPS = 4


SIZES = {
    "demo": Size(320, 96, 3, 3, 16, 128),
    "medium": Size(32_768, 256, 4, 4, 4, 128),
    "large": Size(128_256, 576, 2, 9, 2, 128),
}


def make_trainer(data: Path, size: Size, bag_size: int, threads: int) -> Trainer:
    """A run of that size; half of its steps superposed, so that either kind is at hand."""
    values = {
        "data": {"path": str(data), "verify": False},
        "model": {"architecture": "llama", "config": size.model},
        "superposition": {"bag_size": bag_size, "ratio": 0.5},
        "train": {
            "total_steps": 400,
            "batch_size": size.rows,
            "sequence_length": size.length,
            "num_threads": threads,
            "device": "cpu",
            "dtype": "float32",
        },
    }
    config = parse_config(values)
    return Trainer(config, config.schedule())


def batch_of(trainer: Trainer, size: Size, step: int) -> Batch:
    """That step's batch, with ids from all of the vocabulary."""
    batch = trainer.stream.batch(step)
    generator = torch.Generator().manual_seed(step)
    ids, targets = (
        torch.randint(0, size.vocab_size, part.shape, generator=generator) for part in (batch.ids, batch.targets)
    )
    return replace(batch, ids=ids, targets=targets)


def bare_loop(size: Size) -> Callable[[Tensor, Tensor], None]:
    """An ordinary training step around the same Hugging Face model, as one would write it by hand."""
    model = ModelSpec("llama", size.model, vocab_size=size.vocab_size, eos_id=0).build(seed=0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(ids_BL: Tensor, targets_BL: Tensor) -> None:
        logits = model(input_ids=ids_BL, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), targets_BL.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def prepared(folder: Path) -> Path:
    """Some text, as shards."""
    write_corpus(folder / "text", 8)
    prepare([folder / "text"], out=folder / "data", quiet=True)
    return folder / "data"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time the three kinds of step in turns, and measure the memory of each."""
    size = SIZES[options.size]
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(prepared(Path(name)), size, options.bag_size, options.threads)
        bare = bare_loop(size)
        superposed, plain = (batch_of(trainer, size, step) for step in (0, trainer.schedule.switch_step))
        ids_BL, targets_BL = plain.ids.squeeze(-1), plain.targets.squeeze(-1).contiguous()
        kinds = {
            "superposition": lambda: trainer.step(superposed),
            "recovery": lambda: trainer.step(plain),
            "bare loop": lambda: bare(ids_BL, targets_BL),
        }
        times = take_turns(kinds, options.rounds, warm_up=3)
    # In turns too; the allocator's slack differs from process to process.
    runs = [{kind: extra_memory(kind, options) for kind in kinds} for _ in range(options.memory_runs)]
    memory = {kind: [float(run[kind]) for run in runs] for kind in kinds}
    return {
        "size": options.size,
        **size._asdict(),
        "bag_size": options.bag_size,
        "rounds": options.rounds,
        "loss_backend": trainer.loss_backend,
        "seconds": {kind: spread(values) for kind, values in times.items()},
        "extra_memory_bytes": {kind: spread(values) for kind, values in memory.items()},
        "ratios": {
            "time: superposition over recovery": ratio(times, "superposition", "recovery"),
            "time: recovery over a bare loop": ratio(times, "recovery", "bare loop"),
            "memory: superposition over recovery": ratio(memory, "superposition", "recovery"),
            "memory: recovery over a bare loop": ratio(memory, "recovery", "bare loop"),
        },
        **machine(),
    }


def extra_memory(kind: str, options: argparse.Namespace) -> int:
    """Bytes that the resident set rises by over a few steps of one kind, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", kind, "--size", options.size]
    command += ["--bag-size", str(options.bag_size), "--threads", str(options.threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(kind: str, options: argparse.Namespace) -> None:
    """What `extra_memory` asks for."""
    size, cpu = SIZES[options.size], torch.device("cpu")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(prepared(Path(name)), size, options.bag_size, options.threads)
        batch = batch_of(trainer, size, 0 if kind == "superposition" else trainer.schedule.switch_step)
        bare = bare_loop(size) if kind == "bare loop" else None
        before = peak_memory_bytes(cpu)
        for _ in range(MEMORY_STEPS):
            if bare is None:
                trainer.step(batch)
            else:
                bare(batch.ids.squeeze(-1), batch.targets.squeeze(-1).contiguous())
        print(peak_memory_bytes(cpu) - before)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="demo")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bag-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-runs", type=int, default=5, help="processes for each kind")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options.memory_of, options)
        return
    report(measure(options), as_json=options.json)


if __name__ == "__main__":
    main()
