"""A corpus: the sources that the user names, split into pieces that are read as documents of text.

All files are listed first. A misspelled name is therefore an error at the start and not after an hour, and the progress
has a total. Then the sources are split into pieces. A piece is several files or a part of one file. Several processes
can read different pieces, and after an interruption the unfinished pieces are read again. The pieces depend only on the
sources. Memory holds one document or one batch of documents of a piece at a time.

In `python`, files that are not UTF-8 or cannot be read are skipped and counted, because the user did not write them. In
the user's own sources they are an error that names the place: training on half a corpus without a message is worse than
an error.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from token_superposition.data.readers import hub
from token_superposition.data.readers.arrow import is_saved, read_arrow
from token_superposition.data.readers.compression import split_compression
from token_superposition.data.readers.discovery import PYTHON, STDIN, File, list_files, list_saved, source_name
from token_superposition.data.readers.document import MAX_DOCUMENT_BYTES, Document, Piece, Read, ReadOptions, Skipped
from token_superposition.data.readers.parquet import read_parquet, row_groups
from token_superposition.data.readers.records import read_csv, read_json, read_jsonl
from token_superposition.data.readers.text import RANGE_BYTES, read_texts
from token_superposition.data.readers.token_files import RANGE_TOKENS, check_ids, read_tokens, token_map
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError

_FEW_FILES, _NUM_PARTS, _SMALLEST_PART = 20, 40, 16 * 1024  # a few long texts are split at line ends
_NUM_PIECES, _SMALLEST_PIECE = 64, 2**21

_READERS: dict[str, Read] = {
    "text": read_texts,
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "hub": hub.read_hub,
}


class Corpus:
    """The documents of some sources.

    Args:
        sources: `python`, files, folders, patterns, hf:NAME (for a folder named python: ./python, or a Path).
        text_key: the column that holds the text.
        pieces: split texts if they are few and long, so that there are several documents to shuffle and to hold out.
        on_error, max_document_bytes: as in `ReadOptions`.
        stdin: the file that holds the content of the source `-`.
        tokenizer, token_bytes: only for token files: the tokenizer, and the bytes per id if the files do not say it.

    Attributes:
        sizes: for each source, the number of files that `documents` reads, and their bytes on disk.
        total_bytes: the bytes of all files.
        newest: the time when the newest file was last written, in seconds since 1970; 0 for `python` and the hub, whose
            files change with each installation or publication.
        reading: the options for reading.
        bytes_done: the part of total_bytes that `documents` has read.
        skipped: the counts of skipped documents and files.

    Raises:
        UserError: if a source is missing, empty or named twice, or is a folder without text.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        text_key: str = "text",
        pieces: bool = True,
        on_error: str = "fail",
        max_document_bytes: int = MAX_DOCUMENT_BYTES,
        stdin: File | None = None,
        tokenizer: Tokenizer | None = None,
        token_bytes: int | None = None,
    ) -> None:
        if not sources:
            raise UserError("no source was given: name 'python', text files, folders, .jsonl, .parquet or others")
        self.skipped = Skipped()
        self.bytes_done = 0
        self._tokenizer = tokenizer
        self._listed: list[tuple[str, list[File]]] = []
        reached: dict[str, str] = {}
        for source in map(source_name, sources):
            if any(source == other for other, _ in self._listed):
                raise UserError(f"{source}: is named twice; name each source once")
            files = _list(source, stdin, self.skipped)
            for file in files:
                other = reached.setdefault(os.path.realpath(file.path), source)
                if other != source:
                    raise UserError(f"{file.path}: is in two sources, {other} and {source}; leave one out")
            self._listed.append((source, files))
        every = [file for _, files in self._listed for file in files]
        self.newest = max((file.modified for file in every), default=0.0)
        self.sizes = {
            source: {"files": len(files), "bytes": sum(file.size for file in files)} for source, files in self._listed
        }
        self.total_bytes = sum(size["bytes"] for size in self.sizes.values())
        kinds = {file.kind for file in every}
        if "tokens" in kinds and len(kinds) > 1:
            raise UserError("token files (.bin, .npy) cannot be mixed with text; prepare them into a separate folder")
        if token_bytes is not None and kinds != {"tokens"}:
            raise UserError("--token-bytes: is only for token files (.bin), but the sources are text; leave it out")
        part = max(_SMALLEST_PART, self.total_bytes // _NUM_PARTS) if pieces else None
        self.reading = ReadOptions(
            text_key=text_key,
            on_error=on_error,
            max_document_bytes=max_document_bytes,
            cut_bytes=part if self._has_few_texts(kinds) else None,
            cut_tokens=part if kinds == {"tokens"} else None,
            token_bytes=token_bytes,
        )

    def pieces(self) -> list[Piece]:
        """Return the pieces of all sources, in order.

        Raises:
            UserError: if a file cannot be split into pieces, such as a damaged .parquet file.
        """
        wanted = min(max(self.total_bytes // _NUM_PIECES, _SMALLEST_PIECE), RANGE_BYTES)
        pieces: list[Piece] = []
        for source, files in self._listed:
            texts: list[File] = []  # the texts of the next piece
            for file in files:
                if file.kind == "text" and not self._is_long(file):
                    texts.append(file)
                    if sum(text.size for text in texts) >= wanted:
                        pieces.append(_together(source, texts))
                        texts = []
                    continue
                if texts:
                    pieces.append(_together(source, texts))
                    texts = []
                pieces += self._pieces_of(source, file, wanted)
            if texts:
                pieces.append(_together(source, texts))
        return pieces

    def documents(self) -> Iterator[Document]:
        """Yield every document that is not empty, source by source.

        Raises:
            UserError: if a file cannot be read, is not UTF-8, is damaged or lacks the text column, or if a source has
                no text; one line that names the place.
        """
        before = 0
        found = dict.fromkeys(self.sizes, False)
        pieces = self.pieces()
        for number, piece in enumerate(pieces):
            self.skipped.bytes_done = 0
            for document in read_piece(piece, self.reading, self.skipped, self._tokenizer):
                self.bytes_done = min(before + self.skipped.bytes_done, self.total_bytes)
                found[piece.source] = True
                yield document
            before += piece.size
            if number + 1 == len(pieces) or pieces[number + 1].source != piece.source:
                check_found(piece.source, found[piece.source], self.skipped)
        self.bytes_done = self.total_bytes

    def _has_few_texts(self, kinds: set[str]) -> bool:
        """Return whether there are too few texts to shuffle them and to hold some out."""
        files = sum(len(files) for _, files in self._listed)
        return files < _FEW_FILES and kinds == {"text"} and PYTHON not in self.sizes

    def _is_long(self, file: File) -> bool:
        """Return whether a text is read in ranges: it is split anyway, or it is too long for one document."""
        if split_compression(file.path)[1]:
            return False
        limit = self.reading.max_document_bytes
        return file.size > (limit if self.reading.cut_bytes is None else min(2 * RANGE_BYTES, limit))

    def _pieces_of(self, source: str, file: File, wanted: int) -> Iterator[Piece]:
        paths = (file.path,)
        if file.kind == "parquet":
            sizes = row_groups(file.path)
            start = 0
            for stop in range(1, len(sizes) + 1):
                if sum(sizes[start:stop]) >= wanted or stop == len(sizes):
                    share = file.size * sum(sizes[start:stop]) // max(1, sum(sizes))
                    yield Piece(source, file.kind, paths, start, stop, share)
                    start = stop
            if not sizes:
                yield Piece(source, file.kind, paths, None, None, file.size)
        elif file.kind == "hub":
            for shard in range(file.size):
                yield Piece(source, file.kind, (), shard, shard + 1, 1)
        elif file.kind == "tokens":
            if self._tokenizer is None:
                raise UserError(f"{file.path}: is a token file; prepare it first (tst prepare)")
            tokens = token_map(file.path, self._tokenizer, self.reading.token_bytes)
            check_ids(file.path, tokens, self._tokenizer)
            yield from _ranges(source, file, len(tokens), RANGE_TOKENS)
        elif file.kind == "text":
            yield from _ranges(source, file, file.size, RANGE_BYTES)
        elif file.kind == "jsonl" and file.size > 2 * wanted and not split_compression(file.path)[1]:
            yield from _ranges(source, file, file.size, wanted)
        else:
            yield Piece(source, file.kind, paths, None, None, file.size)


def read_piece(piece: Piece, reading: ReadOptions, skipped: Skipped, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """Yield the documents of a piece that are not empty, in order.

    Raises:
        UserError: as `Corpus.documents`.
    """
    if piece.source != PYTHON:
        yield from _not_empty(_read(piece, reading, skipped, tokenizer), skipped)
        return
    done = 0
    for path in piece.files:
        try:
            yield from _not_empty(read_texts(dataclasses.replace(piece, files=(path,)), reading, skipped), skipped)
        except OSError:
            skipped.files_unreadable += 1
        except UserError:
            skipped.files_not_utf8 += 1
        done += skipped.bytes_done
        skipped.bytes_done = done


def check_found(source: str, found: bool, skipped: Skipped) -> None:
    """Raise `UserError` if a source has no text."""
    if not found:
        why = f"; {skipped.first}" if skipped.bad else ""
        raise UserError(f"{source}: holds no text (every document is empty{' or bad' if skipped.bad else ''}){why}")


def _read(piece: Piece, reading: ReadOptions, skipped: Skipped, tokenizer: Tokenizer | None) -> Iterator[Document]:
    try:
        if piece.kind == "tokens":
            if tokenizer is None:
                raise UserError(f"{piece.files[0]}: is a token file; prepare it first (tst prepare)")
            yield from read_tokens(piece, reading, skipped, tokenizer)
        else:
            yield from _READERS[piece.kind](piece, reading, skipped)
    except OSError as error:
        where = error.filename or (piece.files or [piece.source])[0]
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None


def _not_empty(documents: Iterator[Document], skipped: Skipped) -> Iterator[Document]:
    for document in documents:
        if document.ids is None and (not document.text or document.text.isspace()):
            skipped.empty_documents += 1
        else:
            yield document


def _list(source: str, stdin: File | None, skipped: Skipped) -> list[File]:
    if source == STDIN:
        if stdin is None:
            raise UserError("standard input (-) can only be prepared (tst prepare -)")
        return [stdin]
    if source.startswith(hub.PREFIX):
        name, _, split = hub.split_name(source)
        return list_saved(name, split) if is_saved(name) else [File(source, hub.num_shards(source), "hub")]
    return list_files(source, skipped)


def _together(source: str, texts: Sequence[File]) -> Piece:
    size = sum(file.size for file in texts)
    return Piece(source, "text", tuple(file.path for file in texts), None, None, size)


def _ranges(source: str, file: File, length: int, step: int) -> Iterator[Piece]:
    count = max(1, round(length / step))
    bounds = [length * number // count for number in range(count + 1)]
    for start, stop in itertools.pairwise(bounds):
        yield Piece(source, file.kind, (file.path,), start, stop, (stop - start) * file.size // length)
