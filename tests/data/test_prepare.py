"""Prepare: the same input gives the same bytes, splits share no text, and no folder is half-written."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import token_superposition
from tests.data.corpora import complaint, content, corpus_texts, documents, text_hash, write_corpus
from token_superposition.data.dataset import ShardWriter, TokenDataset
from token_superposition.data.prepare import encode, prepare
from token_superposition.data.prepare.merge import Merge
from token_superposition.data.readers import Corpus
from token_superposition.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "a.jsonl", corpus_texts())


def test_every_document_comes_through_once(corpus: Path, tmp_path: Path) -> None:
    texts = corpus_texts()
    summary = prepare([corpus], out=tmp_path / "data")
    train, validation = (documents(tmp_path / "data", split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts)
    assert train != sorted(train)
    assert train != [text for text in texts if text in set(train)]  # shuffled
    assert summary["documents"] == 200
    assert summary["bytes"] == sum(map(len, texts))
    assert summary["tokens"] == summary["bytes"] + 200
    assert summary["splits"]["train"]["documents"] == len(train)
    assert not summary["reused"]
    json.dumps(summary)
    TokenDataset.open(tmp_path / "data", "train").verify()


def test_validation_holds_the_lowest_hashes_up_to_the_limit(corpus: Path, tmp_path: Path) -> None:
    texts = sorted(corpus_texts(), key=text_hash)
    total = sum(len(text) + 1 for text in texts)
    for name, limits, limit in (
        ("fraction", {"validation_fraction": 0.2}, int(0.2 * total)),
        ("tokens", {"max_validation_tokens": 1000}, 1000),
        ("one", {"max_validation_tokens": 1}, None),
    ):
        prepare([corpus], out=tmp_path / name, **limits)
        validation = documents(tmp_path / name, "validation")
        assert validation == texts[: len(validation)]
        if limit is None:
            assert len(validation) == 1
        else:
            size = sum(len(text) + 1 for text in validation)
            assert size <= limit < size + len(texts[len(validation)]) + 1


def test_a_validation_limit_can_be_met_to_the_token(corpus: Path, tmp_path: Path) -> None:
    texts = sorted(corpus_texts(), key=text_hash)
    limit = sum(len(text) + 1 for text in texts[:7])
    prepare([corpus], out=tmp_path / "data", max_validation_tokens=limit, validation_fraction=0.9)
    assert documents(tmp_path / "data", "validation") == texts[:7]


def test_texts_are_told_apart_by_all_of_their_hash(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "hash_text", lambda text: bytes(8) + hashlib.blake2b(text, digest_size=8).digest())
    summary = prepare([corpus], out=tmp_path / "data", deduplicate=True)
    assert summary["duplicates_dropped"] == 0
    both = documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")
    assert sorted(both) == sorted(corpus_texts())


def test_shards_are_on_the_disk_before_they_have_their_name(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, set()

    def fsync(descriptor: int) -> None:
        assert not (tmp_path / "data").exists() or Path(f"/proc/self/fd/{descriptor}").samefile(tmp_path)
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    prepare([corpus], out=tmp_path / "data", max_shard_tokens=500)
    assert {path.name for path in (tmp_path / "data").glob("*.tokens")} <= synced
    assert any(name.startswith(".dataset.json.") for name in synced)  # before it was called dataset.json
    assert {".data.preparing", tmp_path.name} <= synced  # the folder, and then its name


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("a.jsonl"), corpus_texts(50, seed=1))
    write_corpus(Path("b.jsonl"), corpus_texts(50, seed=2))
    prepare(["a.jsonl", "b.jsonl"], out="one", max_shard_tokens=2000)
    prepare(["./b.jsonl", "a.jsonl"], out="two", max_shard_tokens=2000)
    assert content(Path("one")) == content(Path("two"))
    assert len(content(Path("one"))) > 5
    monkeypatch.setattr("token_superposition.data.prepare._TRAINING_BYTES", 20)  # more than one text has
    for out, sources in (("three", ["a.jsonl", "b.jsonl"]), ("four", ["b.jsonl", "a.jsonl"])):
        prepare(sources, out=out, tokenizer="bpe:300")
    assert content(Path("three")) == content(Path("four"))


def test_the_seed_orders_training_and_leaves_validation(corpus: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        prepare([corpus], out=tmp_path / str(seed), seed=seed)
    first, second = (documents(tmp_path / str(seed), "train") for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)
    assert documents(tmp_path / "0", "validation") == documents(tmp_path / "1", "validation")
    fingerprints = {TokenDataset.open(tmp_path / str(seed), "train").fingerprint for seed in (0, 1)}
    assert len(fingerprints) == 2


def test_equal_texts_never_part_and_can_be_dropped(tmp_path: Path) -> None:
    texts = corpus_texts(60)
    write_corpus(tmp_path / "a.jsonl", texts * 3)
    options: dict[str, Any] = {"max_validation_tokens": 1000, "validation_fraction": 0.3}
    kept = prepare([tmp_path / "a.jsonl"], out=tmp_path / "kept", **options)
    train, validation = (documents(tmp_path / "kept", split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts * 3)
    assert not set(train) & set(validation)
    assert validation == [text for text in sorted(texts, key=text_hash) for _ in range(3)][: len(validation)]
    next_text = min(train, key=text_hash)
    size = kept["splits"]["validation"]["tokens"]
    assert size <= 1000 < size + 3 * (len(next_text) + 1)  # with all its copies
    assert kept["duplicates_dropped"] == 0
    write_corpus(tmp_path / "b.jsonl", [*texts, next_text])
    prepare([tmp_path / "b.jsonl"], out=tmp_path / "one")
    assert documents(tmp_path / "one", "train").count(next_text) == 2
    dropped = prepare([tmp_path / "a.jsonl"], out=tmp_path / "dropped", deduplicate=True)
    train, validation = (documents(tmp_path / "dropped", split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(texts)
    assert dropped["duplicates_dropped"] == 120


def test_text_that_spells_an_end_token_ends_nothing(tmp_path: Path) -> None:
    texts = [f"{number}<|endoftext|>more" for number in range(40)]
    summary = prepare([write_corpus(tmp_path / "a.jsonl", texts)], out=tmp_path / "data")
    assert summary["documents"] == 40
    both = documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")
    assert sorted(both) == sorted(texts)


def test_the_same_request_is_answered_from_the_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    first = prepare([corpus], out=out)
    before = content(out)
    monkeypatch.setattr(Corpus, "documents", None)  # nothing may be read again
    again = prepare([corpus], out=out)
    assert again["reused"]
    volatile = ("reused", "seconds")
    assert {k: v for k, v in again.items() if k not in volatile} == {
        k: v for k, v in first.items() if k not in volatile
    }
    assert content(out) == before


def test_another_request_is_refused_or_overwrites(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([corpus], out=out)
    message = complaint([corpus], out=out, seed=5)
    assert message == (f"{out}: was prepared with seed 0, not 5; name another folder, or overwrite it (--overwrite)")
    other = write_corpus(tmp_path / "b.jsonl", corpus_texts(30))
    assert f"was prepared with sources {corpus}, not {other}" in complaint([other], out=out)
    summary = prepare([other], out=out, overwrite=True)
    assert summary["documents"] == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "data"]


def test_sources_that_changed_are_noticed(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([corpus], out=out)
    later = (out / "dataset.json").stat().st_mtime + 10
    os.utime(corpus, (later, later))
    assert "its sources have changed since it was prepared" in complaint([corpus], out=out)
    write_corpus(corpus, corpus_texts(30))
    os.utime(corpus, (0, 0))
    assert "its sources have changed since it was prepared" in complaint([corpus], out=out)


def test_what_is_installed_may_change(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "lib"
    installed.mkdir()
    (installed / "a.py").write_text("a = 1\n")
    paths = dict.fromkeys(("stdlib", "purelib", "platlib"), str(installed))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    first = prepare(["python", corpus], out=tmp_path / "data")
    (installed / "b.py").write_text("b = 1\n")
    again = prepare(["python", corpus], out=tmp_path / "data")
    assert again["reused"]
    assert again["documents"] == first["documents"] == 201


def test_a_damaged_folder_is_not_reused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([corpus], out=out)
    (out / "train-00000.tokens").unlink()
    assert "this shard is missing" in complaint([corpus], out=out)
    assert not prepare([corpus], out=out, overwrite=True)["reused"]


def test_no_folder_of_others_is_touched(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    out.mkdir()
    prepare([corpus], out=out)  # an empty one may be filled
    (out / "notes").mkdir()
    assert "holds 'notes' beside the dataset" in complaint([corpus], out=out, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("")
    for overwrite in (False, True):
        message = complaint([corpus], out=tmp_path / "photos", overwrite=overwrite)
        assert "is not empty and holds no prepared dataset" in message
    assert "is a file; name a folder" in complaint([corpus], out=corpus)
    assert "cannot be written" in complaint([corpus], out=corpus / "data")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is the current folder" in complaint([corpus], out=".")


def test_what_is_put_there_meanwhile_is_not_removed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, out = Merge.write, tmp_path / "data"

    def meanwhile(merge: Merge, *arguments: Any) -> Any:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        return real(merge, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Merge, "write", meanwhile)
        assert "is not empty and holds no prepared dataset" in complaint([corpus], out=out)
    assert content(out) == {"notes.txt": b"mine"}
    shutil.rmtree(out)
    prepare([corpus], out=tmp_path / "other", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            Merge, "write", lambda *arguments: (shutil.copytree(tmp_path / "other", out), real(*arguments))[1]
        )
        assert "another dataset was written there" in complaint([corpus], out=out)
    assert content(out) == content(tmp_path / "other")


@pytest.mark.parametrize("moment", ["put aside", "put in place"])
def test_killed_while_it_replaces_a_data_set_it_can_be_started_again(corpus: Path, tmp_path: Path, moment: str) -> None:
    """Nothing is cleaned up by a process that is killed; whoever comes next finds a whole data set, or none."""
    out = tmp_path / "data"
    prepare([corpus], out=out, max_shard_tokens=500)
    before = content(out)
    name = {"put aside": ".data.replaced", "put in place": "data"}[moment]
    program = f"""if True:
        import os, pathlib
        from token_superposition.data.prepare import prepare
        real = pathlib.Path.replace
        def killed(path, target):
            real(path, target)
            if target.name == {name!r}:
                os.kill(os.getpid(), 9)
        pathlib.Path.replace = killed
        prepare([{str(corpus)!r}], out={str(out)!r}, overwrite=True, seed=1, quiet=True)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(token_superposition.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == -9
    assert out.exists() == (moment == "put in place")
    if out.exists():
        TokenDataset.open(out, "train").verify()
        assert prepare([corpus], out=out, seed=1)["reused"]
    assert not prepare([corpus], out=out, overwrite=True, max_shard_tokens=500)["reused"]
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "data"]


