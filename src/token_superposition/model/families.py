"""What differs between model families, as tables: the one place where a family is named.

`SuperposedLM` drives a model through its own `forward`, so soft-caps, multipliers and router losses need
nothing here. Two things do: how a family's embedding module scales what it looks up (the fast bag
embedding works on the weight and must scale alike), and which projections write into the residual stream
(an initialisation may scale them down with depth).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Embedding modules that look ids up in their weight and multiply by `embed_scale`, and do nothing else.
_SCALED_EMBEDDINGS = frozenset(
    {
        "GemmaTextScaledWordEmbedding",
        "Gemma2TextScaledWordEmbedding",
        "Gemma3TextScaledWordEmbedding",
    }
)

_LLAMA_LIKE = frozenset({"o_proj", "down_proj"})

# By model_type, the last part of the name of the weights whose output is added to the residual stream, where
# the family's own initialisation does not already scale them with depth (GPT-2's does: it has none here).
RESIDUAL_PROJECTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3"), _LLAMA_LIKE),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "phi3", "granite", "cohere"), _LLAMA_LIKE),
    **dict.fromkeys(("gpt_neox", "falcon", "bloom"), frozenset({"dense", "dense_4h_to_h"})),
    "gpt2": frozenset(),
}


def embedding_scale(module: nn.Module) -> Tensor | float | None:
    """What a known embedding module multiplies its weight's rows by; None for a module we do not know.

    Known means: its output is `weight[ids] * scale` and nothing more. A module with hooks, a norm limit or
    a gradient scaled by frequency is not known, whatever its class.
    """
    if not isinstance(module, nn.Embedding) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if "forward" in vars(module):  # replaced on this one instance, as offloading libraries do
        return None
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    if type(module).__name__ in _SCALED_EMBEDDINGS:
        scale: Any = module.embed_scale
        return scale.to(module.weight.dtype) if isinstance(scale, torch.Tensor) else float(scale)
    return None
