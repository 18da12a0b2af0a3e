"""The hardware of a run: its peak speed, its name and its memory."""

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
    """Restrict torch to deterministic algorithms, or lift the restriction."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(wanted)


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the FLOPs per second of a large matrix product, which is the peak for the MFU.

    The result is the best of several products, with the present number of threads.
    """
    best = max(matrix_speeds(device, dtype, 1024 if device.type == "cpu" else 8192, seconds))
    if device.type == "cuda":  # exclude this measurement from the memory of the run
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def matrix_speeds(device: torch.device, dtype: torch.dtype, size: int, seconds: float) -> list[float]:
    """Measure the FLOPs per second of several products of square matrices, one after the other.

    Args:
        device, dtype: device and data type of the matrices.
        size: number of rows and of columns.
        seconds: duration of the measurement; at least one product is measured, after one for warm-up.
    """
    own = torch.Generator().manual_seed(0)  # the global generator belongs to the run, whose dropout uses it
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
    """The name of the GPU or processor, which shows whether the seconds of two runs are comparable."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{value.strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU for CUDA, otherwise the peak resident set of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # getrusage includes the memory of the parent before it started this process
        _, found, rest = Path("/proc/self/status").read_text().partition("VmHWM:")
        if found:  # some sandboxes lack this line
            return 1024 * int(rest.split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
