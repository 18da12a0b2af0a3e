"""Runs: the sorted files on disk that encoding writes and that the merge reads.

The place of a document is a hash of the seed and its text. Training documents are ordered by place. This is a shuffle
of the whole corpus that needs no memory and does not depend on the pieces of the corpus.

A run is a part of a piece that fits into memory, sorted by place. It has two files: the ids of its texts one after
another (without end-of-document ids, in the smallest integers for the tokenizer), and the index with one row per text.
The merge reads all runs, one range of places at a time. In each run, a range is one contiguous stretch, so every file
is read sequentially.

Equal texts of a run are one row with their count. The places of the copies after the first copy depend on the counts of
all runs, so the runs of copies are written after all other runs (`duplicates`).
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

RUN_BYTES, RUN_ROWS = 2**24, 2**18  # the maximum bytes of text or ids, and the maximum rows, of a run
_RANGE_BYTES, _RANGE_ROWS = 2**23, 2**18
_HELD_ROWS = 2**20  # rows in memory for all runs together, in addition to the rows of a range
_PLACES = 2**64

# place: the order of training documents. high, low: BLAKE2b-128 of the text. tokens: the number of tokens, without the
# end-of-document id. bytes: the bytes of the text. counted: the sum of the byte lengths of the tokens, which equals
# bytes unless the tokenizer changes text. times: the number of equal texts of the run in this row; 0 for a copy, which
# has its own place and counts as one document.
ROW = np.dtype([(name, "<u8") for name in ("place", "high", "low", "tokens", "bytes", "counted", "times")])
Rows = NDArray[np.void]
Ids = NDArray[np.unsignedinteger[Any]]


def hash_text(text: bytes | memoryview) -> bytes:
    """Return a hash of 16 bytes for a text."""
    return hashlib.blake2b(text, digest_size=16).digest()


def places_of(hashes: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Return the places of training documents from their hashes; for a copy, the hash is followed by its number."""
    key = str(seed).encode()
    places = b"".join(hashlib.blake2b(each, digest_size=8, key=key).digest() for each in hashes)
    return np.frombuffer(places, dtype=">u8").astype(np.uint64)


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        name: the name of its files, without suffix.
        rows: the rows of its index.
        documents, tokens: the numbers of documents and tokens, with all copies, and without end-of-document ids.
        ids_bytes: the length of the file of ids.
        ids_crc, index_crc: the CRC-32 of the two files.
    """

    name: str
    rows: int
    documents: int
    tokens: int
    ids_bytes: int
    ids_crc: int
    index_crc: int

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Return the paths of the file of ids and of the index."""
        return folder / f"{self.name}.ids", folder / f"{self.name}.index"

    def is_whole(self, folder: Path) -> bool:
        """Return whether the files exist and are undamaged: a power failure can lose data that was not flushed."""
        try:
            ids, index = (path.read_bytes() for path in self.files(folder))
        except OSError:
            return False
        return (zlib.crc32(ids), zlib.crc32(index)) == (self.ids_crc, self.index_crc)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for a JSON object."""
        return asdict(self)


def write_run(folder: Path, name: str, rows: Rows, ids: Sequence[Ids]) -> Run:
    """Write a run, sorted by place.

    Args:
        folder, name: the folder, and the name of the files.
        rows: the rows of its texts, in any order.
        ids: the ids of each text, all of the same dtype.
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
    """The part of a run in one range of places.

    Attributes:
        rows: the rows of the index.
        file, offset: the file of their ids, and the offset in bytes.
        dtype: the dtype of the ids.
    """

    rows: Rows
    file: Path
    offset: int
    dtype: np.dtype[Any]

    def read(self, wanted: NDArray[np.bool_]) -> list[Ids]:
        """Return the ids of the wanted rows."""
        lengths = self.rows["tokens"].astype(np.int64)
        ends = np.cumsum(lengths)
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        found: list[Ids] = []
        for first, last in edges.reshape(-1, 2).tolist():  # adjacent rows are read together
            begin = int(ends[first] - lengths[first])
            count = int(ends[last - 1]) - begin
            offset = self.offset + begin * self.dtype.itemsize
            # np.fromfile fails for an offset at the end of a file, so nothing is read for 0 ids.
            ids = np.fromfile(self.file, self.dtype, count, offset=offset) if count else np.empty(0, self.dtype)
            found += np.split(ids, ends[first : last - 1] - begin)
        return found


def read_ranges(folder: Path, runs: Sequence[Run], dtype: np.dtype[Any]) -> Iterator[list[Stretch]]:
    """Yield for each range of places the stretches of all runs that have rows in this range.

    There can be many runs and many ranges. Therefore no file stays open, and a run is read only for ranges with rows.

    Args:
        folder, runs: the folder, and the runs to read.
        dtype: the dtype of the ids.
    """
    rows = sum(run.rows for run in runs)
    ranges = max(1, -(-sum(run.ids_bytes for run in runs) // _RANGE_BYTES), -(-rows // _RANGE_ROWS))
    more = min(64, max(4, _HELD_ROWS // max(1, len(runs))))  # a terabyte has 60,000 runs, so each holds few rows
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
    """Reads the index of a run from beginning to end, `rows_at_once` rows at a time."""

    def __init__(self, folder: Path, run: Run, dtype: np.dtype[Any], rows_at_once: int) -> None:
        self._ids_file, self._index_file = run.files(folder)
        self._run = run
        self._dtype = dtype
        self._rows_at_once = rows_at_once
        self._rows: Rows = np.empty(0, dtype=ROW)
        self._rows_read = 0
        self._offset = 0  # of the first id that was not taken yet

    def next_place(self) -> int:
        """Return the place of the first row that was not taken yet; the largest place if there is none."""
        if not len(self._rows) and self._rows_read < self._run.rows:
            self._read_on()
        return int(self._rows["place"][0]) if len(self._rows) else _PLACES - 1

    def take(self, last: np.uint64) -> Stretch:
        """Take the remaining rows with a place up to `last`."""
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
