"""Text that a tokenizer loses is counted and warned of; a document that it cannot encode is named or skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tests.data.corpora import complaint, content, write_corpus
from tests.data.tokenizer_folders import gpt2_folder
from token_superposition.cli import main
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.manifest import loss_warning
from token_superposition.data.prepare import prepare
from token_superposition.data.tokenizers import load_tokenizer, make_tokenizer
from token_superposition.data.tokenizers.text_loss import count_characters

PLAIN = [f"plain text number {n} with words and words" for n in range(60)]
FOREIGN = [f"日本語\u3000の テキスト {n}" for n in range(20)]  # 9 characters are lost; white space is not counted


def folder_of(folder: Path, backend: Any) -> str:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return str(folder)


def whitespace_bpe(folder: Path, *, normalizer: Any = None) -> str:
    """Knows the letters of PLAIN, and drops every other character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator(PLAIN, trainer)
    return folder_of(folder, backend)


def words(folder: Path, *, unknown: str | None) -> str:
    vocabulary = {word: place for place, word in enumerate(["</s>", "plain", "text", "[UNK]"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown) if unknown else models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return folder_of(folder, backend)


@pytest.mark.parametrize("changes_text", [False, True])
def test_characters_without_a_token_are_counted(changes_text: bool, tmp_path: Path) -> None:
    """By subtraction, and by the places of the tokens where the tokenizer changes the text."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]) if changes_text else None
    name = whitespace_bpe(tmp_path / "tokenizer", normalizer=normalizer)
    texts = [*PLAIN, *FOREIGN, FOREIGN[0]]  # a copy counts again
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", tokenizer=name, quiet=True)
    characters = sum(len("".join(text.split())) for text in texts)
    assert summary["characters_lost"] == 8 * 21
    assert summary["text_lost"] == pytest.approx(8 * 21 / characters)
    assert TokenDataset.open(tmp_path / "data", "train").text_lost == summary["text_lost"]
    assert any("bits per byte" in warning for warning in summary["warnings"])
    again = prepare([tmp_path / "a.jsonl"], out=tmp_path / "data", tokenizer=name, quiet=True)
    assert again["reused"]
    assert again["warnings"] == summary["warnings"]


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    name = words(tmp_path / "tokenizer", unknown="[UNK]")
    texts = [f"plain text {'x' * n}" for n in range(1, 40)]
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", tokenizer=name, quiet=True)
    assert summary["characters_lost"] == sum(range(1, 40))


def test_what_is_only_written_differently_is_not_lost(tmp_path: Path) -> None:
    """Lower case, accents apart, compatibility characters and white space."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = [f"Cre\u0300me \uff21\uff22 \ufb01ne\u3000{n}" for n in range(60)]
    backend.train_from_iterator(texts, trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    name = folder_of(tmp_path / "tokenizer", backend)
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", tokenizer=name, quiet=True)
    assert summary["text_lost"] == 0
    assert summary["warnings"] == []


def test_tokenizers_that_lose_nothing_take_no_extra_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("counted")

    monkeypatch.setattr("token_superposition.data.tokenizers.subwords.SubwordTokenizer.count_lost", never)
    monkeypatch.setattr("token_superposition.data.tokenizers.byte_level.ByteTokenizer.count_lost", never)
    source = write_corpus(tmp_path / "a.jsonl", [*PLAIN, *FOREIGN])
    for number, name in enumerate(["bytes", "bpe:300", str(gpt2_folder(tmp_path / "gpt2"))]):
        summary = prepare([source], out=tmp_path / str(number), tokenizer=name, quiet=True)
        assert summary["text_lost"] == 0
        assert TokenDataset.open(tmp_path / str(number), "train").text_lost == 0


def test_a_data_set_of_before_says_nothing_of_it(tmp_path: Path) -> None:
    name = whitespace_bpe(tmp_path / "tokenizer")
    prepare([write_corpus(tmp_path / "a.jsonl", PLAIN)], out=tmp_path / "data", tokenizer=name, quiet=True)
    file = tmp_path / "data" / "dataset.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if "lost" not in key})
    )
    assert TokenDataset.open(tmp_path / "data", "train").text_lost is None
    assert loss_warning(None) is None


@pytest.mark.parametrize(
    ("kind", "bad", "said"), [("bpe", "日本語", "gives no token"), ("words", "plain other", "Missing [UNK]")]
)
def test_a_document_that_cannot_be_encoded_is_named_or_skipped(kind: str, bad: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    name = whitespace_bpe(folder) if kind == "bpe" else words(folder, unknown=None)
    good = ["plain " * n + "text" for n in range(1, 40)]
    source = write_corpus(tmp_path / "a.jsonl", [*good[:20], bad, *good[20:], bad])
    message = complaint([source], out=tmp_path / "data", tokenizer=name, quiet=True)
    assert f"{source}:21: " in message
    assert said in message
    assert not (tmp_path / "data").exists()
    summary = prepare([source], out=tmp_path / "data", tokenizer=name, on_error="skip", quiet=True)
    assert summary["documents"] == len(good)
    assert summary["skipped"]["documents_not_encoded"] == 2
    assert f"{source}:21: " in summary["skipped"]["first"]


def test_dropout_is_off(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE(dropout=0.5))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(PLAIN, trainer)
    name = folder_of(tmp_path / "tokenizer", backend)
    assert json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["dropout"] == 0.5
    source = write_corpus(tmp_path / "a.jsonl", PLAIN)
    for out in ("one", "two"):
        prepare([source], out=tmp_path / out, tokenizer=name, quiet=True)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    tokenizer = make_tokenizer(name)
    assert {tuple(tokenizer.encode(PLAIN[0])) for _ in range(20)} == {tuple(tokenizer.encode(PLAIN[0]))}
    # What 0.1 saved has its dropout in the file, and a fingerprint of it: it is read, and encodes without.
    saved = load_tokenizer(tmp_path / "one")
    assert {tuple(saved.backend().encode(PLAIN[0]).ids) for _ in range(20)} == {tuple(tokenizer.encode(PLAIN[0]))}


def test_a_bpe_that_came_out_small_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_corpus(tmp_path / "a.jsonl", PLAIN)
    assert main(["prepare", str(source), "--tokenizer", "bpe:5000", "--out", str(tmp_path / "d"), "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out.splitlines()[-1])
    assert 257 < found["tokenizer_ids"] < found["tokenizer_ids_asked"] == 5000
    assert f"{found['tokenizer_ids']:,}" in shown.err
    assert "5,000" in shown.err
    assert json.loads((tmp_path / "d" / "dataset.json").read_text())["tokenizer_ids"] == found["tokenizer_ids"]
    exact = prepare([source], out=tmp_path / "e", tokenizer="bpe:270", quiet=True)
    assert exact["tokenizer_ids"] == 270
    assert exact["warnings"] == []


def test_white_space_is_no_character() -> None:
    for text in ("", " a\tb\n", "é\u3000\u00a0日 x", "\x1c\x85 z"):
        assert count_characters(text.encode()) == len("".join(text.split()))
