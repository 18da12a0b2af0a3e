"""Which column is the text: inside another, there twice, missing or not of text; and what `save_to_disk` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_formats import RECORDS, complaint, texts
from token_superposition.data.readers import Corpus

NESTED = [{"meta": {"text": f"inner {number}", "n": number}, "id": number} for number in range(3)]
INNER = [record["meta"]["text"] for record in NESTED]


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("form", [".jsonl", ".json", ".parquet"])
def test_a_field_inside_another_is_named_with_dots(form: str, tmp_path: Path) -> None:
    path = write_records(tmp_path / f"a{form}", NESTED)
    assert texts(path, text_key="meta.text") == INNER
    literal = write_records(tmp_path / f"b{form}", [{**record, "meta.text": "literal"} for record in NESTED])
    assert texts(literal, text_key="meta.text") == ["literal"] * 3
    deeper = write_records(tmp_path / f"c{form}", [{"a": {"b.c": record}} for record in NESTED])
    assert texts(deeper, text_key="a.b.c.meta.text") == INNER
    null = write_records(tmp_path / f"d{form}", [{"meta": None}, *NESTED])
    assert texts(null, text_key="meta.text") == INNER
    message = complaint(path)
    assert "'meta.text'" in message
    assert "dot" in message
    assert "string" in complaint(path, text_key="meta.n")
    assert complaint(path, text_key="meta")


def test_a_csv_column_with_a_dot_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,meta.text\n1,one\n2,two\n")
    assert texts(tmp_path / "a.csv", text_key="meta.text") == ["one", "two"]
    assert "'meta.text'" in complaint(tmp_path / "a.csv")


@pytest.mark.parametrize("form", [".jsonl", ".json"])
def test_records_without_a_text_are_skipped_and_counted(form: str, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"other": 1}, {"text": 3}, {"text": ["x"]}, {"text": None}, {"text": ""}]
    path = write_records(tmp_path / f"a{form}", [{"text": "one"}, *bad, {"text": "two"}])
    found = Corpus([path], on_error="skip")
    assert [document.text for document in found.documents()] == [b"one", b"two"]
    assert found.skipped.records_not_readable == 3
    assert found.skipped.empty_documents == 2
    assert f"{path}:2: " in str(found.skipped.first)
    assert f"{path}:2: " in complaint(path)


@pytest.mark.parametrize("form", [".jsonl", ".json"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_key_that_is_there_twice(form: str, inside: bool, tmp_path: Path) -> None:
    twice, good = (
        '{"text": "a", "text": "b"}',
        '{"text": "say \\"text\\": \\"text\\"", "x": {"text": "c", "y": {"text": "d"}}}',
    )
    if inside:
        twice, good = f'{{"meta": {twice}}}', f'{{"meta": {good}}}'
    lines = [good, twice, good]
    path = tmp_path / f"a{form}"
    path.write_text("[" + ",\n".join(lines) + "]" if form == ".json" else "\n".join(lines))
    key = "meta.text" if inside else "text"
    assert f"{path}:2: has the key 'text' twice" in complaint(path, text_key=key)
    found = Corpus([path], on_error="skip", text_key=key)
    assert [document.text for document in found.documents()] == [b'say "text": "text"'] * 2
    assert found.skipped.records_not_readable == 1


def test_columns_of_the_same_name(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(["one", "two"])
    parquet.write_table(pyarrow.table([column, column], names=["text", "text"]), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table([column, column, column], names=["text", "o", "o"]), tmp_path / "b.parquet")
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    for name in ("a.parquet", "a.csv"):
        assert f"{name}: has 2 columns 'text'" in complaint(tmp_path / name)
    assert texts(tmp_path / "b.parquet") == ["one", "two"]


def test_parquet_columns_that_are_no_text(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for column, said in (
        (pyarrow.array([["a"], ["b"]]), "is list<"),
        (pyarrow.array([1, 2]), "is int64"),
        (pyarrow.array([b"a", b"b"]), "is binary"),
        (pyarrow.array([1, 2]).dictionary_encode(), "is int64"),
        (pyarrow.nulls(2), "holds no text"),
    ):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
        assert said in complaint(tmp_path / "a.parquet")


def test_a_data_set_that_was_saved_to_the_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list(
        [{"text": text, **record} for text, record in zip(RECORDS, NESTED * 2, strict=True)]
    )
    wanted = [text for text in RECORDS if text.strip()]
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    splits = datasets.DatasetDict({"train": whole, "test": whole.select([3, 0])})
    splits.save_to_disk(tmp_path / "several")
    for source in (f"{tmp_path}/one", f"hf:{tmp_path}/one", f"{tmp_path}/several", f"hf:{tmp_path}/several:train"):
        assert texts(source) == wanted
    assert texts(f"hf:{tmp_path}/several:test") == [RECORDS[3], RECORDS[0]]
    assert texts(tmp_path / "one", text_key="meta.text") == INNER * 2
    arrow = sorted((tmp_path / "one").glob("*.arrow"))
    assert len(texts(*arrow)) == len(wanted)
    assert "splits: train, test" in complaint(f"hf:{tmp_path}/several:valid")
    assert "'text'" in complaint(tmp_path / "one", text_key="txt")
    arrow[1].write_bytes(arrow[1].read_bytes()[:-600])
    assert str(arrow[1]) in complaint(tmp_path / "one")
    assert Corpus([tmp_path / "one"], on_error="skip").skipped.bad == 0
    arrow[1].unlink()
    assert str(arrow[1]) in complaint(tmp_path / "one")


def test_an_arrow_file_with_an_index(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": pyarrow.array(["one", "two"], pyarrow.large_string())})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table)
    assert texts(tmp_path / "a.arrow") == ["one", "two"] * 2
