"""Whether a model fits this machine, found out before memory or time is spent on it.

A mistyped `hidden_size` asks for terabytes, a mistyped number of layers for hours of building small ones. So a
model is first built on the meta device, where tensors have a shape and no storage, under a count of what it
registers: modules, parameters, buffers. The count stops the building as soon as it is beyond all reason;
what gets through is compared with the memory there is. Families build lists from some numbers before any
module exists, so those numbers are looked at first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from token_superposition.errors import UserError

WEIGHT_BYTES = 4  # float32
TRAINED_BYTES = 16  # float32 weight, gradient and the two moments of Adam

_MOST_LAYERS = 2_000
_MOST_MODULES = 200_000
_LARGEST = 10**12
_LARGEST_IN_A_LIST = 10**6  # a family may repeat a word of a list that often
_BEYOND_REASON = 4  # times the memory there is: a head that will be tied is counted twice until it is


def bytes_kept(device: torch.device, *, loading: bool = False) -> int:
    """Bytes of this machine's memory for each parameter of a model that is trained on a device.

    Args:
        device: which, if it is a GPU of its own memory, keeps gradients and the optimizer's state.
        loading: weights are read beside those that the model has, and copied into it.
    """
    if device.type == "cuda":
        return 2 * WEIGHT_BYTES if loading else WEIGHT_BYTES
    return TRAINED_BYTES


def check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers that a family would build a list of, or loop over, before there is anything to count.

    Raises:
        UserError: naming the key.
    """
    for key, value in config.items():
        for number, in_list in _numbers(value):
            layers = "layer" in key and "vocab" not in key  # vocab_size_per_layer_input counts no layers
            most = _LARGEST_IN_A_LIST if in_list else _MOST_LAYERS if layers else _LARGEST
            if abs(number) > most:
                shown = str(number) if abs(number) < 10**30 else "a number of over 30 digits"
                raise UserError(f"model.config.{key}: {shown} is too large (the most that makes sense is {most:,})")


@contextlib.contextmanager
def counted(bytes_per_parameter: int) -> Iterator[None]:
    """Stop the building of a model inside the block once it is far larger than this machine.

    Raises:
        UserError: from inside the block.
    """
    memory = available_memory()
    seen: dict[int, torch.Tensor] = {}  # holds on to the tensors, so that no other gets their id
    num_bytes = num_modules = 0

    def tensor(_: nn.Module, __: str, value: torch.Tensor | None) -> None:
        nonlocal num_bytes
        if value is None or id(value) in seen:
            return
        seen[id(value)] = value
        num_bytes += value.numel() * (bytes_per_parameter if isinstance(value, nn.Parameter) else value.element_size())
        if num_bytes > _BEYOND_REASON * memory:
            raise _too_large("over ", num_bytes, memory)

    def submodule(_: nn.Module, __: str, value: nn.Module | None) -> None:
        nonlocal num_modules
        num_modules += value is not None
        if num_modules > _MOST_MODULES:
            raise UserError(f"model.config: a model of over {_MOST_MODULES:,} modules; give it fewer layers or experts")

    handles = [
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
        hooks.register_module_module_registration_hook(submodule),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_size(model: nn.Module, bytes_per_parameter: int) -> None:
    """Compare what a model takes with the memory there is.

    Raises:
        UserError: saying both.
    """
    memory = available_memory()
    num_bytes = bytes_per_parameter * sum(parameter.numel() for parameter in model.parameters())
    num_bytes += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if num_bytes > memory:
        raise _too_large("", num_bytes, memory)


def available_memory() -> int:
    """Bytes of memory that this process could still take, swap included."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, LookupError):  # Linux says more exactly; others have no such files
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        available = sizes["MemAvailable"] + sizes["SwapFree"]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # none, or the word `max`
            available = min(available, int(Path(limit).read_text()))
    return available


def gigabytes(num_bytes: float) -> str:
    """1234567890 as 1.2 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e15 else f"{num_bytes:.0e} bytes"


def _too_large(over: str, num_bytes: int, memory: int) -> UserError:
    return UserError(
        f"model.config: the model takes {over}{gigabytes(num_bytes)} for its weights and what training keeps of each, "
        f"and this machine has {gigabytes(memory)} free; make the model smaller"
    )


def _numbers(value: Any, in_list: bool = False) -> Iterator[tuple[int, bool]]:
    """Every integer in a value, and whether it is an item of a list."""
    if isinstance(value, int):
        yield value, in_list
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, True)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item, in_list)
