"""Shards: a prepared corpus on the disk, and its reader.

    dataset.json              what it was made from and what is in it; written last
    tokenizer.json            the tokenizer
    train-00000.tokens        shards: a header, the tokens, checksums
    validation-00000.tokens

A shard is a header of 256 bytes, the token ids (little endian, 2 bytes each, or 4 where the vocabulary
needs them), and a CRC-32 for each block of 2**20 tokens. The header has a CRC of its own and tells the
file's length to the byte, so a file cut short or exchanged is found when it is opened, which costs nothing,
and a flipped bit, with its place, by `verify`, which reads everything (`data.verify` does it for a run).

The shards of a split are one sequence. Every document is followed by the end-of-document id and lies in one
shard, so a shard is larger than asked for where a single document is.

Reading copies a span of a memory map to int64: no Python per token, and the operating system's page cache
is the only cache.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.description import AGAIN, DATASET_FILE, read_description
from token_superposition.data.tokenizers import Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.files import naming

_MAGIC = b"TSTSHARD"
_VERSION = 1
_HEADER_BYTES = 256
# magic, version, bytes a token, tokens, documents, bytes of text, end-of-document id, block, fingerprint
_HEADER = struct.Struct("<8sIIQQQQQ32s")
_BLOCK_TOKENS = 2**20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """What ids are stored as: little-endian uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class ShardHeader:
    """A shard's first 256 bytes.

    Attributes:
        token_bytes: bytes a token, 2 or 4.
        num_tokens: end-of-document ids included.
        num_documents: documents, each followed by the end-of-document id.
        num_bytes: of their text; the ends count nothing.
        end_of_document_id: of the tokenizer.
        block_tokens: tokens a checksum covers.
        fingerprint: the tokenizer's, in hex.
    """

    token_bytes: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    end_of_document_id: int
    block_tokens: int
    fingerprint: str

    @property
    def num_blocks(self) -> int:
        """Checksums in the trailer."""
        return -(-self.num_tokens // self.block_tokens)

    @property
    def file_bytes(self) -> int:
        """The whole file's length."""
        return _HEADER_BYTES + self.num_tokens * self.token_bytes + 4 * self.num_blocks

    def to_bytes(self) -> bytes:
        """The 256 bytes, the last four their CRC-32."""
        fields = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.token_bytes,
            self.num_tokens,
            self.num_documents,
            self.num_bytes,
            self.end_of_document_id,
            self.block_tokens,
            bytes.fromhex(self.fingerprint),
        ).ljust(_HEADER_BYTES - 4, b"\0")
        return fields + struct.pack("<I", zlib.crc32(fields))

    @classmethod
    def read(cls, path: Path) -> ShardHeader:
        """The header of a shard, checked against the file's length; UserError where anything is amiss."""
        try:
            with path.open("rb") as file:
                data = file.read(_HEADER_BYTES)
                length = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise UserError(f"{path}: this shard is missing; {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
            raise UserError(f"{path}: is not a token shard (wrong first bytes); {AGAIN}")
        if len(data) < _HEADER_BYTES:
            raise UserError(f"{path}: is cut short inside its header ({length} bytes); {AGAIN}")
        _, version, width, num_tokens, num_documents, num_bytes, end, block, tokenizer = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise UserError(f"{path}: has shard version {version}, this package reads version {_VERSION}; {AGAIN}")
        if struct.pack("<I", zlib.crc32(data[:-4])) != data[-4:]:
            raise UserError(f"{path}: its header is damaged (bytes 0 to {_HEADER_BYTES - 1}); {AGAIN}")
        header = cls(width, num_tokens, num_documents, num_bytes, end, block, tokenizer.hex())
        if width not in (2, 4) or not block or not num_tokens:
            raise UserError(f"{path}: its header makes no sense (bytes 0 to {_HEADER_BYTES - 1}); {AGAIN}")
        if length != header.file_bytes:
            how = "cut short" if length < header.file_bytes else "too long"
            raise UserError(f"{path}: is {how}: {length:,} bytes where its header says {header.file_bytes:,}; {AGAIN}")
        return header


class ShardWriter:
    """Writes one shard, document by document, in a `with` block; header and checksums come at its end.

    Attributes:
        num_tokens, num_documents, num_bytes: added so far.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER_BYTES)  # stays in its buffer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._crcs: list[int] = []
        self._crc = 0  # of the block begun
        self.num_tokens = self.num_documents = self.num_bytes = 0

    def add(self, tokens: NDArray[Any], num_bytes: int) -> None:
        """Append a document.

        Args:
            tokens: (tokens,), its ids, the end-of-document id last.
            num_bytes: of its text.
        """
        tokens = np.ascontiguousarray(tokens, dtype=self._dtype)
        start = 0
        while start < len(tokens):
            room = _BLOCK_TOKENS - self.num_tokens % _BLOCK_TOKENS
            part = tokens[start : start + room]
            with naming(self._path):
                self._file.write(part.data)
            self._crc = zlib.crc32(part.data, self._crc)
            start += len(part)
            self.num_tokens += len(part)
            if len(part) == room:
                self._crcs.append(self._crc)
                self._crc = 0
        self.num_documents += 1
        self.num_bytes += num_bytes

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with naming(self._path), self._file as file:
            if kind is not None:
                return
            if self.num_tokens % _BLOCK_TOKENS:
                self._crcs.append(self._crc)
            file.write(np.array(self._crcs, dtype="<u4").tobytes())
            file.seek(0)
            file.write(
                ShardHeader(
                    token_bytes=self._dtype.itemsize,
                    num_tokens=self.num_tokens,
                    num_documents=self.num_documents,
                    num_bytes=self.num_bytes,
                    end_of_document_id=self._tokenizer.end_of_document_id,
                    block_tokens=_BLOCK_TOKENS,
                    fingerprint=self._tokenizer.fingerprint,
                ).to_bytes()
            )
            file.flush()
            os.fsync(file.fileno())


class TokenDataset:
    """One split of a prepared folder: a sequence of token ids. Make it with `open`.

    Attributes:
        folder, split: what was opened.
        tokenizer: the one that wrote it.
        dtype: of the ids on the disk.
        num_tokens, num_bytes, num_documents: tokens with, bytes of text without the ends of documents.
        fingerprint: hex, a hash over headers and checksums; equal for equal data wherever it lies.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, headers: dict[Path, ShardHeader]) -> None:
        self.folder = folder
        self.split = split
        self.tokenizer = tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._byte_lengths = tokenizer.byte_lengths()
        self.num_tokens = sum(header.num_tokens for header in headers.values())
        self.num_bytes = sum(header.num_bytes for header in headers.values())
        self.num_documents = sum(header.num_documents for header in headers.values())
        self._headers = headers
        self._starts = [0, *accumulate(header.num_tokens for header in headers.values())]
        self._shards: list[NDArray[Any]] = []
        self._crcs: list[NDArray[np.uint32]] = []
        digest = hashlib.sha256()
        for path, header in headers.items():
            # A plain view on the map: np.memmap's own slicing costs more than the copy of a short row.
            data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
            trailer = len(data) - 4 * header.num_blocks
            self._shards.append(data[_HEADER_BYTES:trailer].view(self.dtype))
            self._crcs.append(data[trailer:].view("<u4"))
            digest.update(header.to_bytes() + data[trailer:].tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def open(cls, folder: str | Path, split: str) -> TokenDataset:
        """Map a split ("train" or "validation") of a prepared folder.

        Raises:
            UserError: where the folder is not a prepared one, or a file of it is missing, cut short, of
                another version or of another tokenizer than the folder's.
        """
        folder = Path(folder)
        description = read_description(folder)
        if split not in description["splits"]:
            raise UserError(f"{folder}: has no split {split!r} (splits: {', '.join(description['splits'])})")
        tokenizer = load_tokenizer(folder)
        headers = {}
        for shard in description["splits"][split]["shards"]:
            path = folder / shard["file"]
            header = headers[path] = ShardHeader.read(path)
            if header.fingerprint != tokenizer.fingerprint:
                raise UserError(f"{path}: was written with another tokenizer than {folder} names; {AGAIN}")
            if header.token_bytes != token_dtype(tokenizer.vocab_size).itemsize:
                raise UserError(
                    f"{path}: has {header.token_bytes} bytes a token, which its tokenizer does not; {AGAIN}"
                )
            if header.num_tokens != shard["tokens"]:
                raise UserError(
                    f"{path}: holds {header.num_tokens:,} tokens where {DATASET_FILE} says {shard['tokens']:,}; {AGAIN}"
                )
        return cls(folder, split, tokenizer, headers)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Tokens start .. start + length - 1 as a fresh int64 array, across shards.

        Raises:
            ValueError: where they are not all in [0, num_tokens).
        """
        stop = start + length
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"tokens {start} to {stop} are not all in [0, {self.num_tokens})")
        shard = bisect.bisect_right(self._starts, start) - 1
        out = np.empty(length, dtype=np.int64)
        done = 0
        while done < length:  # once, but where the span crosses into the next shard
            offset = start + done - self._starts[shard]
            part = self._shards[shard][offset : offset + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out

    def count_bytes(self, start: int, length: int) -> int:
        """Bytes of text that those tokens stand for; the ends of documents stand for none."""
        return int(self._byte_lengths[self.read(start, length)].sum())

    def verify(self) -> None:
        """Read everything, compare the checksums, and look for ids that the tokenizer does not have.

        Raises:
            UserError: at a block that is not as it should be, naming file and place.
        """
        for _, check in self.blocks():
            check()

    def blocks(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """For each checksum, the bytes it covers, and what verifies them or raises UserError."""
        for (path, header), tokens, crcs in zip(self._headers.items(), self._shards, self._crcs, strict=True):
            for block in range(len(crcs)):
                first = block * header.block_tokens
                part = tokens[first : first + header.block_tokens]
                yield (
                    part.nbytes,
                    partial(self._verify_block, path, part, first, f"{block} of {len(crcs)}", crcs[block]),
                )

    def _verify_block(self, path: Path, part: NDArray[Any], first: int, name: str, crc: int) -> None:
        if zlib.crc32(part.view(np.uint8).data) != crc:
            start = _HEADER_BYTES + first * part.itemsize
            raise UserError(
                f"{path}: is damaged between bytes {start:,} and {start + part.nbytes - 1:,} (checksum {name}); {AGAIN}"
            )
        largest = int(part.max())
        if largest >= self.tokenizer.num_ids:  # the checksum is right, so it was written like that
            place = first + int(np.argmax(part))
            raise UserError(
                f"{path}: token {place:,} has the id {largest}, where tokenizer {self.tokenizer.name!r} has "
                f"{self.tokenizer.num_ids}; {AGAIN}"
            )
