"""Subword tokenizers, trained here and made elsewhere: text survives, ends nothing, and every byte is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.data.tokenizer_folders import END, TEXT, gpt2_folder, unigram_folder
from token_superposition.data.tokenizers import Tokenizer, load_tokenizer, make_tokenizer, subwords
from token_superposition.data.tokenizers.subwords import bpe_size, train_bpe
from token_superposition.errors import UserError
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer

TRICKY = st.one_of(
    st.text(),
    st.lists(st.sampled_from([END, "</s>", "<|end", "a", " ", "  ", "é", "日", "\r\n", "to be"])).map("".join),
)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe([TEXT], 400)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(str(gpt2_folder(tmp_path_factory.mktemp("gpt2") / "gpt2")))


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(str(unigram_folder(tmp_path_factory.mktemp("t5") / "t5")))


@pytest.fixture(scope="module")
def stock(trained: Tokenizer, gpt2: Tokenizer) -> list[Any]:
    return [hugging_face_tokenizer(tokenizer) for tokenizer in (trained, gpt2)]


@settings(deadline=None)
@given(text=TRICKY)
def test_text_survives_and_each_byte_is_counted(
    trained: Tokenizer, gpt2: Tokenizer, stock: list[Any], text: str
) -> None:
    for tokenizer, theirs in zip((trained, gpt2), stock, strict=True):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_document_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())
        (again,) = tokenizer.encode_documents([text.encode()])
        np.testing.assert_array_equal(ids, again)
        assert theirs(text)["input_ids"] == ids.tolist()


def test_text_that_spells_a_special_token_is_text(trained: Tokenizer, gpt2: Tokenizer, unigram: Tokenizer) -> None:
    """Trap 20 of the design; to a Unigram "</s>" is a piece like any other."""
    for tokenizer in (trained, gpt2, unigram):
        for text in (f"to{tokenizer.end_token}be", tokenizer.end_token, f"{tokenizer.end_token * 2} to"):
            ids = tokenizer.encode(text)
            assert tokenizer.end_of_document_id not in ids
            assert len(ids) > 1
    assert unigram.decode(unigram.encode("to </s>be")).replace(" ", "") == "to</s>be"


def test_a_trained_one_is_small_and_the_same_again(trained: Tokenizer) -> None:
    assert trained.name == "bpe:400"
    assert trained.num_ids <= 400
    assert trained.vocab_size % 64 == 0
    assert trained.encoded_dtype == np.uint16
    assert len(trained.encode(TEXT)) < len(TEXT.encode()) / 3
    assert train_bpe([TEXT], 400).fingerprint == trained.fingerprint
    assert train_bpe([TEXT], 300).fingerprint != trained.fingerprint
    lengths = trained.byte_lengths()
    assert lengths[trained.end_of_document_id] == 0
    assert not lengths[trained.num_ids :].any()
    for outside in (-1, trained.vocab_size):
        with pytest.raises(ValueError, match="an id is not in"):
            trained.decode([outside])


def test_long_texts_are_cut_where_nothing_changes(trained: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained.encode(TEXT)
    monkeypatch.setattr(subwords, "_SEGMENT_CHARACTERS", 100)
    monkeypatch.setattr(subwords, "_BATCH_CHARACTERS", 500)
    np.testing.assert_array_equal(trained.encode(TEXT), whole)
    without_lines = "to be " * 300
    assert trained.decode(trained.encode(without_lines)) == without_lines
    texts = [TEXT, "", without_lines, "a"] * 3
    encoded = trained.encode_documents([text.encode() for text in texts])
    assert [trained.decode(ids) for ids in encoded] == texts


def test_sizes_of_a_bpe() -> None:
    assert bpe_size("bpe:32768") == 32768
    assert bpe_size("bytes") is None
    for name in ("bpe", "bpe:", "bpe:x", "bpe:100", "bpe:99999999999", "bpe:-1"):
        with pytest.raises(UserError, match="write bpe:SIZE with a size from 257"):
            bpe_size(name)


@pytest.mark.parametrize("kind", ["trained", "gpt2", "unigram"])
def test_a_saved_one_comes_back_here_and_in_transformers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    for again in (
        load_tokenizer(tmp_path),
        make_tokenizer(str(tmp_path)),
        make_tokenizer(f"{tmp_path}/tokenizer.json"),
    ):
        assert (again.name, again.fingerprint) == (tokenizer.name, tokenizer.fingerprint)
        assert again.encode("to be").tolist() == tokenizer.encode("to be").tolist()
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert stock.eos_token_id == tokenizer.end_of_document_id
    assert stock("not to be")["input_ids"] == tokenizer.encode("not to be").tolist()
    if kind != "unigram":
        assert tokenizer.end_of_document_id not in stock(f"a{END}b")["input_ids"]


def test_what_was_saved_is_guarded(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    file, config = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    good = file.read_text()
    for content, said in (
        (
            good.replace('"add_prefix_space": false', '"add_prefix_space": true', 1),
            "is not the tokenizer that was saved here",
        ),
        (json.dumps({**json.loads(good), "model": {}}), "cannot be used"),
        ("{", "is not JSON"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said) as raised:
            load_tokenizer(tmp_path)
        assert "\n" not in str(raised.value)
    file.write_text(good)
    config.unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json: is missing, or was not saved"):
        load_tokenizer(tmp_path)


def test_ends_that_are_missing_or_named(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "mine", end=False)
    with pytest.raises(
        UserError, match=r"names no end token \(eos_token\); name it with --end-token .*<\|endoftext\|>"
    ):
        make_tokenizer(str(folder))
    named = make_tokenizer(str(folder), END)
    assert named.end_token == END
    assert named.name == str(folder)
    with pytest.raises(UserError, match=r"has no token '<\|endofText\|>'; did you mean '<\|endoftext\|>'"):
        make_tokenizer(str(folder), "<|endofText|>")
    ordinary = make_tokenizer(str(folder), "Ġbe")  # a piece of text, now the end alone
    assert ordinary.end_of_document_id not in ordinary.encode("to be or not to be")
    with pytest.raises(UserError, match="tokenizer 'bytes' has its own end"):
        make_tokenizer("bytes", "</s>")


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no usable tokenizer"):
        make_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a Hugging Face tokenizer"):
        make_tokenizer(str(tmp_path))


def test_a_folder_of_the_older_form_is_converted(gpt2: Tokenizer, tmp_path: Path) -> None:
    model = json.loads(gpt2.backend().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps({**model["vocab"], END: gpt2.end_of_document_id}))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": END, "bos_token": END, "unk_token": END})
    )
    converted = make_tokenizer(str(tmp_path))
    text = f"To be, or not {END} to be"
    assert converted.encode(text).tolist() == gpt2.encode(text).tolist()
    assert converted.end_of_document_id == gpt2.end_of_document_id
