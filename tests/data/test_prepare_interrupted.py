"""Many pieces, and what happens on the way: interruptions, faults, full disks, killed processes, standard input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.corpora import complaint, content, corpus_texts, documents, write_corpus
from tests.faults import Disk, failing
from token_superposition.data.prepare import pool, prepare
from token_superposition.data.prepare.spill import Run
from token_superposition.data.readers import corpus
from token_superposition.errors import RunError, UserError


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
    assert "the disk is full; preparing needs space for the tokens twice" in said[-1]
    assert said[-1].endswith("start the command again: it continues where it stopped")
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
    with pytest.raises(RunError, match=r"was killed \(SIGKILL\), .*memory.*--processes"):
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
    assert "standard input cannot be compared with its source; name another folder, or overwrite" in again
    for given, form, said in (
        (b"", "text", "standard input is empty"),
        (b'{"text": "a"}\n[]\n', "jsonl", "standard input:2: is a JSON list"),
        (b"a", "parquet", "--format must be one of text, jsonl, json, csv"),
    ):
        message = complaint(["-"], out=tmp_path / "other", stdin=io.BytesIO(given), stdin_format=form)
        assert message.startswith(said)
    unused = complaint([tmp_path / "a.jsonl"], out=tmp_path / "other", stdin_format="parquet")
    assert unused.startswith("--format must be one of text, jsonl, json, csv")
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
