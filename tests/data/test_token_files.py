"""Token files of other stacks: the same documents as from the text, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.corpora import complaint, corpus_texts, documents
from tests.data.test_lost_text import words
from tests.data.tokenizer_folders import gpt2_folder
from token_superposition.data.prepare import prepare
from token_superposition.data.readers import token_files as tokens
from token_superposition.data.tokenizers import Tokenizer, make_tokenizer
from token_superposition.errors import UserError


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
        monkeypatch.setattr("token_superposition.data.readers.corpus.RANGE_TOKENS", 500)
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


def text_ids(folder: str) -> Any:
    return encoded(make_tokenizer(folder), corpus_texts(200), end_first=False)


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<u8", "<i8", ">u4", ">u2"])
@pytest.mark.parametrize("cut", [0, 2])
def test_ids_of_another_width_are_told(dtype: str, cut: int, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(text_ids(folder).astype(dtype).tobytes()[: -cut or None])
    message = complaint([path], out=tmp_path / "data", tokenizer=folder, quiet=True)
    assert "a.bin" in message
    assert f"integers of {dtype[-1]} bytes" in message.rpartition("seems to hold")[2]
    assert ("--token-bytes" in message) == (dtype[0] == "<")
    if dtype[0] == "<" and not cut:
        summary = prepare([path], out=tmp_path / "data", tokenizer=folder, token_bytes=int(dtype[-1]), quiet=True)
        assert summary["documents"] == 200
        other = complaint([path], out=tmp_path / "data", tokenizer=folder, token_bytes=2, quiet=True)
        assert "token_bytes" in other


@pytest.mark.parametrize("width", [4, 8])
def test_two_bytes_read_as_more_are_told(width: int, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    ids = text_ids(folder)
    path.write_bytes(ids[: len(ids) // 4 * 4].astype("<u2").tobytes())
    message = complaint([path], out=tmp_path / "data", tokenizer=folder, token_bytes=width, quiet=True)
    assert "a.bin: token 0 is" in message
    assert "--token-bytes 2" in message


def test_a_vocabulary_of_four_bytes_finds_files_of_two_and_eight(tmp_path: Path) -> None:
    kind: Any = SimpleNamespace(num_ids=128_256, name="llama", end_of_document_id=128_001)
    path = str(tmp_path / "a.bin")
    ids = np.arange(1, 60_000, dtype="<u8")
    ids.tofile(path)
    with pytest.raises(UserError, match="--token-bytes 8"):
        tokens.check_ids(path, tokens.token_map(path, kind), kind)
    (ids * 2).tofile(path)  # beyond 65,535: read as two bytes, no half of these ids is 0 throughout
    with pytest.raises(UserError, match="--token-bytes 8"):
        tokens.check_ids(path, tokens.token_map(path, kind), kind)
    ids.astype("<u4").tofile(path)
    tokens.check_ids(path, tokens.token_map(path, kind), kind)


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8", ">u4"])
def test_arrays_of_numpy_say_their_type(dtype: str, tmp_path: Path) -> None:
    ids = np.concatenate([[*text.encode(), 256] for text in corpus_texts(50)])
    np.save(tmp_path / "a.npy", ids.astype(dtype))
    summary = prepare([tmp_path / "a.npy"], out=tmp_path / "data", quiet=True)
    assert summary["tokens"] == len(ids)


def test_arrays_that_are_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, said in (
        (np.zeros(20, dtype="f4"), "float32"),
        (np.zeros((4, 5), dtype="i4"), "4 x 5"),
        (np.array([1, 2, -1]), "token 2 is -1"),
        (np.array([1, 999]), "token 1 is 999"),
    ):
        np.save(path, array)
        assert said in complaint([path], out=tmp_path / "data", quiet=True)
    assert "--token-bytes" in complaint([path], out=tmp_path / "data", token_bytes=2, quiet=True)
    path.write_bytes(path.read_bytes()[:9])
    assert "a.npy" in complaint([path], out=tmp_path / "data", quiet=True)


def test_unknown_ids_of_a_token_file_are_lost_text(tmp_path: Path) -> None:
    name = words(tmp_path / "tokenizer", unknown="[UNK]")
    ids = [id_ for number in range(40) for id_ in [*[1] * number, 3, 2, 0]]
    np.array(ids, dtype="<u2").tofile(tmp_path / "a.bin")
    summary = prepare([tmp_path / "a.bin"], out=tmp_path / "data", tokenizer=name, quiet=True)
    assert summary["characters_lost"] == 40
    assert summary["text_lost"] == pytest.approx(40 / (40 + 4 * 40 + 5 * sum(range(40))))
