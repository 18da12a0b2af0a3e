"""A memory of words gives the ids that the tokenizer itself gives, with every kind of split it is used for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.data.tokenizer_folders import END, TEXT
from token_superposition.data.tokenizers import word_cache as words
from token_superposition.data.tokenizers.subwords import SubwordTokenizer
from token_superposition.data.tokenizers.word_cache import splits_at_words

GPT2, LLAMA3, QWEN2 = words._SPLITS
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS: dict[str, list[Any]] = {
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt2, written out": [pre_tokenizers.Split(Regex(GPT2), "isolated"), BYTES_ONLY],
    "digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES_ONLY],
    "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES_ONLY],
}
# What the cuts turn on: letters of several kinds beside spaces of several kinds, contractions, digits, marks.
NASTY = st.lists(
    st.sampled_from(
        [
            *(
                "the",
                "The",
                "cat",
                "caf",
                "a",
                "s",
                "'s",
                "'S",
                "\u2019s",
                "'",
                "don't",
                "é",
                "école",
                "e\u0301",
                "日本",
                "ſ",
            ),
            *(" ", " ", " ", "  ", "\n", " \n", "\r\n", "\t", "\u00a0", "\u180e", "\u200b", "\x1c", "\x85", "\u3000"),
            *(",", ".", "(", "-", "…", "12", "1", "٣", "_", "🙂", END, "</s>", "\x00"),
        ]
    ),
    max_size=40,
).map("".join)


def backend(splits: list[Any]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(splits) if len(splits) > 1 else splits[0]
    made.train_from_iterator(
        [TEXT, "the cat, The cats don't. (a cat) 12 cats; école, the cafés" * 50] * 5,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET, special_tokens=[END]),
    )
    return made


def definition(splits: list[Any]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(backend(splits).to_str())
    return made


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, SubwordTokenizer]:
    return {name: SubwordTokenizer(name, definition(splits), END) for name, splits in SPLITS.items()}


@settings(deadline=None, max_examples=300)
@example(texts=["the cafés"])
@given(texts=st.lists(st.one_of(NASTY, st.text(), st.text("ab' ,1é\n")), max_size=4))
def test_the_ids_are_the_tokenizers_own(tokenizers: dict[str, SubwordTokenizer], texts: list[str]) -> None:
    for tokenizer in tokenizers.values():
        assert splits_at_words(tokenizer._definition)
        remembering = tokenizer._words
        assert remembering is not None
        for _ in range(2):  # the second time from memory
            for text, ids in zip(texts, remembering.encode(texts), strict=True):
                assert ids.tolist() == tokenizer._backend.encode(text, add_special_tokens=False).ids
                assert ids.dtype == tokenizer.encoded_dtype


def test_one_thread_remembers_and_several_do_not(
    tokenizers: dict[str, SubwordTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers["gpt2"]
    text = f"a cat, and the cat's {END} cat".encode()
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    (plain,) = tokenizer.encode_documents([text])
    used: list[int] = []
    encode = words.WordEncoder.encode
    monkeypatch.setattr(words.WordEncoder, "encode", lambda self, texts: (used.append(1), encode(self, texts))[1])
    tokenizer.encode_documents([text])
    assert not used
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    (remembered,) = tokenizer.encode_documents([text])
    assert used
    np.testing.assert_array_equal(plain, remembered)


def test_a_full_memory_stays_right_and_small(
    tokenizers: dict[str, SubwordTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MOST_PARTS", 8)
    tokenizer = tokenizers["llama3"]
    remembering = words.WordEncoder(tokenizer._backend, np.dtype(np.uint32))
    texts = [f"x the {'abcdefghij'[n]}{'klmnopqrst'[m]} cat, the cat" for n in range(10) for m in range(10)]
    for text, ids in zip(texts, remembering.encode(texts), strict=True):
        assert ids.tolist() == tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert len(remembering._known) <= 8
    assert " cat" in remembering._known  # frequent


def test_what_is_not_known_to_split_at_words_is_left_alone() -> None:
    for splits in SPLITS.values():
        assert splits_at_words(definition(splits))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    others: dict[str, list[Any]] = {
        "no split at all": [BYTES_ONLY],
        "a space before the text": [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        "an expression of its own": [pre_tokenizers.Split(Regex(r"\p{L}+ \p{L}+"), "isolated"), BYTES_ONLY],
        "the gaps of an expression": [pre_tokenizers.Split(Regex(GPT2), "isolated", invert=True), BYTES_ONLY],
        "what an expression removes": [pre_tokenizers.Split(Regex(GPT2), "removed"), BYTES_ONLY],
        "another kind beside it": [pre_tokenizers.Punctuation(), byte_level],
    }
    for name, splits in others.items():
        assert not splits_at_words(definition(splits)), name
    good = definition([byte_level])
    assert not splits_at_words({**good, "normalizer": json.loads(_normalized().to_str())["normalizer"]})
    assert not splits_at_words({**good, "model": {**good["model"], "dropout": 0.1}})
    assert not splits_at_words({**good, "model": {**good["model"], "type": "Unigram"}})
    with_words = backend([byte_level])
    with_words.add_tokens([AddedToken("the cat", special=False)])
    assert not splits_at_words(json.loads(with_words.to_str()))


def _normalized() -> Tokenizer:
    made = backend([pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.normalizer = normalizers.Lowercase()
    return made
