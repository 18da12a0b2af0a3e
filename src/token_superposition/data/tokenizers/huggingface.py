"""Tokenizers from elsewhere: a folder, a tokenizer.json, a prepared dataset, or a name on the Hugging Face hub.

The file tokenizer.json is taken as it is. Some versions of transformers read some families with a tokenizer
of their own, whatever the file says; so transformers is asked only where there is no such file (vocab.json
and merges.txt, a SentencePiece model), to make one. Code that lies in a folder or on the hub is never run.
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
_MEND = "name another tokenizer"
_NAMES_AN_END = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json")


def is_hub_name(name: str) -> bool:
    """Whether a name can be one on the hub."""
    return _HUB_NAME.fullmatch(name) is not None


def read_tokenizer(name: str, folder: Path, end_token: str | None) -> SubwordTokenizer:
    """The tokenizer in a folder of Hugging Face's form.

    Args:
        name: what the user calls it.
        folder: where it lies.
        end_token: ends a document; without it, the one that the folder names as its `eos_token`.

    Raises:
        UserError: where there is none, it cannot be used, or it names no end token.
    """
    if (folder / TOKENIZER_FILE).exists():
        definition = read_object(folder / TOKENIZER_FILE, _MEND)
        end = end_token or _named_end(folder)
    else:
        definition, end = _converted(name, folder)
        end = end_token or end
    if not isinstance(definition.get("model"), dict):
        raise UserError(f"{folder / TOKENIZER_FILE}: is no tokenizer of Hugging Face's form (no model); {_MEND}")
    if end is None:
        tokens = [token.get("content") for token in definition.get("added_tokens") or [] if token.get("special")]
        listed = ", ".join(map(str, tokens[:10])) or "none"
        raise UserError(
            f"tokenizer {name!r} names no end token (eos_token); name it with --end-token "
            f"(its special tokens: {listed})"
        )
    # What 0.1 prepared keeps its fingerprint, randomness and all; a tokenizer that is read now has none.
    return SubwordTokenizer(name, without_randomness(definition), end)


def fetch_tokenizer(name: str, end_token: str | None) -> SubwordTokenizer:
    """The tokenizer of a name on the hub, from the local cache where it is there.

    Raises:
        UserError: where the hub does not give it, or it cannot be used.
    """
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.txt", "*.model"]
        folder = snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "*.index.json"])
    except Exception as error:  # no such name, no rights, no network: its libraries raise dozens of kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"tokenizer {name!r} is not known: no such folder here, and the Hugging Face hub does not give it "
            f"({reason})"
        ) from None
    return read_tokenizer(name, Path(folder), end_token)


def _named_end(folder: Path) -> str | None:
    for file in _NAMES_AN_END:
        if (folder / file).exists():
            end = read_object(folder / file, _MEND).get("eos_token")
            if isinstance(end, dict):  # an added token, with how it is cut
                end = end.get("content")
            if isinstance(end, str):
                return end
    return None


def _converted(name: str, folder: Path) -> tuple[dict[str, Any], str | None]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        definition: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # a folder can be wrong in every way there is
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"tokenizer {name!r}: {folder} holds no tokenizer that can be used ({reason})") from None
    return definition, tokenizer.eos_token
