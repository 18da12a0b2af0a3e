"""Prepare a dataset: turn sources into a folder of token shards, with several processes and bounded memory.

The sources are listed and split into pieces (`readers`). A process reads, hashes and encodes each piece and writes the
result to disk as sorted runs (`encode`, `pool`, `spill`). The runs are merged into shards (`merge`, `splits`). All of
this happens in a hidden folder that is renamed to the output folder at the end. If the work stops, the next attempt
continues in this hidden folder (`staging`).

The place of a document depends only on its text and the seed. The texts with the lowest hashes are the validation
split. The other texts are ordered by a hash of seed and text (and of a number, for the copies of a text). This is a
shuffle of the whole corpus. So no byte of the shards depends on the number of processes, on the pieces, names and order
of the sources, or on an interruption. Memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from token_superposition.data.manifest import DATASET_FILE, DATASET_FORMAT, DATASET_VERSION, loss_warning
from token_superposition.data.prepare.encode import EncodeProgress, Encoder
from token_superposition.data.prepare.merge import Limits, Merge
from token_superposition.data.prepare.pool import available_cores, encode_pieces, tokenizer_threads
from token_superposition.data.prepare.prepare_options import FORMATS, already, check_options, check_out
from token_superposition.data.prepare.prepare_progress import Show, Sum, progress_bar
from token_superposition.data.prepare.spill import Run
from token_superposition.data.prepare.splits import COUNTED
from token_superposition.data.prepare.staging import Workplace, complete, open_workplace
from token_superposition.data.readers import (
    MAX_DOCUMENT_BYTES,
    PYTHON,
    STDIN,
    Corpus,
    File,
    Piece,
    Skipped,
    check_found,
    read_piece,
    source_name,
)
from token_superposition.data.tokenizers import (
    END_OF_DOCUMENT,
    TOKENIZER_FILES,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
)
from token_superposition.data.tokenizers.subwords import bpe_size, train_bpe
from token_superposition.errors import UserError
from token_superposition.files import naming, write_json

_TRAINING_BYTES = 2**27  # the maximum bytes of text to train a tokenizer on
_SPOOL = "standard input"
_PLAN_VERSION = 2  # the version of the files that a stopped preparation leaves for the next attempt
_SHARD_OF_HUB = 2**29  # bytes; an assumption, because the real size is not known


def prepare(
    sources: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    tokenizer: str = "bytes",
    end_token: str | None = None,
    seed: int = 0,
    text_key: str = "text",
    deduplicate: bool | None = None,
    on_error: str = "fail",
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    max_validation_tokens: int = 1_000_000,
    validation_fraction: float = 0.05,
    max_shard_tokens: int = 2**28,
    stdin: BinaryIO | None = None,
    stdin_format: str = "text",
    token_bytes: int | None = None,
    processes: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Turn sources into a folder that `TokenDataset.open` reads.

    If `out` already holds a complete dataset of the same request that is newer than its sources, nothing is done.
    Changes of the installed packages (`python`) or of the hub alone do not count.

    Args:
        sources: one or several of `python`, text files, folders, patterns, .jsonl, .json, .csv, .parquet, .arrow,
            folders of `save_to_disk`, token files (.bin, .npy), hf:NAME:SPLIT, or `-` for standard input.
        out: the folder to create.
        tokenizer: `bytes`, `bpe:SIZE` (trained on the corpus), a tokenizer folder or a name on the hub.
        end_token: the token that ends a document; the default is the tokenizer's own end token.
        seed: the seed of the order of the training documents.
        text_key: the column that holds the text; a nested column is named with dots (`meta.text`).
        deduplicate: keep only one of several documents with exactly the same text; the default is to do so if `python`
            is one of the sources.
        on_error: `fail` stops at the first bad document; `skip` skips and counts bad documents.
        max_document_bytes: a longer record is bad; a longer text is split.
        max_validation_tokens, validation_fraction: the maximum size of the validation split, in tokens and as a
            fraction of all tokens; the smaller one counts. The split holds at least one text.
        max_shard_tokens: the maximum number of tokens per shard.
        stdin, stdin_format: the stream for `-`, and its format: text, jsonl, json or csv.
        token_bytes: bytes per id of token files that do not say it: 2, 4 or 8; the default is the width that the
            tokenizer needs.
        processes: the number of processes; the default is the number of cores.
        overwrite: replace a prepared folder; any other folder is never replaced.
        quiet: show no progress on a terminal.

    Returns:
        The content of dataset.json (tokens, bytes and documents for each split and in total; duplicates_dropped;
        skipped; text_lost, the share of the characters that the tokenizer lost; tokenizer_ids; tokenizer_ids_asked, the
        requested number of ids of a trained tokenizer; warnings; ...), and `folder`, `seconds` and `reused`, which says
        whether the dataset already existed.

    Raises:
        UserError: if a source cannot be used, `out` is not free, the corpus is too small, or the disk is full.

    Example:
        >>> described = prepare("my-text", out="data/mine", quiet=True)
        >>> sorted(described["splits"])
        ['train', 'validation']
    """
    started = time.monotonic()
    check_options(
        seed=seed,
        max_validation_tokens=max_validation_tokens,
        validation_fraction=validation_fraction,
        max_shard_tokens=max_shard_tokens,
        on_error=on_error,
        max_document_bytes=max_document_bytes,
        processes=processes,
        token_bytes=token_bytes,
    )
    if stdin_format not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}, not {stdin_format!r}")
    size = bpe_size(tokenizer)
    if size is not None and end_token not in (None, END_OF_DOCUMENT):
        raise UserError(
            f"--end-token: a trained tokenizer has its own end token, {END_OF_DOCUMENT!r}; leave out --end-token"
        )
    codec = make_tokenizer(tokenizer, end_token) if size is None else None
    sources = [sources] if isinstance(sources, str | Path) else sources
    sources = sorted(sources, key=source_name)  # a trained tokenizer depends on their order
    names = [source_name(source) for source in sources]
    request: dict[str, Any] = {
        "sources": names,
        "tokenizer": {"name": tokenizer} if codec is None else _named(codec),
        "seed": seed,
        "text_key": text_key,
        "deduplicate": PYTHON in names if deduplicate is None else deduplicate,
        "max_validation_tokens": max_validation_tokens,
        "validation_fraction": validation_fraction,
        "max_shard_tokens": max_shard_tokens,
    }
    if on_error != "fail":
        request["on_error"] = on_error
    if max_document_bytes != MAX_DOCUMENT_BYTES:
        request["max_document_bytes"] = max_document_bytes

    if token_bytes is not None:
        request["token_bytes"] = token_bytes

    def listed(stdin: File | None = None) -> Corpus:
        return Corpus(
            sources,
            text_key=text_key,
            on_error=on_error,
            max_document_bytes=max_document_bytes,
            stdin=stdin,
            tokenizer=codec,
            token_bytes=token_bytes,
        )

    out = Path(out)
    corpus = None if STDIN in names else listed()
    reused = check_out(out, overwrite=overwrite)
    if reused:
        done = already(out, request, corpus)
        return {**done, "folder": str(out), "seconds": time.monotonic() - started, "reused": True}
    with open_workplace(out) as workplace, progress_bar(quiet) as show:
        spooled = None
        if corpus is None:
            file, spooled = _spool(stdin or _own_stdin(), stdin_format, workplace)
            corpus = listed(file)
        try:
            done = _make(workplace, corpus, codec, size, request, spooled, processes or available_cores(), show)
        except UserError as error:
            raise UserError(str(error).replace(f"{workplace.path}/", "")) from None
        write_json(workplace.path / DATASET_FILE, done)
        if check_out(out, overwrite=overwrite):  # a second check, because hours may have passed
            raise UserError(f"{out}: another dataset was written there in the meantime; name another folder")
        shards = {shard["file"] for split in done["splits"].values() for shard in split["shards"]}
        complete(workplace, out, {DATASET_FILE, *TOKENIZER_FILES, *shards})
    return {**done, "folder": str(out), "seconds": time.monotonic() - started, "reused": False}


