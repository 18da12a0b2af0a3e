"""Evaluation: the run's own figure to the last bit, and the same loss however the text is named."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import tiny_model
from tests.data.tokenizer_folders import unigram_folder
from tests.evaluation.conftest import CPU
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.manifest import loss_warning
from token_superposition.data.prepare import prepare
from token_superposition.data.readers import Corpus
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError
from token_superposition.evaluation import encoded_text as texts
from token_superposition.evaluation.encoded_text import EncodedText
from token_superposition.evaluation.evaluate import ValidationSet, evaluate, lines_of, parse_sets
from token_superposition.evaluation.load import UsableModel, load_model
from token_superposition.training.validation import Validator

PLAY = "To be, or not to be, that is the question: é 日本 🙂.\n" * 40


def backend(model: Any, trainer: Any) -> Any:
    tokenizer = Tokenizer(model)
    if isinstance(trainer, trainers.BpeTrainer):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([PLAY], trainer)
    return tokenizer


def subwords(kind: str) -> Any:
    """Tokenizers of other people: byte-level BPE, and pieces of a normalised text."""
    special = ["<|endoftext|>", "<unk>"]
    if kind == "bpe":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
        tokenizer = backend(models.BPE(), trainer)
    else:
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>")
        tokenizer = backend(models.Unigram(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder that is not ours."""
    folder = tmp_path_factory.mktemp("stranger")
    model: Any = tiny_model("llama", tied=True, vocab_size=320)
    model.save_pretrained(folder)
    subwords("bpe").save_pretrained(folder)
    return folder


@pytest.fixture
def play(tmp_path: Path) -> Path:
    file = tmp_path / "play.txt"
    file.write_text(PLAY, encoding="utf-8")
    return file


def test_a_run_s_own_validation_set_gives_its_own_figure(done_run: Path, exported: Path, small_data: Path) -> None:
    summary = json.loads((done_run / "summary.json").read_text())
    for path in (done_run, exported):
        loaded = load_model(path, device=CPU)
        (found,) = evaluate(loaded, parse_sets([str(small_data)]), max_tokens=1024, batch_size=4)
        assert found["validation_loss"] == summary["final_validation_loss"]
        assert found["bits_per_byte"] == summary["bits_per_byte"]
        assert found["validation_tokens"] == summary["validation_tokens"] == 1024
        assert found["split"] == "validation"


def test_text_is_scored_as_its_prepared_tokens_are(loaded: UsableModel, small_data: Path, tmp_path: Path) -> None:
    dataset = TokenDataset.open(small_data, "validation")
    documents = dataset.tokenizer.decode(dataset.read(0, dataset.num_tokens - 1).tolist())
    assert dataset.num_documents > 1
    lines = tmp_path / "held-out.jsonl"
    ids = dataset.read(0, dataset.num_tokens)
    ends = np.flatnonzero(ids == 256)
    parts = [dataset.tokenizer.decode(part) for part in np.split(ids, ends + 1) if len(part)]
    assert "".join(parts) == documents
    lines.write_text("".join(json.dumps({"body": part}) + "\n" for part in parts))
    sets = parse_sets([f"prepared={small_data}", f"lines={lines}"])
    prepared, encoded = evaluate(loaded, sets, text_key="body")
    assert encoded["split"] is None
    for key in ("validation_loss", "bits_per_byte", "validation_tokens", "validation_bytes"):
        assert encoded[key] == prepared[key]


def test_other_splits_lengths_and_counts(loaded: UsableModel, small_data: Path) -> None:
    sets = parse_sets([str(small_data)])
    (train,) = evaluate(loaded, sets, split="train", max_tokens=320)
    assert (train["split"], train["validation_tokens"]) == ("train", 320)
    (longer,) = evaluate(loaded, sets, sequence_length=64, max_tokens=640)
    (shorter,) = evaluate(loaded, sets, sequence_length=8, max_tokens=640)
    assert longer["validation_tokens"] == shorter["validation_tokens"] == 640
    assert longer["validation_loss"] != shorter["validation_loss"]
    with pytest.raises(UserError, match="has no split 'test'"):
        evaluate(loaded, sets, split="test")
    with pytest.raises(UserError, match=r"--sequence-length: 65 .* 64 positions of the model"):
        evaluate(loaded, sets, sequence_length=65)


