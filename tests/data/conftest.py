"""A corpus that is cut into many pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.corpora import corpus_texts, write_corpus
from token_superposition.data.prepare import pool, spill
from token_superposition.data.readers import corpus


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files in several formats that is cut into many pieces, runs and ranges."""
    monkeypatch.setattr(pool, "_FEW_BYTES", 1)
    monkeypatch.setattr(pool, "_FEW_BYTES_COSTLY", 1)
    monkeypatch.setattr(corpus, "_SMALLEST_PIECE", 4000)
    monkeypatch.setattr(spill, "RUN_BYTES", 3000)
    monkeypatch.setattr(spill, "_RANGE_BYTES", 2000)
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        write_corpus(folder / f"{number}.jsonl", corpus_texts(100, seed=number))
    write_corpus(folder / "again.jsonl", corpus_texts(30, seed=0))
    for number in range(30):
        (folder / f"{number}.md").write_text(f"# {number}\n" + "text " * 50)
    return folder
