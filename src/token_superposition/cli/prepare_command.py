"""The command `tst prepare`.

`tst --help` imports this module, so slow imports happen only when the command runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from token_superposition.arguments import integer, path, path_or_word, seed
from token_superposition.errors import UserError

_SOURCE = (
    "text files, folders, patterns in quotes, .jsonl, .json, .csv, .parquet, .arrow, .bin, .npy, "
    "hf:NAME:SPLIT, 'python' (this machine's Python source code), or - for standard input"
)


def add_data_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the command; `add` makes a parser from a command's name, function and help text."""
    prepare = add("prepare", _prepare, "tokenize text into a dataset folder for training")
    prepare.add_argument("sources", type=path_or_word, nargs="*", metavar="SOURCE", help=_SOURCE)
    prepare.add_argument("--out", type=path, help="folder to write")
    prepare.add_argument("--inspect", type=path, metavar="DIR", help="describe and verify a dataset folder")
    prepare.add_argument(
        "--tokenizer",
        type=path_or_word,
        default="bytes",
        help="bytes, bpe:SIZE, a tokenizer folder or a Hugging Face Hub name (default: %(default)s)",
    )
    prepare.add_argument("--end-token", metavar="TOKEN", help="end-of-document token (default: the tokenizer's own)")
    prepare.add_argument(
        "--text-key",
        default="text",
        help="column that holds the text, such as text or meta.text (default: %(default)s)",
    )
    prepare.add_argument(
        "--token-bytes",
        type=int,
        metavar="N",
        help="bytes per token id in .bin files: 2, 4 or 8 (default: the smallest size that fits the vocabulary)",
    )
    prepare.add_argument(
        "--format", default="text", help="format of standard input: text, jsonl, json or csv (default: text)"
    )
    prepare.add_argument("--seed", type=seed, default=0, help="seed of the document order (default: %(default)s)")
    prepare.add_argument("--deduplicate", action="store_true", help="keep one copy of identical documents")
    prepare.add_argument(
        "--on-error", default="fail", help="for a bad document: fail, or skip it and continue (default: %(default)s)"
    )
    prepare.add_argument(
        "--max-document-bytes",
        type=integer,
        default=2**28,
        help="largest size of one document in bytes (default: %(default)s)",
    )
    prepare.add_argument(
        "--max-shard-tokens",
        type=integer,
        default=2**28,
        help="largest size of a shard in tokens (default: %(default)s)",
    )
    prepare.add_argument(
        "--max-validation-tokens",
        type=integer,
        default=1_000_000,
        help="largest size of the validation split in tokens (default: %(default)s)",
    )
    prepare.add_argument("--processes", type=integer, help="number of parallel processes (default: one per core)")
    prepare.add_argument("--overwrite", action="store_true", help="replace an earlier dataset in the folder")


def _prepare(options: argparse.Namespace, _: dict[str, str]) -> tuple[dict[str, Any], str]:
    if options.inspect is not None:
        if options.sources or options.out is not None:
            raise UserError("--inspect: takes only a dataset folder; remove the sources and --out")
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
        deduplicate=options.deduplicate
        or None,  # None: the default of the source, which for `python` is to deduplicate
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
    if result.get("skipped", {}).get("first"):
        from token_superposition.data.readers.document import BAD

        skipped = result["skipped"]
        bad = {name: skipped[name] for name in BAD if skipped.get(name)}
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in bad.items())
        print(f"warning: skipped {counts}; the first: {skipped['first']}", file=sys.stderr)
    splits = result["splits"]
    lines = [f"{name}: {split['tokens']:,} tokens, {split['bytes']:,} bytes" for name, split in splits.items()]
    there = ", which already existed" if result["reused"] else ""
    return result, "\n".join([f"dataset in {options.out}{there}", *lines])
