"""Inspecting a prepared folder: what it was made from, how much there is, how it reads, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from token_superposition.data.description import SPLITS, loss_warning, read_description
from token_superposition.data.shards import TokenDataset
from token_superposition.data.verify import verify

_SAMPLE_TOKENS = 200
_LONGEST_LINE = 500


def inspect(folder: Path) -> dict[str, Any]:
    """Read all of a prepared folder.

    Returns:
        `folder`; `sources`, `tokenizer` and `seed` as they were asked for; by split `tokens`, `bytes`, `documents`,
        `shards`, `bytes_per_token` (of text, ends not counted), `tokens_per_document` and a `sample`, the begin of the
        first document; `duplicates_dropped`; `skipped`; `text_lost`, the share of the characters that the
        tokenizer lost (None: not counted); and `verified`, which is true, for else an error is raised.

    Raises:
        UserError: where it is not a prepared folder, or anything of it is damaged.
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
    """What was found, for people."""
    lines = [f"{found['folder']}: tokenizer {found['tokenizer']}, seed {found['seed']}; every checksum is right"]
    for name, split in found["splits"].items():
        lines.append(
            f"{name}: {split['tokens']:,} tokens, {split['bytes']:,} bytes, {split['documents']:,} documents in "
            f"{split['shards']:,} shard{'s' * (split['shards'] != 1)}; {split['bytes_per_token']:.3f} bytes per token, "
            f"{split['tokens_per_document']:,.1f} tokens per document"
        )
    lines += [f"{name} begins: {split['sample']!r}" for name, split in found["splits"].items()]
    counts = {"duplicates_dropped": found["duplicates_dropped"], **found["skipped"]}
    said = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items() if count]
    lines += ["; ".join(said)] if said else []
    warning = loss_warning(found["text_lost"])
    return lines if warning is None else [*lines, f"warning: {warning}"]


def _object(value: Any) -> dict[str, Any]:
    """A part of dataset.json that nothing depends on, and that anybody may have changed."""
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
