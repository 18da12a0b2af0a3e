"""Choose the device and the dtype of a model's computation."""

from __future__ import annotations

import torch

from token_superposition.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device_type(name: str) -> str:
    """Return the type of a device name without using the device, because that would allocate memory on a GPU."""
    if name != "auto":
        return name.partition(":")[0]
    found = ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)
    return next(kind for kind, there in found if there)


def resolve_device(name: str, key: str = "train.device") -> torch.device:
    """Return the device of a name; `auto` is CUDA, else MPS, else the CPU. A CUDA device includes its number.

    Args:
        name: the name from the user.
        key: the configuration key or option with this name, for messages.

    Raises:
        UserError: if torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        name = device_type(name)
    try:
        device = torch.device(f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{key}: {name!r} cannot be used here: {line}") from None
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the computation; `auto` is bfloat16 on accelerators and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return DTYPES[name]
