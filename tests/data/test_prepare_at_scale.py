"""Many pieces: the same bytes whatever the number of processes, the cuts, the copies and the ranges of the merge."""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.corpora import content, corpus_texts, documents, text_hash, write_corpus
from tests.data.tokenizer_folders import gpt2_folder
from token_superposition.data.dataset import ShardHeader, TokenDataset
from token_superposition.data.prepare import encode, merge, prepare, spill, splits
from token_superposition.data.prepare.spill import Run
from token_superposition.data.prepare.splits import SplitWriter
from token_superposition.data.readers import Corpus, corpus


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300", "gpt2"])
def test_any_number_of_processes_gives_the_same_bytes(many: Path, tmp_path: Path, tokenizer: str) -> None:
    name = str(gpt2_folder(tmp_path / "gpt2")) if tokenizer == "gpt2" else tokenizer
    options: dict[str, Any] = {"tokenizer": name, "deduplicate": True, "max_shard_tokens": 5000, "quiet": True}
    one = prepare([many], out=tmp_path / "one", processes=1, **options)
    prepare([many], out=tmp_path / "three", processes=3, **options)
    assert content(tmp_path / "one") == content(tmp_path / "three")
    assert one["duplicates_dropped"] == 30
    assert one["documents"] == 430
    for split in ("train", "validation"):
        dataset = TokenDataset.open(tmp_path / "one", split)
        dataset.verify()
        assert dataset.num_documents == one["splits"][split]["documents"]


