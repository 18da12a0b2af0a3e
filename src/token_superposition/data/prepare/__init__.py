"""Prepare: from sources to a folder of token shards, by several processes, in bounded memory, resumably.

The sources are listed and cut into pieces (`sources`). Each piece is read, hashed and encoded, by one process
or another, and left on the disk as sorted runs (`encode`, `pool`, `runs`). The runs are merged into shards
(`merge`, `splits`). All of it happens in a hidden folder that takes the output's place at the end, and which
the next attempt goes on with where this one is stopped (`workplace`).

Where a document goes is decided by its text alone, and the seed: the lowest hashes are the validation split,
the others lie by a hash of seed and text (and of a number, where a text is there more than once). That is a
shuffle of the whole corpus. So neither the number of processes, nor how the sources were cut, named or ordered,
nor an interruption changes a byte of the shards. Nothing is held that grows with the corpus.
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

_TRAINING_BYTES = 2**27  # of text that a tokenizer is trained on
_SPOOL = "standard input"
_PLAN_VERSION = 2  # of what a stopped preparation leaves to the next
_SHARD_OF_HUB = 2**29  # bytes: nobody knows


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

    Where `out` already holds the same request, complete and younger than its sources, nothing is done
    (what is installed for `python`, or published on the hub, may have changed: that alone does not count).

    Args:
        sources: one or several of `python`, text files, folders, patterns, .jsonl, .json, .csv, .parquet, .arrow,
            folders of `save_to_disk`, token files (.bin, .npy), hf:NAME:SPLIT, or `-` for standard input.
        out: the folder to make.
        tokenizer: `bytes`, `bpe:SIZE` (trained on the corpus), a tokenizer folder or a name on the hub.
        end_token: ends a document; without it, the tokenizer's own.
        seed: of the order of the training documents.
        text_key: the column that holds the text; a column inside another is named with dots (`meta.text`).
        deduplicate: keep one of several documents of exactly the same text; without it, where `python` is
            among the sources.
        on_error: `fail` at the first document that is bad, or `skip` such and count them.
        max_document_bytes: a longer record is bad; a longer text is cut.
        max_validation_tokens, validation_fraction: the validation split holds at most the smaller of both
            (a fraction of all tokens), but at least one text.
        max_shard_tokens: the most tokens of a shard.
        stdin, stdin_format: what `-` stands for, and what it is: text, jsonl, json or csv.
        token_bytes: bytes an id of token files that do not say it: 2, 4 or 8; what the tokenizer needs without it.
        processes: how many at once; as many as there are cores without it.
        overwrite: replace a prepared folder; never anything else.
        quiet: no progress on a terminal.

    Returns:
        dataset.json (tokens, bytes and documents by split and in all, duplicates_dropped, skipped; text_lost, the
        share of the characters that the tokenizer lost; tokenizer_ids, and tokenizer_ids_asked of one that was
        trained; warnings; ...), and `folder`, `seconds` and `reused`, whether it was there already.

    Raises:
        UserError: for a source that cannot be used, an `out` that is taken, too small a corpus, a full disk.

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
        raise UserError(f"--format is one of {', '.join(FORMATS)}, not {stdin_format!r}")
    size = bpe_size(tokenizer)
    if size is not None and end_token not in (None, END_OF_DOCUMENT):
        raise UserError(f"--end-token: a tokenizer that is trained here has its own end, {END_OF_DOCUMENT!r}")
    codec = make_tokenizer(tokenizer, end_token) if size is None else None
    sources = [sources] if isinstance(sources, str | Path) else sources
    sources = sorted(sources, key=source_name)  # a tokenizer that is trained depends on their order
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
        if check_out(out, overwrite=overwrite):  # once more: hours may have passed
            raise UserError(f"{out}: another data set was put there meanwhile; name another folder")
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
    """Fill the workplace with shards and a tokenizer; returns what dataset.json says."""
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
            codec = load_tokenizer(workplace.path)  # of an attempt before
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
    except UserError:  # too little text: there is nothing to go on with
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
            f"tokenizer {codec.name!r} has {codec.num_ids:,} ids, fewer than the {size:,} that were asked for: the "
            "text is too short to give more"
        )
    loss = loss_warning(share)
    return warnings if loss is None else [*warnings, loss]


def _named(codec: Tokenizer) -> dict[str, str]:
    return {"name": codec.name, "fingerprint": codec.fingerprint}


def _collect(corpus: Corpus, pieces: Sequence[Piece], finished: dict[int, dict[str, Any]]) -> tuple[Skipped, list[Run]]:
    """What all pieces passed over, and their runs, in the order of the pieces.

    Raises:
        UserError: for a source without any text.
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
    """A BPE of that size, trained on the first documents of every piece."""
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
    if sys.stdin is None:  # a process can be started without one
        raise UserError("standard input is closed; name files, or pipe something in")
    return sys.stdin.buffer


def _spool(stdin: BinaryIO, form: str, workplace: Workplace) -> tuple[File, str]:
    """Standard input as a file, for it is read more than once and by several processes; and a hash of it."""
    path, size, digest = workplace.path / _SPOOL, 0, hashlib.blake2b()
    with naming(path), path.open("wb") as file:
        while chunk := stdin.read(2**20):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if not size:
        raise UserError("standard input is empty")
    return File(str(path), size, form), digest.hexdigest()
