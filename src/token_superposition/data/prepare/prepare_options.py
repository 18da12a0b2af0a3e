"""What is asked for, and whether it is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.manifest import DATASET_FILE, read_description
from token_superposition.data.readers import MAX_DOCUMENT_BYTES, PYTHON, STDIN, Corpus
from token_superposition.data.readers.hub import PREFIX
from token_superposition.data.tokenizers import TOKENIZER_FILES
from token_superposition.errors import UserError

FORMATS = ("text", "jsonl", "json", "csv")
ON_ERROR = ("fail", "skip")
_LATER = {
    "on_error": "fail",
    "max_document_bytes": MAX_DOCUMENT_BYTES,
    "token_bytes": None,
}  # keys that older datasets lack


def check_options(
    *,
    seed: int,
    max_validation_tokens: int,
    validation_fraction: float,
    max_shard_tokens: int,
    on_error: str,
    max_document_bytes: int,
    processes: int | None,
    token_bytes: int | None,
) -> None:
    """Raise `UserError` for an option out of its range."""
    if not 0 < validation_fraction < 1 or max_validation_tokens < 1 or max_shard_tokens < 1:
        raise UserError(
            "max_validation_tokens and max_shard_tokens are at least 1, validation_fraction is between 0 and 1 "
            f"(not {max_validation_tokens}, {max_shard_tokens}, {validation_fraction})"
        )
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is at least 0 and under 2**63, not {seed if abs(seed) < 10**30 else 'as it is'}")
    if on_error not in ON_ERROR:
        raise UserError(f"--on-error is one of {', '.join(ON_ERROR)}, not {on_error!r}")
    if not 1 <= max_document_bytes < 2**40:
        raise UserError("--max-document-bytes is at least 1 and under 2**40")
    if token_bytes not in (None, 2, 4, 8):
        raise UserError(f"--token-bytes is 2, 4 or 8, not {token_bytes}")
    if processes is not None and not 1 <= processes <= 1024:
        raise UserError("--processes is at least 1 and at most 1024")


def check_out(out: Path, *, overwrite: bool) -> bool:
    """Whether `out` holds a dataset that is not to be replaced.

    Raises:
        UserError: where it is taken by something else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    if out.samefile(Path.cwd()) or out.is_mount():  # cannot be put in place by renaming
        raise UserError(f"{out}: is the current folder or a mount point; name a folder inside it")
    entries = sorted(entry.name for entry in out.iterdir())
    if not entries:
        return False
    if DATASET_FILE not in entries:
        raise UserError(f"{out}: is not empty and holds no prepared dataset; name another folder")
    if overwrite:  # the folder will be removed: nobody's other files with it
        ours = (DATASET_FILE, *TOKENIZER_FILES)
        strangers = [name for name in entries if name not in ours and not name.endswith(".tokens")]
        if strangers:
            raise UserError(f"{out}: holds {strangers[0]!r} beside the dataset; move it before overwriting")
        return False
    return True


def already(out: Path, request: dict[str, Any], corpus: Corpus | None) -> dict[str, Any]:
    """What `out` holds, where that is what is asked for; else UserError.

    Args:
        out: a folder that holds a dataset.
        request: what is asked for.
        corpus: its sources; None where they are standard input, which cannot be read twice.
    """
    found = read_description(out)
    mend = "name another folder, or overwrite it (--overwrite)"
    there, sizes = found.get("request"), found.get("sources")
    if not isinstance(there, dict) or not isinstance(sizes, dict):
        raise UserError(f"{out / DATASET_FILE}: is damaged (no request or no sources); {mend}")
    for key in [*request, *(key for key in _LATER if key in there and key not in request)]:
        asked, before = (each.get(key, _LATER.get(key)) for each in (request, there))
        if key == "tokenizer" and isinstance(before, dict) and "fingerprint" not in asked:
            before = {"name": before.get("name")}  # trained on the corpus: known by what it was asked for
        if asked != before:
            raise UserError(f"{out}: was prepared with {key} {_word(before)}, not {_word(asked)}; {mend}")
    if corpus is None:
        raise UserError(f"{out}: holds a dataset, and standard input cannot be compared with what it was; {mend}")
    mine = [name for name in request["sources"] if name not in (PYTHON, STDIN) and not name.startswith(PREFIX)]
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
