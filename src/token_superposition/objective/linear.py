"""The multi-hot loss from hidden states and the head's weight, in slices of rows: (N, V) logits never stand in memory.

The head's logits are the largest tensor of a training step: 4 GB for 8,192 positions of a vocabulary of 128,256. Here
rows are taken in chunks. A chunk's logits are made, become its gradient in place, are multiplied into the gradients of
hidden states and weight, and are overwritten by the next chunk's: all in the forward pass, while they are at hand. The
backward pass has nothing left to do but hand the gradients out (times what comes from above, where that is not 1).
Three products with the head, as ever; no logits are made twice.

On the CPU the elementwise work of a chunk is done a few rows at a time, so that they stay in the cache: that, not the
memory saved, is why it is faster than full logits.

Precision. Products are in the inputs' dtype (under autocast: autocast's); logsumexp, loss and the sums over chunks are
in float32, float64 for float64. In float16 the weight's gradient is multiplied out in float32: before a loss scaler
has had its say, its terms leave float16's range.

The two operators are torch custom ops, opaque to `torch.compile` and without a graph break. Shapes: N rows (bags),
V vocabulary, s targets a row, d width. Source: arXiv 2605.06546, section 3; the loss is in `loss.py`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from token_superposition.objective.loss import (
    Reduction,
    check_shapes,
    divide_or_zero,
    multi_hot_cross_entropy,
    target_weights,
)
from token_superposition.objective.one_target import total_through_one_target

LossBackend = Literal["auto", "plain", "chunked", "liger", "torch"]
ChosenBackend = Literal["plain", "chunked", "liger", "torch"]

# Below this many logits the loss takes the plain path: nothing to save, and at bag size 1 the bits of a bare loop.
_FEW_LOGITS = 2**22
_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}
_CACHED_LOGITS = 2**19  # 2 MiB of float32, a core's cache


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
) -> Tensor:
    """`multi_hot_cross_entropy` of the head's logits, from hidden states and the head's weight.

    The logits are `a = logit_scale * (hidden @ weight.T + bias)`, or `softcap * tanh(a / softcap)`.

    Args:
        hidden_Nd: (N, d), floating point.
        weight_Vd: the head's weight, (V, d); the embedding's own, where the two are tied.
        targets_Ns, slot_weights, ignore_index, reduction, z_loss: as in `multi_hot_cross_entropy`.
        bias: (V,), or None.
        logit_scale: what logits are multiplied by (Cohere; Granite divides by its inverse).
        softcap: the bound of logits, positive (Gemma 2), or None for no bound.
        vocab_size: rows of the weight that stand for tokens, the first ones; the padding after them takes no
            probability and no gradient. None: all of them.
        backend: `chunked` never holds the logits, `plain` makes all of them; `liger` and `torch` are kernels of others
            (`one_target.py`), for logits without a softcap and reduction `mean` or `sum`; `auto` is plain for few
            logits and chunked for many.
        chunk_bytes: memory for a chunk's logits; more is a little faster. The result does not depend on it beyond
            rounding. 128 MiB if not given (512 MiB on CUDA).

    Returns:
        float32 (float64 for float64 inputs): a scalar, or (N,) for `none`.

    Raises:
        ValueError: for shapes that do not belong together, an unknown reduction or backend, or a kernel that is not
            there or cannot do it.
    """
    vocab_size = weight_Vd.shape[0] if vocab_size is None else vocab_size
    _check(hidden_Nd, weight_Vd, bias, vocab_size, softcap, reduction, backend)
    check_shapes((hidden_Nd.shape[0], vocab_size), targets_Ns, slot_weights)
    chosen = chosen_backend(backend, hidden_Nd.shape[0], vocab_size)
    if chosen in ("liger", "torch") and (softcap is not None or reduction == "none"):
        raise ValueError(f"loss_backend {chosen} knows no softcap and no reduction 'none'; take auto")
    if chosen == "plain":
        logits_NV = F.linear(hidden_Nd, weight_Vd[:vocab_size], None if bias is None else bias[:vocab_size])
        if logit_scale != 1:
            logits_NV = logits_NV * logit_scale
        if softcap is not None:
            logits_NV = softcap * torch.tanh(logits_NV / softcap)
        return multi_hot_cross_entropy(
            logits_NV,
            targets_Ns,
            slot_weights=slot_weights,
            ignore_index=ignore_index,
            reduction=reduction,
            z_loss=z_loss,
        )
    wide = torch.float64 if hidden_Nd.dtype == torch.float64 else torch.float32
    weights_Ns = target_weights(targets_Ns, slot_weights, ignore_index).to(wide)
    present_Ns = torch.where(targets_Ns == ignore_index, 0, targets_Ns)
    if reduction == "mean":  # divided here, the gradients need no second look in the backward pass
        weights_Ns = divide_or_zero(weights_Ns, weights_Ns.sum())
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
    budget = _CHUNK_BYTES.get(kind, _CHUNK_BYTES["cpu"]) if chunk_bytes is None else chunk_bytes
    chunk_rows = _even_chunk(hidden_Nd.shape[0], budget // (weights_Ns.element_size() * vocab_size))
    shared = (z_loss, logit_scale, softcap or 0.0, vocab_size, chunk_rows)
    if reduction == "none":
        return _rows(hidden_Nd, weight_Vd, bias, present_Ns, weights_Ns, *shared)
    needed = torch.is_grad_enabled()
    return _total(
        hidden_Nd,
        weight_Vd,
        bias,
        present_Ns,
        weights_Ns,
        *shared,
        needed and hidden_Nd.requires_grad,
        needed and (weight_Vd.requires_grad or (bias is not None and bias.requires_grad)),
    )[0]


def chosen_backend(backend: LossBackend, num_rows: int, vocab_size: int) -> ChosenBackend:
    """What `auto` stands for at this many logits."""
    if backend == "auto":
        return "chunked" if num_rows * vocab_size > _FEW_LOGITS else "plain"
    return backend


def loss_workspace(backend: ChosenBackend, num_rows: int, vocab_size: int) -> int:
    """Bytes that the loss takes for a while, beside what autograd keeps: two tensors of all logits, or a chunk."""
    logits = 4 * num_rows * vocab_size
    return 2 * logits if backend == "plain" else min(logits, _CHUNK_BYTES["cpu"])


@torch.library.custom_op("token_superposition::linear_multi_hot_total", mutates_args=())
def _total(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    bias_V: Tensor | None,
    targets_Ns: Tensor,
    weights_Ns: Tensor,
    z_loss: float,
    logit_scale: float,
    softcap: float,
    vocab_size: int,
    chunk_rows: int,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of w * (CE + z_loss * logsumexp^2), and its gradients for hidden states, weight and bias.

    Targets name a token even where they weigh nothing. Gradients not asked for are empty. A softcap of 0 is none.
    """
    wide, dtype = weights_Ns.dtype, hidden_Nd.dtype
    weight = weight_Vd[:vocab_size].to(dtype)
    total = hidden_Nd.new_zeros((), dtype=wide)
    grad_hidden = torch.empty_like(hidden_Nd) if for_hidden else hidden_Nd.new_empty(0)
    grad_weight = _zeros(weight_Vd, wide) if for_weight else weight_Vd.new_empty(0)
    grad_bias = _zeros(bias_V, wide) if for_weight and bias_V is not None else weight_Vd.new_empty(0)
    buffer_CV = hidden_Nd.new_empty(chunk_rows, vocab_size)
    for start in range(0, hidden_Nd.shape[0], chunk_rows):
        rows = slice(start, start + chunk_rows)
        hidden_Cd = hidden_Nd[rows]
        logits_CV = _head(hidden_Cd, weight, bias_V, logit_scale, buffer_CV)
        losses_C = _losses_and_gradients(
            logits_CV, targets_Ns[rows], weights_Ns[rows], z_loss, softcap, gradients=for_hidden or for_weight
        )
        total += losses_C.sum()
        if for_hidden:
            torch.mm(logits_CV, weight, out=grad_hidden[rows])
        if for_weight:
            _add_product(grad_weight[:vocab_size], logits_CV, hidden_Cd)
        if grad_bias.numel():
            grad_bias[:vocab_size] += logits_CV.sum(dim=0, dtype=wide)
    if logit_scale != 1:
        for gradient in (grad_hidden, grad_weight, grad_bias):
            gradient *= logit_scale
    return total, grad_hidden, grad_weight.to(weight_Vd.dtype), grad_bias.to(weight_Vd.dtype)


