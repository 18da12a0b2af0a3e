"""Every format gives the same documents, plain and compressed, whole and in pieces; what is bad is named or counted."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from token_superposition.data.readers import Corpus, corpus, records, text
from token_superposition.data.readers import parquet as parquet_reader
from token_superposition.errors import UserError

RECORDS = ["one", 'two, with "quotes"\nand lines', "", "three é 日本 🙂", "four\r\n", " x "]


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def jsonl(records: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": record}) + "\n" for record in records).encode()


def as_csv(records: list[str]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["id", "text"])
    writer.writerows([[number, record] for number, record in enumerate(records)])
    return ("\ufeff" + file.getvalue()).encode()


WRITE: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": jsonl,
    ".json": lambda records: json.dumps([{"text": record} for record in records], indent=1).encode(),
    ".csv": as_csv,
}


def texts(*sources: str | Path, **options: Any) -> list[str]:
    return [document.text.decode() for document in Corpus(sources, **options).documents()]


def complaint(*sources: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        list(Corpus(sources, **options).documents())
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", WRITE)
def test_records_of_every_format(form: str, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{form}{compression}"
    path.write_bytes(COMPRESS[compression](WRITE[form](RECORDS)))
    found = Corpus([path])
    assert [document.text.decode() for document in found.documents()] == [text for text in RECORDS if text]
    assert found.skipped.empty_documents == 1
    assert found.bytes_done == found.total_bytes


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_compressed_text(compression: str, tmp_path: Path) -> None:
    lines = "".join(f"line {number} é\n" for number in range(9000))
    for name in ("a.md", "b.md"):
        (tmp_path / f"{name}{compression}").write_bytes(COMPRESS[compression](f"\ufeff{lines}".encode()))
    assert texts(tmp_path, pieces=False) == [lines, lines]
    parts = texts(tmp_path)
    assert "".join(parts) == lines * 2
    assert len(parts) > 10
    assert min(map(len, parts)) > 15_000  # what is left over stays with the part before it


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("form", [*WRITE, ".txt"])
def test_truncated(form: str, compression: str, tmp_path: Path) -> None:
    records = [f"{number} " * 50 for number in range(3000)]
    plain = WRITE[form](records) if form in WRITE else "\n".join(records).encode()
    data = COMPRESS[compression](plain)
    path = tmp_path / f"a{form}{compression}"
    for cut in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert f"a{form}{compression}: the " in complaint(path)
        assert "data is cut short or damaged after " in complaint(path)
    path.write_bytes(b"this is not compressed")
    assert "data is cut short or damaged after " in complaint(path)
    if form != ".txt":  # what comes before the damage is kept
        path.write_bytes(data[:-1])
        (tmp_path / "b.jsonl").write_bytes(jsonl(["whole"]))
        found = Corpus([tmp_path], on_error="skip")
        kept = [document.text.decode() for document in found.documents()]
        assert kept[:-1] == records[: len(kept) - 1]
        assert kept[-1] == "whole"
        assert found.skipped.files_damaged == 1
        assert "cut short" in str(found.skipped.first)


def test_objects_that_follow_each_other_in_a_json_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_superposition.data.readers.records._CHUNK", 7)  # values across chunks
    records = [record for record in RECORDS if record]
    for name, content in (
        ("lines.json", jsonl(records).decode()),
        ("one.json", json.dumps({"text": "alone"}, indent=2)),
        ("spaced.json", "\n [ " + " ,\n".join(json.dumps({"text": record}) for record in records) + " ] \n"),
        ("lists.json", "".join(json.dumps([{"text": record}]) for record in records)),
        ("none.json", "[]"),
    ):
        (tmp_path / name).write_text(content)
    assert texts(tmp_path / "lines.json") == texts(tmp_path / "spaced.json") == records
    assert texts(tmp_path / "lists.json") == records
    assert texts(tmp_path / "one.json") == ["alone"]
    assert "holds no text" in complaint(tmp_path / "none.json")
    for content, said in (
        ('[{"text": "a"}, {"text"', "a.json:2: is not JSON ("),
        ('[{"text": "a"}', "a.json:2: the list does not end"),
        ('[{"text": "a"}] and more', "a.json:2: is not JSON (Expecting value"),
        ("[1]", "a.json:1: is a JSON int, not an object"),
        ('[{"body": "a"}]', "a.json:1: has no key 'text' (keys: body)"),
    ):
        (tmp_path / "a.json").write_text(content)
        assert said in complaint(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'[{"text": "\xff"}]')
    assert "is not UTF-8" in complaint(tmp_path / "a.json")


def test_a_fault_in_a_long_json_file_is_said_where_it_is(tmp_path: Path) -> None:
    """And not that a record is too long, when all of the file has been read in search of its end."""
    (tmp_path / "a.json").write_text('[{"text": "a"}, {text: "b"}' + ', {"text": "c"}' * 200_000 + "]")
    message = complaint(tmp_path / "a.json", max_document_bytes=1000)
    assert "a.json:2: is not JSON (Expecting property name" in message


def test_bad_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for content, said in (
        (b"id,body\n1,x\n", "a.csv: has no column 'text' (columns: id, body); name the text with --text-key"),
        (b"id,text\n1,ab\xffc\n", "a.csv:1: column 'text' is not UTF-8 (byte 2 of the field)"),
        (b"id,text\n1,good\n2\n", "a.csv:2: has 1 fields, but the first row has 2"),
        (b'id,text\n1,"open\n', "a.csv:1: is not CSV ("),
        (b'"id"x,text\n1,a\n', "a.csv, first row: is not CSV ("),
    ):
        path.write_bytes(content)
        assert said in complaint(path)
    path.write_bytes(b"id,text\n1,good\n" + b"x" * 5000 + b",2\n")  # never in memory as a whole
    assert "a.csv:2 is longer than 1,000 bytes" in complaint(path, max_document_bytes=1000)
    path.write_bytes(b"id\ttext\n1\ta\n")
    path.rename(tmp_path / "a.tsv")
    assert texts(tmp_path / "a.tsv") == ["a"]


def test_a_long_file_in_ranges_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the ranges fall: in a line, at its end, in a character."""
    records = [f"{number} é 日本 🙂" * (number % 5) or "-" for number in range(60)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(records))
    lines = "".join(f"{record}\n" for record in records)
    (tmp_path / "a.txt").write_text(lines)
    lines = "\ufeff" + lines.replace("\n", "\n\ufeff")  # the mark of an encoding, but within a text
    (tmp_path / "a.txt").write_text("\ufeff" + lines)
    (tmp_path / "one-line.txt").write_text("é日🙂" * 600)
    for size in (64, 97, 256, 1000):
        monkeypatch.setattr(corpus, "_SMALLEST_PIECE", size)
        monkeypatch.setattr(corpus, "RANGE_BYTES", size)
        monkeypatch.setattr(text, "_SEARCHED", 40)
        found = Corpus([tmp_path / "a.jsonl"])
        assert len(found.pieces()) > 1
        documents = list(found.documents())
        assert [document.text.decode() for document in documents] == records
        assert str(documents[-1].origin).endswith(":60")
        for name, whole in (("a.txt", lines), ("one-line.txt", "é日🙂" * 600)):
            assert len(Corpus([tmp_path / name]).pieces()) > 1
            assert "".join(texts(tmp_path / name)) == whole


