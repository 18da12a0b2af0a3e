"""Tokenizers: text survives the round trip, and no text can end a document."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_superposition.data.tokenizers import ByteTokenizer, load_tokenizer, make_tokenizer
from token_superposition.errors import UserError


@given(st.text())
def test_text_survives_and_each_byte_is_counted(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths()[ids].sum() == len(text.encode())


def test_text_that_spells_an_end_token_is_text() -> None:
    """Trap 20 of the design."""
    tokenizer = ByteTokenizer()
    for text in ("<|endoftext|>", "a<|end_of_text|>b", "</s>", "<eos>"):
        ids = tokenizer.encode(text)
        assert tokenizer.end_of_document_id not in ids
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_every_id_has_its_length() -> None:
    tokenizer = ByteTokenizer()
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths.dtype == np.int64
    assert lengths[tokenizer.end_of_document_id] == 0
    assert not lengths[tokenizer.num_ids :].any()
    assert tokenizer.vocab_size % 64 == 0
    assert tokenizer.vocab_size >= tokenizer.num_ids > tokenizer.end_of_document_id


def test_decode_drops_ends_and_mends_broken_text() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([104, 105, 256, 319, 33]) == "hi!"
    assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"
    assert tokenizer.decode([]) == ""
    for outside in (-1, 320):
        with pytest.raises(ValueError, match="320"):
            tokenizer.decode([1, outside])


def test_a_saved_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytes")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.name, again.fingerprint, again.vocab_size) == ("bytes", tokenizer.fingerprint, 320)
    assert len(bytes.fromhex(again.fingerprint)) == 32


def test_what_cannot_be_loaded_is_said_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json: is missing; prepare the data again$"):
        load_tokenizer(tmp_path)
    for content, said in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "does not know its kind of tokenizer"),
        ('{"kind": ["bytes"]}', "does not know its kind of tokenizer"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=rf"tokenizer\.json: .*{said}.*; prepare the data again$"):
            load_tokenizer(tmp_path)
    make_tokenizer("bytes").save(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), "fingerprint": "00" * 32}))
    with pytest.raises(UserError, match="another version of tokenizer 'bytes'"):
        load_tokenizer(tmp_path)


def test_an_unknown_name_is_told_what_is_known() -> None:
    with pytest.raises(UserError, match=r"^tokenizer 'byte' is not known; did you mean 'bytes'\? \(known: bytes, bpe:"):
        make_tokenizer("byte")
    with pytest.raises(UserError, match=r"^tokenizer '\.\./gone' is not known \(known: bytes, bpe:"):
        make_tokenizer("../gone")
    with pytest.raises(
        UserError, match=r"^tokenizer 'gpt2' is not known: there is no such folder, and the .* hub does not"
    ):
        make_tokenizer("gpt2")
