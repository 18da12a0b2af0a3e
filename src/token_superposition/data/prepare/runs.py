"""Runs: what encoding leaves on the disk for writing, each sorted by the place of its documents.

A document's place is a hash of the seed and its text. Training documents lie by it: a shuffle of the whole
corpus that needs no memory and does not depend on how the corpus was cut up. A run is a part of a piece that
fits into memory, sorted by place, in two files: the ids of its documents one after the other, without their
ends and in the tokenizer's narrowest integers; and the index, a row a document. Writing merges the runs, a
range of places at a time: of each run a range lies in one stretch, so reading goes straight through it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.files import naming

# place: orders training documents. high, low: BLAKE2b-128 of the text. tokens: without the end. bytes: of the text.
# counted: what the tokenizer's byte lengths add up to; the same as bytes, unless it changes text.
ROW = np.dtype(
    [("place", "<u8"), ("high", "<u8"), ("low", "<u8"), ("tokens", "<u8"), ("bytes", "<u8"), ("counted", "<u8")]
)
Rows = NDArray[np.void]


def hash_text(text: bytes | memoryview) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text, digest_size=16).digest()


def place_of(text_hash: bytes, seed: int) -> bytes:
    """8 bytes, big endian: where the training document of that hash lies."""
    return hashlib.blake2b(text_hash, digest_size=8, key=str(seed).encode()).digest()


@dataclass(frozen=True)
class Run:
    """A run on the disk.

    Attributes:
        name: of its files, without suffix.
        documents, tokens, bytes: in it; tokens without ends.
        ids_bytes: length of the file of ids.
        ids_crc, index_crc: CRC-32 of its files.
    """

    name: str
    documents: int
    tokens: int
    bytes: int
    ids_bytes: int
    ids_crc: int
    index_crc: int

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Its ids and its index."""
        return folder / f"{self.name}.ids", folder / f"{self.name}.index"

    def is_whole(self, folder: Path) -> bool:
        """Whether the files are there as they were written: a power cut can lose what was never flushed."""
        try:
            ids, index = (path.read_bytes() for path in self.files(folder))
        except OSError:
            return False
        return (zlib.crc32(ids), zlib.crc32(index)) == (self.ids_crc, self.index_crc)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON object."""
        return asdict(self)


def write_run(
    folder: Path,
    name: str,
    ids: Sequence[NDArray[np.unsignedinteger[Any]]],
    hashes: Sequence[bytes],
    num_bytes: Sequence[int],
    counted: Sequence[int],
    seed: int,
) -> Run:
    """Write a run, sorted.

    Args:
        folder, name: where.
        ids: of each document, all of one dtype.
        hashes, num_bytes, counted: of each document.
        seed: of the order.
    """
    rows = np.zeros(len(ids), dtype=ROW)
    pair = np.frombuffer(b"".join(hashes), dtype=">u8").reshape(-1, 2)
    rows["high"], rows["low"] = pair.T
    rows["place"] = np.frombuffer(b"".join(place_of(each, seed) for each in hashes), dtype=">u8")
    rows["tokens"] = [len(each) for each in ids]
    rows["bytes"], rows["counted"] = num_bytes, counted
    order = np.argsort(rows["place"], kind="stable")
    rows = rows[order]
    run = Run(name, len(ids), int(rows["tokens"].sum()), int(rows["bytes"].sum()), 0, 0, zlib.crc32(rows.data))
    ids_file, index_file = run.files(folder)
    crc = size = 0
    with naming(ids_file), ids_file.open("wb", buffering=2**20) as file:
        for place in order.tolist():
            part = ids[place].data
            file.write(part)
            crc = zlib.crc32(part, crc)
            size += part.nbytes
    with naming(index_file), index_file.open("wb") as file:
        file.write(rows.data)
    return Run(run.name, run.documents, run.tokens, run.bytes, size, crc, run.index_crc)


class RunReader:
    """Reads a run from its begin to its end, a range of places at a time; holds no file open, for runs are many.

    Args:
        folder, run: what to read.
        dtype: of its ids.
        rows_at_once: how many rows of the index to read at a time.
    """

    def __init__(self, folder: Path, run: Run, dtype: np.dtype[Any], rows_at_once: int) -> None:
        self._ids_file, self._index_file = run.files(folder)
        self._run = run
        self._dtype = dtype
        self._rows_at_once = rows_at_once
        self._rows: Rows = np.empty(0, dtype=ROW)
        self._rows_read = 0
        self._offset = 0  # of the ids not yet taken

    def take(self, before: int) -> Rows:
        """The rows not yet taken whose place is under `before`."""
        while self._rows_read < self._run.documents and not (
            len(self._rows) and int(self._rows["place"][-1]) >= before
        ):
            more = np.fromfile(
                self._index_file, dtype=ROW, count=self._rows_at_once, offset=self._rows_read * ROW.itemsize
            )
            self._rows_read += len(more)
            self._rows = np.concatenate([self._rows, more])
        places = self._rows["place"]
        cut = len(places) if before >= 2**64 else int(np.searchsorted(places, np.uint64(before)))
        taken, self._rows = self._rows[:cut], self._rows[cut:]
        return taken

    def take_ids(self, rows: Rows) -> NDArray[np.unsignedinteger[Any]]:
        """The ids of the rows taken last, one document after the other."""
        count = int(rows["tokens"].sum())
        if not count:
            return np.empty(0, dtype=self._dtype)
        ids = np.fromfile(self._ids_file, dtype=self._dtype, count=count, offset=self._offset)
        self._offset += ids.nbytes
        return ids
