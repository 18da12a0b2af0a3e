"""Everything there is to measure on one GPU, in one command of at most nine minutes: JSON on standard output.

    python benchmarks/gpu.py [--micro-batch 8] [--seconds 480] > gpu.json
    python benchmarks/gpu.py --toy        the same logic at toy size, also on a CPU

Needs the repository, not installed, and what the package depends on: the text is of its own making. Measured, on the
shape of SmolLM2-135M with untied embeddings and a vocabulary of 128,256, 32 rows of 2,048 positions, bfloat16, compiled
layers:

- the step at s = 1, 4 and 16, in turns: seconds, MFU against the matrix peak of this run, peak memory, and where in a
  step something waits for the device;
- the loss from hidden states, forward and backward, of each backend that is there: ours, torch's and Liger's kernels
  (`pip install liger-kernel`, or its wheel on PYTHONPATH), and full logits; at s = 1 and s = 16, with peak memory;
- each backend against the definition in float64, first.

Each part is measured in a process of its own, which says what it has piece by piece, and is ended where its time is
over: whatever happens to it, the others and what it had are in the JSON, with the reason (`skipped`, `failed`). Where
time is short there are fewer rounds. Aims: MFU at least 0.45; s=16 over s=1 at most 1.02; ours at s=1 at most 1.05 of
the best.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
import torch.nn.functional as F
from timing import Size, machine, ratio, spread, take_turns, write_corpus
from torch import Tensor

from token_superposition.losses.fused import check_kernel
from token_superposition.losses.linear import linear_multi_hot_cross_entropy
from token_superposition.training.hardware import matrix_peak, wait_for

BAG_SIZES = (1, 4, 16)
BACKENDS = ("chunked", "liger", "torch", "plain")
REAL = Size(128_256, 576, 30, 9, 32, 2048)
TOY = Size(512, 36, 2, 9, 4, 32)
SHARES = {"backends_checked": 0.15, "loss": 0.4, "step": 1.0}  # of the time, by when each part is to be done
GRACE = 30.0  # seconds after that, before a part is ended
MARK = "measured: "

Pieces = Iterator[tuple[str, Any]]


def synchronised(work: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """The work, and a wait for it."""

    def run() -> None:
        work()
        wait_for(device)

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


def waits_of(work: Callable[[], Any], device: torch.device) -> list[str] | None:
    """Where a piece of work waits for the device, as far as torch notices; None off CUDA."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)]


def make_trainer(data: Path, size: Size, micro_batch: int, device: torch.device, *, compiled: bool) -> Any:
    """A run with a stage of each bag size."""
    from token_superposition.training.config import parse_config
    from token_superposition.training.trainer import Trainer

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