def test_a_stranger_s_model_is_scored_on_text(stranger: Path, play: Path, small_data: Path) -> None:
    loaded = load_model(stranger, device=CPU)
    assert loaded.origin is None
    (found,) = evaluate(loaded, parse_sets([str(play)]), sequence_length=16)
    ids = [*loaded.tokenizer(PLAY)["input_ids"], loaded.tokenizer.eos_token_id]
    rows = (len(ids) - 1) // 16
    ids_BL = torch.tensor(ids[: rows * 16]).view(rows, 16)
    targets = torch.tensor(ids[1 : rows * 16 + 1])
    with torch.no_grad():
        loss = F.cross_entropy(loaded.model(ids_BL).logits.flatten(0, 1), targets, reduction="none").double().sum()
    scored = loaded.tokenizer.decode(ids[1 : rows * 16 + 1], skip_special_tokens=True).encode()
    assert found["validation_tokens"] == rows * 16
    assert found["validation_loss"] == pytest.approx(float(loss) / (rows * 16), rel=1e-6)
    assert found["validation_bytes"] == pytest.approx(len(scored), abs=3)  # a character cut at the end
    assert found["bits_per_byte"] == pytest.approx(float(loss) / math.log(2) / found["validation_bytes"], rel=1e-6)
    with pytest.raises(
        UserError, match=r"prepared with tokenizer 'bytes', but the tokenizer of .* is unknown; give the original text"
    ):
        evaluate(loaded, parse_sets([str(small_data)]))


def test_data_of_another_tokenizer_is_refused(loaded: UsableModel, small_data: Path) -> None:
    assert loaded.origin is not None
    other = replace(loaded, origin=replace(loaded.origin, tokenizer="subwords", fingerprint="00" * 32))
    with pytest.raises(UserError, match=r"with tokenizer 'bytes', but the model has tokenizer 'subwords'"):
        evaluate(other, parse_sets([str(small_data)]))


def test_a_set_that_is_missing_or_too_short(loaded: UsableModel, play: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        evaluate(loaded, parse_sets([str(play), str(tmp_path / "nowhere")]))
    (tmp_path / "short.txt").write_text("0123456789abcde")
    with pytest.raises(UserError, match=r"short.txt: has 16 tokens, fewer than one row of 16"):
        evaluate(loaded, parse_sets([str(tmp_path / "short.txt")]))
    (found,) = evaluate(loaded, parse_sets([str(tmp_path / "short.txt")]), sequence_length=15)
    assert (found["validation_tokens"], found["validation_bytes"]) == (15, 14)


def test_names_of_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.txt").write_text("x")
    assert parse_sets(["books=data/x.jsonl.gz", "data/x.jsonl.gz", "a=b.txt", "python", "some/folder/"]) == [
        ValidationSet("books", "data/x.jsonl.gz"),
        ValidationSet("x", "data/x.jsonl.gz"),
        ValidationSet("a=b", "a=b.txt"),
        ValidationSet("python", "python"),
        ValidationSet("folder", "some/folder/"),
    ]
    for words in (["=x"], ["x="]):
        with pytest.raises(UserError, match="give a path, or NAME=PATH"):
            parse_sets(words)
    with pytest.raises(UserError, match="two validation sets have the name 'x'"):
        parse_sets(["a/x.txt", "b/x.txt"])


@settings(deadline=None, max_examples=40)
@given(documents=st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), min_size=1, max_size=4))
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_byte_of_a_text_is_counted_once(
    kind: str, documents: list[str], tmp_path_factory: pytest.TempPathFactory, loaded_tokenizers: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("text") / "documents.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    tokens = EncodedText(Corpus([file]), loaded_tokenizers[kind], 10**6)
    assert tokens.count_bytes(0, tokens.num_tokens) == sum(len(text.encode()) for text in documents)
    if kind == "bytes":
        expected = [[*ByteTokenizer().encode(text).tolist(), 256] for text in documents]
        assert tokens.read(0, tokens.num_tokens).tolist() == [id_ for ids in expected for id_ in ids]


def test_normalised_text_counts_its_own_bytes(loaded_tokenizers: dict[str, Any], play: Path) -> None:
    """The tokenizer writes other text (NFKC, spaces as ▁) than it reads; what is read is what counts."""
    tokens = EncodedText(Corpus([play], pieces=False), loaded_tokenizers["unigram"], 10**6)
    assert tokens.count_bytes(0, tokens.num_tokens) == len(PLAY.encode())


@pytest.fixture(scope="session")
def loaded_tokenizers(done_run: Path) -> dict[str, Any]:
    ours = load_model(done_run, device=CPU).tokenizer
    return {"bytes": ours, "bpe": subwords("bpe"), "unigram": subwords("unigram")}


def test_long_text_is_encoded_in_pieces_and_no_further_than_needed(
    loaded_tokenizers: dict[str, Any], play: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EncodedText(Corpus([play], pieces=False), loaded_tokenizers["bpe"], 10**6)
    monkeypatch.setattr(texts, "_PIECE_CHARACTERS", 100)
    pieces = EncodedText(Corpus([play], pieces=False), loaded_tokenizers["bpe"], 10**6)
    assert pieces.read(0, 10**6).tolist() == whole.read(0, 10**6).tolist()
    first = EncodedText(Corpus([play], pieces=False), loaded_tokenizers["bpe"], 50)
    assert first.num_tokens == 50
    assert first.read(0, 50).tolist() == whole.read(0, 50).tolist()
    assert first.count_bytes(0, 50) == whole.count_bytes(0, 50)


def test_a_special_token_in_a_text_is_text(loaded_tokenizers: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a<|endoftext|>b")
    for kind in ("bytes", "bpe"):
        tokenizer = loaded_tokenizers[kind]
        ids = EncodedText(Corpus([file]), tokenizer, 10**6).read(0, 10**6).tolist()
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id


def test_what_people_read() -> None:
    scored = {"name": "books", "validation_loss": 1.5, "bits_per_byte": 2.25}
    tasks = {"arc": {"acc": 0.5, "acc_stderr": 0.01, "f1,strict": 0.25, "f1_stderr,strict": 0.02, "samples": 1200}}
    lines = lines_of([{**scored, "validation_tokens": 262_144}, {**scored, "validation_tokens": 4096}], tasks)
    assert lines == [
        "books  1.5000 nats per token  2.2500 bits per byte  262,144 tokens",
        "books  1.5000 nats per token  2.2500 bits per byte  4,096 tokens (under 250,000: noisy)",
        "arc    acc 0.5000 ± 0.0100  1,200 samples",
        "arc    f1,strict 0.2500 ± 0.0200  1,200 samples",
    ]


def test_a_small_corpus_prepared_elsewhere_fits(loaded: UsableModel, tmp_path: Path) -> None:
    """Another data set of the same tokenizer, under a name of one's own."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} {PLAY[: 300 + number]}")
    prepare([tmp_path / "text"], out=tmp_path / "data", validation_fraction=0.2, quiet=True)
    (found,) = evaluate(loaded, parse_sets([f"mine={tmp_path / 'data'}"]))
    assert found["name"] == "mine"
    assert found["validation_bytes"] <= found["validation_tokens"]


def test_damaged_validation_data_is_refused(loaded: UsableModel, small_data: Path, tmp_path: Path) -> None:
    """A flipped bit that leaves an id in the vocabulary, and one that does not."""
    good = evaluate(loaded, [ValidationSet("x", str(small_data))])
    for bit, place in ((0, 0), (7, 1)):
        copy = tmp_path / str(place)
        shutil.copytree(small_data, copy)
        shard = copy / "validation-00000.tokens"
        data = bytearray(shard.read_bytes())
        data[256 + 2 * 5 + place] ^= 1 << bit
        shard.write_bytes(data)
        with pytest.raises(UserError, match=f"{shard}: .*damaged between bytes"):
            evaluate(loaded, [ValidationSet("x", str(copy))], max_tokens=64)
    with pytest.raises(UserError, match=f"{shard}: token 5 has the id"):
        TokenDataset.open(copy, "validation").read(0, 16)
    assert evaluate(loaded, [ValidationSet("x", str(small_data))]) == good


def test_bytes_are_rounded_once(tmp_path: Path) -> None:
    """A tokenizer that changes text: what a validation counts does not depend on the length of its rows."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": f"To be, ﬁne {number}"}) + "\n" for number in range(60)))
    prepare([source], out=tmp_path / "data", tokenizer=str(unigram_folder(tmp_path / "t5")), quiet=True)
    split = TokenDataset.open(tmp_path / "data", "train")
    model: Any = tiny_model("llama", tied=True, vocab_size=split.tokenizer.vocab_size)
    number = (split.num_tokens - 1) // 8 * 8
    found = {
        Validator(split, sequence_length=length, batch_size=16).run(model, number, CPU, torch.float32).num_bytes
        for length in (1, 2, 4, 8)
    }
    assert found == {split.count_bytes(1, number)}
    assert split.count_bytes(0, split.num_tokens) == split.num_bytes


