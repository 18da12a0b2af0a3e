"""The chunked multi-hot loss: two custom operators that compute the loss and its gradients chunk by chunk.

The rows are split into chunks. The forward pass computes the logits of one chunk, turns them into their gradient in
place, and multiplies this gradient into the gradients of the hidden states and of the weight. The next chunk overwrites
the buffer. The backward pass only returns these gradients (multiplied by the incoming gradient, if it is not 1).
There are three matrix products with the head, as usual, and no logits are computed twice. The chunked loss is also
faster than a loss from full logits, because full logits are read and written several more times.

Precision: matrix products use the dtype of the hidden states. The logsumexp, the loss and the sums over chunks use
float32 (float64 for float64). For float16 the product that gives the weight's gradient is computed in float32: its
terms leave the range of float16 before a loss scaler can act.

`torch.compile` does not trace into the operators and has no graph break at them. Shapes: N rows (bags), C rows of a
chunk, V vocabulary, s targets per row, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from token_superposition.losses.multi_hot import refuse_second_gradient


@torch.library.custom_op("token_superposition::linear_multi_hot_total", mutates_args=())
def chunked_total(
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
    """Return the sum of w * (CE + z_loss * logsumexp^2) and its gradients for hidden states, weight and bias.

    Every target must be a valid token id, also if its weight is 0. A gradient that is not needed is an empty tensor. A
    softcap of 0 means no softcap.
    """
    wide = weights_Ns.dtype
    weight = weight_Vd[:vocab_size].to(hidden_Nd.dtype)
    total = hidden_Nd.new_zeros((), dtype=wide)
    grad_hidden = torch.empty_like(hidden_Nd) if for_hidden else hidden_Nd.new_empty(0)
    grad_weight = torch.empty_like(weight_Vd, dtype=wide) if for_weight else weight_Vd.new_empty(0)
    biased = for_weight and bias_V is not None
    grad_bias = weight_Vd.new_zeros(weight_Vd.shape[0] if biased else 0, dtype=wide)
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
            _add_product(grad_weight[:vocab_size], logits_CV, hidden_Cd, first=start == 0)
        if grad_bias.numel():
            grad_bias[:vocab_size] += logits_CV.sum(dim=0, dtype=wide)
    if for_weight:
        grad_weight[vocab_size if hidden_Nd.shape[0] else 0 :] = 0
    if logit_scale != 1:
        for gradient in (grad_hidden, grad_weight, grad_bias):
            gradient *= logit_scale
    bias_dtype = weight_Vd.dtype if bias_V is None else bias_V.dtype
    return total, grad_hidden, grad_weight.to(weight_Vd.dtype), grad_bias.to(bias_dtype)


@chunked_total.register_fake
def _(hidden_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, _: Tensor, weights_Ns: Tensor, *rest: Any) -> Any:
    for_hidden, for_weight = rest[-2:]
    return (
        weights_Ns.new_empty(()),
        torch.empty_like(hidden_Nd) if for_hidden else hidden_Nd.new_empty(0),
        torch.empty_like(weight_Vd) if for_weight else weight_Vd.new_empty(0),
        (weight_Vd if bias_V is None else bias_V).new_empty(0 if bias_V is None or not for_weight else len(bias_V)),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *gradients = output
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*gradients)
    ctx.num_inputs = len(inputs)


def _hand_out(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    refuse_second_gradient()
    nothing = (None,) * ctx.num_inputs
    if grad_total is None:
        return nothing
    scaled = [
        _times(gradient, grad_total) if gradient.numel() and needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
    ]
    return (*scaled, *nothing[3:])


chunked_total.register_autograd(_hand_out, setup_context=_keep_gradients)


def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """Return the product, or the gradient itself if the factor is known to be 1 without waiting for the device."""
    asked = factor.device.type == "cpu" and type(factor) is Tensor and not torch.compiler.is_compiling()
    return gradient if asked and factor.item() == 1 else (gradient * factor).to(gradient.dtype)


@torch.library.custom_op("token_superposition::linear_multi_hot_rows", mutates_args=())
def chunked_rows(
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
    """Return the sum of w * (CE + z_loss * logsumexp^2) of each row, (N,).

    The forward pass forms no gradient here, because the incoming gradient of each row is not known yet.
    """
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


@chunked_rows.register_fake
def _(hidden_Nd: Tensor, *rest: Any) -> Tensor:
    weights_Ns: Tensor = rest[3]
    return weights_Ns.new_empty(hidden_Nd.shape[0])


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001, torch names it
    hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns, *ctx.rest = inputs
    ctx.save_for_backward(hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns)


def _weigh_again(ctx: Any, grad_rows_N: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients with the row weights times the incoming gradient: the loss is linear in its weights."""
    refuse_second_gradient()
    hidden_Nd, weight_Vd, bias_V, targets_Ns, weights_Ns = ctx.saved_tensors
    scaled_Ns = weights_Ns * grad_rows_N.unsqueeze(1)
    needs = ctx.needs_input_grad
    _, *gradients = chunked_total(
        hidden_Nd, weight_Vd, bias_V, targets_Ns, scaled_Ns, *ctx.rest, needs[0], needs[1] or needs[2]
    )
    given = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=False)]
    return (*given, *(None,) * 7)


chunked_rows.register_autograd(_weigh_again, setup_context=_keep_inputs)


def _head(hidden_Cd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, scale: float, buffer_CV: Tensor) -> Tensor:
    """Compute `scale * (hidden @ weight.T + bias)` in the first rows of the buffer."""
    logits_CV = torch.mm(hidden_Cd, weight_Vd.t(), out=buffer_CV[: hidden_Cd.shape[0]])
    if bias_V is not None:
        logits_CV += bias_V[: logits_CV.shape[1]]
    if scale != 1:
        logits_CV *= scale
    return logits_CV


def _losses_and_gradients(
    logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float, softcap: float, *, gradients: bool
) -> Tensor:
    """Return the losses of the rows, (C,); with `gradients`, overwrite the logits (C, V) with their gradient.

    The gradient is that of the logits after `logit_scale`: the caller multiplies by the scale.
    """
    work = logits.to(weights.dtype)  # shares the memory of the logits if the dtypes are equal
    slope = None
    if softcap:
        bent = work.div_(softcap).tanh_()
        slope = 1 - bent.square() if gradients else None
        work = bent.mul_(softcap)
    hits = work.gather(1, targets)
    top = work.amax(dim=1, keepdim=True)
    sums = work.sub_(top).exp_().sum(dim=1)
    lse = sums.log() + top.squeeze(1)
    # The difference is computed for each target: lse * sum(w) - sum(w * z) would lose more digits to cancellation.
    # A target with weight 0 may have a masked logit (minus infinity): 0 times infinity must stay 0.
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


def _add_product(total_Vd: Tensor, gradient_CV: Tensor, hidden_Cd: Tensor, *, first: bool) -> None:
    """Add `gradient.T @ hidden` to the total in the dtype of the total; the first product overwrites the total."""
    if gradient_CV.dtype == torch.float16:
        gradient_CV, hidden_Cd = gradient_CV.float(), hidden_Cd.float()
    if gradient_CV.dtype == total_Vd.dtype:
        # With beta 0, addmm_ does not read the total, which is not initialized at the first product.
        total_Vd.addmm_(gradient_CV.t(), hidden_Cd, beta=0 if first else 1)
    elif first:
        total_Vd.copy_(gradient_CV.t() @ hidden_Cd)
    else:
        total_Vd += gradient_CV.t() @ hidden_Cd
