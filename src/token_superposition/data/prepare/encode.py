"""Encoding a piece: its documents read, hashed and turned into ids, and left on the disk as runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from token_superposition.data.prepare import spill as on_disk
from token_superposition.data.prepare.spill import ROW, Ids, Run, hash_text, places_of, write_run
from token_superposition.data.readers import Document, Piece, ReadOptions, Skipped, read_piece
from token_superposition.data.readers.document import SKIP_HINT
from token_superposition.data.tokenizers import Tokenizer, is_tokenizers_own

_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass
class EncodeProgress:
    """How far something has come: bytes of the sources, and the documents and tokens that came out."""

    done: int = 0
    documents: int = 0
    tokens: int = 0

    def plus(self, other: EncodeProgress) -> EncodeProgress:
        """Both together."""
        return EncodeProgress(self.done + other.done, self.documents + other.documents, self.tokens + other.tokens)


@dataclass(frozen=True)
class _Encoded:
    """Different texts, a list for each of their properties: a million objects would be felt.

    Attributes:
        hashes, ids: of each text.
        times: how many documents have it.
        num_bytes, counted: bytes of each, and what its tokens stand for.
        lost, characters: what the tokenizer lost, of how many; empty where it loses nothing.
    """

    hashes: list[bytes] = field(default_factory=list)
    ids: list[Ids] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)


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
    reading: ReadOptions
    seed: int

    def encode(self, number: int, piece: Piece, report: Callable[[EncodeProgress], None]) -> dict[str, Any]:
        """Encode one piece.

        Args:
            number: of the piece; its files are called by it.
            piece: what to read.
            report: called now and then.

        Returns:
            `runs`, `skipped` and `characters` (lost by the tokenizer, of how many), all as JSON.

        Raises:
            UserError: for what is wrong with the source.
        """
        skipped = Skipped()
        runs: list[Run] = []
        batch: list[Document] = []
        size, progress, reported = 0, EncodeProgress(), time.monotonic()
        lost = characters = 0

        def flush() -> None:
            nonlocal size, lost, characters
            encoded = self._encode(batch, skipped)
            if encoded.ids:
                runs.append(self._write(f"piece-{number:06d}-{len(runs):04d}", encoded))
                progress.documents += runs[-1].documents
                progress.tokens += runs[-1].tokens + runs[-1].documents
                lost += sum(map(mul, encoded.lost, encoded.times))
                characters += sum(map(mul, encoded.characters, encoded.times))
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
        return {"runs": [run.as_dict() for run in runs], "skipped": skipped.counts(), "characters": [lost, characters]}

    def _write(self, name: str, encoded: _Encoded) -> Run:
        rows = np.zeros(len(encoded.ids), dtype=ROW)
        rows["high"], rows["low"] = np.frombuffer(b"".join(encoded.hashes), dtype=">u8").reshape(-1, 2).T
        rows["place"] = places_of(encoded.hashes, self.seed)
        rows["times"], rows["bytes"], rows["counted"] = encoded.times, encoded.num_bytes, encoded.counted
        rows["tokens"] = list(map(len, encoded.ids))
        return write_run(self.folder, name, rows, encoded.ids)

    def _encode(self, documents: list[Document], skipped: Skipped) -> _Encoded:
        """The different documents, but for those that cannot be encoded."""
        number_of: dict[bytes, int] = {}  # of each text among the different ones
        times: list[int] = []
        different: list[Document] = []
        for document in documents:
            number = number_of.setdefault(_hash(document), len(different))
            if number == len(different):
                different.append(document)
                times.append(0)
            times[number] += 1
        texts = [each.text for each in different if each.ids is None]
        ids_of_texts = self._ids_of(texts)
        if self.tokenizer.is_exact and len(texts) == len(different):
            ids_alone = [each for each in ids_of_texts if not isinstance(each, str)]
            if len(ids_alone) == len(texts):
                sizes = list(map(len, texts))
                return _Encoded(list(number_of), ids_alone, times, sizes, sizes)
        found = iter(ids_of_texts)
        encoded = _Encoded()
        for key, document, count in zip(number_of, different, times, strict=True):
            ids = next(found) if document.ids is None else document.ids.astype(self.tokenizer.encoded_dtype)
            if isinstance(ids, str) or not len(ids):
                self._bad(document, ids, skipped, count)
                continue
            text = document.text if document.ids is None else None
            encoded.hashes.append(key)
            encoded.ids.append(ids)
            encoded.times.append(count)
            encoded.counted.append(int(self.tokenizer.byte_lengths()[ids].sum()))
            encoded.num_bytes.append(encoded.counted[-1] if text is None else len(text))
            lost, characters = self.tokenizer.count_lost(text, ids)
            encoded.lost.append(lost)
            encoded.characters.append(characters)
        return encoded

    def _bad(self, document: Document, ids: Ids | str, skipped: Skipped, times: int) -> None:
        what = ids if isinstance(ids, str) else "it gives no token"
        message = (
            f"{document.origin}: tokenizer {self.tokenizer.name!r} cannot encode this document ({what}); "
            f"name another tokenizer, leave the document out, {SKIP_HINT}"
        )
        self.reading.bad(skipped, "documents_not_encoded", message, times)

    def _ids_of(self, texts: list[bytes]) -> list[Ids | str]:
        """Of each text its ids, or what the tokenizer says against it."""
        try:
            return list(self.tokenizer.encode_documents(texts))
        except BaseException as error:
            if not is_tokenizers_own(error):
                raise
            if len(texts) == 1:
                return [" ".join(str(error).split())[:200] or type(error).__name__]
        return [ids for text in texts for ids in self._ids_of([text])]


def _hash(document: Document) -> bytes:
    if document.ids is None:
        return hash_text(document.text)
    return hash_text(np.ascontiguousarray(document.ids, dtype="<u4").data)  # known by its ids alone
