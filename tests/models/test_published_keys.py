"""Keys of published configurations: special ids that are not the data's, and names of transformers 4."""

from __future__ import annotations

from typing import Any

import pytest

from token_superposition.errors import UserError
from token_superposition.models.spec import ModelSpec

_TINY: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_DATA: dict[str, Any] = {"vocab_size": 320, "eos_id": 256, "num_ids": 257}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pad_token_id": 32}, "pad_token_id 32"),
        ({"pad_token_id": 0}, "pad_token_id 0"),
        ({"pad_token_id": -1}, "pad_token_id -1"),
        ({"eos_token_id": 128001}, "eos_token_id 128001"),
        ({"eos_token_id": [256, 128009]}, r"eos_token_id \[256, 128009\]"),
        ({"eos_token_id": []}, r"eos_token_id \[\]"),
        ({"eos_token_id": "256"}, "eos_token_id '256'"),
        ({"eos_token_id": True}, "eos_token_id True"),
        ({"bos_token_id": 1}, "bos_token_id 1"),
        ({"rope_parameters": {"eos_token_id": 3}}, "model.config.rope_parameters: eos_token_id 3"),
        ({"rope_parameters": {"vocab_size": 256}}, "rope_parameters.vocab_size: 256 is smaller .* of 257"),
        ({"vocab_size": 256}, "vocab_size: 256 is smaller .* of 257"),
        ({"vocab_size": True}, "vocab_size: True"),
    ],
)
def test_special_ids_that_are_not_the_data_s_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        ModelSpec("llama", {**_TINY, **keys}, **_DATA).resolved()
    assert "leave the key out" in str(caught.value) or "leave it out" in str(caught.value)


def test_equal_ids_and_none_pass_and_the_end_s_embedding_is_trained() -> None:
    keys = {"pad_token_id": 256, "eos_token_id": [256], "bos_token_id": 256}
    model: Any = ModelSpec("llama", {**_TINY, **keys}, **_DATA).build(seed=0)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (256, None)
    assert model.get_input_embeddings().weight[256].abs().sum() > 0
    assert (
        ModelSpec("llama", {**_TINY, "pad_token_id": None, "eos_token_id": None}, **_DATA).resolved().pad_token_id
        is None
    )


def test_a_published_configuration_is_one_line_with_every_id() -> None:
    """As Llama 3.1's config.json has it, but for its size."""
    published: dict[str, Any] = {
        **_TINY,
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "model_type": "llama",
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0",
        "use_cache": True,
        "vocab_size": 512,
    }
    with pytest.raises(UserError, match=r"bos_token_id 128000, eos_token_id \[128001, .*leave the keys out"):
        ModelSpec("llama", published, **_DATA).resolved()
    kept = {key: value for key, value in published.items() if key not in ("bos_token_id", "eos_token_id")}
    resolved = ModelSpec("llama", kept, **_DATA).resolved()
    assert resolved.rope_parameters["rope_type"] == "llama3"
    assert resolved.rope_parameters["rope_theta"] == 500000.0
    assert next(ModelSpec("llama", kept, **_DATA).build(seed=0).parameters()).dtype.itemsize == 4


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {}}, "keep rope_parameters"),
        ("llama", {"torch_dtype": "float32", "dtype": "float32"}, "keep dtype"),
        ("llama", {"rotary_emb_base": 5000}, "rope_parameters.rope_theta"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "rope_scaling: has a factor but no rope_type"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}, "has a factor but no rope_type"),
        ("gpt2", {"rope_scaling": None}, "no such key"),
    ],
)
def test_older_names_are_told_the_new_one(architecture: str, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelSpec(architecture, keys, **_DATA).resolved()
