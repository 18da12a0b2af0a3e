"""The multi-hot loss through a fused kernel made for one target a row.

For logits that are linear in the hidden states h, with head W and slot weights w that add up to 1 (the softmax
term is the same for all targets),

    MCE = CE(h W', y_0) + h . (W[y_0] - sum_k w_k W[y_k])        (with a bias b: + b[y_0] - sum_k w_k b[y_k])

with y_0 any target of the row that counts. So whoever has a fast kernel for ordinary cross-entropy has one for bags:
one pass over the head, and one weighted `embedding_bag` over its rows. At one target a row the second term is left out.
Its price: in bfloat16 what the first term says of y_0 is rounded before the second takes it back, so the head's
gradient is less exact than ours in slices (`benchmarks/gpu.py` prints both).

Kernels: Liger's (CUDA; it forms gradients in the forward pass, so that rows must weigh alike) and torch's own
`F.linear_cross_entropy` (torch 2.13 and later; by rows, since its sums add up in the inputs' precision).
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
    """Whether it is installed; Liger's needs CUDA besides."""
    if kernel == "torch":
        return hasattr(F, "linear_cross_entropy")
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def check_kernel(kernel: Kernel) -> None:
    """Raise ValueError for a kernel that is not there."""
    if not kernel_is_there(kernel):
        needs = {"liger": "liger-kernel and CUDA", "torch": "torch 2.13 or later"}[kernel]
        raise ValueError(f"loss_backend {kernel} needs {needs}; take auto")


def total_through_one_target(
    kernel: Kernel,
    hidden_Nd: Tensor,
    weight_Vd: Tensor,
    bias_V: Tensor | None,
    targets_Ns: Tensor,
    weights_Ns: Tensor,
    z_loss: float,
) -> Tensor:
    """The sum of w * (CE + z_loss * logsumexp^2) over all targets.

    Args:
        kernel: which one.
        hidden_Nd, weight_Vd, bias_V: of one dtype.
        targets_Ns: token ids, also where they weigh nothing.
        weights_Ns: float32 (float64), 0 where a target is ignored.
        z_loss: for `liger` only.

    Raises:
        ValueError: for a kernel that is not there, or asked for what it cannot do.
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
    # On the CPU embedding_bag adds in the weight's own precision.
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
        raise ValueError("loss_backend torch has no z-loss; take auto")
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
        raise ValueError("loss_backend liger takes rows that weigh alike, and some targets are ignored; take auto")
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", lse_square_scale=z_loss, accum_dtype=torch.float32)
    return loss(weight, hidden, one_N, bias) * counted[0]