def test_names_of_files_that_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    write_corpus(folder / "a.jsonl", corpus_texts(40))
    Path(os.fsdecode(os.fsencode(folder) + b"/b\xff\n.jsonl")).write_bytes(b'{"text": "more"}\nno\n')
    with pytest.raises(UserError, match="is not JSON"):
        prepare([folder], out=tmp_path / "data")
    summary = prepare([folder], out=tmp_path / "data", on_error="skip")
    assert summary["documents"] == 41
    again = prepare([folder], out=tmp_path / "data", on_error="skip")
    assert again["reused"]
    assert again["skipped"] == summary["skipped"]
    assert "b\udcff\n.jsonl:2: is not JSON" in summary["skipped"]["first"]


def test_an_output_behind_a_link_stays_behind_it(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "big")
    prepare([corpus], out=tmp_path / "data")
    assert (tmp_path / "data").is_symlink()
    assert (tmp_path / "big" / "dataset.json").exists()


def test_what_a_killed_process_left_is_removed(corpus: Path, tmp_path: Path) -> None:
    left = tmp_path / ".data.preparing"
    left.mkdir()
    (left / "spill").write_bytes(b"half")
    (left / "train-00007.tokens").write_bytes(b"half")
    prepare([corpus], out=tmp_path / "data")
    assert not left.exists()
    assert "train-00007.tokens" not in content(tmp_path / "data")


