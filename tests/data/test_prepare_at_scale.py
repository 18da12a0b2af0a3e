"""Many pieces: the same bytes whatever the number of processes, the ranges of the merge, and interruptions."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_prepare import complaint, content, corpus_texts, documents, text_hash, write_corpus
from tests.data.tokenizer_folders import gpt2_folder
from tests.faults import Disk, failing
from token_superposition.data.prepare import encode, merge, pool, prepare, runs, splits
from token_superposition.data.prepare.runs import Run
from token_superposition.data.prepare.splits import SplitWriter
from token_superposition.data.shards import ShardHeader, TokenDataset
from token_superposition.data.sources import Corpus, corpus
from token_superposition.errors import RunError, UserError


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files in several formats that is cut into many pieces, runs and ranges."""
    monkeypatch.setattr(pool, "_FEW_BYTES", 1)
    monkeypatch.setattr(pool, "_FEW_BYTES_COSTLY", 1)
    monkeypatch.setattr(corpus, "_SMALLEST_PIECE", 4000)
    monkeypatch.setattr(runs, "RUN_BYTES", 3000)
    monkeypatch.setattr(runs, "_RANGE_BYTES", 2000)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        write_corpus(folder / f"{number}.jsonl", corpus_texts(100, seed=number))
    write_corpus(folder / "again.jsonl", corpus_texts(30, seed=0))
    for number in range(30):
        (folder / f"{number}.md").write_text(f"# {number}\n" + "text " * 50)
    return folder


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
        return runs.places_of(hashes, seed) | np.uint64(2**62 - 1)  # the last of all among them

    monkeypatch.setattr(encode, "hash_text", half_hash)
    monkeypatch.setattr(encode, "places_of", few_places)
    monkeypatch.setattr("token_superposition.data.prepare.texts.places_of", few_places)
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
    monkeypatch.setattr(runs, "_RANGE_BYTES", 50)

    def calls(kind: type, name: str) -> list[None]:
        made, real = [], getattr(kind, name)

        def counted(self: Any, argument: Any) -> Any:
            made.append(None)
            return real(self, argument)

        monkeypatch.setattr(kind, name, counted)
        return made

    indexes, ids = calls(runs._Reader, "take"), calls(runs.Stretch, "read")
    done = prepare([many], out=tmp_path / "data", processes=1, quiet=True)
    num_runs = len(list(many.iterdir())) + 40  # of more than a thousand ranges
    assert len(indexes) < 3 * (done["documents"] + num_runs)
    assert len(ids) < done["documents"] + num_runs


def test_a_text_of_many_copies_is_never_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUN_BYTES", 3000)
    monkeypatch.setattr(runs, "RUN_ROWS", 50)
    monkeypatch.setattr(runs, "_RANGE_BYTES", 2000)
    monkeypatch.setattr(merge, "_COPIES_AT_ONCE", 2000)
    tokens_at_once, documents_at_once = [0], [0]
    encoded: list[Run] = []
    copied: list[Run] = []
    real_add, real_write = SplitWriter.add, runs.write_run

    def add(writer: SplitWriter, tokens: Any, ends: Any, rows: Any) -> None:
        tokens_at_once.append(len(tokens))
        documents_at_once.append(len(rows))
        real_add(writer, tokens, ends, rows)

    def into(written: list[Run], *arguments: Any) -> Run:
        written.append(real_write(*arguments))
        return written[-1]

    monkeypatch.setattr(SplitWriter, "add", add)
    monkeypatch.setattr(encode, "write_run", partial(into, encoded))
    monkeypatch.setattr("token_superposition.data.prepare.texts.write_run", partial(into, copied))
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
    rows = np.zeros(5, dtype=runs.ROW)
    run = runs.write_run(tmp_path, "run", rows, [np.zeros(0, np.uint16)] * 5)
    (tmp_path / "run.index").write_bytes(rows[:3].tobytes())
    with pytest.raises(OSError, match="ends before its last row"):
        list(runs.read_ranges(tmp_path, [run], np.dtype(np.uint16)))


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


