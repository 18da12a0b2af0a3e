"""The memory of a training step, before anything is allocated.

Memory is estimated with torch's fake tensors. Inside `abstract`, tensors have shapes and no content, so a model of any
size can be built without memory. One real forward runs with such a model, and every tensor that autograd keeps for the
backward pass is counted, for any model family. The estimate adds the weights, the gradients, the optimizer state, and
the temporary memory of the loss: the two (N, V) float32 tensors of its backward pass, or one chunk of logits. Layers
that are computed again in the backward pass count with their inputs, plus once the largest amount that one layer keeps.
The estimate leaves out the slack of the allocator, the workspaces of libraries, and the process itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from token_superposition.losses.linear import LossBackend, loss_workspace
from token_superposition.models.head import LogitTransform, linear_head
from token_superposition.models.layers import layers_of
from token_superposition.models.superposed import SuperposedLM


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a training step in bytes; `activations` is None if the forward does not run on fake tensors."""

    weights: int
    gradients: int
    optimizer: int
    activations: int | None

    @property
    def total(self) -> int:
        """The sum of the known parts."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


@contextlib.contextmanager
def abstract() -> Iterator[None]:
    """Create tensors inside the block with a shape, a dtype and a device, but without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)  # torch would log errors that are caught here
    try:
        with FakeTensorMode():
            yield
    finally:
        log.setLevel(before)


def estimate_memory(
    model: nn.Module,
    *,
    ids_shape: tuple[int, int, int],
    num_targets: int,
    dtype: torch.dtype,
    optimizer_states: int,
    loss_backend: LossBackend = "auto",
    activation_checkpointing: bool = False,
) -> MemoryEstimate:
    """Return the memory of a training step; call this inside `abstract`, with a model that was built there.

    Args:
        model: a causal language model with float32 weights.
        ids_shape: (B, L, s) of a micro-batch.
        num_targets: k, the number of targets per position.
        dtype: the dtype of the computation.
        optimizer_states: the number of float32 values that the optimizer keeps: for AdamW, two per trained weight.
        loss_backend, activation_checkpointing: as in training.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        gradients=4 * trained,
        optimizer=4 * optimizer_states,
        activations=_activations(model, ids_shape, num_targets, dtype, loss_backend, activation_checkpointing),
    )


def _activations(
    model: nn.Module,
    ids_shape: tuple[int, int, int],
    num_targets: int,
    dtype: torch.dtype,
    loss_backend: LossBackend,
    checkpointed: bool,
) -> int | None:
    """Return the bytes that autograd saves in one forward, each storage once, plus the memory of the loss."""
    superposed = SuperposedLM(model, verify=False, loss_backend=loss_backend)
    if linear_head(model) is not None:
        superposed.transform = LogitTransform()  # every transform needs the same memory
    ids_BLs = torch.zeros(ids_shape, dtype=torch.int64)
    targets_BLk = torch.zeros((*ids_shape[:2], num_targets), dtype=torch.int64)
    try:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), _saved(model) as saved:
            superposed(ids_BLs, targets_BLk)
    except RuntimeError:  # for example, the choice of experts needs the content of tensors
        return None
    outside, *inside = saved.values()
    if checkpointed and inside:
        config: Any = model.config
        inputs = len(inside) * ids_shape[0] * ids_shape[1] * int(config.hidden_size) * 4
        kept = outside + inputs + max(inside)
    else:
        kept = outside + sum(inside)
    vocabulary: int = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    positions = ids_shape[0] * ids_shape[1]
    return kept + loss_workspace(superposed.backend_for(positions), positions, vocabulary)


@contextlib.contextmanager
def _saved(model: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the bytes that autograd saves inside the block, without weights.

    Key 0 is the sum outside all layers; the other keys are the layers, counted from 1.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    layers = layers_of(model)
    totals = dict.fromkeys(range(len(layers) + 1), 0)
    seen = {}
    place = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage  # a reference, so that no other storage gets its address
            totals[place] += storage.nbytes()
        return tensor

    def enter(number: int) -> Any:
        def move(*_: Any) -> None:
            nonlocal place
            place = number

        return move

    hooks = [layer.register_forward_pre_hook(enter(number)) for number, layer in enumerate(layers, 1)]
    hooks += [layer.register_forward_hook(enter(0)) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield totals
    finally:
        for hook in hooks:
            hook.remove()
