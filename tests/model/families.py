"""Tiny models of the families that docs/models.md speaks of, each with what sets it apart switched on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.model.build import build_model


class Family(NamedTuple):
    """One row of the page.

    Attributes:
        model_type: what transformers calls it.
        config: its configuration at tiny size.
        particular: what sets it apart, for the page.
    """

    model_type: str
    config: dict[str, Any]
    particular: str = ""


# Weights large enough for losses to differ, small enough to train.
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.15}
LLAMA = {
    **COMMON,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS_OF_8 = {**LLAMA, "head_dim": 8}
ROUTER = {"output_router_logits": True, "router_aux_loss_coef": 0.05}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
WINDOW = {"sliding_window": 8}

FAMILIES = {
    "Llama": Family("llama", LLAMA),
    "Mistral": Family("mistral", {**HEADS_OF_8, **WINDOW}, "sliding window"),
    "Mixtral": Family("mixtral", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, **ROUTER}, "experts"),
    "Qwen2": Family("qwen2", LLAMA, "biases"),
    "Qwen3": Family("qwen3", HEADS_OF_8, "norm of queries and keys"),
    "Qwen3-MoE": Family(
        "qwen3_moe",
        {**HEADS_OF_8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **ROUTER},
        "experts",
    ),
    "Gemma 2": Family("gemma2", {**HEADS_OF_8, **WINDOW}, "scaled embedding, soft-capped logits, sliding window"),
    "Gemma 3 (text)": Family(
        "gemma3_text",
        {**HEADS_OF_8, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        "scaled embedding, a rotary base for each kind of layer",
    ),
    "Phi-3": Family("phi3", LLAMA, "fused projections"),
    "OLMo-2": Family("olmo2", LLAMA, "norms after the blocks"),
    "SmolLM3": Family("smollm3", {**LLAMA, "no_rope_layers": [1, 0]}, "layers without positions"),
    "Granite": Family("granite", {**LLAMA, **MULTIPLIERS}, "multipliers of embedding, residual, attention and logits"),
    "Cohere": Family("cohere", {**LLAMA, "logit_scale": 0.25}, "scaled logits, parallel blocks"),
    "GPT-2": Family(
        "gpt2",
        {
            **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.15},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        },
        "learned positions",
    ),
    "GPT-NeoX": Family(
        "gpt_neox",
        {**COMMON, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64},
        "parallel blocks, partial rotary embedding",
    ),
    "Falcon": Family("falcon", {**COMMON, "num_attention_heads": 4}, "one key and value head, parallel blocks"),
    "BLOOM": Family(
        "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.15}, "ALiBi, normed embedding"
    ),
    "DeepSeek-V3": Family(
        "deepseek_v3",
        {
            **{**LLAMA, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
            **{"n_group": 2, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 16},
            **{"first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4},
            **{"qk_nope_head_dim": 8, "v_head_dim": 8},
        },
        "latent attention, grouped and shared experts",
    ),
    "GPT-OSS": Family(
        "gpt_oss",
        {**HEADS_OF_8, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2, **ROUTER},
        "experts with biases, attention sinks, sliding window",
    ),
    "Mamba-2": Family(
        "mamba2",
        {**COMMON, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
        "no attention",
    ),
    "Bamba": Family("bamba", {**LLAMA, **MAMBA, "attn_layer_indices": [1], "z_loss_coefficient": 0.01}, "Mamba-2 and attention, a z-loss of its own"),
    "Granite-MoE-hybrid": Family(
        "granitemoehybrid",
        {
            **{**LLAMA, **MAMBA, **MULTIPLIERS, **ROUTER, "num_local_experts": 4, "num_experts_per_tok": 2},
            **{"shared_intermediate_size": 24, "layer_types": ["linear_attention", "full_attention"]},
        },
        "Mamba-2 and attention, routed and shared experts, multipliers",
    ),
}


# Families that use ids outside their input embedding, at tiny size, and the change that makes them do without.
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
SIZES = {key: value for key, value in HEADS_OF_8.items() if key != "intermediate_size"}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
PER_LAYER = {
    **{**HEADS_OF_8, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 0},
    "layer_types": ["sliding_attention", "full_attention"],
}
IDS_ELSEWHERE: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "gemma3n_text": ({**PER_LAYER, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]}, None),
    "gemma4_text": (PER_LAYER, {"hidden_size_per_layer_input": 0}),
    "qwen4_exp_text": (
        {
            **{**SIZES, **EXPERTS, **INDEXER, "indexer_compress_ratio": 2, "num_experts": 4, "hc_lowrank": 8},
            **{"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "ple_layer_ids": [1], "heads_per_ngram": 2},
            **{"layer_types": ["linear_attention", "indexed_attention"], "ngram_vocab_size_base": 64},
        },
        {"ple_layer_ids": []},
    ),
    "deepseek_v4": (
        {
            **{**HEADS_OF_8, **EXPERTS, "num_key_value_heads": 1, "n_routed_experts": 4, "q_lora_rank": 8},
            **{"qk_rope_head_dim": 4, "o_groups": 2, "o_lora_rank": 8, "mlp_layer_types": ["hash_moe", "moe"]},
            **{"layer_types": ["sliding_attention", "sliding_attention"]},
        },
        {"mlp_layer_types": ["moe", "moe"]},
    ),
    "roberta": ({**COMMON, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 1}, None),
}


def make(family: Family, scale_residual_init: bool = False) -> nn.Module:
    """The model as a run on bytes builds it."""
    tokenizer = ByteTokenizer()
    return build_model(
        family.model_type,
        family.config,
        vocab_size=tokenizer.vocab_size,
        end_of_document_id=tokenizer.end_of_document_id,
        seed=0,
        scale_residual_init=scale_residual_init,
    )
