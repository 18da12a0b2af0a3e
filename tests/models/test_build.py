"""Building a model from a configuration, and what a position of it costs, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from token_superposition.errors import UserError
from token_superposition.models.build import model_cost
from token_superposition.models.spec import ModelSpec

V, D, F, N, H = 64, 32, 48, 2, 4  # vocabulary, width, feed-forward, layers, heads
SIZES = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": N, "num_attention_heads": H}


def make(architecture: str, **config: Any) -> Any:
    return ModelSpec(architecture, config, vocab_size=V, eos_id=0).build(seed=0)


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


def test_latent_attention_and_shared_experts() -> None:
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
    experts = {"n_routed_experts": 4, "n_shared_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = {**SIZES, **latent, **experts, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    cost = model_cost(make("deepseek_v3", **config))
    attention = D * 8 + 8 * H * 12 + D * (8 + 4) + 8 * H * (8 + 6) + H * 6 * D  # queries, keys and values, output
    dense, mixed = 3 * D * F, D * 4 + (2 + 3) * 3 * D * 16  # router, visited and shared
    assert cost.multiplied_parameters == N * attention + dense + mixed + V * D
    assert cost.attention_width == N * H * (12 + 6) // 2  # scores and values have their own sizes


def test_biases_of_experts_are_no_matrices() -> None:
    config = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    cost = model_cost(make("gpt_oss", **config))
    attention = 2 * D * H * 8 + 2 * D * 2 * 8
    assert cost.multiplied_parameters == N * (attention + D * 4 + 2 * 3 * D * F) + V * D
    assert cost.attention_width == N * H * 8


STATE, INNER = 8, 2 * D  # of a Mamba-2 layer with 4 heads and one group
MAMBA = D * (2 * INNER + 2 * STATE + 4) + (INNER + 2 * STATE) * 4 + INNER * D  # in, convolution over 4, out
MAMBA_SIZES = {"mamba_n_heads": 4, "mamba_d_head": INNER // 4, "mamba_d_state": STATE, "mamba_n_groups": 1}
ATTENTION = 2 * D * D + 2 * D * (D // 2)


def test_mamba_has_no_attention() -> None:
    sizes = {"num_heads": 4, "head_dim": INNER // 4, "state_size": STATE, "n_groups": 1, "chunk_size": 8}
    cost = model_cost(make("mamba2", hidden_size=D, num_hidden_layers=N, **sizes))
    assert cost.multiplied_parameters == N * MAMBA + V * D
    assert cost.attention_width == 0


def test_of_a_hybrid_only_the_attention_layers_attend() -> None:
    sizes = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2, **MAMBA_SIZES}
    bamba = model_cost(make("bamba", **sizes, attn_layer_indices=[1]))
    assert bamba.multiplied_parameters == 2 * MAMBA + ATTENTION + 3 * 3 * D * F + V * D
    assert bamba.attention_width == D
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24}
    granite = model_cost(make("granitemoehybrid", **sizes, **experts, layer_types=kinds))
    feed_forward = D * 4 + 2 * 3 * D * F + 3 * D * 24  # router, visited and shared
    assert granite.multiplied_parameters == 2 * MAMBA + ATTENTION + 3 * feed_forward + V * D
    assert granite.attention_width == D


def test_keys_that_only_the_code_asks_for_are_known() -> None:
    assert make("qwen3_moe", **SIZES, head_dim=16).model.layers[0].self_attn.q_proj.out_features == H * 16
    with pytest.raises(UserError, match="qwen3_moe has no such key; did you mean 'head_dim'"):
        make("qwen3_moe", **SIZES, hed_dim=16)
