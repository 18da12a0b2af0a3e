"""Building a model from a configuration, and what a position of it costs, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from token_superposition.errors import UserError
from token_superposition.model.build import build_model, model_cost

V, D, F, N, H = 64, 32, 48, 2, 4  # vocabulary, width, feed-forward, layers, heads
SIZES = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": N, "num_attention_heads": H}


def make(architecture: str, **config: Any) -> Any:
    return build_model(architecture, config, vocab_size=V, end_of_document_id=0, seed=0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_counts_and_the_look_up_does_not(tied: bool) -> None:
    cost = model_cost(make("llama", **SIZES, num_key_value_heads=2, tie_word_embeddings=tied))
    attention = 2 * D * D + 2 * D * (D // 2)  # queries and output; keys and values of half the heads
    assert cost.multiplied_parameters == N * (attention + 3 * D * F) + V * D
    assert cost.attention_width == N * D
    # Forward and backward: 6 a weight; scores and values over L positions, halved by the causal mask.
    assert cost.flops_per_position(16) == 6 * cost.multiplied_parameters + 6 * 16 * N * D


def test_of_a_mixture_only_the_visited_experts_count() -> None:
    config = {**SIZES, "num_key_value_heads": H, "head_dim": 16, "moe_intermediate_size": 24}
    cost = model_cost(make("qwen3_moe", **config, num_experts=8, num_experts_per_tok=2))
    attention = 4 * D * H * 16
    experts, router = 2 * 3 * D * 24, D * 8
    assert cost.multiplied_parameters == N * (attention + experts + router) + V * D
    assert cost.attention_width == N * H * 16


def test_heads_of_latent_attention_have_two_sizes() -> None:
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    config = {**SIZES, **latent, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
    model = make("deepseek_v3", **config, num_experts_per_tok=2, first_k_dense_replace=0)
    assert model_cost(model).attention_width == N * H * (12 + 8) // 2


def test_keys_that_only_the_code_asks_for_are_known() -> None:
    assert make("qwen3_moe", **SIZES, head_dim=16).model.layers[0].self_attn.q_proj.out_features == H * 16
    with pytest.raises(UserError, match="qwen3_moe has no such key; did you mean 'head_dim'"):
        make("qwen3_moe", **SIZES, hed_dim=16)
