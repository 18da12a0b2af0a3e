"""Everything there is to measure on one GPU, in one command of at most nine minutes: JSON on standard output.

    python benchmarks/gpu.py [--micro-batch 8] [--seconds 480] > gpu.json
    python benchmarks/gpu.py --toy        the same logic at toy size, also on a CPU

Needs the repository alone: the text is of its own making. Measured, on the shape of SmolLM2-135M with untied embeddings
and a vocabulary of 128,256, 32 rows of 2,048 positions, bfloat16, compiled layers:

- the step at s = 1, 4 and 16, in turns: seconds, MFU against the matrix peak of this run, peak memory;
- the loss from hidden states, forward and backward, of each backend that is there: ours, torch's and Liger's kernels
  (`pip install liger-kernel`, or its wheel on PYTHONPATH), and full logits; at s = 1 and s = 16, with peak memory;
- each backend against the definition in float64, first.

What cannot run says why (`skipped`, `failed`); where time is short there are fewer rounds. Aims: MFU at least 0.45;
s=16 over s=1 at most 1.02; ours at s=1 at most 1.05 of the best.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from step import Size, batch_of
from timing import machine, ratio, spread, take_turns, write_corpus
from torch import Tensor

from token_superposition import linear_multi_hot_cross_entropy
from token_superposition.data.prepare import prepare
from token_superposition.objective.one_target import check_kernel
from token_superposition.train.config import parse_config
from token_superposition.train.device import matrix_peak
from token_superposition.train.trainer import Trainer

BAG_SIZES = (1, 4, 16)
BACKENDS = ("chunked", "liger", "torch", "plain")
REAL = Size(128_256, 576, 30, 9, 32, 2048)
TOY = Size(512, 36, 2, 9, 4, 32)


def synchronised(work: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The work, and a wait for it."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def peak_of(work: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a piece of work takes at its peak; None off CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def make_trainer(data: Path, size: Size, micro_batch: int, device: torch.device, *, compiled: bool) -> Trainer:
    """A run with a stage of each bag size."""
    values = {
        "data": {"path": str(data), "verify": False},
        "model": {
            "architecture": "llama",
            "config": {
                **size.model,
                "intermediate_size": size.width * 8 // 3,
                "num_key_value_heads": 3,
                "tie_word_embeddings": False,
                "max_position_embeddings": size.length,
            },
        },
        "superposition": {"stages": [{"bag_size": bag_size, "steps": 1} for bag_size in BAG_SIZES[:0:-1]]},
        "train": {
            "total_steps": len(BAG_SIZES),
            "batch_size": size.rows,
            "micro_batch_size": micro_batch,
            "sequence_length": size.length,
            "device": device.type,
            "dtype": "bfloat16",
            "compile": compiled,
        },
    }
    config = parse_config(values)
    return Trainer(config, config.schedule())


def measure_steps(size: Size, micro_batch: int, device: torch.device, deadline: float) -> dict[str, Any]:
    """The training step at each bag size, in turns."""
    peak = matrix_peak(device, torch.bfloat16, seconds=2.0)
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name, "text"), 24 if size is REAL else 3)
        prepare([Path(name, "text")], out=Path(name, "data"), quiet=True)
        trainer = make_trainer(Path(name, "data"), size, micro_batch, device, compiled=device.type == "cuda")
        batches = {BAG_SIZES[::-1][step]: batch_of(trainer, size, step) for step in range(len(BAG_SIZES))}
        kinds = {
            f"s={bag_size}": synchronised(partial(trainer.step, batch), device) for bag_size, batch in batches.items()
        }
        started = time.perf_counter()
        take_turns(kinds, rounds=1, warm_up=2)  # compiles
        compile_seconds = time.perf_counter() - started
        memory = {name: peak_of(work, device) for name, work in kinds.items()}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        while len(times["s=1"]) < 15 and (time.perf_counter() < deadline or len(times["s=1"]) < 2):
            for kind, values in take_turns(kinds, rounds=1, warm_up=0).items():
                times[kind] += values
        flops = trainer.flops_per_position * size.rows * size.length
        seconds = {name: spread(values) for name, values in times.items()}
        return {
            "parameters": trainer.num_parameters,
            "loss_backend": trainer.loss_backend,
            "micro_batch_size": micro_batch,
            "rounds": len(times["s=1"]),
            "warm_up_seconds": compile_seconds,
            "matrix_peak_flops": peak,
            "seconds": seconds,
            "mfu": {name: flops / value["median"] / peak for name, value in seconds.items()},
            "positions_per_second": {name: size.rows * size.length / v["median"] for name, v in seconds.items()},
            "peak_memory_bytes": memory,
            "s=16 over s=1": ratio(times, "s=16", "s=1"),
        }


def problem(rows: int, vocab: int, width: int, bag_size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).to(device, torch.bfloat16).requires_grad_()
    weight = (torch.randn(vocab, width, generator=generator) * 0.05).to(device, torch.bfloat16).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (rows, bag_size), generator=generator).to(device)


def why_not(backend: str) -> str | None:
    """Why a backend cannot run here."""
    if backend not in ("liger", "torch"):
        return None
    try:
        check_kernel(backend)  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return None


def backward(backend: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """One loss of that backend, and its gradients."""
    hidden.grad = weight.grad = None
    loss = linear_multi_hot_cross_entropy(hidden, weight, targets, backend=backend)  # type: ignore[arg-type]
    loss.backward()
    return loss.detach()


def relative_error(found: Tensor | None, exact: Tensor | None) -> float:
    """The largest difference over the largest entry."""
    if found is None or exact is None:
        return float("inf")
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def check_backends(device: torch.device) -> dict[str, Any]:
    """How far each is from the definition in float64: of the loss, and of the gradients' largest entry."""
    found: dict[str, Any] = {}
    for bag_size in (1, 8):
        hidden, weight, targets = problem(96, 1000, 64, bag_size, device)
        exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
        logits = exact[0] @ exact[1].t()
        reference = torch.stack([F.cross_entropy(logits, targets[:, k]) for k in range(bag_size)]).mean()
        reference.backward()
        for backend in BACKENDS:
            name = f"{backend} s={bag_size}"
            if (reason := why_not(backend)) is not None:
                found[name] = {"skipped": reason}
                continue
            loss = backward(backend, hidden, weight, targets)
            errors = [
                relative_error(mine.grad, theirs.grad) for mine, theirs in zip((hidden, weight), exact, strict=True)
            ]
            found[name] = {
                "loss_error": abs(loss.item() - reference.item()) / reference.item(),
                "gradient_errors": errors,
                "right": abs(loss.item() - reference.item()) < 0.01 * reference.item() and max(errors) < 0.1,
            }
    return found


