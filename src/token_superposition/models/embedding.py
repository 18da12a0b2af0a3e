"""The mean of a bag's embeddings, as the model's own embedding module makes them.

A module that only looks its weight up is replaced by one fused pass over the weight. Any other is called, for what it
does besides is part of the model: hooks, noise, a scale we do not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from token_superposition.bags import bag_embedding
from token_superposition.models.families import embedding_scale


def mean_embedding(module: nn.Module, ids_BLs: Tensor, *, padded: bool = False) -> Tensor:
    """The mean of an embedding module's own outputs over each bag, (B, L, d); see `bag_embedding` for `padded`."""
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
        embedded_BLsd = module(ids_BLs)  # at once: every call of it gathers the weight from all ranks
        if padded:
            embedded_BLsd = embedded_BLsd * real_BLs.unsqueeze(-1)
        return (embedded_BLsd.sum(dim=2, dtype=_wide(embedded_BLsd)) / count).to(embedded_BLsd.dtype)
    # A module we do not know is asked for one slot at a time: slower, and right whatever it does.
    total_BLd = module(ids_BLs[..., 0])
    dtype, wide = total_BLd.dtype, _wide(total_BLd)
    total_BLd = total_BLd.to(wide) * real_BLs[..., 0, None] if padded else total_BLd.to(wide)
    for slot in range(1, ids_BLs.shape[-1]):
        more_BLd = module(ids_BLs[..., slot]).to(wide)
        total_BLd = total_BLd + (more_BLd * real_BLs[..., slot, None] if padded else more_BLd)
    return (total_BLd / count).to(dtype)


def _is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 made it a unit of its own, whose weight is whole only inside its own forward."""
    from torch.distributed.fsdp import FSDPModule  # takes long to import, and only modules with hooks come here

    return isinstance(module, FSDPModule)


def _wide(tensor: Tensor) -> torch.dtype:
    """What is summed in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
