"""Check that a model fits this machine before memory or time is spent on it.

A typing error in `hidden_size` can require terabytes. A typing error in the number of layers can take hours to build
small layers. Therefore the model is first built on the meta device, where tensors have a shape and no storage. During
this build, modules, parameters and buffers are counted, and the build stops as soon as the counts are far too large.
Otherwise the size is compared with the available memory. Some families build lists from configuration values before
any module exists, so these values are checked first.
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
_LARGEST_IN_A_LIST = 10**6  # a family may repeat an item of a list this many times
_BEYOND_REASON = 4  # times the available memory; a tied head counts twice until it is tied


def bytes_kept(device: torch.device, *, loading: bool = False) -> int:
    """Return the bytes of main memory per parameter of a model that is trained on a device.

    Args:
        device: the training device; a GPU keeps gradients and the optimizer state in its own memory.
        loading: weights are read from files into a second copy before they are copied into the model.
    """
    if device.type == "cuda":
        return 2 * WEIGHT_BYTES if loading else WEIGHT_BYTES
    return TRAINED_BYTES


def check_numbers(config: Mapping[str, Any]) -> None:
    """Refuse numbers that are too large for the lists and loops of a family, before any module exists.

    Raises:
        UserError: names the key.
    """
    for key, value in config.items():
        for number, in_list in _numbers(value):
            layers = "layer" in key and "vocab" not in key  # vocab_size_per_layer_input is not a number of layers
            most = _LARGEST_IN_A_LIST if in_list else _MOST_LAYERS if layers else _LARGEST
            if abs(number) > most:
                shown = str(number) if abs(number) < 10**30 else "a number of over 30 digits"
                raise UserError(f"model.config.{key}: {shown} is too large (the maximum is {most:,})")


@contextlib.contextmanager
def counted(bytes_per_parameter: int) -> Iterator[None]:
    """Stop the construction of a model inside the block as soon as it is far larger than the available memory.

    Raises:
        UserError: from inside the block, if the model is too large.
    """
    memory = available_memory()
    seen: dict[int, torch.Tensor] = {}  # keeps references to the tensors, so that no other tensor gets their id
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
            raise UserError(f"model.config: the model has over {_MOST_MODULES:,} modules; use fewer layers or experts")

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
    """Compare the size of a model with the available memory.

    Raises:
        UserError: if the model is larger; the message names both sizes.
    """
    memory = available_memory()
    num_bytes = bytes_per_parameter * sum(parameter.numel() for parameter in model.parameters())
    num_bytes += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if num_bytes > memory:
        raise _too_large("", num_bytes, memory)


def available_memory() -> int:
    """Return the bytes of memory that this process can still allocate, swap included."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, LookupError):  # only Linux has this file with the exact number
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        available = sizes["MemAvailable"] + sizes["SwapFree"]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or the word `max`
            available = min(available, int(Path(limit).read_text()))
    return available


def gigabytes(num_bytes: float) -> str:
    """Format a number of bytes: 1234567890 is 1.2 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes < 1e15 else f"{num_bytes:.0e} bytes"


def _too_large(over: str, num_bytes: int, memory: int) -> UserError:
    return UserError(
        f"model.config: the model needs {over}{gigabytes(num_bytes)} for its weights and their training state, but "
        f"this machine has {gigabytes(memory)} free; make the model smaller"
    )


def _numbers(value: Any, in_list: bool = False) -> Iterator[tuple[int, bool]]:
    """Yield every integer in a value, and whether the integer is an item of a list."""
    if isinstance(value, int):
        yield value, in_list
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, True)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item, in_list)
