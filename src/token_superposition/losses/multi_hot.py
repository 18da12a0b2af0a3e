"""Multi-hot cross-entropy: the loss of one logit vector per bag against every token of the next bag.

    MCE = sum_k w_k CE(z, y_k) / sum_k w_k = logsumexp(z) - sum_k w_k z[y_k] / sum_k w_k

The loss needs one logsumexp and one gather for every bag size. It does not make s passes over the head. It does not
make a dense multi-hot target either, which would also lose the second count of a repeated token. The gradient is
softmax(z) * sum_k w_k, minus w_k at each target. The backward pass forms it in one (N, V) buffer.

The z-loss of PaLM (arXiv 2204.02311, section 5) is optional. It adds `z_loss * logsumexp(z)^2` per target, keeps the
logits from drifting, and needs only the logsumexp that is already computed.

Normalization: every reduction uses two numbers, the weighted sum of the cross-entropies and the sum of the weights of
the targets that are not ignored. `mean` is the first number divided by the second, so every token has its weight, also
in ragged bags and with ignored targets. Across micro-batches and ranks, divide one global sum by the other.

Shapes: N rows (bags), V vocabulary, s targets per row, d width. Source: arXiv 2605.06546, section 3.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def target_weights(targets: Tensor, slot_weights: Tensor | None = None, ignore_index: int = -100) -> Tensor:
    """Return the weight of every target: the weight of its slot, or 0 if the target is ignored.

    Args:
        targets: token ids, (..., s).
        slot_weights: (s,), or None for uniform.
        ignore_index: the id that marks an ignored target.

    Returns:
        (..., s) float32 (float64 for float64 slot weights). A mean divides by the sum of these weights.
    """
    counted = targets != ignore_index
    if slot_weights is None:
        return counted.float()
    weights = slot_weights.to(targets.device)
    if weights.dtype != torch.float64:
        weights = weights.float()
    return counted * weights


def weight_total(weights: Tensor) -> Tensor:
    """Return the sum of target weights as a float64 scalar (float32 on MPS, which has no float64).

    A float32 sum rounds weights such as 1/3, and then micro-batches and ranks add up to another loss than one batch.

    Example:
        >>> weight_total(target_weights(torch.tensor([[1, 2], [3, -100]]))).item()
        3.0
    """
    return weights.sum(dtype=None if weights.device.type == "mps" else torch.float64)


class _MultiHotCrossEntropy(torch.autograd.Function):
    """Row sums of w * (CE + z_loss * logsumexp^2) from logits, accumulated in the dtype of the weights."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_Ns: Tensor, weights_Ns: Tensor, z_loss: float) -> Tensor:
        wide = weights_Ns.dtype
        lse_N = torch.logsumexp(logits_NV.to(wide), dim=-1)
        hits_Ns = logits_NV.gather(1, targets_Ns).to(wide)
        # The difference is computed for each target: lse * sum(w) - sum(w * z) would lose more digits to cancellation.
        # A target with weight 0 may have a masked logit (minus infinity): 0 times infinity must stay 0.
        rows_N = torch.where(weights_Ns != 0, (lse_N.unsqueeze(1) - hits_Ns) * weights_Ns, 0).sum(dim=1)
        if z_loss:
            rows_N += z_loss * lse_N.square() * weights_Ns.sum(dim=1)
        ctx.z_loss = z_loss
        ctx.save_for_backward(logits_NV, targets_Ns, weights_Ns, lse_N)
        return rows_N

    @staticmethod
    def backward(ctx: Any, grad_rows_N: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_gradient()
        logits_NV, targets_Ns, weights_Ns, lse_N = ctx.saved_tensors
        scaled_Ns = weights_Ns * grad_rows_N.unsqueeze(1)
        grad_NV = logits_NV.to(lse_N.dtype, copy=True).sub_(lse_N.unsqueeze(1)).exp_()
        scale_N = scaled_Ns.sum(dim=1)
        if ctx.z_loss:
            scale_N = scale_N * (1 + 2 * ctx.z_loss * lse_N)
        grad_NV.mul_(scale_N.unsqueeze(1))
        grad_NV.scatter_add_(1, targets_Ns, -scaled_Ns)
        return grad_NV.to(logits_NV.dtype), None, None, None


def multi_hot_cross_entropy(
    logits_NV: Tensor,
    targets_Ns: Tensor,
    *,
    slot_weights: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of one logit vector per row against s targets.

    Args:
        logits_NV: (N, V), floating point.
        targets_Ns: token ids, (N, s); a repeated id counts once per occurrence.
        slot_weights: (s,), not negative, not normalized by this function; None for uniform (all 1).
        ignore_index: targets with this id have weight 0.
        reduction: `sum` is the sum of w * CE over the targets that are not ignored; `none` gives the sum of each row,
            (N,); `mean` is the sum divided by the sum of these weights, and 0 (with gradient 0) if all targets are
            ignored.
        z_loss: the coefficient of logsumexp(z)^2, added to the CE of every target that is not ignored.

    Returns:
        float32 (float64 for float64 logits): a scalar, or (N,) for `none`.

    Raises:
        ValueError: if the shapes do not match, or the reduction is unknown.

    Example:
        >>> import torch
        >>> logits, targets = torch.zeros(3, 8), torch.tensor([[1, 2], [3, 3], [4, -100]])
        >>> round(multi_hot_cross_entropy(logits, targets).item(), 4)  # log 8
        2.0794
    """
    check_shapes(logits_NV.shape, targets_Ns, slot_weights)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be one of mean, sum, none, not {reduction!r}")
    wide = torch.float64 if logits_NV.dtype == torch.float64 else torch.float32
    weights_Ns = target_weights(targets_Ns, slot_weights, ignore_index).to(wide)
    present_Ns = torch.where(targets_Ns == ignore_index, 0, targets_Ns)
    rows_N = _MultiHotCrossEntropy.apply(logits_NV, present_Ns, weights_Ns, z_loss)
    if reduction == "none":
        return rows_N
    total = rows_N.sum()
    return divide_or_zero(total, weight_total(weights_Ns)) if reduction == "mean" else total


def divide_or_zero(total: Tensor, weight_sum: Tensor) -> Tensor:
    """Return `total / weight_sum` in the dtype of `total`; 0 (gradient 0) if the weights sum to 0.

    This does not wait for the device.
    """
    return total / torch.where(weight_sum > 0, weight_sum, 1).to(total.dtype)


def check_shapes(logits_shape: tuple[int, ...], targets_Ns: Tensor, slot_weights: Tensor | None) -> None:
    """Raise ValueError if the shapes of logits (N, V), targets (N, s) and slot weights (s,) do not match."""
    if len(logits_shape) != 2 or targets_Ns.dim() != 2 or logits_shape[0] != targets_Ns.shape[0]:
        raise ValueError(
            f"the shapes of logits (N, V) and targets (N, s) do not match: {tuple(logits_shape)}, "
            f"{tuple(targets_Ns.shape)}"
        )
    if slot_weights is not None and slot_weights.shape != targets_Ns.shape[1:]:
        raise ValueError(
            f"slot_weights has shape {tuple(slot_weights.shape)}, but a bag has {targets_Ns.shape[1]} targets"
        )


def refuse_second_gradient() -> None:
    """Raise RuntimeError in a backward pass with create_graph: autograd would treat the gradient as a constant.

    Raises:
        RuntimeError: if the caller wants the gradient of the gradient.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("multi-hot cross-entropy has no second derivative: do not use create_graph")
