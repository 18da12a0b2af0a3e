"""The exported tokenizer: any text is its bytes, and stays itself, for whoever loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from token_superposition.data.tokenizers import END_OF_DOCUMENT, ByteTokenizer
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer

OURS = ByteTokenizer()
IN_MEMORY = hugging_face_tokenizer(OURS)
TEXTS = st.one_of(
    st.text(), st.lists(st.sampled_from([END_OF_DOCUMENT, "<|end", "a", " ", "\u0301", "é", "\n"])).map("".join)
)


@pytest.fixture(scope="session")
def stock(exported: Path) -> Any:
    """What transformers alone makes of an export."""
    return AutoTokenizer.from_pretrained(exported)


@settings(deadline=None)
@given(text=TEXTS)
def test_ids_are_the_bytes_of_any_text(stock: Any, text: str) -> None:
    ids = OURS.encode(text).tolist()
    for tokenizer in (IN_MEMORY, stock):
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.encode(text) == ids
        assert tokenizer([text, "a"])["input_ids"] == [ids, [97]]
        assert tokenizer.decode(ids) == text


def test_text_that_spells_the_end_token_is_text(stock: Any) -> None:
    """Trap 20 of the design."""
    assert stock.eos_token == END_OF_DOCUMENT
    assert stock.eos_token_id == OURS.end_of_document_id == 256
    assert 256 not in stock(f"a{END_OF_DOCUMENT}b")["input_ids"]
    assert stock.tokenize("<|end") == list("<|end")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 319)))
def test_ids_decode_as_ours_do(stock: Any, ids: list[int]) -> None:
    assert stock.decode(ids, skip_special_tokens=True) == OURS.decode(ids)


def test_what_it_gives_goes_into_generate(stock: Any) -> None:
    assert set(stock("a")) == {"input_ids", "attention_mask"}
    assert stock.model_max_length == 16
