"""A model's layers, compiled or checkpointed where they stand.

Layers are what the family itself names as its undivided blocks (`_no_split_modules`). Compiled one by one, they share
one compiled code, whatever their number, and the embedding, the loss and the switch stay outside: the latent shape is
the same in both phases, so nothing is compiled again when the bag size changes. Neither touches the state dict.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from token_superposition.errors import UserError


def layers_of(model: Any) -> list[nn.Module]:
    """The modules of a Hugging Face model that its family calls layers, in their order; none where it names none."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(part) for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if id(layer) not in inner]


def compile_layers(model: nn.Module) -> None:
    """Let `torch.compile` have each layer, in place.

    Raises:
        UserError: for a family that names no layers, or a CPU without a C++ compiler.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError(f"train.compile: {type(model).__name__} does not say what its layers are; set it to false")
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise UserError("train.compile: on a CPU it needs a C++ compiler, such as g++, and there is none; install one")
    for layer in layers:
        layer.compile(dynamic=False)


def checkpoint_activations(model: Any) -> None:
    """Keep each layer's input only, and compute the layer again in the backward pass.

    Raises:
        UserError: for a family that cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"train.activation_checkpointing: {type(model).__name__} does not support it; set it to false and lower "
            "train.micro_batch_size"
        )
    kind = {"use_reentrant": False}
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.2x
    if enable is not None:
        enable(activation_checkpointing_kwargs=kind)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)


def eager() -> Any:
    """Inside the block compiled layers run uncompiled: for other shapes than training's, such as validation's."""
    return torch.compiler.set_stance("force_eager")
