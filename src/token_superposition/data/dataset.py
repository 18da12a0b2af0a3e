"""A prepared corpus on disk: read it, verify it, and inspect it.

    dataset.json              its sources and its content; written last
    tokenizer.json            the tokenizer; a subword tokenizer also has tokenizer_config.json
    train-00000.tokens        shards: see `shard_format`
    validation-00000.tokens

The shards of a split are one sequence. The end-of-document id follows every document. A document is in one shard,
unless the document is longer than the maximum size of a shard; then it continues in the next shard.

Reading (`TokenDataset`) copies a span of a memory map to int64. There is no Python code per token, and the page cache
of the operating system is the only cache.

Verifying (`verify`) computes every checksum on all cores. Opening a split finds files that are missing, truncated or of
another tokenizer. Only a read of all bytes finds a flipped bit. For some gigabytes this takes seconds, so every run
does it at its start. A checksum is computed outside Python's lock, so threads are enough. `data.verify: false` turns
the check off, for corpora of terabytes.

Inspecting (`inspect`) reports the sources of a prepared folder, its size, a sample of its text, and whether it is
intact.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.manifest import AGAIN, DATASET_FILE, SPLITS, loss_warning, read_description, text_lost
from token_superposition.data.shard_format import BLOCK_TOKENS, HEADER_BYTES, ShardHeader, ShardWriter, token_dtype
from token_superposition.data.tokenizers import Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.files import is_whole_number

__all__ = ["ShardHeader", "ShardWriter", "TokenDataset", "token_dtype"]


class TokenDataset:
    """One split of a prepared folder as a sequence of token ids; create it with `open`.

    Attributes:
        folder, split: the opened folder and split.
        tokenizer: the tokenizer that encoded the text.
        dtype: the dtype of the ids on disk.
        text_lost: the share of the characters that the tokenizer lost; None if version 0.1, which did not count them,
            prepared the folder with a tokenizer that can lose text.
        num_tokens, num_bytes, num_documents: the numbers of tokens (end-of-document ids included), of bytes of text
            (end-of-document ids excluded) and of documents.
        fingerprint: hex, a hash over headers and checksums; equal for equal data in any folder.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        headers: dict[Path, ShardHeader],
        *,
        counted_bytes: int | None = None,
        text_lost: float | None = None,
        random_ids: int = 0,
    ) -> None:
        self.folder = folder
        self.split = split
        self.tokenizer = tokenizer
        self.text_lost = 0.0 if tokenizer.is_exact else text_lost
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._byte_lengths = tokenizer.byte_lengths()
        self.num_tokens = sum(header.num_tokens for header in headers.values())
        self.num_bytes = sum(header.num_bytes for header in headers.values())
        self.num_documents = sum(header.num_documents for header in headers.values())
        # For a tokenizer that changes text: the bytes of text per byte of its tokens.
        self._bytes_per_counted = self.num_bytes / counted_bytes if counted_bytes else 1.0
        self._num_ids = max(tokenizer.num_ids, random_ids)  # a benchmark's random ids are of no tokenizer
        self._headers = headers
        self._paths = list(headers)
        self._starts = [0, *accumulate(header.num_tokens for header in headers.values())]
        self._shards: list[NDArray[Any]] = []
        self._crcs: list[NDArray[np.uint32]] = []
        self._indexes: list[NDArray[np.uint8]] = []
        digest = hashlib.sha256()
        for path, header in headers.items():
            # A plain array view of the memory map: slicing an np.memmap costs more than the copy of a short row.
            data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
            self._shards.append(data[HEADER_BYTES : header.crcs_start].view(self.dtype))
            self._crcs.append(data[header.crcs_start : header.index_start].view("<u4"))
            self._indexes.append(data[header.index_start :])
            digest.update(header.to_bytes() + data[header.crcs_start : header.index_start].tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def open(cls, folder: str | Path, split: str) -> TokenDataset:
        """Open a split ("train" or "validation") of a prepared folder as a memory map.

        Raises:
            UserError: if the folder is not a prepared folder, or if one of its files is missing, truncated, of another
                version or of another tokenizer.
        """
        folder = Path(folder)
        description = read_description(folder)
        if split not in description["splits"]:
            raise UserError(f"{folder}: has no split {split!r} (splits: {', '.join(description['splits'])})")
        tokenizer, random_ids = load_tokenizer(folder), description.get("random_ids", 0)
        headers = {}
        for shard in description["splits"][split]["shards"]:
            path = folder / shard["file"]
            header = headers[path] = ShardHeader.read(path)
            if header.fingerprint != tokenizer.fingerprint:
                raise UserError(f"{path}: was written with another tokenizer than the one in {folder}; {AGAIN}")
            if header.token_bytes != token_dtype(tokenizer.vocab_size).itemsize:
                raise UserError(
                    f"{path}: has {header.token_bytes} bytes per token, which does not fit its tokenizer; {AGAIN}"
                )
            if header.num_tokens != shard["tokens"]:
                raise UserError(
                    f"{path}: holds {header.num_tokens:,} tokens, but {DATASET_FILE} says {shard['tokens']:,}; {AGAIN}"
                )
        return cls(
            folder,
            split,
            tokenizer,
            headers,
            counted_bytes=description["splits"][split].get("counted_bytes"),
            text_lost=text_lost(description),
            random_ids=int(random_ids) if is_whole_number(random_ids) else 0,
        )

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return the tokens start .. start + length - 1, across shards, as a new int64 array.

        Raises:
            ValueError: if a token number is not in [0, num_tokens).
            UserError: if the tokenizer does not have an id; the message names the file and the place.
        """
        stop = start + length
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"tokens {start} to {stop} are not all in [0, {self.num_tokens})")
        shard = bisect.bisect_right(self._starts, start) - 1
        out = np.empty(length, dtype=np.int64)
        done = 0
        while done < length:  # one pass, or more if the span crosses into the next shard
            offset = start + done - self._starts[shard]
            part = self._shards[shard][offset : offset + length - done]
            self._check_ids(self._paths[shard], part, offset)
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out

    def count_bytes(self, start: int, length: int) -> int:
        """Return the bytes of text of these tokens; end-of-document ids count 0 bytes.

        The number is exact, unless the tokenizer changes the text before it splits it. Then the number is exact for the
        whole split, and is estimated with the same factor for every part.
        """
        counted = sum(
            int(self._byte_lengths[self.read(first, min(BLOCK_TOKENS, start + length - first))].sum())
            for first in range(start, start + length, BLOCK_TOKENS)
        )
        return round(counted * self._bytes_per_counted)

    def document_ends(self) -> NDArray[np.int64]:
        """Return (documents,): for each document, the number of the first token after its end-of-document id."""
        parts = []
        for start, shard, index in zip(self._starts, self._shards, self._indexes, strict=False):
            if len(index):
                parts.append(start + index[:-4].view("<u8").astype(np.int64))
            else:  # a shard of the version without a document index
                parts.append(start + 1 + np.flatnonzero(shard == self.tokenizer.end_of_document_id))
        return np.concatenate(parts)

    def verify(self, num_tokens: int | None = None) -> None:
        """Compare the checksums of all tokens or of the first `num_tokens`, and check that the tokenizer has every id.

        Raises:
            UserError: at a damaged block; the message names the file and the place.
        """
        for _, check in self.blocks(num_tokens):
            check()

    def blocks(self, num_tokens: int | None = None) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield for each checksum the number of its bytes, and a function that verifies them or raises UserError.

        With `num_tokens`, only the blocks with the first `num_tokens` tokens are yielded.
        """
        stop = self.num_tokens if num_tokens is None else num_tokens
        for start, (path, header), tokens, crcs, index in zip(
            self._starts, self._headers.items(), self._shards, self._crcs, self._indexes, strict=False
        ):
            if len(index) and num_tokens is None:
                yield len(index), partial(self._verify_index, path, header, index)
            for block in range(len(crcs)):
                first = block * header.block_tokens
                if start + first >= stop:
                    return
                part = tokens[first : first + header.block_tokens]
                yield (
                    part.nbytes,
                    partial(self._verify_block, path, part, first, f"{block} of {len(crcs)}", crcs[block]),
                )

    def _verify_block(self, path: Path, part: NDArray[Any], first: int, name: str, crc: int) -> None:
        if zlib.crc32(part.view(np.uint8).data) != crc:
            start = HEADER_BYTES + first * part.itemsize
            raise UserError(
                f"{path}: is damaged between bytes {start:,} and {start + part.nbytes - 1:,} (checksum {name}); {AGAIN}"
            )
        self._check_ids(path, part, first)  # the checksum matches, so a wrong id is not a flipped bit

    def _check_ids(self, path: Path, part: NDArray[Any], first: int) -> None:
        largest = int(part.max(initial=0))
        if largest >= self._num_ids:
            place = first + int(np.argmax(part))
            raise UserError(
                f"{path}: token {place:,} has the id {largest}, but tokenizer {self.tokenizer.name!r} has only "
                f"{self.tokenizer.num_ids} ids; {AGAIN}"
            )

    def _verify_index(self, path: Path, header: ShardHeader, index: NDArray[np.uint8]) -> None:
        if zlib.crc32(index[:-4].data) != int(index[-4:].view("<u4")[0]):
            raise UserError(
                f"{path}: is damaged between bytes {header.index_start:,} and {header.file_bytes - 1:,} (its document "
                f"index); {AGAIN}"
            )


_SECONDS_BETWEEN_LINES = 5.0


def verify_folder(folder: Path, say: Callable[[str], None] | None = None) -> None:
    """Open and verify both splits of a prepared folder; see `verify`."""
    verify([TokenDataset.open(folder, split) for split in SPLITS], say)


def verify(datasets: Sequence[TokenDataset], say: Callable[[str], None] | None = None) -> None:
    """Verify several splits, in parallel on all cores.

    Args:
        datasets: the splits to read.
        say: gets a progress line every few seconds.

    Raises:
        UserError: at the first damaged block.
    """
    blocks = [block for dataset in datasets for block in dataset.blocks()]
    total = sum(size for size, _ in blocks)
    start, done = time.monotonic(), 0
    last_line = start
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            for (size, _), _ in zip(blocks, pool.map(lambda block: block[1](), blocks), strict=True):
                done += size
                now = time.monotonic()
                if say is not None and now - last_line > _SECONDS_BETWEEN_LINES:
                    last_line = now
                    say(
                        f"verifying {datasets[0].folder}: {done / 1e9:,.1f} of {total / 1e9:,.1f} GB, "
                        f"{(now - start) * (total - done) / done:,.0f} s left (data.verify: false skips this)"
                    )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_SAMPLE_TOKENS = 200
_LONGEST_LINE = 500


def inspect(folder: Path) -> dict[str, Any]:
    """Read and verify a whole prepared folder.

    Returns:
        `folder`; `sources`, `tokenizer` and `seed` of the preparation; for each split `tokens`, `bytes`, `documents`,
        `shards`, `bytes_per_token` (without end-of-document ids), `tokens_per_document` and a `sample`, which is the
        beginning of the first document; `duplicates_dropped`; `skipped`; `text_lost`, the share of the characters that
        the tokenizer lost (None: not counted); and `verified`, which is always true, because damage raises an error.

    Raises:
        UserError: if the folder is not a prepared folder, or if a file is damaged.
    """
    description = read_description(folder)
    datasets = {split: TokenDataset.open(folder, split) for split in SPLITS}
    verify(list(datasets.values()))
    request = _object(description.get("request"))
    return {
        "folder": str(folder),
        "sources": request.get("sources"),
        "tokenizer": next(iter(datasets.values())).tokenizer.name,
        "seed": request.get("seed"),
        "splits": {
            name: _split(dataset, len(description["splits"][name]["shards"])) for name, dataset in datasets.items()
        },
        "duplicates_dropped": description.get("duplicates_dropped"),
        "skipped": _object(description.get("skipped")),
        "text_lost": next(iter(datasets.values())).text_lost,
        "verified": True,
    }


def lines_of(found: dict[str, Any]) -> list[str]:
    """Return the result of `inspect` as lines of text."""
    lines = [f"{found['folder']}: tokenizer {found['tokenizer']}, seed {found['seed']}; every checksum is right"]
    for name, split in found["splits"].items():
        lines.append(
            f"{name}: {split['tokens']:,} tokens, {split['bytes']:,} bytes, {split['documents']:,} documents in "
            f"{split['shards']:,} shard{'s' * (split['shards'] != 1)}; {split['bytes_per_token']:.3f} bytes per token, "
            f"{split['tokens_per_document']:,.1f} tokens per document"
        )
    lines += [f"{name} begins: {split['sample']!r}" for name, split in found["splits"].items()]
    counts = {"duplicates_dropped": found["duplicates_dropped"], **found["skipped"]}
    nonzero = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items() if count]
    lines += ["; ".join(nonzero)] if nonzero else []
    warning = loss_warning(found["text_lost"])
    return lines if warning is None else [*lines, f"warning: {warning}"]


def _object(value: Any) -> dict[str, Any]:
    """Return an optional part of dataset.json; an empty dict if the value in the file is not an object."""
    return value if isinstance(value, dict) else {}


def _split(dataset: TokenDataset, shards: int) -> dict[str, Any]:
    text_tokens = dataset.num_tokens - dataset.num_documents
    first = int(dataset.document_ends()[0])
    sample = dataset.tokenizer.decode(dataset.read(0, min(_SAMPLE_TOKENS, first)))
    return {
        "tokens": dataset.num_tokens,
        "bytes": dataset.num_bytes,
        "documents": dataset.num_documents,
        "shards": shards,
        "bytes_per_token": dataset.num_bytes / max(1, text_tokens),
        "tokens_per_document": dataset.num_tokens / max(1, dataset.num_documents),
        "sample": sample[:_LONGEST_LINE],
    }
