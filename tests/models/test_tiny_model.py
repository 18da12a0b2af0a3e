"""Whether attention can be kept within documents is told in small, as the model itself would tell it."""

from __future__ import annotations

import pytest

from tests.models.families import FAMILIES
from tests.models.test_documents_apart import REFUSED
from token_superposition.errors import UserError
from token_superposition.models.tiny_model import miniature, refuses_documents_apart


@pytest.mark.parametrize("name", FAMILIES)
def test_it_says_what_the_model_says(name: str) -> None:
    family = FAMILIES[name]
    reason = refuses_documents_apart(family.model_type, family.config)
    assert (reason is not None) == (name in REFUSED)
    assert reason is None or reason.endswith("attention lets a document attend to the document before it in its row")


@pytest.mark.parametrize("model_type", ["llama", "mamba2", "bamba", "granitemoehybrid", "gpt2", "deepseek_v3"])
def test_a_model_of_billions_is_told_in_small(model_type: str) -> None:
    model = miniature(model_type, {})
    assert model is not None
    assert sum(parameter.numel() for parameter in model.parameters()) < 3e7
    assert (refuses_documents_apart(model_type, {}) is not None) == (
        model_type in {"mamba2", "bamba", "granitemoehybrid"}
    )


def test_what_the_user_set_is_kept() -> None:
    model = miniature("mistral", {"sliding_window": 7, "num_attention_heads": 6, "num_key_value_heads": 3})
    assert model is not None
    assert model.config.sliding_window == 7
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    assert miniature("gpt2", {"n_layer": 3, "n_embd": 768}).config.n_layer == 3  # type: ignore[union-attr]


def test_a_family_whose_sizes_fit_no_smaller_model_is_asked_later() -> None:
    keys = {"hidden_size": 30_000, "num_attention_heads": 1, "head_dim": 30_000}
    assert miniature("llama", keys) is None
    assert refuses_documents_apart("llama", keys) is None


def test_a_wrong_key_is_said() -> None:
    with pytest.raises(UserError, match="no such key"):
        miniature("llama", {"hiden_size": 3})
