"""What differs between model families, as tables: the one place where a family is named.

`SuperposedLM` drives a model through its own `forward`, so soft-caps, multipliers and router losses need
nothing here. Three things do: families that ask for token ids where only a bag's mean embedding is left
(they are refused by name, before any check by numbers), how a family's embedding module scales what it looks up
(the fast bag embedding works on the weight and must scale alike), and which projections write into the residual
stream (an initialisation may scale them down with depth).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class IdsElsewhere(NamedTuple):
    """A use of token ids outside the input embedding.

    Attributes:
        reason: what the family does with ids; follows "it".
        unless: the configuration that does without, in words; empty where there is none.
        absent: whether a configuration does without.
    """

    reason: str
    unless: str = ""
    absent: Callable[[Any], bool] = lambda _: False


# By model_type. The check of logits in `SuperposedLM` finds what is not here, where it matters on the ids tried; these
# would pass it on some ids or with some weights, or fail it without a reason that helps.
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

# Kinds of layers, as configurations name them, that hold no attention over the sequence.
_WITHOUT_ATTENTION = frozenset({"linear_attention", "mamba", "recurrent", "conv", "moe", "mlp"})

# Embedding modules that look ids up in their weight and multiply by `embed_scale`, and do nothing else.
_SCALED_EMBEDDINGS = frozenset(
    {
        "GemmaTextScaledWordEmbedding",
        "Gemma2TextScaledWordEmbedding",
        "Gemma3TextScaledWordEmbedding",
    }
)

# What configurations call a factor or divisor of logits, and their bound. Which of them holds is found by trying.
LOGIT_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
LOGIT_SOFTCAPS = ("final_logit_softcapping",)

_LLAMA_LIKE = frozenset({"o_proj", "down_proj"})

# By model_type, the last part of the name of the weights whose output is added to the residual stream, where
# the family's own initialisation does not already scale them with depth (GPT-2's does: it has none here). Two of
# them a layer, or the factor would be another: Mamba's one a layer is not here.
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
    """Why a model of this configuration cannot take bags, in one line that names it; None where nothing is known."""
    kind = _kind(config)
    found = IDS_ELSEWHERE.get(kind)
    if found is not None and not found.absent(config):
        mend = f" (it does not where {found.unless})" if found.unless else ""
        return f"{kind} cannot be superposed: it {found.reason}, and a bag has a mean embedding, not an id{mend}"
    text = getattr(config, "text_config", None)
    if text is None:
        return None
    line = f"{kind} is several models in one, such as of text and images"
    mend = refusal(text) or f"take its text model, {_text_model(text)}"
    return f"{line}; {mend}"


def _text_model(config: Any) -> str:
    """A text model by its `model_type`, and by its class where there is one to train."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(_kind(config))
    return _kind(config) + (f" ({name})" if isinstance(name, str) else "")


def _kind(config: Any) -> str:
    return getattr(config, "model_type", None) or type(config).__name__


def num_attention_layers(config: Any) -> int:
    """Layers whose positions attend to each other: of a hybrid, some."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds or len(kinds) != config.num_hidden_layers:
        return config.num_hidden_layers
    return sum(kind not in _WITHOUT_ATTENTION for kind in kinds)


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
