"""Read Hugging Face tokenizers: a folder, a tokenizer.json, a prepared dataset, or a name on the Hugging Face hub.

The file tokenizer.json is used directly, because some versions of transformers replace the tokenizer of some families
by their own, whatever the file says. Only if a folder has no tokenizer.json (but vocab.json and merges.txt, or a
SentencePiece model), transformers makes one. Code in a folder or on the hub is never run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from token_superposition.data.tokenizers.base import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from token_superposition.data.tokenizers.subwords import SubwordTokenizer, without_randomness
from token_superposition.errors import UserError
from token_superposition.files import read_object

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REMEDY = "name another tokenizer"
_NAMES_AN_END = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json")


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form of a name on the hub."""
    return _HUB_NAME.fullmatch(name) is not None


def read_tokenizer(name: str, folder: Path, end_token: str | None) -> SubwordTokenizer:
    """Read the tokenizer in a Hugging Face folder.

    Args:
        name: the name that the user writes.
        folder: the folder of the tokenizer.
        end_token: the token that ends a document; without it, the `eos_token` of the folder.

    Raises:
        UserError: if there is no tokenizer, if it cannot be used, or if it names no end token.
    """
    if (folder / TOKENIZER_FILE).exists():
        definition = read_object(folder / TOKENIZER_FILE, _REMEDY)
        end = end_token or _named_end(folder)
    else:
        definition, end = _converted(name, folder)
        end = end_token or end
    if not isinstance(definition.get("model"), dict):
        raise UserError(f"{folder / TOKENIZER_FILE}: is not a Hugging Face tokenizer (no model); {_REMEDY}")
    if end is None:
        tokens = [token.get("content") for token in definition.get("added_tokens") or [] if token.get("special")]
        listed = ", ".join(map(str, tokens[:10])) or "none"
        raise UserError(
            f"tokenizer {name!r} names no end token (eos_token); name it with --end-token "
            f"(its special tokens: {listed})"
        )
    # A dataset of version 0.1 keeps its fingerprint, which includes the randomness. A tokenizer that is read now has
    # no randomness.
    return SubwordTokenizer(name, without_randomness(definition), end)


def fetch_tokenizer(name: str, end_token: str | None) -> SubwordTokenizer:
    """Read the tokenizer of a name on the hub, from the local cache if it is there.

    Raises:
        UserError: if the tokenizer cannot be downloaded, or cannot be used.
    """
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.txt", "*.model"]
        folder = snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "*.index.json"])
    except Exception as error:  # no such name, no rights, no network: the libraries raise many kinds of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"tokenizer {name!r} is not known: there is no such folder, and the Hugging Face hub does not provide it "
            f"({reason})"
        ) from None
    return read_tokenizer(name, Path(folder), end_token)


def _named_end(folder: Path) -> str | None:
    for file in _NAMES_AN_END:
        if (folder / file).exists():
            end = read_object(folder / file, _REMEDY).get("eos_token")
            if isinstance(end, dict):  # an added token with its options
                end = end.get("content")
            if isinstance(end, str):
                return end
    return None


def _converted(name: str, folder: Path) -> tuple[dict[str, Any], str | None]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        definition: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # a damaged folder can cause any exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"tokenizer {name!r}: {folder} holds no usable tokenizer ({reason})") from None
    return definition, tokenizer.eos_token