def measure_steps(size: Size, device: torch.device, deadline: float, micro_batch: int) -> Pieces:
    """The training step at each bag size, in turns."""
    from step import batch_of

    from token_superposition.data.prepare import prepare

    peak = matrix_peak(device, torch.bfloat16, seconds=2.0)
    yield "matrix_peak_flops", peak
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name, "text"), 24 if size is REAL else 3)
        prepare([Path(name, "text")], out=Path(name, "data"), quiet=True)
        trainer = make_trainer(Path(name, "data"), size, micro_batch, device, compiled=device.type == "cuda")
        yield "parameters", trainer.num_parameters
        yield "loss_backend", trainer.loss_backend
        yield "micro_batch_size", micro_batch
        steps = {}
        for step, bag_size in enumerate(reversed(BAG_SIZES)):
            batch = batch_of(trainer, size, step)
            if trainer.pinned:  # as the run's own thread has it ready
                batch = replace(batch, ids=batch.ids.pin_memory(), targets=batch.targets.pin_memory())
            steps[f"s={bag_size}"] = partial(trainer.step, batch)
        kinds = {name: synchronised(work, device) for name, work in steps.items()}
        started = time.perf_counter()
        take_turns(kinds, rounds=1, warm_up=2)  # compiles
        yield "warm_up_seconds", time.perf_counter() - started
        yield "peak_memory_bytes", {name: peak_of(work, device) for name, work in kinds.items()}
        yield "waits", {name: waits_of(work, device) for name, work in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        flops = trainer.flops_per_position * size.rows * size.length
        while len(times["s=1"]) < 15 and (time.perf_counter() < deadline or len(times["s=1"]) < 2):
            for kind, values in take_turns(kinds, rounds=1, warm_up=0).items():
                times[kind] += values
            seconds = {name: spread(values) for name, values in times.items()}
            yield "rounds", len(times["s=1"])
            yield "seconds", seconds
            yield "mfu", {name: flops / value["median"] / peak for name, value in seconds.items()}
            yield "positions_per_second", {n: size.rows * size.length / v["median"] for n, v in seconds.items()}
            yield "s=16 over s=1", ratio(times, "s=16", "s=1")


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


def check_backends(device: torch.device) -> Pieces:
    """How far each is from the definition in float64: of the loss, and of the gradients' largest entry."""
    for bag_size in (1, 8):
        hidden, weight, targets = problem(96, 1000, 64, bag_size, device)
        exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
        logits = exact[0] @ exact[1].t()
        reference = torch.stack([F.cross_entropy(logits, targets[:, k]) for k in range(bag_size)]).mean()
        reference.backward()
        for backend in BACKENDS:
            name = f"{backend} s={bag_size}"
            if (reason := why_not(backend)) is not None:
                yield name, {"skipped": reason}
                continue
            loss = backward(backend, hidden, weight, targets)
            errors = [
                relative_error(mine.grad, theirs.grad) for mine, theirs in zip((hidden, weight), exact, strict=True)
            ]
            yield (
                name,
                {
                    "loss_error": abs(loss.item() - reference.item()) / reference.item(),
                    "gradient_errors": errors,
                    "right": abs(loss.item() - reference.item()) < 0.01 * reference.item() and max(errors) < 0.1,
                },
            )


def measure_losses(size: Size, device: torch.device, deadline: float) -> Pieces:
    """Each backend's loss, forward and backward, in turns, at s = 1 and s = 16."""
    rows = 8192 if size is REAL else 256
    yield "rows", rows
    for bag_size in (1, 16):
        inputs = problem(rows, size.vocab_size, size.width, bag_size, device)
        skipped = {backend: reason for backend in BACKENDS if (reason := why_not(backend)) is not None}
        kinds, memory = {}, {}
        for backend in BACKENDS:
            if backend in skipped:
                continue
            work = synchronised(partial(backward, backend, *inputs), device)
            try:
                work()  # compiles, where it is a kernel
                inputs[0].grad = inputs[1].grad = None  # what it takes itself is to be seen
                memory[backend] = peak_of(work, device)
            except Exception as error:  # of a kernel of others: ours are still to be measured
                skipped[backend] = in_words(error)
                continue
            kinds[backend] = work
        rounds = 20 if time.perf_counter() < deadline else 3
        times = take_turns(kinds, rounds=rounds, warm_up=1)
        best = min(kinds, key=lambda backend: spread(times[backend])["median"])
        yield (
            f"s={bag_size}",
            {
                "seconds": {name: spread(values) for name, values in times.items()},
                "peak_memory_bytes": memory,
                "best": best,
                "ours over the best": ratio(times, "chunked", best),
                "skipped": skipped,
            },
        )


def in_words(error: BaseException) -> str:
    """An error, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def measure_part(name: str, options: argparse.Namespace, deadline: float) -> None:
    """One part, in this process: a marked line for each piece, and one more where it fails."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = TOY if options.toy else REAL
    parts: dict[str, Callable[[], Pieces]] = {
        "backends_checked": lambda: check_backends(device),
        "loss": lambda: measure_losses(size, device, deadline),
        "step": lambda: measure_steps(size, device, deadline, min(options.micro_batch, size.rows)),
    }
    try:
        for key, value in parts[name]():
            print(f"{MARK}{json.dumps({key: value})}", flush=True)
    except Exception as error:
        print(f"{MARK}{json.dumps({'failed': in_words(error)})}", flush=True)


def run_part(name: str, arguments: list[str], seconds: float, grace: float = GRACE) -> dict[str, Any]:
    """What a process of that part says until it ends, or is ended `grace` after its time."""
    command = [sys.executable, __file__, *arguments, "--part", name, "--seconds", str(seconds)]
    # A session of its own, so that the compiler's processes end with it.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    late = threading.Event()

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def end_late() -> None:
        late.set()
        end()

    timer = threading.Timer(seconds + grace, end_late)
    timer.start()
    found: dict[str, Any] = {}
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                found |= json.loads(line.removeprefix(MARK))
        process.wait()
    finally:
        timer.cancel()
        end()
        process.wait()
    if process.returncode and "failed" not in found:
        found["failed"] = "its time was over" if late.is_set() else f"it ended with exit code {process.returncode}"
    return found


def main() -> None:
    """Measure, and print JSON."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch", type=int, default=8, help="rows a forward, a divisor of 32")
    parser.add_argument("--seconds", type=float, default=480.0, help="when to stop measuring")
    parser.add_argument("--toy", action="store_true", help="toy size, on whatever there is")
    parser.add_argument("--part", choices=SHARES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = TOY if options.toy else REAL
    if options.micro_batch < 1 or size.rows % min(options.micro_batch, size.rows):
        parser.error(f"--micro-batch {options.micro_batch} is no divisor of {size.rows} rows")
    if not options.toy and not torch.cuda.is_available():
        parser.error("no CUDA device here; --toy runs the same logic at toy size on a CPU")
    if options.part:
        measure_part(options.part, options, start + options.seconds)
        return
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "toy": options.toy,
        **machine(),
        "model": size._asdict(),
    }
    arguments = ["--micro-batch", str(options.micro_batch), *(["--toy"] if options.toy else [])]
    for name, share in SHARES.items():
        print(f"{time.perf_counter() - start:5.0f} s  {name}", file=sys.stderr, flush=True)
        left = share * options.seconds - (time.perf_counter() - start)
        try:
            result[name] = run_part(name, arguments, max(left, 1.0))
        except KeyboardInterrupt:  # what was measured is worth having
            result[name] = {"failed": "interrupted"}
            break
    result["seconds_in_all"] = time.perf_counter() - start
    print(json.dumps(result))


if __name__ == "__main__":
    main()
