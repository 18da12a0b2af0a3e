"""The mean of the embeddings of a bag, as the model's own embedding module computes them.

If a module only looks up rows of its weight, one fused pass over the weight computes the mean. Every other module is
called, because its additional work is part of the model: hooks, noise, an unknown scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from token_superposition.bags import bag_embedding
from token_superposition.models.families import embedding_scale


def mean_embedding(module: nn.Module, ids_BLs: Tensor, *, padded: bool = False) -> Tensor:
    """Return the mean of an embedding module's outputs over each bag, (B, L, d); see `bag_embedding` for `padded`."""
    scale = embedding_scale(module)
    if scale is not None:
        known: Any = module
        mean_BLd = bag_embedding(ids_BLs, known.weight, padding_idx=known.padding_idx, padded=padded)
        return mean_BLd if isinstance(scale, float) and scale == 1.0 else mean_BLd * scale
    real_BLs = ids_BLs >= 0
    if padded:
        ids_BLs = ids_BLs.clamp(min=0)
    count = real_BLs.sum(dim=-1, keepdim=True).clamp(min=1) if padded else ids_BLs.shape[-1]
    if isinstance(module, nn.Embedding) and _is_sharded(module):
        embedded_BLsd = module(ids_BLs)  # one call for all slots: each call gathers the weight from all ranks
        if padded:
            embedded_BLsd = embedded_BLsd * real_BLs.unsqueeze(-1)
        return (embedded_BLsd.sum(dim=2, dtype=_wide(embedded_BLsd)) / count).to(embedded_BLsd.dtype)
    # An unknown module is called once per slot. This is slower, but correct for every module.
    total_BLd = module(ids_BLs[..., 0])
    dtype, wide = total_BLd.dtype, _wide(total_BLd)
    total_BLd = total_BLd.to(wide) * real_BLs[..., 0, None] if padded else total_BLd.to(wide)
    for slot in range(1, ids_BLs.shape[-1]):
        more_BLd = module(ids_BLs[..., slot]).to(wide)
        total_BLd = total_BLd + (more_BLd * real_BLs[..., slot, None] if padded else more_BLd)
    return (total_BLd / count).to(dtype)


def _is_sharded(module: nn.Module) -> bool:
    """Return whether the module is an FSDP2 unit, whose weight is gathered only inside its own forward."""
    from torch.distributed.fsdp import FSDPModule  # slow to import, and needed only for modules with hooks

    return isinstance(module, FSDPModule)


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype for sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
