"""Prepare: from sources to a folder of token shards, in two passes and bounded memory.

Pass 1 reads each document once, encodes it and appends its tokens to one temporary file (the spill). Of a
document only 32 bytes stay in memory: a hash of its text, and how many tokens and bytes it has. Pass 2
decides from these alone what goes where, and copies documents out of the spill into shards.

The validation split is a threshold on the hash of the text: it holds the documents of the lowest hashes, up
to a limit. So it depends neither on the seed nor on the order of the sources, the same text is never on
both sides, and adding documents leaves most of it as it was. Its documents lie by hash. Training documents
lie by a hash of seed and text: a shuffle that needs no memory, and a pure function of the documents.

Everything is written into a hidden folder beside the output, which takes its place in one step at the end:
an output folder is complete or not there. The same input gives the same bytes, dataset.json included.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.description import (
    DATASET_FILE,
    DATASET_FORMAT,
    DATASET_VERSION,
    read_description,
    shard_name,
)
from token_superposition.data.shards import ShardWriter, TokenDataset, token_dtype
from token_superposition.data.sources import PYTHON, Corpus, source_name
from token_superposition.data.tokenizers import TOKENIZER_FILES, Tokenizer, make_tokenizer
from token_superposition.errors import UserError
from token_superposition.files import make_folder, naming, remove_empty, replace_folder, write_json

_SPILL_FILE = "spill"
_COUNTED = ("tokens", "bytes", "documents")
_SECONDS_BETWEEN_UPDATES = 0.1

# Called with what is being done, how much of how much (bytes), and a few words on it.
_Show = Callable[[str, int, int, str], None]


def prepare(
    sources: Sequence[str | Path],
    *,
    out: str | Path,
    tokenizer: str = "bytes",
    seed: int = 0,
    text_key: str = "text",
    deduplicate: bool | None = None,
    max_validation_tokens: int = 1_000_000,
    validation_fraction: float = 0.05,
    max_shard_tokens: int = 2**28,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Turn sources into a folder that `TokenDataset.open` reads.

    Where `out` already holds the same request, complete and younger than its sources, nothing is done
    (what is installed for `python` may have changed: that alone does not count).

    Args:
        sources: `python`, text files, folders, .jsonl (.gz), .parquet.
        out: the folder to make.
        tokenizer: its name.
        seed: of the order of the training documents.
        text_key: the column of .jsonl and .parquet that holds the text.
        deduplicate: keep one of several documents of exactly the same text; without it, where `python` is
            among the sources.
        max_validation_tokens, validation_fraction: the validation split holds at most the smaller of both
            (a fraction of all tokens), but at least one text.
        max_shard_tokens: tokens a shard.
        overwrite: replace a prepared folder; never anything else.
        quiet: no progress on a terminal.

    Returns:
        dataset.json (tokens, bytes and documents by split and in all, duplicates_dropped, skipped, ...),
        and `folder`, `seconds` and `reused`, whether it was there already.

    Raises:
        UserError: for a source that cannot be used, an `out` that is taken, too small a corpus, a full disk.
    """
    started = time.monotonic()
    if not 0 < validation_fraction < 1 or max_validation_tokens < 1 or max_shard_tokens < 1:
        raise UserError(
            "max_validation_tokens and max_shard_tokens are at least 1, validation_fraction is between 0 and 1 "
            f"(not {max_validation_tokens}, {max_shard_tokens}, {validation_fraction})"
        )
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is at least 0 and under 2**63, not {seed if abs(seed) < 10**30 else 'as it is'}")
    out = Path(out)
    codec = make_tokenizer(tokenizer)
    names = sorted(source_name(source) for source in sources)
    request: dict[str, Any] = {
        "sources": names,
        "tokenizer": {"name": codec.name, "fingerprint": codec.fingerprint},
        "seed": seed,
        "text_key": text_key,
        "deduplicate": PYTHON in names if deduplicate is None else deduplicate,
        "max_validation_tokens": max_validation_tokens,
        "validation_fraction": validation_fraction,
        "max_shard_tokens": max_shard_tokens,
    }
    corpus = Corpus(sources, text_key=text_key)
    done = _already(out, request, corpus, overwrite=overwrite)
    reused = done is not None
    if done is None:
        with _workplace(out) as workplace, _progress(quiet) as show:
            index = _encode(corpus, codec, workplace / _SPILL_FILE, show)
            plan = _plan(index, request)
            splits = _write(plan, index, codec, workplace, max_shard_tokens, show)
            (workplace / _SPILL_FILE).unlink()
            codec.save(workplace)
            done = {
                "format": DATASET_FORMAT,
                "version": DATASET_VERSION,
                "request": request,
                "splits": splits,
                **{key: sum(split[key] for split in splits.values()) for key in _COUNTED},
                "duplicates_dropped": len(index.tokens) - sum(map(len, plan.values())),
                "skipped": corpus.skipped.counts(),
                "sources": {name: corpus.sizes[name] for name in names},
            }
            write_json(workplace / DATASET_FILE, done)
            replace_folder(workplace, Path(os.path.realpath(out)))
    return {**done, "folder": str(out), "seconds": time.monotonic() - started, "reused": reused}