def _make(
    workplace: Workplace,
    corpus: Corpus,
    codec: Tokenizer | None,
    size: int | None,
    request: dict[str, Any],
    spooled: str | None,
    processes: int,
    show: Show,
) -> dict[str, Any]:
    """Write the shards and the tokenizer into the workplace, and return the content of dataset.json."""
    if codec is None and corpus.reading.cut_tokens is not None:
        raise UserError("token files (.bin) need the tokenizer that wrote them; name it with --tokenizer")
    pieces = corpus.pieces()
    same = {key: value for key, value in request.items() if key != "on_error"}
    plan = {
        "version": _PLAN_VERSION,
        "request": same,
        "pieces": [asdict(piece) for piece in pieces],
        "changed": corpus.newest,
    }
    with_bad = corpus.reading.on_error == "skip"
    finished = workplace.plan({**plan, "stdin": spooled}, keep={_SPOOL}, with_bad=with_bad)
    if codec is None:
        try:
            codec = load_tokenizer(workplace.path)  # saved by an earlier attempt
        except UserError:
            with tokenizer_threads(processes):
                codec = _train(corpus, pieces, size or 0, show)
    codec.save(workplace.path)
    workplace.keep = len(pieces) > 1 and bool(finished or size)
    total = sum(piece.size for piece in pieces)
    progress = Sum(lambda progress: show("reading", progress, total))
    for number, result in finished.items():
        runs = [Run(**run) for run in result["runs"]]
        tokens = sum(run.tokens + run.documents for run in runs)
        progress.report(number, EncodeProgress(pieces[number].size, sum(run.documents for run in runs), tokens))
    encoder = Encoder(workplace.path, codec, corpus.reading, request["seed"])
    waiting = [(number, piece) for number, piece in enumerate(pieces) if number not in finished]
    size_left = sum(_SHARD_OF_HUB if piece.kind == "hub" else piece.size for _, piece in waiting)
    encoded = encode_pieces(encoder, waiting, processes, size_left, workplace.lock, progress.report)
    for number, result in encoded:
        workplace.finish(number, result)
        finished[number] = result
        workplace.keep = len(pieces) > 1
    skipped, runs = _collect(corpus, pieces, finished)
    limits = Limits(**{name: request[name] for name in Limits.__annotations__})
    merge = Merge(workplace.path, runs, codec, request["seed"], limits)
    try:
        census = merge.census()
    except UserError:  # too little text: a later attempt cannot continue
        workplace.keep = False
        raise
    width = 2 if codec.vocab_size <= 2**16 else 4
    splits = merge.write(census, processes, lambda progress: show("writing", progress, width * census.tokens))
    lost, characters = (sum(result["characters"][part] for result in finished.values()) for part in (0, 1))
    share = lost / characters if characters else 0.0
    return {
        "format": DATASET_FORMAT,
        "version": DATASET_VERSION,
        "request": {**request, "tokenizer": _named(codec)},
        "tokenizer_ids": codec.num_ids,
        "tokenizer_ids_asked": size,
        "text_lost": share,
        "characters_lost": lost,
        "warnings": _warnings(codec, size, share),
        "splits": splits,
        **{key: sum(split[key] for split in splits.values()) for key in COUNTED},
        "duplicates_dropped": census.duplicates,
        "skipped": skipped.counts(),
        "sources": {name: corpus.sizes[name] for name in request["sources"]},
    }


