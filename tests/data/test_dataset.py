"""Shards: a read is a span of the concatenation, wherever it lies; damage is found and named."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_superposition.data import shard_format as shard_file
from token_superposition.data.dataset import ShardHeader, ShardWriter, TokenDataset, token_dtype
from token_superposition.data.prepare import prepare
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError

MAX_SHARD_TOKENS = 200
BLOCK_TOKENS = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of many small shards, and one long document."""
    base = tmp_path_factory.mktemp("shards")
    lines = [{"text": f"document {number} " * (number % 9 + 1)} for number in range(120)]
    lines.append({"text": "long " * 100})
    (base / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_file, "BLOCK_TOKENS", BLOCK_TOKENS)
        prepare([base / "a.jsonl"], out=base / "data", max_shard_tokens=MAX_SHARD_TOKENS, quiet=True)
    return base / "data"


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def whole(folder: Path, split: str) -> Any:
    """The split, read with nothing but the layout: 256 bytes, then as many uint16 as dataset.json says."""
    listed = json.loads((folder / "dataset.json").read_text())["splits"][split]["shards"]
    return np.concatenate([np.fromfile(folder / shard["file"], "<u2", shard["tokens"], offset=256) for shard in listed])


def complaint(folder: Path, split: str = "train") -> str:
    with pytest.raises(UserError) as raised:
        TokenDataset.open(folder, split).verify()
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@given(data=st.data())
def test_any_span_is_that_of_the_concatenation(folder: Path, data: st.DataObject) -> None:
    dataset = TokenDataset.open(folder, "train")
    wanted = whole(folder, "train")
    start = data.draw(st.integers(0, len(wanted)))
    length = data.draw(st.integers(0, min(3 * MAX_SHARD_TOKENS, len(wanted) - start)))
    span = dataset.read(start, length)
    assert span.dtype == np.int64
    np.testing.assert_array_equal(span, wanted[start : start + length])


def test_spans_about_every_document_end(folder: Path) -> None:
    dataset = TokenDataset.open(folder, "train")
    wanted = whole(folder, "train")
    for end in np.flatnonzero(wanted == 256):  # shards end where a document does
        for start in range(max(0, end - 1), min(len(wanted) - 1, end + 2)):
            np.testing.assert_array_equal(dataset.read(start, 2), wanted[start : start + 2])
    np.testing.assert_array_equal(dataset.read(0, len(wanted)), wanted)


def test_outside_the_corpus_is_refused(folder: Path) -> None:
    dataset = TokenDataset.open(folder, "train")
    for start, length in ((-1, 2), (dataset.num_tokens, 1), (0, dataset.num_tokens + 1), (5, -1)):
        with pytest.raises(ValueError, match="not all in"):
            dataset.read(start, length)


def test_what_a_data_set_says_of_itself(folder: Path) -> None:
    dataset = TokenDataset.open(folder, "train")
    ids = dataset.read(0, dataset.num_tokens)
    assert ids[-1] == dataset.tokenizer.end_of_document_id
    assert dataset.num_documents == (ids == dataset.tokenizer.end_of_document_id).sum()
    assert dataset.num_bytes == dataset.tokenizer.byte_lengths()[ids].sum()
    assert dataset.num_bytes == dataset.num_tokens - dataset.num_documents
    assert dataset.dtype == np.uint16
    dataset.verify()
    names = [path.name for path in folder.glob("train-*")]
    assert len(names) > 20
    sizes = [ShardHeader.read(folder / name) for name in names]
    assert all(size.num_tokens <= MAX_SHARD_TOKENS for size in sizes)
    assert sum(size.num_documents == 0 for size in sizes) == 2  # the long document goes through two of them
    np.testing.assert_array_equal(
        dataset.document_ends(), np.flatnonzero(ids == dataset.tokenizer.end_of_document_id) + 1
    )


def test_the_fingerprint_is_the_datas(folder: Path, copy: Path) -> None:
    first = TokenDataset.open(folder, "train").fingerprint
    assert first == TokenDataset.open(copy, "train").fingerprint
    assert first != TokenDataset.open(folder, "validation").fingerprint