@_total.register_fake
def _(hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, _: Tensor, weights_Ns: Tensor, *rest: Any) -> Any:
    for_hidden, for_weight = rest[-2:]
    return (
        weights_Ns.new_empty(()),
        torch.empty_like(hidden_Nd) if for_hidden else hidden_Nd.new_empty(0),
        torch.empty_like(weight_Vd) if for_weight else weight_Vd.new_empty(0),
        torch.empty_like(bias_V) if for_weight and bias_V is not None else weight_Vd.new_empty(0),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)
    ctx.num_inputs = len(inputs)


def _hand_out(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * ctx.num_inputs
    if grad_total is None:
        return nothing
    scaled = [
        _times(gradient, grad_total) if gradient.numel() and needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
    ]
    return (*scaled, *nothing[3:])


_total.register_autograd(_hand_out, setup_context=_keep_gradients)


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """The product; the gradient itself for a factor of 1, where to ask costs nothing."""
    asked = factor.device.type == "cpu" and type(factor) is Tensor and not torch.compiler.is_compiling()
    return gradient if asked and factor.item() == 1 else (gradient * factor).to(gradient.dtype)


@torch.library.custom_op("token_superposition::linear_multi_hot_rows", mutates_args=())
def _rows(
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    bias_V: Tensor | None,
    targets_Ns: Tensor,
    weights_Ns: Tensor,
    z_loss: float,
    logit_scale: float,
    softcap: float,
    vocab_size: int,
    chunk_rows: int,
) -> Tensor:
    """Each row's sum of w * (CE + z_loss * logsumexp^2), (N,); what comes from above is unknown yet, so no gradient."""
    weight = weight_Vd[:vocab_size].to(hidden_Nd.dtype)
    buffer_CV = hidden_Nd.new_empty(chunk_rows, vocab_size)
    losses_N = weights_Ns.new_empty(hidden_Nd.shape[0])
    for start in range(0, hidden_Nd.shape[0], chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits_CV = _head(hidden_Nd[rows], weight, bias_V, logit_scale, buffer_CV)
        losses_N[rows] = _losses_and_gradients(
            logits_CV, targets_Ns[rows], weights_Ns[rows], z_loss, softcap, gradients=False
        )
    return losses_N


@_rows.register_fake
def _(hidden_Nd: Tensor, *rest: Any) -> Tensor:
    weights_Ns: Tensor = rest[3]
    return weights_Ns.new_empty(hidden_Nd.shape[0])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001, torch names it
    hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns, *ctx.rest = inputs
    ctx.save_for_backward(hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns)


def _weigh_again(ctx: Any, grad_rows_N: Tensor) -> tuple[Tensor | None, ...]:
    """The loss is linear in its weights: what comes from above weighs the rows of a total."""
    hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns = ctx.saved_tensors
    scaled_Ns = weights_Ns * grad_rows_N.unsqueeze(1)
    needs = ctx.needs_input_grad
    _, *gradients = _total(
        hidden_Nd, weight_Vd, bias_V, targets_Ns, scaled_Ns, *ctx.rest, needs[0], needs[1] or needs[2]
    )
    given = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=False)]
    return (*given, *(None,) * 7)


