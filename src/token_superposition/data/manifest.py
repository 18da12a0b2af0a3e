"""dataset.json: the sources and the content of a prepared folder; every value is checked when the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.files import is_whole_number, read_object

DATASET_FILE = "dataset.json"
DATASET_FORMAT = "token_superposition.dataset"
DATASET_VERSION = 1
SPLITS = ("train", "validation")
LOST_TEXT = 0.01  # a warning appears if the tokenizer lost a larger share of the characters
AGAIN = "prepare the data again (tst prepare with --overwrite)"


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard of a split."""
    return f"{split}-{number:05d}.tokens"


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of a prepared folder's dataset.json, after a check of its splits and shards.

    Raises:
        UserError: if the folder is not a prepared folder.
    """
    file = folder / DATASET_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it with: tst prepare SOURCE --out {folder}")
    try:
        description = read_object(file, AGAIN)
    except FileNotFoundError:
        raise UserError(
            f"{folder}: is not a prepared dataset (no {DATASET_FILE}); make one with: tst prepare"
        ) from None
    if description.get("format") != DATASET_FORMAT:
        raise UserError(f"{file}: does not describe a prepared dataset; {AGAIN}")
    if description.get("version") != DATASET_VERSION:
        raise UserError(
            f"{file}: has version {description.get('version')}, but this package reads version {DATASET_VERSION}; "
            f"{AGAIN}"
        )
    for key, kind in {"warnings": list, "skipped": dict}.items():
        if not isinstance(description.get(key, kind()), kind):
            raise UserError(f"{file}: is damaged ({key}); {AGAIN}")
    splits = description.get("splits")
    if not isinstance(splits, dict) or not all(name in splits for name in SPLITS):
        raise UserError(f"{file}: is damaged (no split named {' or '.join(SPLITS)}); {AGAIN}")
    for name, split in splits.items():
        shards = split.get("shards") if isinstance(split, dict) else None
        if not isinstance(shards, list) or not shards or not all(map(_is_counted, [split, *shards])):
            raise UserError(f"{file}: is damaged (split {name!r}); {AGAIN}")
        for number, shard in enumerate(shards):  # each file exactly once, and no path outside the folder
            if shard.get("file") != shard_name(name, number):
                raise UserError(f"{file}: is damaged (split {name!r} names the shard {shard.get('file')!r}); {AGAIN}")
    return description


def loss_warning(share: float | None) -> str | None:
    """Return the warning for bits per byte if a tokenizer lost this share of the text; None if the share is small."""
    if share is None or share <= LOST_TEXT:
        return None
    return (
        f"the tokenizer lost {share:.1%} of the characters of the text (they became the unknown token or no token), so "
        "the bits per byte are too low and cannot be compared"
    )


def text_lost(description: dict[str, Any]) -> float | None:
    """Return the share of the characters that the tokenizer lost; None if it was not counted (version 0.1)."""
    share = description.get("text_lost")
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1:
        return float(share)
    return None


def _is_counted(entry: object) -> bool:
    # `counted_bytes` is optional: the sum of the byte lengths of the tokens, see TokenDataset.count_bytes.
    return isinstance(entry, dict) and all(
        is_whole_number(entry.get(key, 0 if key == "counted_bytes" else None))
        for key in ("tokens", "bytes", "documents", "counted_bytes")
    )
