"""How much memory a training step takes, found out in a process of its own.

The system counts a process's most memory since its start, so every measurement needs a process; and one that takes
more than there is must end itself, not the machine. The child trains one row, for the optimizer to make its state,
and then a step of at most two micro-batches (with the second of them, gradients and activations are there at once:
more micro-batches take no more). What counts is the rise of the resident set above the loaded model, and the model's
weights; the process itself, with its libraries, is left out, as a GPU's figure leaves it out.

Asked through `python -m token_superposition.bench.memory`: a request in JSON on standard input, the answer in JSON
as the last line of standard output. It has no more memory than the request allows (the system refuses it the rest),
and is the first to be stopped where a system runs out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from token_superposition.bench.bench_run import BenchRun
from token_superposition.errors import RunFailedError, UserError, machine_trouble
from token_superposition.training.hardware import peak_memory_bytes, wait_for

_OUT_OF_MEMORY = 3  # exit code
_STACKS = 2**30  # address space that threads reserve and hardly use
_BASES = {
    "cpu": "weights, and the rise of the resident set above the loaded model in training, in a process of its own",
    "cuda": "the most that PyTorch had allocated on the device in a step",
}


def memory_basis(device_type: str) -> str:
    """What a figure of memory is, in words."""
    return _BASES.get(device_type, f"not known: {device_type} does not say what a step takes")


def measure_memory(subject: BenchRun, *, bag_size: int, rows: int, limit: int | None = None) -> int | None:
    """Bytes that a step at a bag size takes, in a process of its own, in micro-batches of `rows` rows.

    Args:
        subject: what is trained.
        bag_size: one of its.
        rows: a divisor of its batch size.
        limit: bytes that the process may take besides its libraries.

    Returns:
        None where there is not memory enough. On MPS, whose memory is not the process's, weights and what else shows.

    Raises:
        UserError: where the process says that the input is wrong, in its words.
        RunFailedError: where it fails otherwise.
    """
    part = subject.at_rows(rows, micro_batches_tried(subject, rows), bag_size)
    process = subprocess.Popen(
        [sys.executable, "-m", "token_superposition.bench.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # an interrupt is ours: the process is ended below
    )
    try:
        out, err = process.communicate(json.dumps({**part.as_dict(), "limit": limit}))
    finally:
        process.kill()
        process.wait()
    if process.returncode in (_OUT_OF_MEMORY, -signal.SIGKILL):
        return None
    said = err.strip().splitlines()
    last = said[-1].removeprefix("error: ") if said else "it said nothing"
    if process.returncode == 2:
        raise UserError(last)
    if process.returncode != 0:
        raise RunFailedError(f"measuring memory failed with exit code {process.returncode}: {last}")
    return int(json.loads(out.splitlines()[-1])["bytes"])


def micro_batches_tried(subject: BenchRun, rows: int) -> int:
    """How many micro-batches of `rows` rows show what a step takes: gradients lie beside activations in the second."""
    return min(2, subject.config.train.batch_size // rows)


def _answer(request: dict[str, Any]) -> int:
    """What `measure_memory` asks of its process."""
    subject = BenchRun.from_dict(request)
    trainer = subject.trainer()
    if request["limit"] is not None:
        _stop_above(request["limit"])
    weights = sum(tensor.numel() * tensor.element_size() for tensor in trainer.model.parameters())
    _forget_peak()
    before = _resident_bytes()
    first, second = (trainer.stream.batch(step) for step in range(2))
    trainer.step(replace(first, ids=first.ids[:1], targets=first.targets[:1]))
    trainer.step(second)
    wait_for(trainer.device)
    return weights + max(0, peak_memory_bytes(torch.device("cpu")) - before)


def _forget_peak() -> None:
    """Let Linux count the most memory from here on, where it may be asked to: building the model took some too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes() -> int:
    """Bytes of the process in memory now; where the system does not say, the most so far."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_bytes(torch.device("cpu"))


def _stop_above(limit: int) -> None:
    """From here on the system refuses more than so many bytes, and stops this process before others."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now = pages * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (now + limit + _STACKS, hard))


if __name__ == "__main__":
    try:
        print(json.dumps({"bytes": _answer(json.load(sys.stdin))}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if machine_trouble(error) is None:
            raise
        sys.exit(_OUT_OF_MEMORY)
