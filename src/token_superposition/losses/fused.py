"""The multi-hot loss through a fused kernel that was written for one target per row.

Assume that the logits are linear in the hidden states h, with head W and slot weights w that sum to 1. The softmax term
is the same for all targets, so

    MCE = CE(h W', y_0) + h . (W[y_0] - sum_k w_k W[y_k])        (with a bias b: + b[y_0] - sum_k w_k b[y_k])

where y_0 is any target of the row that is not ignored. Every fast kernel for ordinary cross-entropy can therefore
compute the loss of bags: one pass over the head, and one weighted `embedding_bag` over the rows of W. With one target
per row the second term is left out.

The disadvantage: in bfloat16 the first term rounds the contribution of y_0 before the second term subtracts it. The
gradient of the head is therefore less exact than with our chunked loss (`benchmarks/gpu.py` prints both).

There are two kernels:

- Liger's kernel needs CUDA. It forms gradients in the forward pass, so all rows must have the same weight.
- torch's own `F.linear_cross_entropy` needs torch 2.13 or later. It is used with one loss per row, because it computes
  its sums in the precision of the inputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["liger", "torch"]


def kernel_is_there(kernel: Kernel) -> bool:
    """Return whether the kernel is installed; Liger's kernel also needs CUDA."""
    if kernel == "torch":
        return hasattr(F, "linear_cross_entropy")
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def check_kernel(kernel: Kernel) -> None:
    """Raise ValueError if the kernel is not available."""
    if not kernel_is_there(kernel):
        needs = {"liger": "liger-kernel and CUDA", "torch": "torch 2.13 or later"}[kernel]
        raise ValueError(f"loss_backend {kernel} needs {needs}; use auto")


def total_through_one_target(
    kernel: Kernel,
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    bias_V: Tensor | None,
    targets_Ns: Tensor,
    weights_Ns: Tensor,
    z_loss: float,
) -> Tensor:
    """Return the sum of w * (CE + z_loss * logsumexp^2) over all targets.

    Args:
        kernel: the kernel that computes the cross-entropy.
        hidden_Nd, weight_Vd, bias_V: floating point, all of the same dtype.
        targets_Ns: valid token ids, also for targets with weight 0.
        weights_Ns: float32 (float64), 0 for an ignored target.
        z_loss: the coefficient of logsumexp^2; only `liger` supports it.

    Raises:
        ValueError: if the kernel is not available, or does not support these arguments.
    """
    check_kernel(kernel)
    row_weights_N = weights_Ns.sum(dim=1)
    first_N = (weights_Ns != 0).int().argmax(dim=1, keepdim=True)
    chosen_N1 = targets_Ns.gather(1, first_N)
    one_N = torch.where(row_weights_N != 0, chosen_N1.squeeze(1), -100)
    by_kernel: Callable[..., Tensor] = {"liger": _liger, "torch": _torch}[kernel]
    total = by_kernel(hidden_Nd, weight_Vd, bias_V, one_N, row_weights_N, z_loss)
    if targets_Ns.shape[1] == 1:
        return total
    ids_Nk = torch.cat([chosen_N1, targets_Ns], dim=1)
    shares_Nk = torch.cat([row_weights_N.unsqueeze(1), -weights_Ns], dim=1)
    # On the CPU, embedding_bag adds in the precision of the weight.
    table_Vd = weight_Vd if weight_Vd.is_cuda else weight_Vd.to(weights_Ns.dtype)
    rest_Nd = F.embedding_bag(ids_Nk, table_Vd, mode="sum", per_sample_weights=shares_Nk.to(table_Vd.dtype))
    total = total + (hidden_Nd.to(weights_Ns.dtype) * rest_Nd).sum()
    if bias_V is not None:
        total = total + (F.embedding(ids_Nk, bias_V.unsqueeze(1)).squeeze(-1) * shares_Nk).sum()
    return total


def _torch(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, one_N: Tensor, row_weights_N: Tensor, z_loss: float
) -> Tensor:
    if z_loss:
        raise ValueError("loss_backend torch does not support z_loss; use auto")
    function: Any = F.linear_cross_entropy  # type: ignore[attr-defined, unused-ignore]
    losses_N = function(hidden, weight, one_N, linear_bias=bias, reduction="none", options=_torch_options())
    return (losses_N.to(row_weights_N.dtype) * row_weights_N).sum()


def _torch_options() -> Any:
    from torch.nn import LinearCrossEntropyOptions  # type: ignore[attr-defined, unused-ignore]

    return LinearCrossEntropyOptions()


def _liger(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, one_N: Tensor, row_weights_N: Tensor, z_loss: float
) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    counted = row_weights_N[row_weights_N != 0]
    if not counted.numel():
        return hidden.sum() * 0.0
    if not torch.allclose(counted, counted[0]):
        raise ValueError(
            "loss_backend liger needs the same weight for all rows, but some targets are ignored; use auto"
        )
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", lse_square_scale=z_loss, accum_dtype=torch.float32)
    return loss(weight, hidden, one_N, bias) * counted[0]