def measure_losses(size: Size, device: torch.device, deadline: float) -> dict[str, Any]:
    """Each backend's loss, forward and backward, in turns, at s = 1 and s = 16."""
    rows = 8192 if size is REAL else 256
    found: dict[str, Any] = {"rows": rows}
    for bag_size in (1, 16):
        inputs = problem(rows, size.vocab_size, size.width, bag_size, device)
        there = [backend for backend in BACKENDS if why_not(backend) is None]
        kinds = {backend: synchronised(partial(backward, backend, *inputs), device) for backend in there}
        take_turns(kinds, rounds=1, warm_up=2)
        memory = {backend: peak_of(work, device) for backend, work in kinds.items()}
        rounds = 20 if time.perf_counter() < deadline else 3
        times = take_turns(kinds, rounds=rounds, warm_up=0)
        best = min(there, key=lambda backend: spread(times[backend])["median"])
        found[f"s={bag_size}"] = {
            "seconds": {name: spread(values) for name, values in times.items()},
            "peak_memory_bytes": memory,
            "best": best,
            "ours over the best": ratio(times, "chunked", best),
            "skipped": {backend: why_not(backend) for backend in BACKENDS if backend not in there},
        }
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, default=8, help="rows a forward, a divisor of 32")
    parser.add_argument("--seconds", type=float, default=480.0, help="when to stop measuring")
    parser.add_argument("--toy", action="store_true", help="toy size, on whatever there is")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device here; --toy runs the same logic at toy size on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, start = (TOY, time.perf_counter()) if options.toy else (REAL, time.perf_counter())
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "toy": options.toy,
        **machine(),
        "model": size._asdict(),
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "backends_checked": lambda: check_backends(device),
        "loss": lambda: measure_losses(size, device, start + options.seconds / 3),
        "step": lambda: measure_steps(
            size, min(options.micro_batch, size.rows), device, start + (0 if options.toy else options.seconds)
        ),
    }
    for name, part in parts.items():
        print(f"{time.perf_counter() - start:5.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            result[name] = part()
        except Exception as error:  # a machine lent for minutes: what was measured is worth having
            result[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    result["seconds_in_all"] = time.perf_counter() - start
    print(json.dumps(result))


if __name__ == "__main__":
    main()
