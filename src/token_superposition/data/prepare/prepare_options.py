"""Check the options of a preparation, and whether the output folder already holds the requested dataset."""

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
    """Raise `UserError` if an option is out of its range."""
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction must be above 0 and below 1, not {validation_fraction}")
    for name, tokens in (("max_validation_tokens", max_validation_tokens), ("max_shard_tokens", max_shard_tokens)):
        if tokens < 1:
            raise UserError(f"{name} must be at least 1, not {tokens}")
    if not 0 <= seed < 2**63:
        shown = seed if abs(seed) < 10**30 else "a number of over 30 digits"
        raise UserError(f"--seed must be at least 0 and below 2**63, not {shown}")
    if on_error not in ON_ERROR:
        raise UserError(f"--on-error must be one of {', '.join(ON_ERROR)}, not {on_error!r}")
    if not 1 <= max_document_bytes < 2**40:
        raise UserError("--max-document-bytes must be at least 1 and below 2**40")
    if token_bytes not in (None, 2, 4, 8):
        raise UserError(f"--token-bytes must be 2, 4 or 8, not {token_bytes}")
    if processes is not None and not 1 <= processes <= 1024:
        raise UserError("--processes must be at least 1 and at most 1024")


def check_out(out: Path, *, overwrite: bool) -> bool:
    """Return whether `out` holds a dataset that must not be replaced.

    Raises:
        UserError: if `out` holds anything else.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    if out.samefile(Path.cwd()) or out.is_mount():  # a rename cannot replace such a folder
        raise UserError(f"{out}: is the current folder or a mount point; name a folder inside it")
    entries = sorted(entry.name for entry in out.iterdir())
    if not entries:
        return False
    if DATASET_FILE not in entries:
        raise UserError(f"{out}: is not empty and holds no prepared dataset; name another folder")
    if overwrite:  # the folder will be removed, so it must hold no other files
        ours = (DATASET_FILE, *TOKENIZER_FILES)
        strangers = [name for name in entries if name not in ours and not name.endswith(".tokens")]
        if strangers:
            raise UserError(f"{out}: holds {strangers[0]!r} beside the dataset; move this file before overwriting")
        return False
    return True


def already(out: Path, request: dict[str, Any], corpus: Corpus | None) -> dict[str, Any]:
    """Return the description of the dataset in `out` if it fits the request; raise UserError otherwise.

    Args:
        out: a folder that holds a dataset.
        request: the request.
        corpus: the sources of the request; None for standard input, which cannot be read twice.
    """
    found = read_description(out)
    remedy = "name another folder, or overwrite it (--overwrite)"
    there, sizes = found.get("request"), found.get("sources")
    if not isinstance(there, dict) or not isinstance(sizes, dict):
        raise UserError(f"{out / DATASET_FILE}: is damaged (no request or no sources); {remedy}")
    for key in [*request, *(key for key in _LATER if key in there and key not in request)]:
        asked, before = (each.get(key, _LATER.get(key)) for each in (request, there))
        if key == "tokenizer" and isinstance(before, dict) and "fingerprint" not in asked:
            before = {"name": before.get("name")}  # trained on the corpus, so only its name is compared
        if asked != before:
            raise UserError(f"{out}: was prepared with {key} {_word(before)}, not {_word(asked)}; {remedy}")
    if corpus is None:
        raise UserError(f"{out}: holds a dataset, and standard input cannot be compared with its source; {remedy}")
    mine = [name for name in request["sources"] if name not in (PYTHON, STDIN) and not name.startswith(PREFIX)]
    resized = any(sizes.get(name) != corpus.sizes[name] for name in mine)
    if resized or corpus.newest > (out / DATASET_FILE).stat().st_mtime:
        raise UserError(f"{out}: its sources have changed since it was prepared; {remedy}")
    for split in found["splits"]:
        TokenDataset.open(out, split)  # raises an error if a shard is missing or truncated
    return found


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name"))
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