def test_the_index_of_many_documents_is_not_held_twice(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train-00000.tokens", ByteTokenizer())
    ids = np.tile(np.array([97, 256], dtype=np.uint16), 5000)
    for _ in range(20):
        writer.add(ids, 5000, np.arange(2, 10_001, 2))
    tracemalloc.start()
    with writer:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * writer.num_documents / 4
    dataset = TokenDataset(
        tmp_path, "train", ByteTokenizer(), {path: ShardHeader.read(path) for path in tmp_path.iterdir()}
    )
    dataset.verify()
    np.testing.assert_array_equal(dataset.document_ends(), np.arange(2, 200_001, 2))


def test_the_widest_vocabulary_of_two_bytes() -> None:
    assert [token_dtype(size).itemsize for size in (64, 65_536, 65_537)] == [2, 2, 4]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    class Wide(ByteTokenizer):
        num_ids = 100_000
        vocab_size = 100_032

    path = tmp_path / "train-00000.tokens"
    ids = np.array([0, 65_535, 65_536, 99_999], dtype=np.int64)
    with ShardWriter(path, Wide()) as writer:
        writer.add(ids, 7)
    dataset = TokenDataset(tmp_path, "train", Wide(), {path: ShardHeader.read(path)})
    assert dataset.dtype == np.uint32
    np.testing.assert_array_equal(dataset.read(0, 4), ids)
    assert (dataset.num_tokens, dataset.num_bytes, dataset.num_documents) == (4, 7, 1)
    dataset.verify()


@pytest.mark.parametrize("tokens", [0, 63, 64, 65, 199])
def test_a_flipped_bit_is_found_with_its_place(copy: Path, tokens: int) -> None:
    place = 256 + 2 * tokens
    path = max(copy.glob("train-*"), key=lambda path: ShardHeader.read(path).num_tokens)  # a full one
    data = bytearray(path.read_bytes())
    data[place] ^= 8
    path.write_bytes(data)
    first = tokens // BLOCK_TOKENS * BLOCK_TOKENS
    last = min(first + BLOCK_TOKENS, MAX_SHARD_TOKENS) - 1
    assert f"{path}: is damaged between bytes {256 + 2 * first} and {257 + 2 * last} " in complaint(copy)


def test_a_damaged_checksum_or_header_is_found(copy: Path) -> None:
    path = copy / "train-00001.tokens"
    good = path.read_bytes()
    for place, wanted in ((len(good) - 1, "is damaged between bytes"), (40, "its header is damaged")):
        data = bytearray(good)
        data[place] ^= 1
        path.write_bytes(data)
        assert wanted in complaint(copy)


def test_files_that_are_not_what_they_should_be(copy: Path) -> None:
    path = copy / "train-00000.tokens"
    good = path.read_bytes()
    for content, wanted in (
        (good[:-1], "is cut short: "),
        (good[:-1], f"{len(good) - 1:,} bytes, but its header says {len(good):,}"),
        (good + b"\0", "is too long: "),
        (good[:-1] + bytes([good[-1] ^ 1]), "(its document index)"),
        (good[:100], "is cut short inside its header (100 bytes)"),
        (b"", "is not a token shard"),
        (b"PK" + good[2:], "is not a token shard"),
        (good[:8] + b"\2" + good[9:], "has shard version 2, but this package reads version 1"),
        ((copy / "train-00001.tokens").read_bytes(), "tokens, but dataset.json says"),
    ):
        path.write_bytes(content)
        message = complaint(copy)
        assert message.startswith(f"{path}: ")
        assert wanted in message
        assert message.endswith("prepare the data again (tst prepare with --overwrite)")
    path.unlink()
    assert "train-00000.tokens: this shard is missing" in complaint(copy)


def test_headers_that_make_no_sense(copy: Path) -> None:
    """Their checksums are right: nothing but sense is left to tell."""
    path = max(copy.glob("train-*"), key=lambda path: ShardHeader.read(path).num_tokens)
    good, header = path.read_bytes(), ShardHeader.read(path)
    for changes, wanted in (
        ({"block_tokens": 0}, "impossible values"),
        ({"num_tokens": 0}, "impossible values"),
        ({"token_bytes": 3}, "impossible values"),
        ({"num_documents": header.num_documents + 1}, "impossible values"),
        (
            {"token_bytes": 4, "num_tokens": header.num_tokens // 2, "block_tokens": BLOCK_TOKENS // 2},
            "has 4 bytes per token, which does not fit its tokenizer",
        ),
    ):
        path.write_bytes(dataclasses.replace(header, **changes).to_bytes() + good[256:])
        assert wanted in complaint(copy)


def test_ids_that_the_tokenizer_does_not_have_are_found(copy: Path) -> None:
    path = copy / "train-00000.tokens"
    ids = np.full(ShardHeader.read(path).num_tokens, 256)
    ids[5] = 257
    with ShardWriter(path, ByteTokenizer()) as writer:
        writer.add(ids, 0)
    assert f"{path}: token 5 has the id 257, but tokenizer 'bytes' has only 257 ids; " in complaint(copy)


def test_shards_from_before_there_was_an_index(folder: Path, copy: Path) -> None:
    for path in copy.glob("*.tokens"):
        header = ShardHeader.read(path)
        older = dataclasses.replace(header, index_bytes=0)
        path.write_bytes(older.to_bytes() + path.read_bytes()[256 : header.index_start])
    dataset = TokenDataset.open(copy, "train")
    dataset.verify()
    np.testing.assert_array_equal(dataset.document_ends(), TokenDataset.open(folder, "train").document_ends())


def test_a_shard_of_another_tokenizer_is_refused(copy: Path) -> None:
    class Other(ByteTokenizer):
        num_ids = 258

    with ShardWriter(copy / "train-00000.tokens", Other()) as writer:
        writer.add(np.array([1, 256]), 1)
    assert "was written with another tokenizer" in complaint(copy)


def test_folders_that_are_no_data_set(copy: Path, tmp_path: Path) -> None:
    assert "no such folder; make it with: tst prepare" in complaint(tmp_path / "gone")
    assert "is not a prepared dataset (no dataset.json)" in complaint(tmp_path)
    assert complaint(copy, "test").endswith("has no split 'test' (splits: train, validation)")
    description = json.loads((copy / "dataset.json").read_text())
    for content, wanted in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "does not describe a prepared dataset"),
        (json.dumps({**description, "version": 2}), "has version 2"),
    ):
        (copy / "dataset.json").write_text(content)
        assert wanted in complaint(copy)


def test_an_interrupted_writer_leaves_no_shard(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.tokens"

    def write_half() -> None:
        with ShardWriter(path, ByteTokenizer()) as writer:
            writer.add(np.array([1, 256]), 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    with pytest.raises(UserError, match="is not a token shard"):
        ShardHeader.read(path)
