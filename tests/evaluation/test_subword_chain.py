"""From text to an exported model with subword tokenizers: trained on the corpus, and somebody else's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import small_run_on
from tests.data.tokenizer_folders import TEXT, gpt2_folder, unigram_folder
from tests.evaluation.conftest import CPU
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.evaluation.evaluate import ValidationSet, evaluate
from token_superposition.evaluation.export import export
from token_superposition.evaluation.generate import generate
from token_superposition.evaluation.load import load_model
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    lines = [{"text": f"{number} <|endoftext|> {TEXT[number : number + 300]}"} for number in range(200)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("kind", ["bpe:400", "gpt2"])
def test_the_whole_chain(kind: str, corpus: Path, tmp_path: Path) -> None:
    name = kind if kind != "gpt2" else str(gpt2_folder(tmp_path / "gpt2"))
    prepare([corpus], out=tmp_path / "data", tokenizer=name, validation_fraction=0.1, quiet=True)
    split = TokenDataset.open(tmp_path / "data", "validation")
    ids = split.read(0, split.num_tokens)
    assert (ids == split.tokenizer.end_of_document_id).sum() == split.num_documents
    assert "<|endoftext|>" in split.tokenizer.decode(ids)
    assert split.count_bytes(0, split.num_tokens) == split.num_bytes
    config = small_run_on(tmp_path / "data")
    config["logging"]["validation_tokens"] = (split.num_tokens - 1) // 16 * 16
    summary = train(parse_config(config), tmp_path / "run", quiet=True)
    scored = ids[1 : summary["validation_tokens"] + 1]
    num_bytes = int(split.tokenizer.byte_lengths()[scored].sum())
    whole = summary["final_validation_loss"] * summary["validation_tokens"] / math.log(2) / num_bytes
    assert summary["bits_per_byte"] == pytest.approx(whole, rel=1e-9)

    loaded = load_model(tmp_path / "run", device=CPU)
    (prepared,) = evaluate(loaded, [ValidationSet("data", str(tmp_path / "data"))], max_tokens=10**6)
    assert prepared["validation_loss"] == pytest.approx(summary["final_validation_loss"], rel=1e-6)
    texts = [split.tokenizer.decode(part) for part in np.split(ids, split.document_ends())[:-1]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (encoded,) = evaluate(loaded, [ValidationSet("text", str(tmp_path / "texts.jsonl"))], max_tokens=10**6)
    for key in ("validation_loss", "bits_per_byte", "validation_tokens", "validation_bytes"):
        assert encoded[key] == prepared[key]

    result = export(tmp_path / "run", tmp_path / "out")
    assert result["warnings"] == []
    stock = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("To be, or not", "a<|endoftext|>b", "  é 日本 🙂\n"):
        assert stock(text)["input_ids"] == split.tokenizer.encode(text).tolist()
        assert stock.decode(stock(text)["input_ids"]) == text
    again = load_model(tmp_path / "out", device=CPU)
    ids_BL = torch.tensor([ids[:16].tolist()])
    assert torch.equal(again.model(ids_BL).logits, loaded.model(ids_BL).logits)
    for model in (loaded, again):
        made = generate(model, "To be", max_new_tokens=8)
        assert len(made["tokens"]) <= 8
        assert max(made["tokens"]) < split.tokenizer.num_ids


def test_a_tokenizer_that_changes_text_counts_its_bytes(corpus: Path, tmp_path: Path) -> None:
    """Its tokens stand for other text than they were made from; over the split the sum is that of the text."""
    name = str(unigram_folder(tmp_path / "t5"))
    summary: dict[str, Any] = prepare([corpus], out=tmp_path / "data", tokenizer=name, quiet=True)
    for split in ("train", "validation"):
        dataset = TokenDataset.open(tmp_path / "data", split)
        assert dataset.num_bytes == summary["splits"][split]["bytes"]
        assert summary["splits"][split]["counted_bytes"] != dataset.num_bytes
        assert dataset.count_bytes(0, dataset.num_tokens) == dataset.num_bytes
        assert 0 < dataset.count_bytes(0, 100) < dataset.num_bytes
