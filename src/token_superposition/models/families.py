"""Tables of the differences between model families; no other module names a family.

`SuperposedLM` runs a model through its own `forward`, so soft-caps, multipliers and router losses need no table. Three
differences need one:

- Some families need token ids, but a bag has only a mean embedding. These families are refused by name, before any
  numerical check.
- Some embedding modules scale the rows that they look up. The fast bag embedding reads the weight directly, so it must
  apply the same scale.
- Some projections write into the residual stream. The initialization can scale them down with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class IdsElsewhere(NamedTuple):
    """A use of token ids outside the input embedding.

    Attributes:
        reason: how the family uses ids; the text follows the word "it" in the message.
        unless: the configuration that does not use ids this way, as text; empty if there is none.
        absent: returns whether a configuration does not use ids this way.
    """

    reason: str
    unless: str = ""
    absent: Callable[[Any], bool] = lambda _: False


# By model_type. The check of logits in `SuperposedLM` finds most families that are not listed here. A listed family
# would pass that check on some ids or with some weights, or would fail it with a message that does not help.
IDS_ELSEWHERE: dict[str, IdsElsewhere] = {
    "gemma3n_text": IdsElsewhere("looks ids up in an embedding for each layer"),
    "gemma4_text": IdsElsewhere(
        "looks ids up in an embedding for each layer",
        "hidden_size_per_layer_input is 0",
        lambda config: not config.hidden_size_per_layer_input,
    ),
    "qwen4_exp_text": IdsElsewhere(
        "looks up hashed n-grams of ids", "ple_layer_ids is empty", lambda config: not config.ple_layer_ids
    ),
    "deepseek_v4": IdsElsewhere(
        "routes ids to experts by a table",
        "mlp_layer_types has no hash_moe",
        lambda config: "hash_moe" not in config.mlp_layer_types,
    ),
    "blt": IdsElsewhere("looks up hashed n-grams of bytes, and cuts patches by them"),
    "cpmant": IdsElsewhere("makes segments and its attention mask from ids"),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        IdsElsewhere("counts positions over the ids that are not padding"),
    ),
}

# The names in configurations of the kinds of layers without attention over the sequence.
_WITHOUT_ATTENTION = frozenset({"linear_attention", "mamba", "recurrent", "conv", "moe", "mlp"})

# Embedding modules that look ids up in their weight, multiply by `embed_scale`, and do nothing else.
_SCALED_EMBEDDINGS = frozenset(
    {
        "GemmaTextScaledWordEmbedding",
        "Gemma2TextScaledWordEmbedding",
        "Gemma3TextScaledWordEmbedding",
    }
)

# The configuration keys of a factor or divisor of the logits, and of their bound. `head.find_transform` tries each one.
LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
LOGIT_SOFTCAPS = ("final_logit_softcapping",)

_LLAMA_LIKE = frozenset({"o_proj", "down_proj"})

# By model_type, the last part of the names of the projections whose output is added to the residual stream. GPT-2 has
# an empty set, because its own initialization already scales these projections with depth. The factor assumes two such
# projections per layer, so Mamba with one projection per layer is not listed.
RESIDUAL_PROJECTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3"), _LLAMA_LIKE),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "phi3", "granite", "cohere"), _LLAMA_LIKE),
    **dict.fromkeys(("deepseek_v3", "gpt_oss"), _LLAMA_LIKE),
    "bamba": _LLAMA_LIKE | {"out_proj"},
    "granitemoehybrid": _LLAMA_LIKE | {"out_proj", "output_linear"},
    **dict.fromkeys(("gpt_neox", "falcon", "bloom"), frozenset({"dense", "dense_4h_to_h"})),
    "gpt2": frozenset(),
}


def refusal(config: Any) -> str | None:
    """Return in one line why a model with this configuration cannot take bags; None if no reason is known."""
    kind = _kind(config)
    found = IDS_ELSEWHERE.get(kind)
    if found is not None and not found.absent(config):
        remedy = f" (it does not if {found.unless})" if found.unless else ""
        return f"{kind} cannot be superposed: it {found.reason}, and a bag has a mean embedding, not an id{remedy}"
    text = getattr(config, "text_config", None)
    if text is None:
        return None
    line = f"{kind} consists of several models, such as one for text and one for images"
    remedy = refusal(text) or f"use its text model, {_text_model(text)}"
    return f"{line}; {remedy}"


def _text_model(config: Any) -> str:
    """Return the `model_type` of a text model, with its class if transformers has a causal language model for it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(_kind(config))
    return _kind(config) + (f" ({name})" if isinstance(name, str) else "")


def _kind(config: Any) -> str:
    return getattr(config, "model_type", None) or type(config).__name__


def num_attention_layers(config: Any) -> int:
    """Return the number of layers with attention; a hybrid has fewer of them than layers."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds or len(kinds) != config.num_hidden_layers:
        return config.num_hidden_layers
    return sum(kind not in _WITHOUT_ATTENTION for kind in kinds)


def embedding_scale(module: nn.Module) -> Tensor | float | None:
    """Return the factor by which a known embedding module multiplies the rows of its weight; None for other modules.

    The output of a known module is exactly `weight[ids] * scale`. A module with hooks, a norm limit or a gradient that
    is scaled by frequency is not known, whatever its class.
    """
    if not isinstance(module, nn.Embedding) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if "forward" in vars(module):  # offloading libraries replace the forward of one instance
        return None
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return None
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    if type(module).__name__ in _SCALED_EMBEDDINGS:
        scale: Any = module.embed_scale
        return scale.to(module.weight.dtype) if isinstance(scale, torch.Tensor) else float(scale)
    return None
