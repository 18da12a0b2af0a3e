"""Building a model from a configuration, and counting what it costs.

A model is any architecture that transformers knows, named by its `model_type` with that family's own
configuration keys. Weights are initialised by the family's own code; with `scale_residual_init` the
projections that write into the residual stream are then scaled by 1 / sqrt(2 * layers), as GPT-2's are by its
own code.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from token_superposition.errors import UserError, did_you_mean
from token_superposition.model.families import RESIDUAL_PROJECTIONS
from token_superposition.plan.accounting import ModelCost


def build_model(
    architecture: str,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    end_of_document_id: int,
    seed: int,
    scale_residual_init: bool | Literal["auto"] = "auto",
) -> nn.Module:
    """A freshly initialised causal language model in float32 on the CPU.

    Args:
        architecture: a transformers `model_type`, such as `llama`.
        config: that family's configuration keys.
        vocab_size: rows of the embedding, where `config` does not say.
        end_of_document_id: the tokenizer's end token; stands for begin and end in the model's configuration.
        seed: of the initialisation; the same seed gives the same weights.
        scale_residual_init: scale residual projections down with depth; `auto` does it for families whose
            projections are known.

    Raises:
        UserError: for an unknown architecture or key, values the family refuses, or a vocabulary smaller
            than the data's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = did_you_mean(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise UserError(f"model.architecture: {architecture!r} is not a causal language model of transformers{near}")
    known = _known_keys(CONFIG_MAPPING[architecture])
    for key in config:
        if key not in known:
            raise UserError(f"model.config.{key}: {architecture} has no such key{did_you_mean(key, known)}")
    size = config.get("vocab_size", vocab_size)
    if not isinstance(size, int) or size < vocab_size:
        raise UserError(
            f"model.config.vocab_size: {size!r} is smaller than the data's vocabulary of {vocab_size}; "
            "leave the key out to take the data's"
        )
    # A padding id would freeze one row of the embedding, and families bring one that is a byte of ours.
    special = {"bos_token_id": end_of_document_id, "eos_token_id": end_of_document_id, "pad_token_id": None}
    values = {**special, **config, "vocab_size": size}
    if "is_decoder" in known:  # families that can be encoders look ahead unless told not to
        values.setdefault("is_decoder", True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            resolved = AutoConfig.for_model(architecture, **values)
            model: nn.Module = AutoModelForCausalLM.from_config(resolved, dtype=torch.float32)
        except Exception as error:  # families refuse values in every way there is
            line = " ".join(str(error).split())
            raise UserError(f"model.config: {architecture} refuses these values: {line}") from error
    projections = RESIDUAL_PROJECTIONS.get(architecture)
    if projections is None and scale_residual_init is True:
        raise UserError(
            f"model.scale_residual_init: the residual projections of {architecture} are not known; set it to false"
        )
    if projections and scale_residual_init:
        _scale_residual_projections(model, projections)
    return model


def model_cost(model: nn.Module) -> ModelCost:
    """What one position costs, counted from the model's weights and configuration."""
    config: Any = model.config
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()  # type: ignore[operator]
    looked_up.discard(id(head.weight))
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((found for name in names if (found := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    multiplied = 0
    for name, parameter in model.named_parameters():  # a tied head stands here once, as the embedding
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        share = active / experts if experts and active and ".experts." in name else 1
        multiplied += round(parameter.numel() * share)
    heads = getattr(config, "num_attention_heads", None) or 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if getattr(config, "qk_head_dim", None):  # multi-head latent attention: scores and values have their own sizes
        head_size = (config.qk_head_dim + config.v_head_dim) // 2
    return ModelCost(multiplied, config.num_hidden_layers * heads * head_size)


def _known_keys(config_class: type) -> set[str]:
    """Every key of a family: its configuration's, its names for the common ones, and what its code asks for besides.

    Some keys are in no default: Qwen3-MoE's attention reads `getattr(config, "head_dim", ...)`.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    defaults: Any = config_class()
    source = inspect.getsource(inspect.getmodule(MODEL_FOR_CAUSAL_LM_MAPPING[config_class]) or config_class)
    asked = set(re.findall(r"getattr\((?:self\.)?config, \"([a-z]\w*)\"", source))
    return set(defaults.to_dict()) | set(getattr(config_class, "attribute_map", {})) | asked


@torch.no_grad()
def _scale_residual_projections(model: nn.Module, projections: frozenset[str]) -> None:
    config: Any = model.config
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and projections & set(name.split(".")[-2:]):
            parameter.mul_(scale)
