"""Encode text with a cache of words: common words are looked up instead of being encoded again.

A byte-level BPE first splits a text by a regular expression and then encodes each part separately. All expressions in
use (GPT-2's, Llama 3's, Qwen's) start a new part at a space before a letter, and end this part where the letters end.
So a text can be split before and after a space and the ASCII letters that follow it, unless a character that is not
ASCII comes next, because it can be a letter. Every part then has the same ids as in the whole text. Tokenizers with
other expressions do not use the cache.

A full cache keeps its entries, because frequent words come early. The second half of the cache takes only parts that
one batch holds twice, so that names and numbers do not fill it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"( [A-Za-z]+)(?![A-Za-z]|[^\x00-\x7f])")
_MOST_PARTS = 2**18  # under 50 MB
_LONGEST_PART = 32
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2, written out
    _CONTRACTED + r"\p{N}{1,3}" + _REST,  # Llama 3
    _CONTRACTED + r"\p{N}" + _REST,  # Qwen 2
)


def splits_at_words(definition: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json describes a byte-level BPE whose texts can be split at words."""
    model, added = definition["model"], definition["added_tokens"]
    if model.get("type") != "BPE" or model.get("dropout") or definition.get("normalizer") is not None:
        return False
    if not all(token["special"] for token in added):  # other added tokens are searched in the text before it is split
        return False
    splitters = definition.get("pre_tokenizer") or {}
    splitters = splitters.get("pretokenizers", [splitters])
    known = [_known_split(each) for each in splitters]
    return None not in known and any(known) and any(each.get("type") == "ByteLevel" for each in splitters)


def _known_split(splitter: dict[str, Any]) -> bool | None:
    """Return whether a pre-tokenizer splits with a known expression; None if the pre-tokenizer is not known."""
    kind = splitter.get("type")
    if kind == "ByteLevel" and not splitter.get("add_prefix_space"):
        return bool(splitter.get("use_regex", True))
    if kind == "Digits":
        return False
    if kind == "Split" and splitter.get("behavior") == "Isolated" and not splitter.get("invert"):
        return True if splitter["pattern"].get("Regex") in _SPLITS else None
    return None


class WordEncoder:
    """Encodes texts with a `tokenizers` backend for which `splits_at_words` holds.

    Args:
        backend: the tokenizer.
        dtype: the dtype of the ids, uint16 or uint32.
    """

    def __init__(self, backend: Any, dtype: np.dtype[Any]) -> None:
        self._backend = backend
        self._dtype = dtype
        self._code = {array(code).itemsize: code for code in "HIL"}[dtype.itemsize]
        self._known: dict[str, bytes] = {"": b""}

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        """Return the ids of each text."""
        missing: dict[str, list[tuple[list[Any], int]]] = {}  # the texts and places of each part
        whole = []
        for text in texts:
            parts = _WORD.split(text)
            ids: list[Any] = list(map(self._known.get, parts))
            place = -1
            for _ in range(ids.count(None)):
                place = ids.index(None, place + 1)
                missing.setdefault(parts[place], []).append((ids, place))
            whole.append(ids)
        encodings = self._backend.encode_batch_fast(list(missing), add_special_tokens=False)
        for (part, places), encoding in zip(missing.items(), encodings, strict=True):
            found = array(self._code, encoding.ids).tobytes()
            for ids, place in places:
                ids[place] = found
            limit = _MOST_PARTS if len(places) > 1 else _MOST_PARTS // 2
            if len(self._known) < limit and len(part) <= _LONGEST_PART:
                self._known[part] = found
        return [np.frombuffer(b"".join(ids), dtype=self._dtype) for ids in whole]
