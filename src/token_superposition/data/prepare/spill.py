"""Runs: what encoding leaves on the disk for writing, each sorted by the place of its documents.

A document's place is a hash of the seed and its text. Training documents lie by it: a shuffle of the whole
corpus that needs no memory and does not depend on how the corpus was cut up. A run is a part of a piece that
fits into memory, sorted by place, in two files: the ids of its texts one after the other, without their
ends and in the tokenizer's narrowest integers; and the index, a row a text. Writing merges the runs, a
range of places at a time: of each run a range lies in one stretch, so reading goes straight through it.

Equal texts of a run are one row, which says how often. What the copies after the first are to have as places of
their own depends on how many there are in all runs, so runs of copies are written when all are there (`texts`).
"""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.files import naming

RUN_BYTES, RUN_ROWS = 2**24, 2**18  # of text or ids, and how many, that are held until they are written
_RANGE_BYTES, _RANGE_ROWS = 2**23, 2**18
_HELD_ROWS = 2**20  # of all runs together, beside those of a range
_PLACES = 2**64

# place: orders training documents. high, low: BLAKE2b-128 of the text. tokens: without the end. bytes: of the text.
# counted: what the tokenizer's byte lengths add up to; the same as bytes, unless it changes text. times: how many
# equal texts of the run the row stands for; 0: it is a copy, which has a place of its own and stands for itself alone.
ROW = np.dtype([(name, "<u8") for name in ("place", "high", "low", "tokens", "bytes", "counted", "times")])
Rows = NDArray[np.void]
Ids = NDArray[np.unsignedinteger[Any]]


def hash_text(text: bytes | memoryview) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text, digest_size=16).digest()


def places_of(hashes: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Where the training documents of those hashes lie; a copy's hash is its text's, and then its number."""
    key = str(seed).encode()
    places = b"".join(hashlib.blake2b(each, digest_size=8, key=key).digest() for each in hashes)
    return np.frombuffer(places, dtype=">u8").astype(np.uint64)


@dataclass(frozen=True)
class Run:
    """A run on the disk.

    Attributes:
        name: of its files, without suffix.
        rows: of its index.
        documents, tokens: in it, equal ones as often as they are there; tokens without ends.
        ids_bytes: length of the file of ids.
        ids_crc, index_crc: CRC-32 of its files.
    """

    name: str
    rows: int
    documents: int
    tokens: int
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


def write_run(folder: Path, name: str, rows: Rows, ids: Sequence[Ids]) -> Run:
    """Write a run, sorted.

    Args:
        folder, name: where.
        rows: of its texts, in any order.
        ids: of each of them, all of one dtype.
    """
    order = np.argsort(rows["place"], kind="stable")
    rows = rows[order]
    times = np.maximum(rows["times"], 1)
    ids_file, index_file = (folder / f"{name}.{suffix}" for suffix in ("ids", "index"))
    crc = size = 0
    with naming(ids_file), ids_file.open("wb", buffering=2**20) as file:
        for place in order.tolist():
            part = ids[place].data
            file.write(part)
            crc = zlib.crc32(part, crc)
            size += part.nbytes
    with naming(index_file), index_file.open("wb") as file:
        file.write(rows.data)
    tokens = int((rows["tokens"] * times).sum())
    return Run(name, len(rows), int(times.sum()), tokens, size, crc, zlib.crc32(rows.data))


@dataclass(frozen=True)
class Stretch:
    """The part of a run that lies in one range of places.

    Attributes:
        rows: of its index.
        file, offset: where their ids are, in bytes.
        dtype: of the ids.
    """

    rows: Rows
    file: Path
    offset: int
    dtype: np.dtype[Any]

    def read(self, wanted: NDArray[np.bool_]) -> list[Ids]:
        """The ids of the wanted rows."""
        lengths = self.rows["tokens"].astype(np.int64)
        ends = np.cumsum(lengths)
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        found: list[Ids] = []
        for first, last in edges.reshape(-1, 2).tolist():  # rows side by side are read in one
            begin = int(ends[first] - lengths[first])
            count = int(ends[last - 1]) - begin
            offset = self.offset + begin * self.dtype.itemsize
            # An empty file cannot be read from: it may be at its end.
            ids = np.fromfile(self.file, self.dtype, count, offset=offset) if count else np.empty(0, self.dtype)
            found += np.split(ids, ends[first : last - 1] - begin)
        return found


def read_ranges(folder: Path, runs: Sequence[Run], dtype: np.dtype[Any]) -> Iterator[list[Stretch]]:
    """All runs, a range of places at a time: of each run that has something there, its stretch.

    Runs and ranges are both many: no file is held open, and a run is not asked for a range in which it has nothing.

    Args:
        folder, runs: what to read.
        dtype: of the ids.
    """
    rows = sum(run.rows for run in runs)
    ranges = max(1, -(-sum(run.ids_bytes for run in runs) // _RANGE_BYTES), -(-rows // _RANGE_ROWS))
    more = min(64, max(4, _HELD_ROWS // max(1, len(runs))))  # so that a terabyte's runs, 60,000, hold little each
    rows_at_once = 2 * (rows // ranges // max(1, len(runs))) + more
    readers = [_Reader(folder, run, dtype, rows_at_once) for run in runs]
    next_places = np.array([reader.next_place() for reader in readers], dtype=np.uint64)
    for number in range(1, ranges + 1):
        last = np.uint64(_PLACES * number // ranges - 1)
        stretches = []
        for due in np.flatnonzero(next_places <= last).tolist():
            stretches.append(readers[due].take(last))
            next_places[due] = readers[due].next_place()
        if stretches:
            yield stretches


class _Reader:
    """Reads a run's index from its begin to its end, so many rows at a time."""

    def __init__(self, folder: Path, run: Run, dtype: np.dtype[Any], rows_at_once: int) -> None:
        self._ids_file, self._index_file = run.files(folder)
        self._run = run
        self._dtype = dtype
        self._rows_at_once = rows_at_once
        self._rows: Rows = np.empty(0, dtype=ROW)
        self._rows_read = 0
        self._offset = 0  # of the ids not yet taken

    def next_place(self) -> int:
        """Of the first row not yet taken; of none, the last place there is."""
        if not len(self._rows) and self._rows_read < self._run.rows:
            self._read_on()
        return int(self._rows["place"][0]) if len(self._rows) else _PLACES - 1

    def take(self, last: np.uint64) -> Stretch:
        """What is not yet taken and has a place up to `last`."""
        while self._rows_read < self._run.rows and not (len(self._rows) and self._rows["place"][-1] > last):
            self._read_on()
        cut = int(np.searchsorted(self._rows["place"], last, side="right"))
        taken, self._rows = self._rows[:cut], self._rows[cut:]
        stretch = Stretch(taken, self._ids_file, self._offset, self._dtype)
        self._offset += int(taken["tokens"].sum()) * self._dtype.itemsize
        return stretch

    def _read_on(self) -> None:
        more = np.fromfile(self._index_file, ROW, self._rows_at_once, offset=self._rows_read * ROW.itemsize)
        if not len(more):
            raise OSError(errno.EIO, "ends before its last row", str(self._index_file))
        self._rows_read += len(more)
        self._rows = np.concatenate([self._rows, more])
