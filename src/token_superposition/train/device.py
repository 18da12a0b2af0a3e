"""The machine a run is on: its device, its dtype, its peak, its memory."""

from __future__ import annotations

import os
import resource
import sys
import time

import torch

from token_superposition.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device a configuration names; `auto` takes CUDA, else MPS, else the CPU. A CUDA device has its number.

    Raises:
        UserError: for a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        found = ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)
        name = next(kind for kind, there in found if there)
    try:
        device = torch.device(f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"train.device: {name!r} cannot be used here: {line}") from None
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; `auto` is bfloat16 on accelerators and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]


def make_deterministic(wanted: bool) -> None:
    """Let torch use only algorithms that give the same bits every time (or whichever are fastest again)."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(wanted)


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOPs a second of a large matrix product, measured here and now: what MFU is a fraction of.

    The best of several runs, with the threads this process has.
    """
    size = 1024 if device.type == "cpu" else 8192
    own = torch.Generator().manual_seed(0)  # the global generator belongs to the run: dropout resumes from it
    left, right = (torch.randn(size, size, generator=own).to(device, dtype) for _ in range(2))
    _synchronize(left @ right)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        _synchronize(left @ right)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    if device.type == "cuda":  # what was needed here is not the run's memory
        del left, right
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the GPU on CUDA, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def _synchronize(result: torch.Tensor) -> None:
    """Wait until a result is really there, on any device."""
    result[0, 0].item()
