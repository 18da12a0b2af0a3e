"""Tiny models of the families that docs/models.md speaks of, each with what sets it apart switched on."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import transformers
from torch import nn

from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.models.spec import ModelSpec


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
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.15}
SIZES: dict[str, Any] = dict(SMALL, intermediate_size=48, max_position_embeddings=64)
LLAMA: dict[str, Any] = dict(SIZES, num_key_value_heads=2)
WINDOW: dict[str, Any] = dict(LLAMA, head_dim=8, sliding_window=8)
ROUTER: dict[str, Any] = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.05}
MAMBA: dict[str, Any] = dict(LLAMA, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1)
MULTIPLIERS: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
}

FAMILIES = {
    "Llama": Family("llama", LLAMA),
    "Mistral": Family("mistral", WINDOW, "sliding window"),
    "Mixtral": Family("mixtral", dict(LLAMA, **ROUTER, num_local_experts=4), "experts"),
    "Qwen2": Family("qwen2", LLAMA, "biases"),
    "Qwen3": Family("qwen3", dict(LLAMA, head_dim=8), "norm of queries and keys"),
    "Qwen3-MoE": Family(
        "qwen3_moe", dict(LLAMA, **ROUTER, head_dim=8, num_experts=4, moe_intermediate_size=16), "experts"
    ),
    "Gemma 2": Family("gemma2", WINDOW, "scaled embedding, soft-capped logits, sliding window"),
    "Gemma 3 (text)": Family(
        "gemma3_text",
        dict(WINDOW, layer_types=["sliding_attention", "full_attention"]),
        "scaled embedding, a rotary base for each kind of layer",
    ),
    "Phi-3": Family("phi3", LLAMA, "fused projections"),
    "OLMo-2": Family("olmo2", LLAMA, "norms after the blocks"),
    "SmolLM3": Family("smollm3", dict(LLAMA, no_rope_layers=[1, 0]), "layers without positions"),
    "Granite": Family(
        "granite", dict(LLAMA, **MULTIPLIERS), "multipliers of embedding, residual, attention and logits"
    ),
    "Cohere": Family("cohere", dict(LLAMA, logit_scale=0.25), "scaled logits, parallel blocks"),
    "GPT-2": Family(
        "gpt2", dict(SMALL, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), "learned positions"
    ),
    "GPT-NeoX": Family("gpt_neox", SIZES, "parallel blocks, partial rotary embedding"),
    "Falcon": Family("falcon", SMALL, "one key and value head, parallel blocks"),
    "BLOOM": Family("bloom", SMALL, "ALiBi, normed embedding"),
    "DeepSeek-V3": Family(
        "deepseek_v3",
        dict(SIZES, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8)
        | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
        | {"num_key_value_heads": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
        "latent attention, grouped and shared experts",
    ),
    "GPT-OSS": Family(
        "gpt_oss",
        dict(WINDOW, **ROUTER, num_local_experts=4),
        "experts with biases, attention sinks, sliding window",
    ),
    "Mamba-2": Family(
        "mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
        "no attention",
    ),
    "Bamba": Family(
        "bamba",
        dict(MAMBA, mamba_chunk_size=8, attn_layer_indices=[1], z_loss_coefficient=0.01),
        "Mamba-2 and attention, a z-loss of its own",
    ),
    "Granite-MoE-hybrid": Family(
        "granitemoehybrid",
        dict(MAMBA, **MULTIPLIERS, **ROUTER, mamba_chunk_size=8, num_local_experts=4, shared_intermediate_size=24)
        | {"layer_types": ["linear_attention", "full_attention"]},
        "Mamba-2 and attention, routed and shared experts, multipliers",
    ),
}

# Families that use ids outside their input embedding, at tiny size, and the change that makes them do without.
PER_LAYER = dict(LLAMA, head_dim=8, hidden_size_per_layer_input=4, vocab_size_per_layer_input=320) | {
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
IDS_ELSEWHERE: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "gemma3n_text": (dict(PER_LAYER, laurel_rank=4, activation_sparsity_pattern=[0.0, 0.0]), None),
    "gemma4_text": (PER_LAYER, {"hidden_size_per_layer_input": 0}),
    "qwen4_exp_text": (
        dict(SMALL, max_position_embeddings=64, num_key_value_heads=2, head_dim=8, hc_lowrank=8, num_experts=4)
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        }
        | {"ple_layer_ids": [1], "heads_per_ngram": 2, "ngram_vocab_size_base": 64}
        | {"layer_types": ["linear_attention", "full_attention"]},
        {"ple_layer_ids": []},
    ),
    "deepseek_v4": (
        dict(SIZES, head_dim=8, num_key_value_heads=1, q_lora_rank=8, qk_rope_head_dim=4, o_groups=2, o_lora_rank=8)
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"layer_types": ["sliding_attention"] * 2, "mlp_layer_types": ["hash_moe", "moe"]},
        {"mlp_layer_types": ["moe", "moe"]},
    ),
    "roberta": (dict(SIZES, pad_token_id=1), None),
}


def make(family: Family, scale_residual_init: bool = False) -> nn.Module:
    """The model as a run on bytes builds it; skips the test where transformers' own code cannot compute its loss."""
    tokenizer = ByteTokenizer()
    if family.model_type == "granitemoehybrid" and transformers.__version__.startswith("5.17."):
        pytest.skip("transformers 5.17 cannot compute this family's own router loss")
    spec = ModelSpec(
        family.model_type,
        family.config,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.end_of_document_id,
        scale_residual_init=scale_residual_init,
    )
    return spec.build(seed=0)
