"""Tokenizers: make one from its name, or load one that was saved in a folder.

A name is `bytes`, `bpe:SIZE` (trained on the corpus by `tst prepare`), a folder or a tokenizer.json, a prepared
dataset, or a name on the Hugging Face hub.
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
    """Return the tokenizer of a name, except for `bpe:SIZE`, which must be trained.

    Args:
        name: `bytes`, a folder, a tokenizer.json, or a name on the hub.
        end_token: the end token of a Hugging Face tokenizer, if it names none or a different one is wanted.

    Raises:
        UserError: if the name is not known, or the tokenizer cannot be used.
    """
    if name == "bytes":
        return _own(ByteTokenizer(), end_token)
    path = Path(name)
    if path.name == TOKENIZER_FILE and path.is_file():
        path = path.parent
    if name and path.is_dir():
        if "kind" in _saved(path) or _note(path) is not None:  # saved by this package, with its own name
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
    """Load the tokenizer that was saved into `folder`.

    Raises:
        UserError: if one of its files is missing or damaged, or if this version would encode text differently.
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
            raise UserError(f"{config}: is missing, or was not saved together with {TOKENIZER_FILE}; {_AGAIN}")
        tokenizer = SubwordTokenizer(note["name"], saved, note["end"])
        if tokenizer.fingerprint != note["fingerprint"]:
            raise UserError(f"{file}: is not the tokenizer that was saved here (its fingerprint differs); {_AGAIN}")
        return tokenizer
    kind = saved.get("kind")
    if kind != "bytes":
        raise UserError(f"{file}: this version does not know its kind of tokenizer, {kind!r}; {_AGAIN}")
    tokenizer = ByteTokenizer()
    if tokenizer.fingerprint != saved.get("fingerprint"):
        raise UserError(f"{file}: was written by another version of tokenizer {kind!r}; {_AGAIN}")
    return tokenizer


def _own(tokenizer: Tokenizer, end_token: str | None) -> Tokenizer:
    if end_token not in (None, tokenizer.end_token):
        raise UserError(
            f"--end-token: tokenizer {tokenizer.name!r} has its own end token, {tokenizer.end_token!r}; "
            "leave out --end-token"
        )
    return tokenizer


def _saved(folder: Path) -> dict[str, object]:
    file = folder / TOKENIZER_FILE
    return read_object(file, "name another tokenizer") if file.exists() else {}


def _note(folder: Path) -> dict[str, str] | None:
    """Return this package's entry in tokenizer_config.json, and the end token; None if there is no such entry."""
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
