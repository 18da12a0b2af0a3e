"""Compile the layers of a model, or checkpoint their activations, in place.

The layers are the modules that the model family lists in `_no_split_modules`. Each layer is compiled separately, so all
layers share the same compiled code. The embedding and the loss are not compiled. The latent shape is the same in both
phases, so nothing is compiled again when the bag size changes. Neither function changes the state dict.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from token_superposition.errors import UserError


def layers_of(model: Any) -> list[nn.Module]:
    """Return the layers of a Hugging Face model in their order; an empty list if its family names no layers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(part) for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if id(layer) not in inner]


def compile_layers(model: nn.Module) -> None:
    """Compile each layer with `torch.compile`, in place.

    Raises:
        UserError: if the family names no layers, or if the model is on a CPU and there is no C++ compiler.
    """
    layers = layers_of(model)
    if not layers:
        raise UserError(f"train.compile: {type(model).__name__} does not name its layers; set train.compile to false")
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise UserError("train.compile: no C++ compiler was found, and a CPU needs one; install a compiler such as g++")
    for layer in layers:
        layer.compile(dynamic=False)


def checkpoint_activations(model: Any) -> None:
    """Keep only the input of each layer, and compute the layer again in the backward pass.

    Raises:
        UserError: if the family does not support activation checkpointing.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(
            f"train.activation_checkpointing: {type(model).__name__} does not support activation checkpointing; set it "
            "to false and lower train.micro_batch_size"
        )
    kind = {"use_reentrant": False}
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name of the method since transformers 5.2x
    if enable is not None:
        enable(activation_checkpointing_kwargs=kind)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)


def eager() -> Any:
    """Run compiled layers uncompiled inside the block, for other shapes than in training, such as in validation."""
    return torch.compiler.set_stance("force_eager")
