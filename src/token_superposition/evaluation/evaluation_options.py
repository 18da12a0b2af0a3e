"""Checks of the options for using a model, before the import of torch, which takes seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from token_superposition.data.manifest import DATASET_FILE, read_description
from token_superposition.data.readers import PYTHON, source_name
from token_superposition.errors import UserError
from token_superposition.files import expanded
from token_superposition.training.provenance import ORIGIN_FILE

_EXPORTED = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "README.md",
    ORIGIN_FILE,
}


@dataclass(frozen=True)
class ValidationSet:
    """A validation set: its name and its path."""

    name: str
    source: str


def parse_sets(words: Sequence[str]) -> list[ValidationSet]:
    """Parse `name=path` or `path`; the default name is the last part of the path without suffix.

    Raises:
        UserError: if a word has no name or path, or if two sets have the same name.
    """
    sets: list[ValidationSet] = []
    for word in map(expanded, words):
        name, equals, source = word.partition("=")
        if not equals or Path(word).exists():
            name, source = Path(word).name.split(".")[0] or Path(word).resolve().name, word
        if not name or not source:
            raise UserError(f"{word!r}: give a path, or NAME=PATH")
        source = expanded(source)
        if any(name == other.name for other in sets):
            raise UserError(f"two validation sets have the name {name!r}; give names: {name}=PATH other={source}")
        sets.append(ValidationSet(name, source))
    return sets


def check_model(path: Path) -> None:
    """Raise `UserError` if a path is neither a run folder nor a Hugging Face folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run or a Hugging Face folder")
    if not (path / "config.yaml").exists() and not (path / "config.json").exists():
        raise UserError(f"{path}: is neither a run (no config.yaml) nor a Hugging Face folder (no config.json)")


def check_sets(sets: Sequence[ValidationSet], split: str) -> None:
    """Raise `UserError` if a set does not exist, or a dataset folder lacks the split."""
    for each in sets:
        path = Path(each.source)
        if (path / DATASET_FILE).exists():
            splits = read_description(path)["splits"]
            if split not in splits:
                raise UserError(f"{path}: has no split {split!r} (splits: {', '.join(splits)})")
        elif not path.exists() and each.source != PYTHON and not set("*?[:-") & set(each.source):
            # Patterns and names on the Hugging Face Hub are not checked here.
            raise UserError(f"{source_name(each.source)}: no such file or folder")


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raise `UserError` if an option of generation is out of range."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {max_new_tokens}")
    if temperature != 0 and not 0.01 <= temperature <= 100:  # outside this range logits can become NaN or infinite
        raise UserError(f"--temperature must be 0, or at least 0.01 and at most 100, not {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p must be above 0 and at most 1, not {top_p}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed must be at least 0 and under 2**63, not {seed}")


def check_shard_size(text: str) -> None:
    """Raise `UserError` if a text is not a file size."""
    if not re.fullmatch(r"\d*[1-9]\d*\s*[KMGT]i?B", text):
        raise UserError(f"--max-shard-size: {text!r} is not a size; give a size such as 500MB")


def check_export(run: Path, out: Path, *, max_shard_size: str, overwrite: bool) -> None:
    """Raise `UserError` if the run does not exist, or if `out` has files that an export must not replace."""
    check_shard_size(max_shard_size)
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a run folder")
    _check_free(out, overwrite)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise `UserError` unless `out` is absent, empty, or an earlier export that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to write to")
    if out.samefile(Path.cwd()) or out.is_mount():  # these folders cannot be replaced by renaming
        raise UserError(f"{out}: is the current folder or a mount point; give a folder inside it")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if ORIGIN_FILE not in names:
        raise UserError(f"{out}: is not empty and has no earlier export; use another folder")
    strangers = [name for name in names if name not in _EXPORTED and not name.endswith(".safetensors")]
    if strangers:
        raise UserError(f"{out}: has {strangers[0]!r} beside the earlier export; move it, or use another folder")
    if not overwrite:
        raise UserError(f"{out}: has an earlier export; use another folder, or overwrite it (--overwrite)")
