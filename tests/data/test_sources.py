"""Sources: every document once, in an order that is ours, and bad input named with its place."""

from __future__ import annotations

import gzip
import json
import os
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from token_superposition.data.readers import Corpus
from token_superposition.errors import UserError


def texts(*sources: str | Path, text_key: str = "text") -> list[str]:
    return [document.text.decode() for document in Corpus(sources, text_key=text_key).documents()]


def complaint(sources: Sequence[str | Path], text_key: str = "text") -> str:
    """The one line that reading these sources to the end is answered with."""
    with pytest.raises(UserError) as raised:
        list(Corpus(sources, text_key=text_key).documents())
    message = str(raised.value)
    assert "\n" not in message
    return message


def write_jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_folder_is_walked_in_order_without_hidden_and_unknown_files(tmp_path: Path) -> None:
    for name in ("b.md", "a.txt", "sub/c.PY", ".hidden/no.txt", ".no.txt", "no.bin", "no", "sub/no.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    write_jsonl(tmp_path / "sub" / "z.jsonl", {"text": "one"}, {"text": "two"})
    corpus = Corpus([tmp_path])
    assert [document.text.decode() for document in corpus.documents()] == [
        "a.txt",
        "b.md",
        "sub/c.PY",
        "one",
        "two",
    ]
    assert corpus.skipped.files_of_unknown_suffix == 3
    assert corpus.skipped.empty_documents == 2
    assert corpus.bytes_done == corpus.total_bytes > 0


def test_the_order_is_not_the_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/2.txt", "a/1.txt", "b/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = texts(tmp_path)
    walk = os.walk

    def backwards(*arguments: Any, **options: Any) -> Any:
        for folder, folders, names in walk(*arguments, **options):
            folders.reverse()
            yield folder, folders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    assert texts(tmp_path) == before == ["a/1.txt", "a/2.txt", "b/3.txt"]


def test_a_file_named_explicitly_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\n")
    assert texts(tmp_path / "notes.xyz") == ["naïve\r\n"]  # without the mark of its encoding


def test_jsonl_plain_and_compressed(tmp_path: Path) -> None:
    lines = '\ufeff{"body": "ä", "id": 1}\n\n{"body": null}\n{"body": "\\ud83d\\ude00"}'.encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("a.jsonl", "b.jsonl.gz"):
        corpus = Corpus([tmp_path / name], text_key="body")
        found = [(document.text.decode(), str(document.origin)) for document in corpus.documents()]
        assert found == [("ä", f"{tmp_path / name}:1"), ("😀", f"{tmp_path / name}:4")]
        assert corpus.skipped.empty_documents == 1


def test_parquet(tmp_path: Path) -> None:
    wanted = [f"row {row}" for row in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", {"text": [*wanted[:500], None, *wanted[500:]], "id": [1] * 1001})
    documents = list(Corpus([path]).documents())
    assert [document.text.decode() for document in documents] == wanted
    assert documents[-1].origin == f"{path}:1000"
    with pytest.raises(UserError, match=r"has no column 'body' \(columns: text, id\); name the text with --text-key"):
        texts(path, text_key="body")
    assert complaint([path], "id").endswith("column 'id' is int64, not string")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert complaint([tmp_path / "a.parquet"]).endswith("pip install 'token-superposition[parquet]'")


def test_damaged_containers(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", {"text": ["a" * 99] * 99}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    assert "cut.parquet: is not parquet, or is cut short or damaged (" in complaint([tmp_path / "cut.parquet"])
    records = "".join(json.dumps({"text": f"{number} " * 20}) + "\n" for number in range(2000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(records.encode())[:-2000])
    message = complaint([tmp_path / "cut.jsonl.gz"])
    assert "cut.jsonl.gz: the gzip data is cut short or damaged after line " in message
    (tmp_path / "plain.jsonl.gz").write_bytes(records.encode())
    assert "damaged after line 0" in complaint([tmp_path / "plain.jsonl.gz"])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"text": "cut', "a.jsonl:2: is not JSON (Unterminated string starting, column 10)"),
        (
            b'{"body": "x", "id": 1}',
            "a.jsonl:2: has no key 'text' (keys: body, id); name the text with --text-key; a key inside another is "
            "named with a dot, such as meta.text, or skip bad documents (--on-error skip)",
        ),
        (b'{"text": 3}', "a.jsonl:2: the value of 'text' is of type int, not a string"),
        (b'["x"]', "a.jsonl:2: is a JSON list, not an object with a text key"),
        (b'{"text": "\xff"}', "a.jsonl:2: is not UTF-8 (byte 10 of the line)"),
        (
            b'{"text": "ab\\ud800"}',
            "a.jsonl:2: the value of 'text' is not Unicode text (a lone surrogate at character 2)",
        ),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: bytes, wanted: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    assert complaint([tmp_path / "a.jsonl"]) == f"{tmp_path}/{wanted}"


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    wanted = f"{tmp_path}/latin.txt: is not UTF-8 text (byte 1: "
    assert complaint([tmp_path / "latin.txt"]).startswith(wanted)
    assert complaint([tmp_path]).startswith(wanted)  # not skipped: the user means the folder to be read


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\x89")
    assert complaint([]).startswith("no source was given")
    assert complaint(["pyton"]) == "pyton: no such file or folder; did you mean 'python'?"
    assert complaint([tmp_path / "gone.txt"]) == f"{tmp_path}/gone.txt: no such file or folder"
    assert complaint([tmp_path / "empty.txt"]) == f"{tmp_path}/empty.txt: is empty; leave it out"
    assert "holds no text" in complaint([tmp_path / "blank.txt"])
    assert "no text in this folder (1 files of unknown suffix)" in complaint([tmp_path / "pictures"])
    assert "is named twice" in complaint([tmp_path / "a.txt", f"{tmp_path}/./a.txt"])
    assert "a.txt: is in two sources" in complaint([tmp_path, tmp_path / "a.txt"])
    assert "neither a file nor a folder" in complaint([os.devnull])


def test_links_of_a_folder_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "sub" / "a.txt").write_text("a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "b.txt").write_text("b")
    (tmp_path / "mine" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "again").symlink_to(tmp_path / "elsewhere" / "sub")
    (tmp_path / "mine" / "round").symlink_to(tmp_path / "mine")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "mine")
    assert sorted(texts(tmp_path / "mine")) == ["a", "b"]


def test_what_is_no_file_in_a_folder_is_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe.jsonl.gz")
    assert complaint([tmp_path]) == f"{tmp_path}/pipe.jsonl.gz: is not a regular file; leave it out"
    assert "standard input (-)" in complaint([tmp_path / "pipe.jsonl.gz"])
    (tmp_path / "pipe.jsonl.gz").unlink()
    (tmp_path / "gone.txt").symlink_to("nowhere")
    assert complaint([tmp_path]) == f"{tmp_path}/gone.txt: cannot be read (No such file or directory)"


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))  # what root never meets

    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert complaint([tmp_path]) == f"{tmp_path}/a.txt: cannot be read (Permission denied)"


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Python installation: site-packages inside the standard library's folder, as usual."""
    library = tmp_path / "lib" / "python3"
    packages = library / "site-packages"
    for name in (
        "json.py",
        "asyncio/loop.py",
        "test/no.py",
        "idlelib/idle_test/no.py",
        "__pycache__/no.py",
        "site-packages/pack/a.py",
        "site-packages/pack/testing/b.py",
        "site-packages/pack/tests/no.py",
        "site-packages/pack/test_no.py",
        "site-packages/pack/no_test.py",
        "site-packages/pack/conftest.py",
        "site-packages/pack/no.pyi",
        "site-packages/pack/data.jsonl",
    ):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}\n")
    (packages / "latin.py").write_bytes("# für\n".encode("latin-1"))
    (packages / "pack" / "__init__.py").write_text("")
    (packages / "gone.py").symlink_to("nowhere")
    paths = {"stdlib": str(library), "purelib": str(packages), "platlib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return tmp_path


@pytest.mark.usefixtures("installation")
def test_python_is_library_and_packages_once_without_tests() -> None:
    corpus = Corpus(["python"])
    assert [document.text.decode() for document in corpus.documents()] == [
        "# json.py\n",
        "# asyncio/loop.py\n",
        "# site-packages/pack/a.py\n",
        "# site-packages/pack/testing/b.py\n",
    ]
    skipped = corpus.skipped
    assert (skipped.files_not_utf8, skipped.empty_documents, skipped.files_unreadable) == (1, 1, 1)


def test_a_folder_named_python_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("python").mkdir()
    Path("python/a.txt").write_text("mine")
    assert texts("./python") == texts(Path("python")) == ["mine"]


def test_python_on_this_machine() -> None:
    corpus = Corpus(["python"])
    assert corpus.sizes["python"]["files"] > 300
    assert any(b"class JSONDecoder" in document.text for document in corpus.documents())
