"""Token files of other stacks: the same documents as from the text, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.corpora import complaint, corpus_texts, documents
from tests.data.tokenizer_folders import gpt2_folder
from token_superposition.data.prepare import prepare
from token_superposition.data.sources import tokens
from token_superposition.data.tokenizers import Tokenizer, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(gpt2_folder(tmp_path / "gpt2"))


def encoded(tokenizer: Tokenizer, texts: list[str], *, end_first: bool) -> Any:
    end = [tokenizer.end_of_document_id]
    parts = [[*end, *tokenizer.encode(text)] if end_first else [*tokenizer.encode(text), *end] for text in texts]
    return np.concatenate(parts)


def header(magic: int, version: int, count: int) -> bytes:
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, count
    return head.tobytes()


@pytest.mark.parametrize("kind", ["nanogpt", "llm.c", "llm.c of llama 3"])
@pytest.mark.parametrize("ranged", [False, True])
def test_documents_come_through(
    kind: str, ranged: bool, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ranged:
        monkeypatch.setattr(tokens, "RANGE_TOKENS", 500)
        monkeypatch.setattr("token_superposition.data.sources.corpus.RANGE_TOKENS", 500)
    tokenizer, texts = make_tokenizer(folder), corpus_texts(300)
    ids = encoded(tokenizer, texts, end_first=kind != "nanogpt")
    head = {
        "nanogpt": b"",
        "llm.c": header(20240520, 1, len(ids)),
        "llm.c of llama 3": header(20240801, 7, len(ids)),
    }[kind]
    (tmp_path / "a.bin").write_bytes(head + ids.astype("<u4" if "llama" in kind else "<u2").tobytes())
    summary = prepare([tmp_path / "a.bin"], out=tmp_path / "data", tokenizer=folder, quiet=True)
    assert sorted(documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")) == sorted(texts)
    assert summary["bytes"] == sum(map(len, texts))
    assert summary["tokens"] == len(ids)


def test_one_long_document_is_cut(folder: str, tmp_path: Path) -> None:
    """As nanoGPT's Shakespeare: no end token anywhere."""
    tokenizer = make_tokenizer(folder)
    text = "".join(f"line {number} of a play\n" for number in range(30_000))
    ids = tokenizer.encode(text)
    (tmp_path / "a.bin").write_bytes(ids.astype("<u2").tobytes())
    summary = prepare([tmp_path / "a.bin"], out=tmp_path / "data", tokenizer=folder, quiet=True)
    assert summary["tokens"] == len(ids) + summary["documents"]
    assert summary["documents"] > 10
    assert summary["bytes"] == len(text)


def test_ids_of_two_bytes_where_the_tokenizer_has_no_more(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.arange(600, dtype="<u2").tobytes())
    for num_ids, dtype in ((50_257, "<u2"), (65_536, "<u2"), (65_537, "<u4")):
        kind: Any = SimpleNamespace(num_ids=num_ids)
        assert tokens.token_map(str(tmp_path / "a.bin"), kind).dtype == dtype


def test_files_that_are_not_what_they_should_be(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    ids = np.arange(300, dtype="<u2")
    for content, said in (
        (header(20240520, 1, 301) + ids.tobytes(), "is cut short or damaged: its header says 301 tokens of 2 bytes"),
        (header(20240520, 1, 0), "holds no tokens"),
        (ids.tobytes() + b"x", "is no file of ids of 2 bytes: it has 601 bytes"),
        (np.array([1, 2, 9999], dtype="<u2").tobytes(), "a.bin: token 2 is 9999, where tokenizer"),
    ):
        path.write_bytes(content)
        assert said in complaint([path], out=tmp_path / "data", tokenizer=folder, quiet=True)
    assert "name the one that wrote it (--tokenizer)" in complaint([path], out=tmp_path / "data", quiet=True)
    assert "need the tokenizer that wrote them" in complaint([path], out=tmp_path / "data", tokenizer="bpe:300")
    (tmp_path / "a.txt").write_text("text")
    message = complaint([path, tmp_path / "a.txt"], out=tmp_path / "data", tokenizer=folder, quiet=True)
    assert "token files (.bin, .npy) cannot be mixed with text" in message
