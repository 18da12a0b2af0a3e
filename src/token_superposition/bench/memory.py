"""Measurement of the memory of a training step in a separate process.

Each measurement needs its own process, for two reasons. The system reports the peak memory of a process since its
start. A measurement that runs out of memory must end itself without harm to the machine.

The child process first trains one row, so that the optimizer creates its state. It then does a step of at most two
micro-batches. During the second micro-batch, gradients and activations exist together, so more micro-batches need no
more memory. The result is the size of the weights plus the rise of the resident set above the loaded model. It excludes
the process and its libraries, as GPU measurements do.

The child is `python -m token_superposition.bench.memory`. It reads a request in JSON from standard input, and writes
the answer in JSON as the last line of standard output. The system refuses it more memory than the request allows. If
the system runs out of memory, it stops the child first.
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
_STACKS = 2**30  # bytes of address space that threads reserve but hardly use
_BASES = {
    "cpu": "weights plus the rise of the resident set above the loaded model during training, in a separate process",
    "cuda": "peak memory that PyTorch allocated on the device during a step",
}


def memory_basis(device_type: str) -> str:
    """The definition of the reported memory, as text."""
    return _BASES.get(device_type, f"unknown: {device_type} does not report the memory of a step")


def measure_memory(subject: BenchRun, *, bag_size: int, rows: int, limit: int | None = None) -> int | None:
    """Measure the memory of a step in a separate process.

    Args:
        subject: the run.
        bag_size: one of the bag sizes of the run.
        rows: rows per micro-batch, a divisor of the batch size.
        limit: largest number of bytes that the process may use, without its libraries.

    Returns:
        Bytes of a step; None if memory is insufficient. On MPS the result is incomplete, because the memory of the
        device does not belong to the process.

    Raises:
        UserError: if the process reports wrong input, with the message of the process.
        RunFailedError: if the process fails in another way.
    """
    part = subject.at_rows(rows, micro_batches_tried(subject, rows), bag_size)
    process = subprocess.Popen(
        [sys.executable, "-m", "token_superposition.bench.memory"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # this process handles an interrupt and ends the child below
    )
    try:
        out, err = process.communicate(json.dumps({**part.as_dict(), "limit": limit}))
    finally:
        process.kill()
        process.wait()
    if process.returncode in (_OUT_OF_MEMORY, -signal.SIGKILL):
        return None
    said = err.strip().splitlines()
    last = said[-1].removeprefix("error: ") if said else "no message"
    if process.returncode == 2:
        raise UserError(last)
    if process.returncode != 0:
        raise RunFailedError(f"the measurement of memory failed with exit code {process.returncode}: {last}")
    return int(json.loads(out.splitlines()[-1])["bytes"])


def micro_batches_tried(subject: BenchRun, rows: int) -> int:
    """Number of micro-batches to measure: two if possible, because the second one has the peak memory."""
    return min(2, subject.config.train.batch_size // rows)


def _answer(request: dict[str, Any]) -> int:
    """Measure in the child process; returns bytes."""
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
    """Reset the peak memory on Linux if possible, to exclude the memory for building the model."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes() -> int:
    """Resident bytes of the process now; the peak so far if the system does not report the present value."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_bytes(torch.device("cpu"))


def _stop_above(limit: int) -> None:
    """Limit the further memory of this process, and let the system stop it before other processes."""
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
