"""Attention that stays within documents: each family and backend, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils, modeling_flash_attention_utils
from transformers.integrations import flex_attention

from tests.models.families import FAMILIES, make
from token_superposition import SuperposedLM

# Why: a state that is carried along the row, positions that only the mask knows, a mask that ignores positions.
REFUSED = {"Mamba-2", "Bamba", "Granite-MoE-hybrid", "BLOOM", "Falcon", "GPT-OSS"}
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]]).repeat(2, 1)
PARTS = (slice(0, 5), slice(5, 13), slice(13, 16))


def model_of(family: str, backend: str) -> nn.Module:
    model: Any = make(FAMILIES[family])
    if backend != model.config._attn_implementation:
        try:
            model.set_attn_implementation(backend)
        except ValueError:
            pytest.skip(f"{family} has no {backend} attention")
    model.eval()
    return model


@torch.no_grad()
def check_apart(model: nn.Module) -> None:
    """The logits of each document are those it has in a row of its own, for tokens and for bags of three."""
    superposed = SuperposedLM(model)
    superposed.keep_documents_apart()
    for bag_size in (1, 3):
        ids = torch.randint(0, 256, (2, 16, bag_size), generator=torch.Generator().manual_seed(0))
        if bag_size == 3:
            ids[:, [4, 12], 1:] = -100
        inputs = superposed.embed(ids, padded=True)
        packed = model(**inputs, **superposed._document_inputs(POSITIONS), use_cache=False).logits
        for part in PARTS:
            alone = model(**superposed.embed(ids[:, part], padded=True), use_cache=False).logits
            torch.testing.assert_close(packed[:, part], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_a_document_in_a_row_is_what_it_is_alone(family: str, backend: str) -> None:
    check_apart(model_of(family, backend))


def test_so_it_is_with_flex_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled: what torch compiles for the CPU is wrong on some processors, and keep_documents_apart refuses it."""
    attention = torch.nn.attention.flex_attention
    block_mask = attention.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda **keys: block_mask(**keys | {"_compile": False}))
    monkeypatch.setattr(flex_attention.WrappedFlexAttention, "__call__", lambda _: attention.flex_attention)
    check_apart(model_of("Llama", "flex_attention"))


@torch.no_grad()
def test_logits_that_are_nan_are_refused() -> None:
    model = model_of("Llama", "sdpa")
    model.lm_head.weight[0] = float("nan")
    with pytest.raises(TypeError, match="NaN"):
        SuperposedLM(model, verify=False).keep_documents_apart()


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_that_cannot_is_refused(family: str) -> None:
    superposed = SuperposedLM(make(FAMILIES[family]))
    with pytest.raises(TypeError, match="attention lets a document attend to the document before it in its row"):
        superposed.keep_documents_apart()


def flash(_: nn.Module, query: Any, key: Any, value: Any, mask: Any, **keys: Any) -> tuple[Any, None]:
    """As transformers calls FlashAttention: causal, no mask, and packed rows are told by their positions only where
    there is one row."""
    position_ids = keys["position_ids"]
    together = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool).tril()
    if modeling_flash_attention_utils._is_packed_sequence(position_ids, len(query)):
        document = (position_ids[0] == 0).cumsum(0)
        together &= document[:, None] == document
    assert mask is None
    output = nn.functional.scaled_dot_product_attention(query, key, value, together, enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


def test_flash_attention_is_refused() -> None:
    """It keeps the documents of several rows together, without a word; of one row alone it does not."""
    AttentionInterface.register("flash_like", flash)
    AttentionMaskInterface.register("flash_like", lambda *_, **__: None)
    model: Any = make(FAMILIES["Llama"])
    model.config._attn_implementation = "flash_like"
    superposed = SuperposedLM(model)
    with pytest.raises(TypeError, match="with flash_like attention lets a document attend to the document before it"):
        superposed.keep_documents_apart()
    ids, positions = torch.arange(16).view(2, 8), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    for rows in (1, 2):
        before, after = (
            model(input_ids=each[:rows], position_ids=positions.expand(rows, -1), use_cache=False).logits
            for each in (ids, torch.where(torch.arange(8) < 2, ids + 100, ids))
        )
        assert torch.equal(before[:, 4:], after[:, 4:]) == (rows == 1)


def test_fresh_weights_that_tell_nothing_are_refused() -> None:
    model: Any = make(FAMILIES["Llama"])
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    with pytest.raises(TypeError, match="untrained weights that do not show"):
        SuperposedLM(model).keep_documents_apart()