def test_lost_text_is_said_beside_the_bits(loaded_tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """Bytes that no token stands for are counted all the same."""
    source = tmp_path / "a.jsonl"
    documents = ["To be, or not to be", "To be ЖЖЖЖЖЖЖЖ", "ЖЖЖЖ to be, or not ЖЖ"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([PLAY], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], show_progress=False))
    lossy = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokens = EncodedText(Corpus([source]), lossy, 10**6)
    assert tokens.text_lost == pytest.approx(14 / sum(len("".join(text.split())) for text in documents))
    assert tokens.count_bytes(0, tokens.num_tokens) == sum(len(text.encode()) for text in documents)
    assert EncodedText(Corpus([source]), loaded_tokenizers["bpe"], 10**6).text_lost == 0
    unknown = EncodedText(Corpus([source]), loaded_tokenizers["unigram"], 10**6)
    assert unknown.text_lost == tokens.text_lost
    line = {"name": "books", "validation_loss": 1.5, "bits_per_byte": 0.1, "validation_tokens": 300_000}
    assert "lost 30.0%" in "\n".join(lines_of([{**line, "warning": loss_warning(0.3)}], {}))


def test_a_document_that_the_tokenizer_fails_at_is_named(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "known"}\n{"text": "other"}\n')
    backend = Tokenizer(models.WordLevel({"known": 0, "<|endoftext|>": 1}))
    strict = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match=f"{source}:2: "):
        EncodedText(Corpus([source]), strict, 10**6)