def stop_after(number: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """The work stops when so many pieces are finished; returns which pieces were encoded, which goes on growing."""
    real, done = pool.encode_pieces, []

    def limited(*arguments: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (piece, result) in enumerate(real(*arguments)):
            if index == number:
                raise error
            done.append(piece)
            yield piece, result

    monkeypatch.setattr("token_superposition.data.prepare.encode_pieces", limited)
    return done


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_an_interrupted_one_goes_on(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, tokenizer: str
) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer, "quiet": True}
    prepare([many], out=tmp_path / "whole", processes=1, **options)
    with monkeypatch.context() as patch:
        done = stop_after(3, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare([many], out=tmp_path / "data", processes=processes, **options)
    assert len(done) == 3
    assert not (tmp_path / "data").exists()
    with monkeypatch.context() as patch:
        more = stop_after(10**6, patch, KeyboardInterrupt())
        patch.setattr("token_superposition.data.prepare._train", None)  # the tokenizer is there already
        prepare([many], out=tmp_path / "data", processes=3 - processes, **options)
    assert more
    assert not set(more) & set(done)
    assert content(tmp_path / "data") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "text", "whole"]


def test_what_was_left_is_not_trusted(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare([many], out=tmp_path / "whole", quiet=True)
    for damage in ("ids", "index", "json", "plan"):
        out, left = tmp_path / damage, tmp_path / f".{damage}.preparing"
        with monkeypatch.context() as patch:
            stop_after(4, patch, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                prepare([many], out=out, processes=1, quiet=True)
        if damage == "plan":
            (left / "plan.json").write_text("{")
        else:
            file = sorted(left.glob(f"piece-*.{damage}"))[0]
            file.write_bytes(b"x" + file.read_bytes()[1:])
        with monkeypatch.context() as patch:
            again = stop_after(10**6, patch, KeyboardInterrupt())
            prepare([many], out=out, processes=1, quiet=True)
        assert 0 in again
        assert content(out) == content(tmp_path / "whole")


def test_another_request_or_changed_sources_begin_anew(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        with monkeypatch.context() as patch:
            stop_after(4, patch, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                prepare([many], out=tmp_path / "data", processes=1, quiet=True)

    interrupted()
    with monkeypatch.context() as patch:
        again = stop_after(10**6, patch, KeyboardInterrupt())
        prepare([many], out=tmp_path / "data", seed=1, processes=1, quiet=True)
    assert 0 in again
    prepare([many], out=tmp_path / "seed", seed=1, quiet=True)
    assert content(tmp_path / "data") == content(tmp_path / "seed")
    interrupted_again = pytest.raises(KeyboardInterrupt)
    with monkeypatch.context() as patch, interrupted_again:
        stop_after(4, patch, KeyboardInterrupt())
        prepare([many], out=tmp_path / "more", processes=1, quiet=True)
    other = (many / "0.jsonl").read_text().replace("word", "WORD")  # of the same length, and finished already
    (many / "0.jsonl").write_text(other)
    prepare([many], out=tmp_path / "more", processes=1, quiet=True)
    found = documents(tmp_path / "more", "train") + documents(tmp_path / "more", "validation")
    assert {json.loads(line)["text"] for line in other.splitlines()} <= set(found)


def test_a_full_disk_keeps_what_is_finished(many: Path, tmp_path: Path) -> None:
    prepare([many], out=tmp_path / "whole", quiet=True)
    said: list[str] = []
    for first in range(0, 10**6, 19):  # full from that change on; each attempt goes on with what the last one did
        disk = Disk(lambda number, first=first: number >= first)
        with failing(disk, tmp_path), contextlib.suppress(UserError):
            try:
                prepare([many], out=tmp_path / "data", processes=1, quiet=True)
            except UserError as error:
                said.append(str(error))
                raise
            break
        assert not (tmp_path / "data").exists()
    assert len(said) > 5
    assert all(line.startswith(f"{tmp_path}/data: ") for line in said)
    assert said[0].endswith("cannot be written (No space left on device); name another folder")
    assert said[-1].endswith(
        "the disk is full; preparing needs room for the tokens twice (of copies: three times), at 2 or 4 bytes each; "
        "make room and start it again: it goes on where it stopped"
    )
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def test_of_several_faults_the_first_is_said(many: Path, tmp_path: Path) -> None:
    for name in ("9.md", "0.jsonl", "again.jsonl"):  # sorted: 0.jsonl, 9.md, again.jsonl
        with (many / name).open("ab") as file:
            file.write(b'{"text": "\xff"}\n')
    for processes in (1, 2, 3):
        message = complaint([many], out=tmp_path / "data", processes=processes, quiet=True)
        assert "0.jsonl:101: is not UTF-8" in message
        assert not (tmp_path / "data").exists()
    summaries = [
        prepare([many], out=tmp_path / str(processes), processes=processes, on_error="skip", quiet=True)
        for processes in (1, 3)
    ]
    assert content(tmp_path / "1") == content(tmp_path / "3")
    assert summaries[0]["skipped"]["documents_not_utf8"] == 3
    assert "0.jsonl:101" in summaries[0]["skipped"]["first"]


def test_a_bad_document_found_late_costs_nothing_that_is_finished(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (many / "again.jsonl").open("ab") as file:
        file.write(b"no\n")
    write_corpus(many / "z.jsonl", corpus_texts(40, seed=9))
    options: dict[str, Any] = {"processes": 1, "quiet": True}
    whole = prepare([many], out=tmp_path / "whole", on_error="skip", **options)
    with monkeypatch.context() as patch:
        done = stop_after(10**6, patch, KeyboardInterrupt())
        assert "again.jsonl:31: is not JSON" in complaint([many], out=tmp_path / "data", **options)
        more = stop_after(10**6, patch, KeyboardInterrupt())
        summary = prepare([many], out=tmp_path / "data", on_error="skip", **options)
    assert len(done) > 3
    assert more
    assert not set(done) & set(more)
    assert content(tmp_path / "data") == content(tmp_path / "whole")
    assert summary["skipped"] == whole["skipped"]
    with monkeypatch.context() as patch:  # and skipped pieces are no answer to who wants to know
        stop_after(len(done) + 1, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare([many], out=tmp_path / "other", on_error="skip", **options)
    assert "again.jsonl:31: is not JSON" in complaint([many], out=tmp_path / "other", **options)


def test_a_killed_process_is_said(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_PROGRAM", "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match=r"was killed \(SIGKILL\): out of memory\? try fewer --processes"):
        prepare([many], out=tmp_path / "data", processes=2, quiet=True)
    monkeypatch.setattr(pool, "_PROGRAM", "raise SystemExit(3)")
    with pytest.raises(RunError, match="ended with exit code 3"):
        prepare([many], out=tmp_path / "data", processes=2, quiet=True)
    assert not (tmp_path / ".data.preparing").exists()


def test_processes_hold_the_lock_of_who_started_them(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that one is killed, what they write still goes into the folder: no other may work there."""
    program = (
        "import os, sys; held = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]; "
        "raise SystemExit(7 if os.path.realpath(sys.argv[1]) in held else 8)"
    )
    monkeypatch.setattr(pool, "_PROGRAM", program)
    with pytest.raises(RunError, match="ended with exit code 7"):
        prepare([many], out=tmp_path / "data", processes=2, quiet=True)


def test_killed_at_any_time_it_goes_on(tmp_path: Path) -> None:
    """A real process, killed so that nothing is cleaned up; then the same command again."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(6):
        write_corpus(text / f"{number}.jsonl", [f"{number} {row} " * 400 for row in range(600)])
    command = [sys.executable, "-m", "token_superposition", "prepare", str(text), "--json", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(pool.__file__).parents[3])}
    finished = 0
    for _ in range(3):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "data")], env=environment, stdout=subprocess.PIPE)
        for _ in range(2000):
            found = len(list((tmp_path / ".data.preparing").glob("piece-*.json")))
            if found > finished or process.poll() is not None:
                break
            time.sleep(0.005)
        finished = max(finished, found)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    deadline = time.monotonic() + 30
    while True:  # what the killed one had started still holds the lock, for as long as its piece takes
        done = subprocess.run([*command, "--out", str(tmp_path / "data")], env=environment, capture_output=True)
        if b"another process is preparing" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert done.returncode == 0, done.stderr
    prepare([text], out=tmp_path / "whole", quiet=True)
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def test_standard_input(tmp_path: Path) -> None:
    texts = corpus_texts()
    write_corpus(tmp_path / "a.jsonl", texts)
    prepare([tmp_path / "a.jsonl"], out=tmp_path / "file", quiet=True)
    data = (tmp_path / "a.jsonl").read_bytes()
    out = tmp_path / "data"
    prepare(["-"], out=out, stdin=io.BytesIO(data), stdin_format="jsonl", quiet=True)
    for name in ("train-00000.tokens", "validation-00000.tokens"):
        assert (out / name).read_bytes() == (tmp_path / "file" / name).read_bytes()
    again = complaint(["-"], out=out, stdin=io.BytesIO(data), stdin_format="jsonl")
    assert "standard input cannot be compared with what it was; name another folder, or overwrite" in again
    for given, form, said in (
        (b"", "text", "standard input is empty"),
        (b'{"text": "a"}\n[]\n', "jsonl", "standard input:2: is a JSON list"),
        (b"a", "parquet", "--format is one of text, jsonl, json, csv"),
    ):
        message = complaint(["-"], out=tmp_path / "other", stdin=io.BytesIO(given), stdin_format=form)
        assert message.startswith(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "data", "file"]


def test_what_other_standard_input_left_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "RANGE_BYTES", 40_000)
    given = ["".join(f"{letter} line {number}\n" for number in range(30_000)).encode() for letter in "ab"]
    with monkeypatch.context() as patch:
        stop_after(3, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare(["-"], out=tmp_path / "data", stdin=io.BytesIO(given[0]), processes=1, quiet=True)
    assert list((tmp_path / ".data.preparing").glob("piece-*.json"))
    prepare(["-"], out=tmp_path / "data", stdin=io.BytesIO(given[1]), processes=1, quiet=True)
    prepare(["-"], out=tmp_path / "whole", stdin=io.BytesIO(given[1]), processes=1, quiet=True)
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def test_standard_input_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert complaint(["-"], out=tmp_path / "data").startswith("standard input is closed")
    assert not list(tmp_path.iterdir())


def test_runs_know_whether_they_are_whole(tmp_path: Path) -> None:
    run = Run("gone", 1, 1, 1, 1, 0, 0)
    assert not run.is_whole(tmp_path)
    assert json.loads(json.dumps(run.as_dict())) == run.as_dict()