_rows.register_autograd(_weigh_again, setup_context=_keep_inputs)


def _head(hidden_Cd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, scale: float, buffer_CV: Tensor) -> Tensor:
    """`scale * (hidden @ weight.T + bias)`, in the buffer's first rows."""
    logits_CV = torch.mm(hidden_Cd, weight_Vd.t(), out=buffer_CV[: hidden_Cd.shape[0]])
    if bias_V is not None:
        logits_CV += bias_V[: logits_CV.shape[1]]
    if scale != 1:
        logits_CV *= scale
    return logits_CV


def _losses_and_gradients(
    logits_CV: Tensor, targets_Cs: Tensor, weights_Cs: Tensor, z_loss: float, softcap: float, *, gradients: bool
) -> Tensor:
    """The rows' losses; where gradients are wanted, logits become theirs (before scale and head)."""
    rows = logits_CV.shape[0]
    if logits_CV.device.type == "cpu":
        rows = max(1, _CACHED_LOGITS // logits_CV.shape[1])
    return torch.cat(
        [
            _few_rows(logits, targets, weights, z_loss, softcap, gradients)
            for logits, targets, weights in zip(
                logits_CV.split(rows), targets_Cs.split(rows), weights_Cs.split(rows), strict=True
            )
        ]
    )


def _few_rows(
    logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, softcap: float, gradients: bool
) -> Tensor:
    work = logits.to(weights.dtype)  # the logits' own memory, where they are wide already
    slope = None
    if softcap:
        bent = work.div_(softcap).tanh_()
        slope = 1 - bent.square() if gradients else None
        work = bent.mul_(softcap)
    hits = work.gather(1, targets)
    top = work.amax(dim=1, keepdim=True)
    sums = work.sub_(top).exp_().sum(dim=1)
    lse = sums.log() + top.squeeze(1)
    # Target by target: lse * sum(w) - sum(w * z) would cancel worse. A target that weighs nothing may stand on a
    # masked logit: 0 times infinity must stay 0.
    losses = torch.where(weights != 0, (lse.unsqueeze(1) - hits) * weights, 0).sum(dim=1)
    row_weights = weights.sum(dim=1)
    if z_loss:
        losses += z_loss * lse.square() * row_weights
        row_weights = row_weights * (1 + 2 * z_loss * lse)
    if gradients:
        work.mul_((row_weights / sums).unsqueeze(1)).scatter_add_(1, targets, -weights)
        if slope is not None:
            work.mul_(slope)
        if work is not logits:
            logits.copy_(work)
    return losses


def _add_product(total_Vd: Tensor, gradient_CV: Tensor, hidden_Cd: Tensor) -> None:
    """`total += gradient.T @ hidden`, added up in the total's dtype."""
    if gradient_CV.dtype == torch.float16:
        gradient_CV, hidden_Cd = gradient_CV.float(), hidden_Cd.float()
    if gradient_CV.dtype == total_Vd.dtype:
        total_Vd.addmm_(gradient_CV.t(), hidden_Cd)
    else:
        total_Vd += gradient_CV.t() @ hidden_Cd


def _zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(like, dtype=dtype)


def _even_chunk(num_rows: int, most: int) -> int:
    """Rows a chunk, at most so many, all chunks alike."""
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
            f"hidden states (N, d) and weight (V, d) do not fit: {tuple(hidden_Nd.shape)}, {tuple(weight_Vd.shape)}"
        )
    if bias_V is not None and bias_V.shape != weight_Vd.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias_V.shape)}, but the head has {weight_Vd.shape[0]} rows")
    if not 1 <= vocab_size <= weight_Vd.shape[0]:
        raise ValueError(f"vocab_size {vocab_size} is not between 1 and the head's {weight_Vd.shape[0]} rows")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is positive or None, not {softcap}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is one of mean, sum, none, not {reduction!r}")
    if backend not in get_args(LossBackend):
        raise ValueError(f"backend is one of {', '.join(get_args(LossBackend))}, not {backend!r}")
