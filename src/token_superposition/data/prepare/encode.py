"""Encode a piece: read its documents, hash them, turn them into ids, and write them to disk as runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
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
    """The progress of a part of the work: bytes of the sources that were read, documents, and tokens."""

    done: int = 0
    documents: int = 0
    tokens: int = 0

    def plus(self, other: EncodeProgress) -> EncodeProgress:
        """Return the sum of both."""
        return EncodeProgress(self.done + other.done, self.documents + other.documents, self.tokens + other.tokens)


@dataclass(frozen=True)
class Encoder:
    """Encodes pieces into runs in a folder.

    Attributes:
        folder: the folder for the runs.
        tokenizer: the tokenizer.
        reading: the options for reading sources.
        seed: the seed of the order of the documents.
    """

    folder: Path
    tokenizer: Tokenizer
    reading: ReadOptions
    seed: int

    def encode(self, number: int, piece: Piece, report: Callable[[EncodeProgress], None]) -> dict[str, Any]:
        """Encode one piece.

        Args:
            number: the number of the piece, which is part of the names of its files.
            piece: the piece to read.
            report: called from time to time.

        Returns:
            `runs`, `skipped` and `characters` (the number of lost characters and of all characters), for JSON.

        Raises:
            UserError: if the source has an error.
        """
        skipped = Skipped()
        runs: list[Run] = []
        batch: list[Document] = []
        size, progress, reported = 0, EncodeProgress(), time.monotonic()
        lost = characters = 0

        def flush() -> None:
            nonlocal size, lost, characters
            encoded = self._encode(batch, skipped)
            if encoded:
                runs.append(self._write(f"piece-{number:06d}-{len(runs):04d}", encoded))
                progress.documents += runs[-1].documents
                progress.tokens += runs[-1].tokens + runs[-1].documents
                lost += sum(each.lost * each.times for each in encoded)
                characters += sum(each.characters * each.times for each in encoded)
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

    def _write(self, name: str, encoded: list[_Encoded]) -> Run:
        rows = np.zeros(len(encoded), dtype=ROW)
        hashes = [each.hash for each in encoded]
        rows["high"], rows["low"] = np.frombuffer(b"".join(hashes), dtype=">u8").reshape(-1, 2).T
        rows["place"] = places_of(hashes, self.seed)
        rows["times"] = [each.times for each in encoded]
        rows["bytes"] = [each.num_bytes for each in encoded]
        rows["counted"] = [each.counted for each in encoded]
        rows["tokens"] = [len(each.ids) for each in encoded]
        return write_run(self.folder, name, rows, [each.ids for each in encoded])

    def _encode(self, documents: list[Document], skipped: Skipped) -> list[_Encoded]:
        """Return the different documents with their ids, without documents that cannot be encoded."""
        different: dict[bytes, Document] = {}
        times: Counter[bytes] = Counter()
        for document in documents:
            key = _hash(document)
            different.setdefault(key, document)
            times[key] += 1
        texts = iter(self._ids_of([each.text for each in different.values() if each.ids is None]))
        encoded = []
        for key, document in different.items():
            ids = next(texts) if document.ids is None else document.ids.astype(self.tokenizer.encoded_dtype)
            if isinstance(ids, str) or not len(ids):
                name, what = self.tokenizer.name, ids if isinstance(ids, str) else "the result has no token"
                message = (
                    f"{document.origin}: tokenizer {name!r} cannot encode this document ({what}); "
                    f"name another tokenizer, leave the document out, {SKIP_HINT}"
                )
                self.reading.bad(skipped, "documents_not_encoded", message, times[key])
            else:
                encoded.append(self._counted(document, ids, key, times[key]))
        return encoded

    def _ids_of(self, texts: list[bytes]) -> list[Ids | str]:
        """Return for each text its ids, or the error message of the tokenizer."""
        try:
            return list(self.tokenizer.encode_documents(texts))
        except BaseException as error:
            if not is_tokenizers_own(error):
                raise
            if len(texts) == 1:
                return [" ".join(str(error).split())[:200] or type(error).__name__]
        return [ids for text in texts for ids in self._ids_of([text])]

    def _counted(self, document: Document, ids: Ids, key: bytes, times: int) -> _Encoded:
        exact, is_text = self.tokenizer.is_exact, document.ids is None
        num_bytes = counted = len(document.text)
        if not (exact and is_text):
            counted = int(self.tokenizer.byte_lengths()[ids].sum())
            num_bytes = num_bytes if is_text else counted
        lost, characters = 0, 0
        if not exact:
            lost, characters = self.tokenizer.count_lost(document.text if is_text else None, ids)
        return _Encoded(key, ids, times, num_bytes, counted, lost, characters)


@dataclass(frozen=True)
class _Encoded:
    """A text and its ids.

    Attributes:
        hash: the hash of the text.
        ids: the ids, without an end-of-document id.
        times: the number of documents with this text.
        num_bytes, counted: the bytes of the text, and the sum of the byte lengths of its tokens.
        lost, characters: the number of lost characters and of all characters; 0 and 0 for an exact tokenizer.
    """

    hash: bytes
    ids: Ids
    times: int
    num_bytes: int
    counted: int
    lost: int
    characters: int


def _hash(document: Document) -> bytes:
    if document.ids is None:
        return hash_text(document.text)
    return hash_text(np.ascontiguousarray(document.ids, dtype="<u4").data)  # only its ids are known