def test_how_the_work_is_cut_changes_nothing(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([many], out=tmp_path / "cut", quiet=True, processes=1)
    monkeypatch.undo()
    prepare([many], out=tmp_path / "whole", quiet=True, processes=1)
    monkeypatch.setattr(corpus, "_SMALLEST_PIECE", 4000)
    prepare([many], out=tmp_path / "threads", quiet=True, processes=3)
    assert content(tmp_path / "threads") == content(tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    texts = documents(tmp_path / "whole", "train") + documents(tmp_path / "whole", "validation")
    assert len(texts) == 460
    assert len(set(texts)) == 430


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_copies_lie_apart_wherever_they_come_from(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str
) -> None:
    copied = "a text that is everywhere"
    for number in range(3):
        write_corpus(many / f"copies-{number}.jsonl", [copied] * 200)
    prepare([many], out=tmp_path / "cut", tokenizer=tokenizer, quiet=True, processes=2)
    texts = documents(tmp_path / "cut", "train")
    validation = documents(tmp_path / "cut", "validation")
    assert texts.count(copied) == 600
    assert len(texts) + len(validation) == 460 + 600
    # Of 600 among a thousand, so many stand where a copy stands before them; all 599 do where they are together.
    neighbours = sum(one == other == copied for one, other in itertools.pairwise(texts))
    expected = 600 * 599 / len(texts)
    assert abs(neighbours - expected) < 6 * expected**0.5
    again = [text for text, times in collections.Counter(texts).items() if times == 2]
    assert len(again) > 20
    assert sum(one == other for one, other in itertools.pairwise(texts) if one != copied) <= 3

    monkeypatch.undo()
    whole = tmp_path / "whole.jsonl"
    everything = [copied] * 600 + [text for text in texts + validation if text != copied]
    write_corpus(whole, everything)
    kept = tmp_path / "cut" if tokenizer != "bytes" else None  # the BPE that was trained on the pieces
    prepare([whole], out=tmp_path / "whole", tokenizer=str(kept or tokenizer), quiet=True, processes=1)
    for split in ("train", "validation"):
        assert documents(tmp_path / "whole", split) == documents(tmp_path / "cut", split)


def test_a_document_lies_where_seed_text_and_number_say(many: Path, tmp_path: Path) -> None:
    def place(text: str, number: int) -> bytes:
        which = number.to_bytes(8, "big") if number else b""
        return hashlib.blake2b(text_hash(text) + which, digest_size=8, key=b"7").digest()

    write_corpus(many / "copies.jsonl", ["a text that is everywhere"] * 1000)
    prepare([many], out=tmp_path / "data", seed=7, quiet=True)
    found = documents(tmp_path / "data", "train")
    times = collections.Counter(found)
    assert max(times.values()) == 1000
    places = [(place(text, number), text) for text in times for number in range(times[text])]
    assert found == [text for _, text in sorted(places)]


def test_documents_that_share_a_place_all_come_through(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_hash(text: bytes) -> bytes:
        return bytes(8) + hashlib.blake2b(text, digest_size=8).digest()

    def few_places(hashes: Sequence[bytes], seed: int) -> Any:
        return spill.places_of(hashes, seed) | np.uint64(2**62 - 1)  # the last of all among them

    monkeypatch.setattr(encode, "hash_text", half_hash)
    monkeypatch.setattr(encode, "places_of", few_places)
    monkeypatch.setattr("token_superposition.data.prepare.duplicates.places_of", few_places)
    write_corpus(many / "copies.jsonl", ["a text that is everywhere"] * 200)
    given = sorted(document.text.decode() for document in Corpus([many]).documents())
    prepare([many], out=tmp_path / "data", processes=1, quiet=True)
    assert sorted(documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")) == given
    done = prepare([many], out=tmp_path / "few", processes=1, deduplicate=True, quiet=True)
    assert done["documents"] == len(set(given))


def test_a_run_is_read_only_where_there_is_something(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the time would grow with the square of the corpus: runs and ranges are both so many."""
    monkeypatch.setattr(spill, "_RANGE_BYTES", 50)

    def calls(kind: type, name: str) -> list[None]:
        made, real = [], getattr(kind, name)

        def counted(self: Any, argument: Any) -> Any:
            made.append(None)
            return real(self, argument)

        monkeypatch.setattr(kind, name, counted)
        return made

    indexes, ids = calls(spill._Reader, "take"), calls(spill.Stretch, "read")
    done = prepare([many], out=tmp_path / "data", processes=1, quiet=True)
    num_runs = len(list(many.iterdir())) + 40  # of more than a thousand ranges
    assert len(indexes) < 3 * (done["documents"] + num_runs)
    assert len(ids) < done["documents"] + num_runs


def test_a_text_of_many_copies_is_never_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "RUN_BYTES", 3000)
    monkeypatch.setattr(spill, "RUN_ROWS", 50)
    monkeypatch.setattr(spill, "_RANGE_BYTES", 2000)
    monkeypatch.setattr(merge, "_COPIES_AT_ONCE", 2000)
    tokens_at_once, documents_at_once = [0], [0]
    encoded: list[Run] = []
    copied: list[Run] = []
    real_add, real_write = SplitWriter.add, spill.write_run

    def add(writer: SplitWriter, tokens: Any, ends: Any, rows: Any) -> None:
        tokens_at_once.append(len(tokens))
        documents_at_once.append(len(rows))
        real_add(writer, tokens, ends, rows)

    def into(written: list[Run], *arguments: Any) -> Run:
        written.append(real_write(*arguments))
        return written[-1]

    monkeypatch.setattr(SplitWriter, "add", add)
    monkeypatch.setattr(encode, "write_run", partial(into, encoded))
    monkeypatch.setattr("token_superposition.data.prepare.duplicates.write_run", partial(into, copied))
    few = sorted(corpus_texts(1000), key=text_hash)
    short = sorted(map(str, range(10_000)), key=text_hash)
    for text, split in ((few[-1], "train"), (short[-1], "train"), (few[0], "validation"), (short[0], "validation")):
        out = tmp_path / text[:9]
        texts = [*few, *few[::20], *[text] * 500]
        source = write_corpus(tmp_path / "a.jsonl", texts)
        prepare([source], out=out, seed=1, max_validation_tokens=2000, validation_fraction=0.5, quiet=True)
        assert documents(out, split).count(text) >= 500
        assert sorted(documents(out, "train") + documents(out, "validation")) == sorted(texts)
        assert copied
        for run in (*encoded, *copied):
            assert run.documents <= 50
            assert run.ids_bytes < 3000 + len(max(few, key=len))
        for run in copied[:-1]:  # and they are not more than there have to be
            assert run.documents == 50 or run.ids_bytes >= 3000
        copied.clear()
    assert max(tokens_at_once) < 6000
    assert max(documents_at_once) < 100


def test_no_shard_is_larger_than_asked_for(tmp_path: Path) -> None:
    texts = [*corpus_texts(50), "long " * 1000]
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", max_shard_tokens=700)
    headers = [ShardHeader.read(path) for path in (tmp_path / "data").glob("*.tokens")]
    assert max(header.num_tokens for header in headers) <= 700
    assert sum(header.num_bytes for header in headers) == summary["bytes"] == sum(map(len, texts))
    both = documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")
    assert sorted(both) == sorted(texts)


def test_no_shard_holds_more_documents_than_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "_MOST_DOCUMENTS", 7)
    texts = corpus_texts(60)
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", quiet=True)
    headers = [ShardHeader.read(path) for path in (tmp_path / "data").glob("train-*.tokens")]
    assert [header.num_documents for header in headers].count(7) == len(headers) - 1
    assert sum(header.num_documents for header in headers) == summary["splits"]["train"]["documents"]
    both = documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")
    assert sorted(both) == sorted(texts)


def test_an_index_that_was_cut_short_ends_the_merge(tmp_path: Path) -> None:
    rows = np.zeros(5, dtype=spill.ROW)
    run = spill.write_run(tmp_path, "run", rows, [np.zeros(0, np.uint16)] * 5)
    (tmp_path / "run.index").write_bytes(rows[:3].tobytes())
    with pytest.raises(OSError, match="ends before its last row"):
        list(spill.read_ranges(tmp_path, [run], np.dtype(np.uint16)))


def test_a_long_document_of_more_bytes_in_its_tokens_than_in_its_text(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["normalizer"] = {"type": "Replace", "pattern": {"String": "x"}, "content": "to be "}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    texts = [*corpus_texts(50), "x" * 400]
    summary = prepare(
        [write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data", tokenizer=str(folder), max_shard_tokens=90
    )
    headers = [ShardHeader.read(path) for path in (tmp_path / "data").glob("*.tokens")]
    assert sum(header.num_bytes for header in headers) == summary["bytes"] == sum(map(len, texts))
