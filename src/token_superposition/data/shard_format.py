"""The format of a shard: a file of token ids with a header, checksums and a document index.

    header                     256 bytes
    token ids                  little endian, 2 bytes each, or 4 bytes for a large vocabulary
    checksums                  one CRC-32 per block of 2**20 tokens
    document index             the end of each document, 8 bytes each, counted in tokens of the shard; then its CRC-32

The header has its own CRC and gives the exact length of the file. A truncated or exchanged file is therefore found when
it is opened, at no cost. A flipped bit is found, with its place, when the whole file is read. Shards of the version
without a document index have 0 as the length of the index, because these header bytes were empty.
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
# magic, version, bytes per token, tokens, documents, bytes of text, end-of-document id, block, fingerprint, index
_HEADER = struct.Struct("<8sIIQQQQQ32sQ")
BLOCK_TOKENS = 2**20


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of stored ids: little-endian uint16, or uint32 for more than 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


@dataclass(frozen=True)
class ShardHeader:
    """The header of a shard: its first 256 bytes.

    Attributes:
        token_bytes: bytes per token, 2 or 4.
        num_tokens: the number of tokens, end-of-document ids included.
        num_documents: the documents that end in this shard, each with the end-of-document id.
        num_bytes: the bytes of text; end-of-document ids count 0 bytes.
        end_of_document_id: the id of the tokenizer.
        block_tokens: tokens per checksum.
        fingerprint: the fingerprint of the tokenizer, in hex.
        index_bytes: the length of the document index, with its checksum.
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
        """The number of token blocks, each with one checksum."""
        return -(-self.num_tokens // self.block_tokens)

    @property
    def file_bytes(self) -> int:
        """The length of the whole file in bytes."""
        return self.index_start + self.index_bytes

    @property
    def crcs_start(self) -> int:
        """The offset of the token checksums in the file, in bytes."""
        return HEADER_BYTES + self.num_tokens * self.token_bytes

    @property
    def index_start(self) -> int:
        """The offset of the document index in the file, in bytes."""
        return self.crcs_start + 4 * self.num_blocks

    def to_bytes(self) -> bytes:
        """Return the 256 bytes of the header; the last four bytes are the CRC-32 of the others."""
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
        """Read and check the header of a shard, also against the length of the file; raise UserError if it is bad."""
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
            raise UserError(f"{path}: has shard version {version}, but this package reads version {_VERSION}; {AGAIN}")
        if struct.pack("<I", zlib.crc32(data[:-4])) != data[-4:]:
            raise UserError(f"{path}: its header is damaged (bytes 0 to {HEADER_BYTES - 1}); {AGAIN}")
        header = cls(width, num_tokens, num_documents, num_bytes, end, block, tokenizer.hex(), index_bytes)
        whole_index = index_bytes in (0, 8 * num_documents + 4)
        if width not in (2, 4) or not block or not num_tokens or not whole_index:
            raise UserError(f"{path}: its header has impossible values (bytes 0 to {HEADER_BYTES - 1}); {AGAIN}")
        if length != header.file_bytes:
            how = "cut short" if length < header.file_bytes else "too long"
            raise UserError(
                f"{path}: is {how}: it has {length:,} bytes, but its header says {header.file_bytes:,}; {AGAIN}"
            )
        return header


class ShardWriter:
    """Writes one shard in a `with` block; the header, the checksums and the document index are written at its end.

    Attributes:
        num_tokens, num_documents, num_bytes: the amounts that were added so far.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path = path
        self._file = path.open("wb")
        self._file.write(b"\0" * HEADER_BYTES)  # stays in the write buffer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self._crcs: list[int] = []
        self._crc = 0  # CRC of the unfinished block
        self._ends: list[NDArray[np.uint64]] = []
        self.num_tokens = self.num_documents = self.num_bytes = 0

    def add(
        self, tokens: NDArray[Any], num_bytes: int, ends: Sequence[int] | NDArray[np.integer[Any]] | None = None
    ) -> None:
        """Append one document, several documents, or a part of a document.

        Args:
            tokens: (tokens,), token ids; each document ends with the end-of-document id.
            num_bytes: the bytes of their text.
            ends: the end of each document in `tokens`; without `ends`, all tokens are one document.
        """
        tokens = np.ascontiguousarray(tokens, dtype=self._dtype)
        stops = np.asarray([len(tokens)] if ends is None else ends, dtype=np.uint64)
        self._ends.append(stops + np.uint64(self.num_tokens))
        start = 0
        while start < len(tokens):
            available = BLOCK_TOKENS - self.num_tokens % BLOCK_TOKENS
            part = tokens[start : start + available]
            with naming(self._path):
                self._file.write(part.data)
            self._crc = zlib.crc32(part.data, self._crc)
            start += len(part)
            self.num_tokens += len(part)
            if len(part) == available:
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
            for ends in self._ends:  # hundreds of megabytes for short documents, so no copy of all
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
