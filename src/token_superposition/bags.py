"""Bags: fold raw rows into bags, split rows into inputs and targets, and average embeddings.

A raw row holds `s * L` input tokens and s more tokens for the last target. Bag j holds the tokens [js, js + s) and
predicts the whole next bag, which holds the tokens [js + s, js + 2s).

Targets are cut from the *raw* row, s tokens after the inputs. Labels that are already shifted by one token are not
aligned with bags: if they were folded, the model would see s - 1 of its s targets.

Shapes: B rows, L latent positions, s tokens a bag, V vocabulary, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from token_superposition.schedule import Mode

PADDING = -100  # marks a slot that holds no token, and a target that is ignored


def fold_into_bags(ids_BT: Tensor, bag_size: int) -> Tensor:
    """Fold rows of token ids into bags of `bag_size` contiguous tokens.

    Args:
        ids_BT: token ids, (B, T), T a multiple of `bag_size`.
        bag_size: s.

    Returns:
        (B, T // s, s), a view if the memory layout allows.

    Raises:
        ValueError: if T is not a multiple of s, or the rows are not 2-D.

    Example:
        >>> import torch
        >>> fold_into_bags(torch.arange(6).view(1, 6), bag_size=2).tolist()
        [[[0, 1], [2, 3], [4, 5]]]
    """
    if bag_size < 1:
        raise ValueError(f"bag_size must be at least 1, not {bag_size}")
    if ids_BT.dim() != 2:
        raise ValueError(f"rows of token ids must have shape (B, T), not {tuple(ids_BT.shape)}")
    num_rows, length = ids_BT.shape
    if length % bag_size:
        raise ValueError(f"{length} tokens do not fold into bags of {bag_size}: the length must be a multiple")
    return ids_BT.reshape(num_rows, length // bag_size, bag_size)


def split_inputs_and_targets(row_ids_BT: Tensor, bag_size: int, mode: Mode = "full") -> tuple[Tensor, Tensor]:
    """Split raw rows into the inputs and the targets of a model.

    Args:
        row_ids_BT: token ids, (B, T): `s * (L + 1)` ids per row in modes `full` and `input_only`, `L + s` in
            mode `output_only`.
        bag_size: s.
        mode: see `Stage`.

    Returns:
        Inputs and targets. Mode `full`: (B, L, s) and (B, L, s). Mode `output_only`: (B, L, 1) and (B, L, s), and
        position t predicts the tokens t + 1 .. t + s. Mode `input_only`: (B, L, s) and (B, L, 1), and bag j predicts
        the one token s * (j + 1).

    Raises:
        ValueError: if the rows have the wrong length, or are too short for one position.

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
            "the shape must be (B, s * (L + 1)) token ids with L at least 1"
        )
    if mode == "output_only":
        targets_BLs = row_ids_BT[:, 1:].unfold(1, bag_size, 1)
        return row_ids_BT[:, : length - bag_size].unsqueeze(-1), targets_BLs
    inputs_BLs = fold_into_bags(row_ids_BT[:, : length - bag_size], bag_size)
    targets_BLs = fold_into_bags(row_ids_BT[:, bag_size:], bag_size)
    return inputs_BLs, targets_BLs[..., :1] if mode == "input_only" else targets_BLs


class _FreezeRow(torch.autograd.Function):
    """Return the weight unchanged and give one row no gradient, as `padding_idx` does in `nn.Embedding`."""

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
    """Return the mean of the embeddings of each bag, summed in float32 (float64 for a float64 weight).

    Neither the forward nor the backward pass makes a (B, L, s, d) tensor. A token that a bag holds twice counts twice.
    On the CPU the result and the gradient are deterministic. `W[ids]` would not be deterministic, because its backward
    adds in the order in which the threads arrive.

    Args:
        ids_BLs: token ids, (B, L, s), integer.
        weight_Vd: embedding weight, (V, d), floating point.
        padding_idx: a row that gets no gradient, as in `nn.Embedding`; the row still counts in the mean.
        padded: treat negative ids as slots without a token. The mean of a bag is then over its other slots; the mean
            of an empty bag is 0.

    Returns:
        (B, L, d) in the dtype of the weight.

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
        # On devices other than CUDA the kernel adds in the dtype of the weight, and mode "sum" rounds its result to
        # that dtype. Neither gives a float32 mean.
        weight_Vd = weight_Vd.float()
    bags_NS = ids_BLs.reshape(num_rows * length, bag_size)
    if padded:
        real_NS = (bags_NS >= 0).to(weight_Vd.dtype)
        total_Nd = F.embedding_bag(bags_NS.clamp(min=0), weight_Vd, mode="sum", per_sample_weights=real_NS)
        mean_Nd = total_Nd / real_NS.sum(dim=1, keepdim=True).clamp(min=1)
        return mean_Nd.to(dtype).view(num_rows, length, -1)
    return F.embedding_bag(bags_NS, weight_Vd, mode="mean").to(dtype).view(num_rows, length, -1)