# ---- the output folder ---------------------------------------------------------------------------------


def _already(out: Path, request: dict[str, Any], corpus: Corpus, *, overwrite: bool) -> dict[str, Any] | None:
    """What `out` holds where that is what is asked for; None where it is to be made; else UserError."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    if out.samefile(Path.cwd()) or out.is_mount():  # cannot be put in place by renaming
        raise UserError(f"{out}: is the current folder or a mount point; name a folder inside it")
    entries = sorted(entry.name for entry in out.iterdir())
    if not entries:
        return None
    if DATASET_FILE not in entries:
        raise UserError(f"{out}: is not empty and holds no prepared data set; name another folder")
    if overwrite:  # the folder will be removed: nobody's other files with it
        ours = (DATASET_FILE, *TOKENIZER_FILES)
        strangers = [name for name in entries if name not in ours and not name.endswith(".tokens")]
        if strangers:
            raise UserError(f"{out}: holds {strangers[0]!r} beside the data set; move it before overwriting")
        return None
    found = read_description(out)
    mend = "name another folder, or overwrite it (--overwrite)"
    there, sizes = found.get("request"), found.get("sources")
    if not isinstance(there, dict) or not isinstance(sizes, dict):
        raise UserError(f"{out / DATASET_FILE}: is damaged (no request or no sources); {mend}")
    for key, value in request.items():
        if there.get(key) != value:
            before = _word(there.get(key))
            raise UserError(f"{out}: was prepared with {key} {before}, not {_word(value)}; {mend}")
    mine = [name for name in request["sources"] if name != PYTHON]
    resized = any(sizes.get(name) != corpus.sizes[name] for name in mine)
    if resized or corpus.newest > (out / DATASET_FILE).stat().st_mtime:
        raise UserError(f"{out}: its sources have changed since it was prepared; {mend}")
    for split in found["splits"]:
        TokenDataset.open(out, split)  # raises where a shard is missing or cut short
    return found


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name"))
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """An empty hidden folder beside `out`, locked, removed at the end where it has not become `out`.

    A killed process leaves its folder, but not its lock, to the next one.
    """
    final = Path(os.path.realpath(out))  # through a link, so that the work is done on the disk it leads to
    workplace = final.with_name(f".{final.name}.preparing")
    try:
        made = make_folder(workplace)
        lock = os.open(workplace, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another process may have finished and renamed the folder.
            ours = workplace.exists() and os.path.samestat(workplace.stat(), os.fstat(lock))
        except BlockingIOError:
            ours = False
        if not ours:
            raise UserError(f"{out}: another process is preparing this folder; wait for it")
        try:
            for left in workplace.iterdir():
                left.unlink()
            yield workplace
        finally:
            if workplace.exists():
                shutil.rmtree(workplace, ignore_errors=True)
                remove_empty(made)
    except OSError as error:
        if str(error.filename).startswith(str(workplace)):
            error.filename = str(out)  # nobody has heard of the hidden one
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{out}: the disk is full; preparing needs room for the tokens twice, at 2 or 4 bytes each"
        ) from None
    finally:
        os.close(lock)


# ---- pass 1 --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """What is known of the spilled documents, in the order of the spill.

    Attributes:
        hashes: (documents, 2), uint64, BLAKE2b-128 of the texts.
        tokens: (documents,), int64, each with its end.
        num_bytes: (documents,), int64, of text.
    """

    hashes: NDArray[np.uint64]
    tokens: NDArray[np.int64]
    num_bytes: NDArray[np.int64]


def _encode(corpus: Corpus, tokenizer: Tokenizer, spill: Path, show: _Show) -> _Index:
    hashes, tokens, num_bytes = bytearray(), array("q"), array("q")
    dtype = token_dtype(tokenizer.vocab_size)
    end = np.array([tokenizer.end_of_document_id], dtype=dtype).tobytes()
    total_tokens = total_bytes = 0
    with naming(spill), spill.open("wb", buffering=2**20) as file:
        for document in corpus.documents():
            ids = tokenizer.encode(document.text.decode("utf-8")).astype(dtype)
            file.write(ids.data)
            file.write(end)
            hashes += hashlib.blake2b(document.text, digest_size=16).digest()
            tokens.append(len(ids) + 1)
            num_bytes.append(len(document.text))
            total_tokens += len(ids) + 1
            total_bytes += len(document.text)
            words = f"{len(tokens):,} documents, {total_tokens / 1e6:,.1f}M tokens"
            show("reading", corpus.bytes_done, corpus.total_bytes, words)
    return _Index(
        np.frombuffer(hashes, dtype=">u8").astype(np.uint64).reshape(-1, 2),
        np.frombuffer(tokens, dtype=np.int64),
        np.frombuffer(num_bytes, dtype=np.int64),
    )


# ---- pass 2 --------------------------------------------------------------------------------------------


def _plan(index: _Index, request: dict[str, Any]) -> dict[str, NDArray[np.int64]]:
    """The documents of each split, in order, as places in the index."""
    high, low = index.hashes.T
    order = np.lexsort((low, high))
    ordered = index.hashes[order]
    is_first = np.ones(len(order), dtype=bool)  # of the documents that share a text
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    if request["deduplicate"]:
        order, is_first = order[is_first], np.ones(is_first.sum(), dtype=bool)
    starts = np.flatnonzero(is_first)  # of each text
    until = np.cumsum(index.tokens[order])  # tokens up to and with each document
    total = int(until[-1])
    limit = min(request["max_validation_tokens"], int(request["validation_fraction"] * total))
    ends = np.append(starts[1:], len(order))
    num_texts = max(1, int(np.searchsorted(until[ends - 1], limit, side="right")))
    cut = int(ends[num_texts - 1])
    if len(starts) < 2 or 2 * int(until[cut - 1]) > total:
        raise UserError(
            f"too little text to hold some out for validation: {len(order)} documents, {len(starts)} of them "
            f"different, {total:,} tokens; add documents, or cut long ones into files or lines of .jsonl"
        )
    validation, train = order[:cut], order[cut:]
    key = str(request["seed"]).encode()
    keyed = b"".join(
        hashlib.blake2b(text_hash.tobytes(), digest_size=8, key=key).digest()
        for text_hash in index.hashes[train].astype(">u8")
    )
    # Stable: equal texts stay side by side, and which is which makes no difference.
    return {
        "train": train[np.argsort(np.frombuffer(keyed, dtype=">u8"), kind="stable")],
        "validation": validation,
    }


def _write(
    plan: dict[str, NDArray[np.int64]],
    index: _Index,
    tokenizer: Tokenizer,
    folder: Path,
    max_shard_tokens: int,
    show: _Show,
) -> dict[str, Any]:
    """Write the shards of each split; returns what dataset.json says of them."""
    spill = np.memmap(folder / _SPILL_FILE, token_dtype(tokenizer.vocab_size), mode="r").view(np.ndarray)
    ends = np.cumsum(index.tokens)
    total = sum(int(index.tokens[documents].sum()) for documents in plan.values()) * spill.itemsize
    done = 0
    splits: dict[str, Any] = {}
    for split, documents in plan.items():
        shards: list[dict[str, Any]] = []
        for part in _parts(index.tokens[documents], max_shard_tokens):
            name = shard_name(split, len(shards))
            with ShardWriter(folder / name, tokenizer) as shard:
                for document in documents[part]:
                    end, num_tokens = int(ends[document]), int(index.tokens[document])
                    shard.add(spill[end - num_tokens : end], int(index.num_bytes[document]))
                    done += num_tokens * spill.itemsize
                    show("writing", done, total, name)
            counts = {"tokens": shard.num_tokens, "bytes": shard.num_bytes, "documents": shard.num_documents}
            shards.append({"file": name, **counts})
        sums = {key: sum(shard[key] for shard in shards) for key in _COUNTED}
        splits[split] = {**sums, "shards": shards}
    return splits


def _parts(tokens: NDArray[np.int64], max_tokens: int) -> Iterator[slice]:
    """Runs of documents that fill shards of at most `max_tokens`, or of one document."""
    until = np.cumsum(tokens)
    start, before = 0, 0
    while start < len(tokens):
        stop = max(start + 1, int(np.searchsorted(until, before + max_tokens, side="right")))
        yield slice(start, stop)
        start, before = stop, int(until[stop - 1])


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[_Show]:
    """A bar on standard error where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}
        next_update = 0.0

        def show(what: str, completed: int, total: int, words: str) -> None:
            nonlocal next_update
            if what not in tasks:
                tasks[what] = bar.add_task(what, words="")
            elif time.monotonic() < next_update and completed < total:
                return
            next_update = time.monotonic() + _SECONDS_BETWEEN_UPDATES
            bar.update(tasks[what], completed=completed, total=total, words=words)

        yield show
