"""`tst prepare --inspect` and the other options at the door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bad_input import tst
from tests.data.corpora import corpus_texts, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "a.jsonl", [*corpus_texts(), "twice", "twice"])
    said = tst("prepare", tmp_path / "a.jsonl", "--out", tmp_path / "data", "--deduplicate", "--quiet")
    assert said.code == 0, said
    return tmp_path / "data"


def test_what_a_folder_holds(folder: Path) -> None:
    said = tst("prepare", "--inspect", folder)
    assert said.code == 0
    first, train, validation, *rest = said.out.splitlines()
    assert first == f"{folder}: tokenizer bytes, seed 0; every checksum is right"
    assert train.startswith("train: ")
    assert "documents in 1 shard; 1.000 bytes per token" in train
    assert validation.startswith("validation: ")
    assert any(line.startswith("train begins: '0.") for line in rest)
    assert "duplicates dropped: 1" in rest[-1]
    found = json.loads(tst("prepare", "--inspect", folder, "--json").out)
    assert found["verified"]
    described = json.loads((folder / "dataset.json").read_text())
    for split in ("train", "validation"):
        for key in ("tokens", "bytes", "documents"):
            assert found["splits"][split][key] == described["splits"][split][key]


def test_what_is_there_already_is_said(folder: Path, tmp_path: Path) -> None:
    again = tst("prepare", tmp_path / "a.jsonl", "--out", folder, "--deduplicate", "--quiet")
    assert again.out.startswith(f"dataset in {folder}, which already existed\ntrain: ")
    new = tst("prepare", tmp_path / "a.jsonl", "--out", tmp_path / "new", "--quiet")
    assert new.out.startswith(f"dataset in {tmp_path}/new\ntrain: ")


def test_damage_is_found(folder: Path) -> None:
    shard = folder / "validation-00000.tokens"
    data = bytearray(shard.read_bytes())
    data[300] ^= 1
    shard.write_bytes(data)
    said = tst("prepare", "--inspect", folder)
    assert said.code == 2
    assert "validation-00000.tokens: is damaged between bytes 256 and " in said.err
    shard.unlink()
    assert "this shard is missing" in tst("prepare", "--inspect", folder).err


def test_options_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    for arguments, wanted in (
        (["--inspect", folder, "a.txt"], "--inspect: takes only a dataset folder"),
        (["--inspect", tmp_path / "gone"], "no such folder"),
        (["a.txt"], "--out: name the folder to write"),
        (["--out", tmp_path / "x"], "no source was given"),
        (["a.txt", "--out", tmp_path / "x", "--on-error", "ignore"], "--on-error must be one of fail, skip"),
        (["a.txt", "--out", tmp_path / "x", "--processes", "0"], "--processes must be at least 1"),
        (["a.txt", "--out", tmp_path / "x", "--max-document-bytes", "0"], "--max-document-bytes must be at least 1"),
        (["a.txt", "--out", tmp_path / "x", "--tokenizer", "bpe:9"], "write bpe:SIZE with a size from 257"),
        (["a.txt", "--out", tmp_path / "x", "--tokenizer", "bpe:300", "--end-token", "x"], "has its own end"),
    ):
        said = tst("prepare", *arguments)
        assert said.code == 2, said
        assert wanted in said.err


def test_what_was_skipped_is_said(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a.jsonl", corpus_texts())
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'no\n{"text": "\xff"}\n')
    said = tst("prepare", tmp_path / "a.jsonl", "--out", tmp_path / "data", "--on-error", "skip", "--quiet")
    assert said.code == 0
    assert "warning: skipped 1 documents not utf8, 1 records not readable; the first: " in said.err
    assert "a.jsonl:201: is not JSON" in said.err
