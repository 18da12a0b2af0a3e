"""Tokenizers: by name, and as they were saved beside what they wrote.

A name is `bytes`, `bpe:SIZE` (trained on the corpus, so made by whoever prepares one), a folder or a
tokenizer.json, a prepared dataset, or a name on the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path

from token_superposition.data.tokenizers.base import (
    END_OF_DOCUMENT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    Tokenizer,
    is_tokenizers_own,
)
from token_superposition.data.tokenizers.byte_level import ByteTokenizer
from token_superposition.errors import UserError, did_you_mean
from token_superposition.files import read_object

__all__ = [
    "END_OF_DOCUMENT",
    "TOKENIZER_FILE",
    "TOKENIZER_FILES",
    "ByteTokenizer",
    "Tokenizer",
    "is_tokenizers_own",
    "load_tokenizer",
    "make_tokenizer",
]

_KNOWN = ("bytes", "bpe:32768")
_AGAIN = "prepare the data again"


def make_tokenizer(name: str, end_token: str | None = None) -> Tokenizer:
    """The tokenizer of that name, but for `bpe:SIZE`, which has to be trained.

    Args:
        name: `bytes`, a folder, a tokenizer.json, or a name on the hub.
        end_token: of one from elsewhere, where it names none itself or another is wanted.

    Raises:
        UserError: for a name that is not known, or a tokenizer that cannot be used.
    """
    if name == "bytes":
        return _own(ByteTokenizer(), end_token)
    path = Path(name)
    if path.name == TOKENIZER_FILE and path.is_file():
        path = path.parent
    if name and path.is_dir():
        if "kind" in _saved(path) or _note(path) is not None:  # one that we wrote: with its own name
            return _own(load_tokenizer(path), end_token)
        from token_superposition.data.tokenizers.huggingface import read_tokenizer

        return read_tokenizer(name, path, end_token)
    from token_superposition.data.tokenizers.huggingface import fetch_tokenizer, is_hub_name

    near = did_you_mean(name, _KNOWN)
    if near or not is_hub_name(name):
        known = f"{', '.join(_KNOWN)} or another size, a tokenizer folder, a name on the Hugging Face hub"
        raise UserError(f"tokenizer {name!r} is not known{near} (known: {known})")
    return fetch_tokenizer(name, end_token)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that was saved into `folder`.

    Raises:
        UserError: where a file of it is missing or broken, or this version would encode otherwise.
    """
    file = folder / TOKENIZER_FILE
    try:
        saved = read_object(file, _AGAIN)
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; {_AGAIN}") from None
    tokenizer: Tokenizer
    if isinstance(saved.get("model"), dict):
        from token_superposition.data.tokenizers.subwords import SubwordTokenizer

        note, config = _note(folder), folder / TOKENIZER_CONFIG_FILE
        if note is None:
            raise UserError(f"{config}: is missing, or not what was saved with {TOKENIZER_FILE}; {_AGAIN}")
        tokenizer = SubwordTokenizer(note["name"], saved, note["end"])
        if tokenizer.fingerprint != note["fingerprint"]:
            raise UserError(f"{file}: is not the tokenizer that was saved here (its fingerprint differs); {_AGAIN}")
        return tokenizer
    kind = saved.get("kind")
    if kind != "bytes":
        raise UserError(f"{file}: names no tokenizer that this version knows ({kind!r}); {_AGAIN}")
    tokenizer = ByteTokenizer()
    if tokenizer.fingerprint != saved.get("fingerprint"):
        raise UserError(f"{file}: was written by another version of tokenizer {kind!r}; {_AGAIN}")
    return tokenizer


def _own(tokenizer: Tokenizer, end_token: str | None) -> Tokenizer:
    if end_token not in (None, tokenizer.end_token):
        raise UserError(f"--end-token: tokenizer {tokenizer.name!r} has its own end, {tokenizer.end_token!r}")
    return tokenizer


def _saved(folder: Path) -> dict[str, object]:
    file = folder / TOKENIZER_FILE
    return read_object(file, "name another tokenizer") if file.exists() else {}


def _note(folder: Path) -> dict[str, str] | None:
    """What we wrote into tokenizer_config.json, and the end token; None where there is no such thing."""
    try:
        config = read_object(folder / TOKENIZER_CONFIG_FILE, _AGAIN)
    except FileNotFoundError:
        return None
    ours = config.get("token_superposition")
    if not isinstance(ours, dict):
        return None
    note = {"name": ours.get("name"), "fingerprint": ours.get("fingerprint"), "end": config.get("eos_token")}
    words = {key: value for key, value in note.items() if isinstance(value, str)}
    return words if len(words) == len(note) else None
