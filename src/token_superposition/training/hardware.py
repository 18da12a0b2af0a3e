"""The machine a run is on: its peak, its memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from pathlib import Path

import torch


def make_deterministic(wanted: bool) -> None:
    """Let torch use only algorithms that give the same bits every time (or whichever are fastest again)."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(wanted)


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOPs a second of a large matrix product, measured here and now: what MFU is a fraction of.

    The best of several runs, with the threads this process has.
    """
    best = max(matrix_speeds(device, dtype, 1024 if device.type == "cpu" else 8192, seconds))
    if device.type == "cuda":  # what was needed here is not the run's memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def matrix_speeds(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> list[float]:
    """FLOPs a second of each of several products of square matrices, one after the other.

    Args:
        device, dtype: of the matrices.
        size: their rows and columns.
        seconds: how long to go on; one product is always done, after one that warms up.
    """
    own = torch.Generator().manual_seed(0)  # the global generator belongs to the run: dropout resumes from it
    left, right = (torch.randn(size, size, generator=own).to(device, dtype) for _ in range(2))
    product = left @ right
    wait_for(device)
    speeds: list[float] = []
    end = time.perf_counter() + seconds
    while not speeds or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        wait_for(device)
        speeds.append(2 * size**3 / (time.perf_counter() - start))
    return speeds


def machine_name(device: torch.device) -> str:
    """The hardware that computes, so that the seconds of two runs can be compared: the GPU, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{value.strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the GPU on CUDA, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # getrusage would count what the parent had before it started this process
        _, found, rest = Path("/proc/self/status").read_text().partition("VmHWM:")
        if found:  # not every sandbox says
            return 1024 * int(rest.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def wait_for(device: torch.device) -> None:
    """Wait until everything that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
