"""The command of this room: `tst prepare`.

This module is read for `tst --help`, so what is heavy is imported when the command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from token_superposition.arguments import integer, path, path_or_word, seed
from token_superposition.errors import UserError

_SOURCE = (
    "'python', text files, folders, patterns in quotes, .jsonl, .json, .csv, .parquet, .arrow, .bin, .npy, "
    "hf:NAME:SPLIT, or - for standard input"
)


def add_data_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare it; `add` makes the parser of a command from its name, function and text."""
    prepare = add("prepare", _prepare, "turn text into token shards")
    prepare.add_argument("sources", type=path_or_word, nargs="*", metavar="SOURCE", help=_SOURCE)
    prepare.add_argument("--out", type=path, help="folder to write")
    prepare.add_argument("--inspect", type=path, metavar="DIR", help="show what a prepared folder holds, and verify it")
    prepare.add_argument(
        "--tokenizer",
        type=path_or_word,
        default="bytes",
        help="bytes, bpe:SIZE, a tokenizer folder or hub name (default: %(default)s)",
    )
    prepare.add_argument("--end-token", metavar="TOKEN", help="ends a document (default: the tokenizer's own)")
    prepare.add_argument(
        "--text-key", default="text", help="column of the text, such as meta.text (default: %(default)s)"
    )
    prepare.add_argument(
        "--token-bytes", type=int, metavar="N", help="of an id in .bin: 2, 4, 8 (default: as the vocabulary needs)"
    )
    prepare.add_argument("--format", default="text", help="of standard input: text, jsonl, json, csv (default: text)")
    prepare.add_argument("--seed", type=seed, default=0, help="of the documents' order (default: %(default)s)")
    prepare.add_argument("--deduplicate", action="store_true", help="keep one of several equal documents")
    prepare.add_argument("--on-error", default="fail", help="fail at a bad document, or skip (default: %(default)s)")
    prepare.add_argument(
        "--max-document-bytes", type=integer, default=2**28, help="the longest record (default: %(default)s)"
    )
    prepare.add_argument("--max-shard-tokens", type=integer, default=2**28, help="(default: %(default)s)")
    prepare.add_argument(
        "--max-validation-tokens", type=integer, default=1_000_000, help="most to hold out (default: %(default)s)"
    )
    prepare.add_argument("--processes", type=integer, help="at once (default: one a core)")
    prepare.add_argument("--overwrite", action="store_true", help="replace an earlier data set in the folder")


def _prepare(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    if options.inspect is not None:
        if options.sources or options.out is not None:
            raise UserError("--inspect: takes a prepared folder alone, no sources and no --out")
        from token_superposition.data.dataset import inspect, lines_of

        found = inspect(options.inspect)
        return found, "\n".join(lines_of(found))
    if options.out is None:
        raise UserError("--out: name the folder to write (see tst prepare --help)")
    from token_superposition.data.prepare import prepare

    result = prepare(
        options.sources,
        tokenizer=options.tokenizer,
        end_token=options.end_token,
        out=options.out,
        seed=options.seed,
        text_key=options.text_key,
        deduplicate=options.deduplicate or None,  # for `python` by itself
        on_error=options.on_error,
        max_document_bytes=options.max_document_bytes,
        max_shard_tokens=options.max_shard_tokens,
        max_validation_tokens=options.max_validation_tokens,
        stdin_format=options.format,
        token_bytes=options.token_bytes,
        processes=options.processes,
        overwrite=options.overwrite,
        quiet=options.quiet,
    )
    for warning in result.get("warnings", []):
        print(f"warning: {warning}", file=sys.stderr)
    if result["skipped"].get("first"):
        from token_superposition.data.readers.document import BAD

        skipped = result["skipped"]
        bad = {name: skipped[name] for name in BAD if skipped.get(name)}
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in bad.items())
        print(f"warning: skipped {counts}; the first: {skipped['first']}", file=sys.stderr)
    splits = result["splits"]
    lines = [f"{name}: {split['tokens']:,} tokens, {split['bytes']:,} bytes" for name, split in splits.items()]
    there = ", there already" if result["reused"] else ""
    return result, "\n".join([f"data set in {options.out}{there}", *lines])
