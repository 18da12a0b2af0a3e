"""Bags: folding raw rows, cutting them into inputs and targets, and averaging embeddings.

A raw row holds `s * L` input tokens and a look-ahead of s more. Bag j is tokens [js, js + s) and predicts
the whole next bag, tokens [js + s, js + 2s). Targets are cut from the *raw* row, s tokens after the inputs:
labels that were already shifted by one are not aligned with bags, and folding those would show the model
s - 1 of its s targets.

Shapes: B rows, L latent positions, s tokens a bag, V vocabulary, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from token_superposition.schedule import Mode

PADDING = -100  # a slot of a bag without a token, or a target that is none


def fold_into_bags(ids_BT: Tensor, bag_size: int) -> Tensor:
    """Fold rows of token ids into bags of `bag_size` contiguous tokens.

    Args:
        ids_BT: token ids, (B, T), T a multiple of `bag_size`.
        bag_size: s.

    Returns:
        (B, T // s, s), a view where the layout allows.

    Raises:
        ValueError: where T is not a multiple of s, or the rows are not 2-D.

    Example:
        >>> import torch
        >>> fold_into_bags(torch.arange(6).view(1, 6), bag_size=2).tolist()
        [[[0, 1], [2, 3], [4, 5]]]
    """
    if bag_size < 1:
        raise ValueError(f"bag_size is at least 1, not {bag_size}")
    if ids_BT.dim() != 2:
        raise ValueError(f"rows of token ids have shape (B, T), not {tuple(ids_BT.shape)}")
    num_rows, length = ids_BT.shape
    if length % bag_size:
        raise ValueError(f"{length} tokens do not fold into bags of {bag_size}")
    return ids_BT.reshape(num_rows, length // bag_size, bag_size)


def split_inputs_and_targets(row_ids_BT: Tensor, bag_size: int, mode: Mode = "full") -> tuple[Tensor, Tensor]:
    """Cut raw rows into a model's inputs and its targets.

    Args:
        row_ids_BT: token ids, (B, T): `s * (L + 1)` ids a row in modes `full` and `input_only`, `L + s` in
            mode `output_only`.
        bag_size: s.
        mode: see `Stage`.

    Returns:
        Inputs and targets: (B, L, s) and (B, L, s) in mode `full`; (B, L, 1) and (B, L, s) in `output_only`,
        where position t predicts tokens t + 1 .. t + s; (B, L, s) and (B, L, 1) in `input_only`, where bag j
        predicts the one token s * (j + 1).

    Raises:
        ValueError: where a row has the wrong length, or no position.

    Source: arXiv 2605.06546, section 3.

    Example:
        >>> import torch
        >>> inputs, targets = split_inputs_and_targets(torch.arange(6).view(1, 6), bag_size=2)
        >>> inputs.tolist(), targets.tolist()
        ([[[0, 1], [2, 3]]], [[[2, 3], [4, 5]]])
    """
    length = row_ids_BT.shape[-1]
    if row_ids_BT.dim() != 2 or bag_size < 1 or length <= bag_size:
        raise ValueError(
            f"rows of shape {tuple(row_ids_BT.shape)} hold no position at bag size {bag_size}: "
            "a row is (B, s * (L + 1)) token ids, L at least 1"
        )
    if mode == "output_only":
        targets_BLs = row_ids_BT[:, 1:].unfold(1, bag_size, 1)
        return row_ids_BT[:, : length - bag_size].unsqueeze(-1), targets_BLs
    inputs_BLs = fold_into_bags(row_ids_BT[:, : length - bag_size], bag_size)
    targets_BLs = fold_into_bags(row_ids_BT[:, bag_size:], bag_size)
    return inputs_BLs, targets_BLs[..., :1] if mode == "input_only" else targets_BLs


class _FreezeRow(torch.autograd.Function):
    """The weight as it is, with no gradient into one row: what `padding_idx` means to `nn.Embedding`."""

    @staticmethod
    def forward(ctx: Any, weight_Vd: Tensor, row: int) -> Tensor:
        ctx.row = row
        return weight_Vd.view_as(weight_Vd)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        grad_Vd = grad_outputs[0].clone()
        grad_Vd[ctx.row] = 0
        return grad_Vd, None


def bag_embedding(
    ids_BLs: Tensor, weight_Vd: Tensor, *, padding_idx: int | None = None, padded: bool = False
) -> Tensor:
    """The plain mean of each bag's embeddings, summed in float32 (float64 for a float64 weight).

    No (B, L, s, d) tensor is made, forward or backward. A token that stands in a bag twice counts twice.
    On the CPU the same inputs give the same result and the same gradient every time (`W[ids]` would not: its
    backward adds in whatever order the threads come).

    Args:
        ids_BLs: token ids, (B, L, s), integer.
        weight_Vd: embedding weight, (V, d), floating point.
        padding_idx: a row that takes no gradient, as in `nn.Embedding`; it still counts in the mean.
        padded: negative ids are slots without a token: a bag's mean is over its others (an empty bag's is 0).

    Returns:
        (B, L, d) in the weight's dtype.

    Source: arXiv 2605.06546, section 3 (input side).

    Example:
        >>> import torch
        >>> weight = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
        >>> bag_embedding(torch.tensor([[[0, 1], [1, 1]]]), weight).tolist()
        [[[2.0, 4.0], [4.0, 6.0]]]
    """
    num_rows, length, bag_size = ids_BLs.shape
    if padding_idx is not None:
        weight_Vd = _FreezeRow.apply(weight_Vd, padding_idx)
    dtype = weight_Vd.dtype
    if (padded or weight_Vd.device.type != "cuda") and dtype in (torch.bfloat16, torch.float16):
        # Off CUDA the kernel adds in the weight's own dtype, and a sum is rounded to it: neither is a float32 mean.
        weight_Vd = weight_Vd.float()
    bags_NS = ids_BLs.reshape(num_rows * length, bag_size)
    if padded:
        real_NS = (bags_NS >= 0).to(weight_Vd.dtype)
        total_Nd = F.embedding_bag(bags_NS.clamp(min=0), weight_Vd, mode="sum", per_sample_weights=real_NS)
        mean_Nd = total_Nd / real_NS.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_Nd.to(dtype).view(num_rows, length, -1)
    return F.embedding_bag(bags_NS, weight_Vd, mode="mean").to(dtype).view(num_rows, length, -1)
