"""A shard: a file of token ids, header and checksums about them.

    header                     256 bytes
    token ids                  little endian, 2 bytes each, or 4 where the vocabulary needs them
    checksums                  a CRC-32 for each block of 2**20 tokens
    document index             where each document ends, 8 bytes each, counted in the shard's tokens; and its CRC-32

The header has a CRC of its own and tells the file's length to the byte, so a file cut short or exchanged is
found when it is opened, which costs nothing, and a flipped bit, with its place, by whoever reads it all.
Shards from before there was an index say 0 where its length stands, which was empty then.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.manifest import AGAIN
from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError
from token_superposition.files import naming

_MAGIC = b"TSTSHARD"
_VERSION = 1
HEADER_BYTES = 256
# magic, version, bytes a token, tokens, documents, bytes of text, end-of-document id, block, fingerprint, index
_HEADER = struct.Struct("<8sIIQQQQQ32sQ")
BLOCK_TOKENS = 2**20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """What ids are stored as: little-endian uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class ShardHeader:
    """A shard's first 256 bytes.

    Attributes:
        token_bytes: bytes a token, 2 or 4.
        num_tokens: end-of-document ids included.
        num_documents: documents that end here, each with the end-of-document id.
        num_bytes: of text; the ends count nothing.
        end_of_document_id: of the tokenizer.
        block_tokens: tokens a checksum covers.
        fingerprint: the tokenizer's, in hex.
        index_bytes: length of the document index, with its checksum.
    """

    token_bytes: int
    num_tokens: int
    num_documents: int
    num_bytes: int
    end_of_document_id: int
    block_tokens: int
    fingerprint: str
    index_bytes: int = 0

    @property
    def num_blocks(self) -> int:
        """Checksums of tokens."""
        return -(-self.num_tokens // self.block_tokens)

    @property
    def file_bytes(self) -> int:
        """The whole file's length."""
        return self.index_start + self.index_bytes

    @property
    def crcs_start(self) -> int:
        """Where the checksums of the tokens begin, in bytes."""
        return HEADER_BYTES + self.num_tokens * self.token_bytes

    @property
    def index_start(self) -> int:
        """Where the document index begins, in bytes."""
        return self.crcs_start + 4 * self.num_blocks

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
            self.index_bytes,
        ).ljust(HEADER_BYTES - 4, b"\0")
        return fields + struct.pack("<I", zlib.crc32(fields))

    @classmethod
    def read(cls, path: Path) -> ShardHeader:
        """The header of a shard, checked against the file's length; UserError where anything is amiss."""
        try:
            with path.open("rb") as file:
                data = file.read(HEADER_BYTES)
                length = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise UserError(f"{path}: this shard is missing; {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
            raise UserError(f"{path}: is not a token shard (wrong first bytes); {AGAIN}")
        if len(data) < HEADER_BYTES:
            raise UserError(f"{path}: is cut short inside its header ({length} bytes); {AGAIN}")
        _, version, *fields = _HEADER.unpack_from(data)
        width, num_tokens, num_documents, num_bytes, end, block, tokenizer, index_bytes = fields
        if version != _VERSION:
            raise UserError(f"{path}: has shard version {version}, this package reads version {_VERSION}; {AGAIN}")
        if struct.pack("<I", zlib.crc32(data[:-4])) != data[-4:]:
            raise UserError(f"{path}: its header is damaged (bytes 0 to {HEADER_BYTES - 1}); {AGAIN}")
        header = cls(width, num_tokens, num_documents, num_bytes, end, block, tokenizer.hex(), index_bytes)
        whole_index = index_bytes in (0, 8 * num_documents + 4)
        if width not in (2, 4) or not block or not num_tokens or not whole_index:
            raise UserError(f"{path}: its header makes no sense (bytes 0 to {HEADER_BYTES - 1}); {AGAIN}")
        if length != header.file_bytes:
            how = "cut short" if length < header.file_bytes else "too long"
            raise UserError(f"{path}: is {how}: {length:,} bytes where its header says {header.file_bytes:,}; {AGAIN}")
        return header


class ShardWriter:
    """Writes one shard in a `with` block; header, checksums and document index come at its end.

    Attributes:
        num_tokens, num_documents, num_bytes: added so far.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._file = path.open("wb")
        self._file.write(b"\0" * HEADER_BYTES)  # stays in its buffer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._crcs: list[int] = []
        self._crc = 0  # of the block begun
        self._ends: list[NDArray[np.uint64]] = []
        self.num_tokens = self.num_documents = self.num_bytes = 0

    def add(
        self, tokens: NDArray[Any], num_bytes: int, ends: Sequence[int] | NDArray[np.integer[Any]] | None = None
    ) -> None:
        """Append a document, or several, or a part of one.

        Args:
            tokens: (tokens,), ids, the end-of-document id last in each document.
            num_bytes: of their text.
            ends: where each document ends in `tokens`; without it, all of it is one.
        """
        tokens = np.ascontiguousarray(tokens, dtype=self._dtype)
        stops = np.asarray([len(tokens)] if ends is None else ends, dtype=np.uint64)
        self._ends.append(stops + np.uint64(self.num_tokens))
        start = 0
        while start < len(tokens):
            room = BLOCK_TOKENS - self.num_tokens % BLOCK_TOKENS
            part = tokens[start : start + room]
            with naming(self._path):
                self._file.write(part.data)
            self._crc = zlib.crc32(part.data, self._crc)
            start += len(part)
            self.num_tokens += len(part)
            if len(part) == room:
                self._crcs.append(self._crc)
                self._crc = 0
        self.num_documents += len(stops)
        self.num_bytes += num_bytes

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with naming(self._path), self._file as file:
            if kind is not None:
                return
            if self.num_tokens % BLOCK_TOKENS:
                self._crcs.append(self._crc)
            file.write(np.array(self._crcs, dtype="<u4").tobytes())
            crc = 0
            for ends in self._ends:  # of short documents they are hundreds of megabytes: no copy of all
                part = ends.astype("<u8").data
                file.write(part)
                crc = zlib.crc32(part, crc)
            file.write(struct.pack("<I", crc))
            file.seek(0)
            file.write(
                ShardHeader(
                    token_bytes=self._dtype.itemsize,
                    num_tokens=self.num_tokens,
                    num_documents=self.num_documents,
                    num_bytes=self.num_bytes,
                    end_of_document_id=self._tokenizer.end_of_document_id,
                    block_tokens=BLOCK_TOKENS,
                    fingerprint=self._tokenizer.fingerprint,
                    index_bytes=8 * self.num_documents + 4,
                ).to_bytes()
            )
            file.flush()
            os.fsync(file.fileno())
