"""What a run costs and reads: positions, raw tokens, unique raw tokens, FLOPs.

Three counters that are never mixed. *Positions* are latent: what the network computes, what FLOPs and MFU
count, the same a step in both phases. *Raw tokens* are what is read as input: positions times the bag size
in superposition. *Unique raw tokens* are raw tokens without repetition: at most one epoch of the corpus.

FLOPs are counted by the usual rule, per position and for forward and backward together: 6 for every weight
that is multiplied with (the head counts, the embedding look-up does not; of a mixture of experts, the
experts that a position visits), plus attention's score and value products over the latent sequence. A bag
costs what a token costs, so a superposition step costs exactly a recovery step.
"""

from __future__ import annotations

import contextlib
import logging
import math
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
class ModelCost:
    """What FLOPs are counted from.

    Attributes:
        multiplied_parameters: weights that take part in a matrix product for one position, head included,
            embedding look-up excluded, inactive experts excluded.
        attention_width: the sum over attention layers of (number of query heads * head size).
    """

    multiplied_parameters: int
    attention_width: int

    def flops_per_position(self, sequence_length: int) -> int:
        """Forward and backward FLOPs of one latent position in a sequence of `sequence_length` positions.

        Scores and values are two products of 2 * sequence_length * width FLOPs each; a causal mask halves
        them; backward costs twice forward.
        """
        return 6 * self.multiplied_parameters + 6 * sequence_length * self.attention_width


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Summed loss in nats over the bytes of text it covers, in bits a byte; NaN for no bytes."""
    return total_nats / (math.log(2) * num_bytes) if num_bytes else math.nan


# How much memory a training step takes, before anything is allocated.
#
# Inside `abstract`, tensors have shapes and no content (torch's fake tensors), so a model of any size is built in no
# memory. One real forward is run with it, and what autograd keeps for the backward pass is counted, tensor by tensor,
# whatever the family. To that come weights, gradients, the optimizer's state, and what the loss needs beside: the two
# (N, V) float32 tensors of its backward, or one slice of them. Of layers that are computed again in the backward pass
# count their inputs and, once, the largest of what one of them keeps. What it leaves out: the allocator's slack, the
# libraries' own workspaces, and the process itself.


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
    loss_backend: LossBackend = "auto",
    activation_checkpointing: bool = False,
) -> MemoryEstimate:
    """What a step takes; call it inside `abstract`, with a model made there.

    Args:
        model: a causal language model of float32 weights.
        ids_shape: (B, L, s) of a micro-batch.
        num_targets: k, targets a position.
        dtype: of the computation.
        optimizer_states: float32 numbers that the optimizer keeps: for AdamW, two for each trained weight.
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
    """Bytes that autograd saves in one forward, each storage once, and what the loss needs beside."""
    superposed = SuperposedLM(model, verify=False, loss_backend=loss_backend)
    if linear_head(model) is not None:
        superposed.transform = LogitTransform()  # whichever it is, its memory is the same
    ids_BLs = torch.zeros(ids_shape, dtype=torch.int64)
    targets_BLk = torch.zeros((*ids_shape[:2], num_targets), dtype=torch.int64)
    try:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32), _saved(model) as saved:
            superposed(ids_BLs, targets_BLk)
    except RuntimeError:  # experts that are chosen by content, say
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
    """Bytes that autograd saves inside the block, but for weights: outside all layers (at 0), then layer by layer."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    layers = layers_of(model)
    totals = dict.fromkeys(range(len(layers) + 1), 0)
    seen = {}
    place = 0

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = storage  # kept, so that no other takes its address
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