def _warnings(codec: Tokenizer, size: int | None, share: float) -> list[str]:
    warnings = []
    if size is not None and codec.num_ids < size:
        warnings.append(
            f"tokenizer {codec.name!r} has {codec.num_ids:,} ids, fewer than the requested {size:,}, because the text "
            "is too short"
        )
    loss = loss_warning(share)
    return warnings if loss is None else [*warnings, loss]


def _named(codec: Tokenizer) -> dict[str, str]:
    return {"name": codec.name, "fingerprint": codec.fingerprint}


def _collect(corpus: Corpus, pieces: Sequence[Piece], finished: dict[int, dict[str, Any]]) -> tuple[Skipped, list[Run]]:
    """Return the skipped counts of all pieces, and their runs, in the order of the pieces.

    Raises:
        UserError: if a source has no text.
    """
    skipped, runs = corpus.skipped, []
    for source in corpus.sizes:
        found = False
        for number, piece in enumerate(pieces):
            if piece.source == source:
                skipped.add(finished[number]["skipped"])
                runs += [Run(**run) for run in finished[number]["runs"]]
                found = found or bool(finished[number]["runs"])
        check_found(source, found, skipped)
    return skipped, runs


def _train(corpus: Corpus, pieces: Sequence[Piece], size: int, show: Show) -> Tokenizer:
    """Train a BPE tokenizer with `size` ids on the first documents of every piece."""
    share = max(2**16, _TRAINING_BYTES // max(1, len(pieces)))
    total = min(_TRAINING_BYTES, share * len(pieces))

    def texts() -> Iterator[str]:
        progress = EncodeProgress()
        for piece in pieces:
            taken = 0
            for document in read_piece(piece, corpus.reading, Skipped(), None):
                part = document.text[: share - taken].decode("utf-8", errors="ignore")
                taken += len(document.text)
                progress.done += len(part)
                progress.documents += 1
                show("training the tokenizer on", progress, total)
                yield part
                if taken >= share or progress.done >= _TRAINING_BYTES:
                    break

    return train_bpe(texts(), size)


def _own_stdin() -> BinaryIO:
    if sys.stdin is None:  # a process can be started without standard input
        raise UserError("standard input is closed; name files, or pipe something in")
    return sys.stdin.buffer


def _spool(stdin: BinaryIO, form: str, workplace: Workplace) -> tuple[File, str]:
    """Copy standard input to a file, which several processes can read more than once; return it with its hash."""
    path, size, digest = workplace.path / _SPOOL, 0, hashlib.blake2b()
    with naming(path), path.open("wb") as file:
        while chunk := stdin.read(2**20):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if not size:
        raise UserError("standard input is empty")
    return File(str(path), size, form), digest.hexdigest()
