"""How much memory a training step takes, before anything is allocated.

Inside `abstract`, tensors have shapes and no content (torch's fake tensors), so a model of any size is built in
no memory. One real forward is run with it, and what autograd keeps for the backward pass is counted, tensor by
tensor, whatever the family. To that come weights, gradients, the optimizer's state, and the two (N, V) float32
tensors that the loss's backward makes. What it leaves out: the allocator's slack, the libraries' own
workspaces, and the process itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from token_superposition.model.superposed import SuperposedLM


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step; `activations` is None where the family's forward does not run without content."""

    weights: int
    gradients: int
    optimizer: int
    activations: int | None

    @property
    def total(self) -> int:
        """The sum of what is known."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


@contextlib.contextmanager
def abstract() -> Iterator[None]:
    """Tensors made inside have a shape, a dtype and a device, and take no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)  # it prints what we catch
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
) -> MemoryEstimate:
    """What a step takes; call it inside `abstract`, with a model made there.

    Args:
        model: a causal language model of float32 weights.
        ids_shape: (B, L, s) of a micro-batch.
        num_targets: k, targets a position.
        dtype: of the computation.
        optimizer_states: float32 numbers that the optimizer keeps: for AdamW, two for each trained weight.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        gradients=4 * trained,
        optimizer=4 * optimizer_states,
        activations=_activations(model, ids_shape, num_targets, dtype),
    )


def _activations(model: nn.Module, ids_shape: tuple[int, int, int], num_targets: int, dtype: torch.dtype) -> int | None:
    """Bytes that autograd saves in one forward, each storage once, and what the loss's backward adds."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage  # kept, so that no other takes its address
        return tensor

    ids_BLs = torch.zeros(ids_shape, dtype=torch.int64)
    targets_BLk = torch.zeros((*ids_shape[:2], num_targets), dtype=torch.int64)
    try:
        with (
            torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            SuperposedLM(model, verify=False)(ids_BLs, targets_BLk)
    except RuntimeError:  # experts that are chosen by content, say
        return None
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    return sum(storage.nbytes() for storage in saved.values()) + 2 * 4 * ids_shape[0] * ids_shape[1] * vocabulary
