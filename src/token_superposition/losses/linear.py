"""The multi-hot loss from hidden states and the head's weight: one function with several backends.

The logits are the largest tensor of a training step: 4 GB for 8,192 positions and a vocabulary of 128,256. The backend
`auto` chooses by the number of logits:

- many logits: the loss is chunked, and the logits are never all in memory (`chunked.py`);
- few logits: all logits are computed, and at bag size 1 the loss equals that of a bare loop bit for bit.

The kernels of other packages (`fused.py`) are used only if the caller names them.

Shapes: N rows (bags), V vocabulary, s targets per row, d width. Source: arXiv 2605.06546, section 3; `multi_hot.py`
defines the loss.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from token_superposition.losses.chunked import chunked_rows, chunked_total
from token_superposition.losses.fused import total_through_one_target
from token_superposition.losses.multi_hot import (
    Reduction,
    check_shapes,
    divide_or_zero,
    multi_hot_cross_entropy,
    target_weights,
    weight_total,
)

LossBackend = Literal["auto", "plain", "chunked", "liger", "torch"]
ChosenBackend = Literal["plain", "chunked", "liger", "torch"]

# Up to this many logits the loss uses the plain backend: chunks would save little memory, and at bag size 1 the plain
# backend gives the bits of a bare loop.
_FEW_LOGITS = 2**22
_CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**29}


def linear_multi_hot_cross_entropy(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    targets_Ns: Tensor,
    *,
    bias: Tensor | None = None,
    slot_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    backend: LossBackend = "auto",
    chunk_bytes: int | None = None,
    divisor: Tensor | None = None,
) -> Tensor:
    """Return the `multi_hot_cross_entropy` of the head's logits, from the hidden states and the head's weight.

    The logits are `a = logit_scale * (hidden @ weight.T + bias)`, or `softcap * tanh(a / softcap)`.

    Args:
        hidden_Nd: (N, d), floating point.
        weight_Vd: the weight of the head, (V, d); the weight of the embedding if the two are tied.
        targets_Ns, slot_weights, ignore_index, reduction, z_loss: as in `multi_hot_cross_entropy`.
        bias: (V,), or None.
        logit_scale: the factor of the logits (Cohere; Granite's configuration holds the divisor).
        softcap: the bound of the logits, positive (Gemma 2), or None for no bound.
        vocab_size: the number of rows of the weight that are tokens, counted from the first row. The padding rows after
            them get no probability and no gradient. None: all rows are tokens.
        backend: `chunked` never holds all logits; `plain` computes all logits; `liger` and `torch` are kernels of other
            packages (`fused.py`), for logits without a softcap and reduction `mean` or `sum`; `auto` is `plain` for few
            logits and `chunked` for many logits.
        chunk_bytes: the memory for the logits of one chunk; more memory is a little faster. It changes the result by
            rounding only. The default is 256 MiB (512 MiB on CUDA).
        divisor: the number that `mean` divides by, as a scalar tensor: the sum of the weights over all micro-batches
            and ranks. None: the sum of the weights of these targets.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or (N,) for `none`.

    Raises:
        ValueError: if the shapes do not match, the reduction or the backend is unknown, or the kernel is not available
            or does not support these arguments.

    Example:
        >>> import torch
        >>> hidden, head, targets = torch.randn(3, 4), torch.zeros(8, 4), torch.tensor([[1, 2], [3, 3], [4, -100]])
        >>> round(linear_multi_hot_cross_entropy(hidden, head, targets).item(), 4)  # log 8
        2.0794
    """
    vocab_size = weight_Vd.shape[0] if vocab_size is None else vocab_size
    _check(hidden_Nd, weight_Vd, bias, vocab_size, softcap, reduction, backend)
    check_shapes((hidden_Nd.shape[0], vocab_size), targets_Ns, slot_weights)
    chosen = chosen_backend(backend, hidden_Nd.shape[0], vocab_size)
    if chosen in ("liger", "torch") and (softcap is not None or reduction == "none"):
        raise ValueError(f"loss_backend {chosen} supports no softcap and no reduction 'none'; use auto")
    if chosen == "plain":
        logits_NV = F.linear(hidden_Nd, weight_Vd[:vocab_size], None if bias is None else bias[:vocab_size])
        if logit_scale != 1:
            logits_NV = logits_NV * logit_scale
        if softcap is not None:
            logits_NV = softcap * torch.tanh(logits_NV / softcap)
        divided = divisor is not None and reduction == "mean"
        loss = multi_hot_cross_entropy(
            logits_NV,
            targets_Ns,
            slot_weights=slot_weights,
            ignore_index=ignore_index,
            reduction="sum" if divided else reduction,
            z_loss=z_loss,
        )
        return divide_or_zero(loss, divisor) if divided and divisor is not None else loss
    wide = torch.float64 if hidden_Nd.dtype == torch.float64 else torch.float32
    weights_Ns = target_weights(targets_Ns, slot_weights, ignore_index).to(wide)
    present_Ns = torch.where(targets_Ns == ignore_index, 0, targets_Ns)
    if reduction == "mean":  # the division comes first, so that the gradients need no scaling in the backward pass
        weights_Ns = divide_or_zero(weights_Ns, weight_total(weights_Ns) if divisor is None else divisor)
    kind = hidden_Nd.device.type
    if torch.is_autocast_enabled(kind):
        hidden_Nd = hidden_Nd.to(torch.get_autocast_dtype(kind))
    if chosen in ("liger", "torch"):
        return total_through_one_target(
            chosen,
            hidden_Nd * logit_scale if logit_scale != 1 else hidden_Nd,
            weight_Vd[:vocab_size].to(hidden_Nd.dtype),
            None if bias is None else (bias[:vocab_size] * logit_scale).to(hidden_Nd.dtype),
            present_Ns,
            weights_Ns,
            z_loss,
        )
    # The smallest float16 number is 6e-8, and the gradient of a mean for one logit of a large vocabulary is smaller. It
    # would be 0 before a loss scaler could act.
    rescaled = reduction == "mean" and hidden_Nd.dtype == torch.float16
    num_rows = max(1, hidden_Nd.shape[0])
    if rescaled:
        weights_Ns = weights_Ns * num_rows
    budget = _CHUNK_BYTES.get(kind, _CHUNK_BYTES["cpu"]) if chunk_bytes is None else chunk_bytes
    chunk_rows = _even_chunk(hidden_Nd.shape[0], budget // (weights_Ns.element_size() * vocab_size))
    shared = (z_loss, logit_scale, softcap or 0.0, vocab_size, chunk_rows)
    if reduction == "none":
        return chunked_rows(hidden_Nd, weight_Vd, bias, present_Ns, weights_Ns, *shared)
    needed = torch.is_grad_enabled()
    total = chunked_total(
        hidden_Nd,
        weight_Vd,
        bias,
        present_Ns,
        weights_Ns,
        *shared,
        needed and hidden_Nd.requires_grad,
        needed and (weight_Vd.requires_grad or (bias is not None and bias.requires_grad)),
    )[0]
    return total / num_rows if rescaled else total


def chosen_backend(backend: LossBackend, num_rows: int, vocab_size: int) -> ChosenBackend:
    """Return the backend that is used for this many logits: `auto` is resolved, the others are returned unchanged."""
    if backend == "auto":
        return "chunked" if num_rows * vocab_size > _FEW_LOGITS else "plain"
    return backend


def loss_workspace(backend: ChosenBackend, num_rows: int, vocab_size: int) -> int:
    """Return the temporary memory of the loss in bytes, without what autograd keeps.

    The plain backend holds two tensors of all logits. The other backends hold the logits of one chunk.
    """
    logits = 4 * num_rows * vocab_size
    return 2 * logits if backend == "plain" else min(logits, _CHUNK_BYTES["cpu"])


def _even_chunk(num_rows: int, most: int) -> int:
    """Return the number of rows per chunk: at most `most`, and about the same for all chunks."""
    num_chunks = -(-num_rows // max(1, most))
    return max(1, -(-num_rows // max(1, num_chunks)))


def _check(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    bias_V: Tensor | None,
    vocab_size: int,
    softcap: float | None,
    reduction: str,
    backend: str,
) -> None:
    if hidden_Nd.dim() != 2 or weight_Vd.dim() != 2 or hidden_Nd.shape[1] != weight_Vd.shape[1]:
        raise ValueError(
            f"the shapes of hidden states (N, d) and weight (V, d) do not match: {tuple(hidden_Nd.shape)}, "
            f"{tuple(weight_Vd.shape)}"
        )
    if bias_V is not None and bias_V.shape != weight_Vd.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias_V.shape)}, but the head has {weight_Vd.shape[0]} rows")
    if not 1 <= vocab_size <= weight_Vd.shape[0]:
        raise ValueError(f"vocab_size {vocab_size} is not between 1 and the head's {weight_Vd.shape[0]} rows")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive or None, not {softcap}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be one of mean, sum, none, not {reduction!r}")
    if backend not in get_args(LossBackend):
        raise ValueError(f"backend must be one of {', '.join(get_args(LossBackend))}, not {backend!r}")