def test_lines_are_counted_where_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each range of a long file would else read all that is before it."""
    monkeypatch.setattr(corpus, "_SMALLEST_PIECE", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([str(number) for number in range(100)]) + b"[]\n")
    assert "a.jsonl:101: is a JSON list" in complaint(path)
    path.write_bytes(path.read_bytes()[:-3])
    monkeypatch.setattr(records, "_lines_before", None)
    assert texts(path) == [str(number) for number in range(100)]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_compressed_text_without_any_place_to_cut(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_SEARCHED", 7)
    for size in (100, 101, 102, 103):
        monkeypatch.setattr(text, "RANGE_BYTES", size)
        for whole in ("日" * 700, "é🙂" * 300):
            (tmp_path / f"a.txt{compression}").write_bytes(COMPRESS[compression](whole.encode()))
            found = texts(tmp_path / f"a.txt{compression}")
            assert "".join(found) == whole
            assert max(map(len, found)) < 110
    (tmp_path / f"a.txt{compression}").write_bytes(COMPRESS[compression]("日".encode()[:-1]))
    for limit in (1, 2, 3):
        assert "is not UTF-8 text (byte 0: " in complaint(tmp_path / f"a.txt{compression}", max_document_bytes=limit)


def test_invalid_utf8_is_counted_and_its_first_place_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"abc\xff\xffde\xff")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "too"}\n{"text": 3}\nno\n')
    assert "b.txt: is not UTF-8 text (byte 3: invalid start byte, and 2 more); convert it" in complaint(tmp_path)
    found = Corpus([tmp_path], on_error="skip")
    assert [document.text for document in found.documents()] == [b"good", b"too"]
    assert (found.skipped.documents_not_utf8, found.skipped.records_not_readable) == (2, 2)
    assert str(found.skipped.first).startswith(f"{tmp_path}/b.txt: is not UTF-8 text (byte 3")


@pytest.mark.parametrize("form", WRITE)
def test_a_record_that_is_too_long(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{form}"
    path.write_bytes(WRITE[form](["short", "x" * 3000, "short too"]))
    message = complaint(path, max_document_bytes=1000)
    assert f"a{form}:2" in message
    assert "--max-document-bytes" in message
    if form != ".csv":  # where a row of it goes on is not known
        found = Corpus([path], on_error="skip", max_document_bytes=1000)
        assert [document.text for document in found.documents()] == [b"short", b"short too"]
        assert found.skipped.documents_too_long == 1


def test_a_text_that_is_too_long_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONGEST_CUT", 300)
    monkeypatch.setattr(corpus, "RANGE_BYTES", 1000)
    lines = "".join(f"line {number}\n" for number in range(800))
    for number in range(25):  # too many to be cut for being few
        (tmp_path / f"{number:02d}.txt").write_text("short")
    (tmp_path / "long.txt").write_text(lines)
    (tmp_path / "long2.txt.gz").write_bytes(gzip.compress(lines.encode()))
    found = texts(tmp_path, max_document_bytes=2000)
    assert found[:25] == ["short"] * 25
    assert "".join(found[25:]) == lines * 2
    assert max(len(part) for part in found) < 700


def test_patterns_and_folders(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/d.json", "sub/e.csv", "f.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = WRITE[".json"]([name]) if "json" in name else name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert texts(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    found = Corpus([tmp_path])
    assert [document.text for document in found.documents()] == [b"a.txt", b"b.txt", b"f.json.gz", b"sub/c.txt"]
    assert found.skipped.files_of_unknown_suffix == 2  # .json and .csv are named by a pattern
    assert texts(f"{tmp_path}/sub/*.json") == ["sub/d.json"]
    assert "no file matches" in complaint(f"{tmp_path}/*.rst")
    assert "is in two sources" in complaint(f"{tmp_path}/*.txt", tmp_path / "a.txt")
    (tmp_path / "odd[1].txt").write_text("odd")
    assert texts(tmp_path / "odd[1].txt") == ["odd"]  # a file of that name is no pattern


def test_parquet_of_other_string_types(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    values = ["a", None, "é", "", "a"]
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        array = pyarrow.array(values, pyarrow.string()).cast(kind)
        parquet.write_table(pyarrow.table({"text": array}), tmp_path / "a.parquet", row_group_size=2)
        assert texts(tmp_path / "a.parquet") == ["a", "é", "a"]
    bad = pyarrow.array([b"good", b"a\xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    assert "a.parquet:1: is not UTF-8 (byte 1 of the text)" in complaint(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", on_error="skip") == ["good"]
    part = pyarrow.array(["a", "b", "", "d"], pyarrow.large_string()).slice(1)  # as it lies, offsets and all
    assert list(parquet_reader.texts_of(part)) == [b"b", b"", b"d"]
    parquet.write_table(pyarrow.table({"text.x": ["no"], "text": ["yes"]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["yes"]
    rows = pyarrow.array([b"good"] * 7 + [b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_SMALLEST_PIECE", 1)
        assert len(Corpus([tmp_path / "a.parquet"]).pieces()) > 2
        assert "a.parquet:7: is not UTF-8" in complaint(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["short", "x" * 99]}), tmp_path / "a.parquet")
    assert "a.parquet:1 is longer than 50 bytes" in complaint(tmp_path / "a.parquet", max_document_bytes=50)


def test_a_data_set_of_the_hub_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for number in range(3):
        (tmp_path / "set" / f"train-{number}.jsonl").write_bytes(jsonl([f"{number}.{row}" for row in range(4)]))
    (tmp_path / "set" / "test-0.jsonl").write_bytes(jsonl(["held out"]))
    source = f"hf:{tmp_path}/set"
    found = Corpus([source])
    assert len(found.pieces()) == 3
    assert sorted(document.text.decode() for document in found.documents()) == [
        f"{number}.{row}" for number in range(3) for row in range(4)
    ]
    assert texts(f"{source}:test") == ["held out"]
    assert "has no column 'body' (columns: id, text)" in complaint(source, text_key="body")
    assert "cannot be loaded (" in complaint(f"{source}:gone")
    assert "cannot be loaded (" in complaint(f"hf:{tmp_path}/gone")
    assert "write hf:NAME" in complaint("hf:")
