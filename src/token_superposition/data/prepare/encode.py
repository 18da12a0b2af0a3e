"""Encoding a piece: its documents read, hashed and turned into ids, and left on the disk as runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from token_superposition.data.prepare import runs as on_disk
from token_superposition.data.prepare.runs import ROW, Ids, Run, hash_text, places_of, write_run
from token_superposition.data.sources import Document, Piece, Reading, Skipped, read_piece
from token_superposition.data.tokenizers import Tokenizer

_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass
class Progress:
    """How far something has come: bytes of the sources, and the documents and tokens that came out."""

    done: int = 0
    documents: int = 0
    tokens: int = 0

    def plus(self, other: Progress) -> Progress:
        """Both together."""
        return Progress(self.done + other.done, self.documents + other.documents, self.tokens + other.tokens)


@dataclass(frozen=True)
class Encoder:
    """Encodes pieces into runs in a folder.

    Attributes:
        folder: where runs go.
        tokenizer: what encodes.
        reading: how sources are read.
        seed: of the documents' order.
    """

    folder: Path
    tokenizer: Tokenizer
    reading: Reading
    seed: int

    def encode(self, number: int, piece: Piece, report: Callable[[Progress], None]) -> dict[str, Any]:
        """Encode one piece.

        Args:
            number: of the piece; its files are called by it.
            piece: what to read.
            report: called now and then.

        Returns:
            `runs`, and `skipped`, both as JSON.

        Raises:
            UserError: for what is wrong with the source.
        """
        skipped = Skipped()
        runs: list[Run] = []
        batch: list[Document] = []
        size, progress, reported = 0, Progress(), time.monotonic()

        def flush() -> None:
            nonlocal size
            if batch:
                runs.append(self._write(f"piece-{number:06d}-{len(runs):04d}", batch))
                progress.documents += runs[-1].documents
                progress.tokens += runs[-1].tokens + runs[-1].documents
                batch.clear()
                size = 0

        for document in read_piece(piece, self.reading, skipped, self.tokenizer):
            batch.append(document)
            size += len(document.text) if document.ids is None else document.ids.nbytes
            if size >= on_disk.RUN_BYTES or len(batch) >= on_disk.RUN_ROWS:
                flush()
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported, progress.done = time.monotonic(), min(skipped.bytes_done, piece.size)
                report(progress)
        flush()
        progress.done = piece.size
        report(progress)
        return {"runs": [run.as_dict() for run in runs], "skipped": skipped.counts()}

    def _write(self, name: str, documents: list[Document]) -> Run:
        number_of: dict[bytes, int] = {}  # of each text among the different ones
        times: list[int] = []
        different: list[Document] = []
        for document in documents:
            number = number_of.setdefault(_hash(document), len(different))
            if number == len(different):
                different.append(document)
                times.append(0)
            times[number] += 1
        rows = np.zeros(len(different), dtype=ROW)
        hashes = list(number_of)
        rows["high"], rows["low"] = np.frombuffer(b"".join(hashes), dtype=">u8").reshape(-1, 2).T
        rows["place"] = places_of(hashes, self.seed)
        rows["times"] = times
        ids, rows["bytes"], rows["counted"] = self._encode(different)
        rows["tokens"] = [len(each) for each in ids]
        return write_run(self.folder, name, rows, ids)

    def _encode(self, documents: list[Document]) -> tuple[list[Ids], list[int], list[int]]:
        """Of each document its ids, how many bytes it is, and how many its tokens stand for."""
        lengths = self.tokenizer.byte_lengths()
        encoded = iter(self.tokenizer.encode_documents([each.text for each in documents if each.ids is None]))
        ids, num_bytes, counted = [], [], []
        for document in documents:
            if document.ids is None:
                own = next(encoded)
                num_bytes.append(len(document.text))
                counted.append(len(document.text) if self.tokenizer.is_exact else int(lengths[own].sum()))
            else:
                own = document.ids.astype(self.tokenizer.encoded_dtype)
                num_bytes.append(int(lengths[own].sum()))
                counted.append(num_bytes[-1])
            ids.append(own)
        return ids, num_bytes, counted


def _hash(document: Document) -> bytes:
    if document.ids is None:
        return hash_text(document.text)
    return hash_text(np.ascontiguousarray(document.ids, dtype="<u4").data)  # known by its ids alone
