"""What is asked for when a model is used, checked before torch is imported: importing takes seconds."""

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
    """A set to score: its name, and where it lies."""

    name: str
    source: str


def parse_sets(words: Sequence[str]) -> list[ValidationSet]:
    """Read `name=path` or `path`; the name of a path is its last part without suffix.

    Raises:
        UserError: where two sets have one name.
    """
    sets: list[ValidationSet] = []
    for word in map(expanded, words):
        name, equals, source = word.partition("=")
        if not equals or Path(word).exists():
            name, source = Path(word).name.split(".")[0] or Path(word).resolve().name, word
        if not name or not source:
            raise UserError(f"{word!r}: write a path, or name=path")
        source = expanded(source)
        if any(name == other.name for other in sets):
            raise UserError(f"two validation sets are called {name!r}; name them: {name}=PATH other={source}")
        sets.append(ValidationSet(name, source))
    return sets


def check_model(path: Path) -> None:
    """Raise `UserError` for what is neither a run's folder nor a Hugging Face folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run or a Hugging Face folder")
    if not (path / "config.yaml").exists() and not (path / "config.json").exists():
        raise UserError(f"{path}: is neither a run (no config.yaml) nor a Hugging Face folder (no config.json)")


def check_sets(sets: Sequence[ValidationSet], split: str) -> None:
    """Raise `UserError` for a set that is not there, or a prepared folder without that split."""
    for each in sets:
        path = Path(each.source)
        if (path / DATASET_FILE).exists():
            splits = read_description(path)["splits"]
            if split not in splits:
                raise UserError(f"{path}: has no split {split!r} (splits: {', '.join(splits)})")
        elif not path.exists() and each.source != PYTHON and not set("*?[:-") & set(each.source):
            raise UserError(f"{source_name(each.source)}: no such file or folder")  # no pattern and no name on the hub


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Raise `UserError` for an option of generation that is out of its range."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is at least 1, not {max_new_tokens}")
    if temperature != 0 and not 0.01 <= temperature <= 100:  # beyond, logits are no numbers any more
        raise UserError(f"--temperature is 0, or at least 0.01 and at most 100, not {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p is above 0 and at most 1, not {top_p}")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is at least 0 and under 2**63, not {seed}")


def check_shard_size(text: str) -> None:
    """Raise `UserError` for what is no size of a file."""
    if not re.fullmatch(r"\d*[1-9]\d*\s*[KMGT]i?B", text):
        raise UserError(f"--max-shard-size: {text!r} is no size, such as 500MB")


def check_export(run: Path, out: Path, *, max_shard_size: str, overwrite: bool) -> None:
    """Raise `UserError` for a run that is not there, or an `out` that holds anything but a replaceable export."""
    check_shard_size(max_shard_size)
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; name a run")
    _check_free(out, overwrite)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise where `out` holds anything but an earlier export that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    if out.samefile(Path.cwd()) or out.is_mount():  # cannot be put in place by renaming
        raise UserError(f"{out}: is the current folder or a mount point; name a folder inside it")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        return
    if ORIGIN_FILE not in names:
        raise UserError(f"{out}: is not empty and holds no earlier export; name another folder")
    strangers = [name for name in names if name not in _EXPORTED and not name.endswith(".safetensors")]
    if strangers:
        raise UserError(f"{out}: holds {strangers[0]!r} beside the earlier export; move it, or name another folder")
    if not overwrite:
        raise UserError(f"{out}: holds an earlier export; name another folder, or overwrite it (--overwrite)")