def test_two_processes_do_not_write_one_folder(corpus: Path, tmp_path: Path) -> None:
    workplace = tmp_path / ".data.preparing"
    workplace.mkdir()
    (workplace / "spill").write_bytes(b"half")
    descriptor = os.open(workplace, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another process is preparing this folder" in complaint([corpus], out=tmp_path / "data")
    finally:
        os.close(descriptor)
    assert (workplace / "spill").exists()


def test_a_folder_that_another_has_just_finished_is_not_worked_in(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:  # between opening and locking, it became the output
        (tmp_path / ".data.preparing").rename(tmp_path / "data")
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "another process is preparing this folder" in complaint([corpus], out=tmp_path / "data")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_stopped_half_way_it_leaves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ShardWriter, "add", fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        prepare([corpus], out=tmp_path / "data")
    if isinstance(error, OSError):
        assert "the disk is full" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_too_small_a_corpus_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("all in one file")
    message = complaint([tmp_path / "one.txt"], out=tmp_path / "data")
    assert "1 documents, 1 of them different, 16 tokens; add documents, or split long documents" in message
    write_corpus(tmp_path / "same.jsonl", ["the same"] * 9)
    assert "9 documents, 1 of them different" in complaint([tmp_path / "same.jsonl"], out=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_validation_never_takes_more_than_half(tmp_path: Path) -> None:
    small, large = "the rest", "x" * 500
    while text_hash(small) < text_hash(large):  # until the large text would be held out
        large += "x"
    write_corpus(tmp_path / "a.jsonl", [small, large])
    assert "too little text" in complaint([tmp_path / "a.jsonl"], out=tmp_path / "data")
    write_corpus(tmp_path / "a.jsonl", [small, large, *corpus_texts(20)])
    prepare([tmp_path / "a.jsonl"], out=tmp_path / "data")


def test_settings_out_of_range(corpus: Path, tmp_path: Path) -> None:
    for key, value in (("validation_fraction", 1.0), ("max_validation_tokens", 0), ("max_shard_tokens", 0)):
        line = complaint([corpus], out=tmp_path / "data", **{key: value})
        assert line.startswith(f"{key} must be ")
        assert line.endswith(f"not {value}")
    assert "tokenizer 'gpt2' is not known" in complaint([corpus], out=tmp_path / "data", tokenizer="gpt2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_progress_is_for_terminals(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    prepare([corpus], out=tmp_path / "shown")
    assert "reading" in terminal.getvalue()
    assert "200 documents" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    prepare([corpus], out=tmp_path / "quiet", quiet=True)
    assert terminal.getvalue() == ""


def test_real_corpora_of_both_formats(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    sources = [shared_data / "wikipedia-en.valid.parquet", shared_data / "gutenberg-children.valid.jsonl.gz"]
    summary = prepare(sources, out=tmp_path / "data", validation_fraction=0.2)
    texts = [document.text for document in Corpus(sources).documents()]
    assert summary["documents"] == len(texts) > 100
    assert summary["bytes"] == sum(map(len, texts))
    for split in ("train", "validation"):
        TokenDataset.open(tmp_path / "data", split).verify()
    both = documents(tmp_path / "data", "train") + documents(tmp_path / "data", "validation")
    assert sorted(text.encode() for text in both) == sorted(texts)


def test_one_long_text_is_cut_so_that_some_can_be_held_out(tmp_path: Path) -> None:
    lines = [f"line {number} of a long text\n" for number in range(20_000)]
    (tmp_path / "long.txt").write_text("".join(lines))
    summary = prepare([tmp_path / "long.txt"], out=tmp_path / "data", quiet=True)
    assert summary["splits"]["validation"]["documents"] >= 1
    assert summary["splits"]["train"]["documents"] >= 20
    assert summary["bytes"] == sum(map(len, lines))
    texts = []
    for split in ("train", "validation"):
        dataset = TokenDataset.open(tmp_path / "data", split)
        ids = dataset.read(0, dataset.num_tokens)
        texts += [bytes(part.astype(np.uint8)) for part in np.split(ids[ids != 256], [])]
    assert sorted(b"".join(texts).splitlines()) == sorted(line.strip().encode() for line in lines)
