"""Subword tokenizers of the Hugging Face library `tokenizers`: loaded from a tokenizer.json, or trained as `bpe:SIZE`.

Definition. The content of tokenizer.json and the end token define a tokenizer. Truncation, padding and the template
that adds special tokens around a text are removed from the content: `tst prepare` ends documents itself and adds no
token before them. The tokenizer is saved in the same form, together with the few values that transformers needs, so the
folder of a dataset can be used as a tokenizer folder.

Special tokens in text. Text that looks like a special token stays text. `encode_special_tokens` ensures this if special
tokens are searched in the text. A vocabulary with a piece such as "</s>" still finds the token; the text is then split
inside it.

Speed. A long document is encoded in segments that end at a line end. An encoding needs some hundred bytes of memory per
token, and several threads can share the segments. With one thread, a cache of words is faster (`word_cache`).

`bpe:SIZE` is a byte-level BPE trained on the corpus. It can encode every text, because its alphabet is the 256 bytes.
It keeps spaces and line ends, and it does not normalize text. The end token is one of the SIZE ids. Text is split into
words as in GPT-2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from token_superposition.data.tokenizers.base import END_OF_DOCUMENT, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, padded
from token_superposition.data.tokenizers.byte_level import byte_characters
from token_superposition.data.tokenizers.text_loss import Places, characters_by_id, count_lost
from token_superposition.data.tokenizers.word_cache import WordEncoder, splits_at_words
from token_superposition.errors import UserError, did_you_mean
from token_superposition.files import write_json, write_text

OURS = "token_superposition"  # the key of this package in tokenizer_config.json
_SEGMENT_CHARACTERS = 2**18
_BATCH_CHARACTERS = 2**21
_NOT_ITS_OWN = ("truncation", "padding", "post_processor")
_RANDOM = ("dropout", "alpha", "nbest_size")  # keys of a model that leave out merges or draw segmentations at random
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LINE_END = re.compile(r"\S\n(?=\S)")  # a single line end: several white-space characters can form one token
_SPACE = "\u2581"  # the character for a space in SentencePiece


class SubwordTokenizer:
    """A tokenizer of the Hugging Face library `tokenizers`.

    Args:
        name: the name that the user writes.
        definition: the content of its tokenizer.json.
        end_token: the token that ends a document.

    Raises:
        UserError: if the definition is invalid, or has no such token.
    """

    def __init__(self, name: str, definition: dict[str, Any], end_token: str) -> None:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        self.name = name
        self.end_token = end_token
        self._definition = _own(definition, end_token)
        try:
            self._backend = Backend.from_str(json.dumps(without_randomness(self._definition)))
            vocabulary = self._backend.get_vocab(with_added_tokens=True)
            if end_token in vocabulary and end_token not in _special(self._definition):
                self._backend.add_special_tokens([AddedToken(end_token, special=True, normalized=False)])
                self._definition = _own(json.loads(self._backend.to_str()), end_token)
        except Exception as error:  # the parser can raise any exception for an unknown definition
            raise UserError(f"tokenizer {name!r}: its {TOKENIZER_FILE} cannot be used ({error})") from None
        if end_token not in vocabulary:
            near = did_you_mean(end_token, _special(self._definition))
            raise UserError(f"tokenizer {name!r} has no token {end_token!r}{near}; name a token with --end-token")
        self._backend.encode_special_tokens = True
        self.num_ids: int = 1 + max(vocabulary.values())
        self.vocab_size = padded(self.num_ids)
        self.end_of_document_id: int = vocabulary[end_token]
        self.encoded_dtype: np.dtype[Any] = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)
        model = self._definition["model"]
        unknown: int | None = vocabulary.get(model.get("unk_token"), model.get("unk_id"))
        self._unknown = None if unknown == self.end_of_document_id else unknown
        special = {token: vocabulary[token] for token in _special(self._definition)}
        self._never_text = np.zeros(self.num_ids, dtype=bool)  # ids that text must never produce
        self._never_text[[place for place in special.values() if place != self._unknown]] = True
        self._spelt = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
        self._vocabulary: dict[str, int] = vocabulary

    @property
    def is_costly(self) -> bool:
        return True

    @functools.cached_property
    def is_exact(self) -> bool:
        own = self._definition
        splitters = own.get("pre_tokenizer") or {}
        splitters = splitters.get("pretokenizers", [splitters])
        keep = all(
            each.get("type") in ("ByteLevel", "Split", "Digits")
            and each.get("behavior") != "Removed"
            and not each.get("add_prefix_space")
            for each in splitters
        )
        dropped = any(len(token) == 1 for token in _special(own))  # such a token cannot be split: see `_encode_apart`
        strip = any(token.get(side) for token in own["added_tokens"] for side in ("lstrip", "rstrip"))
        byte_level = any(each.get("type") == "ByteLevel" for each in splitters)
        whole = set(byte_characters()) <= set(self._vocabulary)
        return own.get("normalizer") is None and byte_level and keep and whole and not strip and not dropped

    @functools.cached_property
    def fingerprint(self) -> str:
        content = json.dumps([self._definition, self.end_token], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        return self._encode([text])[0]

    def encode_documents(self, texts: Sequence[bytes]) -> list[NDArray[np.unsignedinteger[Any]]]:
        encoded: list[NDArray[np.unsignedinteger[Any]]] = []
        batch: list[str] = []
        size = 0
        for text in texts:
            batch.append(text.decode("utf-8"))
            size += len(batch[-1])
            if size >= _BATCH_CHARACTERS:
                encoded += self._encode(batch)
                batch, size = [], 0
        return [*encoded, *self._encode(batch)]

    def count_lost(self, text: bytes | None, ids: NDArray[np.integer[Any]]) -> tuple[int, int]:
        if text is None:
            unknown = 0 if self._unknown is None else int(np.count_nonzero(ids == self._unknown))
            return unknown, unknown + int(self._characters[ids].sum())
        changes_text = self._definition.get("normalizer") is not None
        return count_lost(text, ids, self._characters, self._unknown, self._with_places if changes_text else None)

    @functools.cached_property
    def _characters(self) -> NDArray[np.int64]:
        return characters_by_id(self._vocabulary, self._definition, self._unknown, self.vocab_size)

    def _with_places(self, text: str) -> Places:
        """Yield the parts of a text, with their ids and the begin and end of each id in the part."""
        for part in _segments(text):
            encoding = self._backend.encode(part, add_special_tokens=False)
            yield part, encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        values = np.asarray(ids, dtype=np.int64)
        if values.size and not 0 <= values.min() <= values.max() < self.vocab_size:
            raise ValueError(f"an id is not in [0, {self.vocab_size}): {values.min()} to {values.max()}")
        text: str = self._backend.decode(values[values < self.num_ids].tolist(), skip_special_tokens=True)
        return text

    def byte_lengths(self) -> NDArray[np.int64]:
        return self._lengths

    @functools.cached_property
    def _lengths(self) -> NDArray[np.int64]:
        added = {token["content"]: bool(token["special"]) for token in self._definition["added_tokens"]}
        pipeline = json.dumps([self._definition.get("decoder"), self._definition.get("pre_tokenizer")])
        byte_level = set(byte_characters()) if '"ByteLevel"' in pipeline else set()
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, place in self._vocabulary.items():
            if token in added:
                lengths[place] = 0 if added[token] else len(token.encode("utf-8"))
            elif byte_level.issuperset(token) and byte_level:
                lengths[place] = len(token)
            elif _BYTE_PIECE.fullmatch(token):
                lengths[place] = 1
            else:
                lengths[place] = len(token.removeprefix("##").replace(_SPACE, " ").encode("utf-8"))
        lengths.flags.writeable = False
        return lengths

    def save(self, folder: Path) -> None:
        write_text(folder / TOKENIZER_FILE, json.dumps(self._definition, ensure_ascii=False) + "\n")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_token,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            OURS: {"name": self.name, "fingerprint": self.fingerprint},
        }
        write_json(folder / TOKENIZER_CONFIG_FILE, config)

    def backend(self) -> Any:
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(json.dumps(without_randomness(self._definition)))

    def _encode(self, texts: list[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        segments = [list(_segments(text)) for text in texts]
        encoded = iter(self._encode_segments([segment for parts in segments for segment in parts]))
        whole = []
        for text, parts in zip(texts, segments, strict=True):
            ids = [next(encoded) for _ in parts]
            joined = ids[0] if len(ids) == 1 else np.concatenate(ids or [np.empty(0, dtype=self.encoded_dtype)])
            if self._never_text[joined].any():
                joined = self._encode_apart(text)
            joined.flags.writeable = False
            whole.append(joined)
        return whole

    def _encode_segments(self, segments: list[str]) -> list[NDArray[np.unsignedinteger[Any]]]:
        if self._words is not None and os.environ.get("TOKENIZERS_PARALLELISM") == "false":
            return self._words.encode(segments)
        encodings = self._backend.encode_batch_fast(segments, add_special_tokens=False)
        return [np.array(each.ids, dtype=self.encoded_dtype) for each in encodings]

    @functools.cached_property
    def _words(self) -> WordEncoder | None:
        exact = self.is_exact and splits_at_words(self._definition)
        return WordEncoder(self._backend, self.encoded_dtype) if exact else None

    def _encode_apart(self, text: str) -> NDArray[np.unsignedinteger[Any]]:
        """Encode a text in which the vocabulary finds a special token: split the text after its first character."""
        pattern = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in self._spelt)
        parts = re.split(pattern, text) if pattern else [text]
        ids = [
            np.array(part.ids, dtype=self.encoded_dtype)
            for part in self._backend.encode_batch_fast(parts, add_special_tokens=False)
        ]
        joined = np.concatenate(ids)
        return joined[~self._never_text[joined]]  # a special token of one character cannot be split: it is left out


def without_randomness(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json that always encodes a text in the same way."""
    model = definition.get("model")
    if not isinstance(model, dict) or not any(model.get(key) for key in _RANDOM):
        return definition
    return {**definition, "model": {**model, **{key: None for key in _RANDOM if key in model}}}


def _own(definition: dict[str, Any], end_token: str) -> dict[str, Any]:
    """Return the definition without truncation, padding and template, and with the end token as a special token."""
    own = {**definition, **dict.fromkeys(_NOT_ITS_OWN)}
    added = definition.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) and "content" in token for token in added):
        added = []
    own["added_tokens"] = [
        {**token, "special": bool(token.get("special")) or token["content"] == end_token} for token in added
    ]
    return own


def _special(definition: dict[str, Any]) -> list[str]:
    return [token["content"] for token in definition["added_tokens"] if token["special"]]


def _segments(text: str) -> Iterator[str]:
    """Yield a text in parts that end at a line end, or in parts of a fixed length if there is no line end."""
    start = 0
    while len(text) - start > 2 * _SEGMENT_CHARACTERS:
        end = _LINE_END.search(text, start + _SEGMENT_CHARACTERS, start + 2 * _SEGMENT_CHARACTERS)
        stop = end.end() if end else start + 2 * _SEGMENT_CHARACTERS
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:] if start else text


_LEAST, _MOST = 257, 2**20
_LONGEST_TOKEN = 32  # characters; longer tokens are mostly lines of dashes


def bpe_size(name: str) -> int | None:
    """Return the SIZE of `bpe:SIZE`, or None for another name; raise UserError if the size is invalid."""
    kind, _, size = name.partition(":")
    if kind != "bpe":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", size) or not _LEAST <= int(size) <= _MOST:
        raise UserError(f"tokenizer {name!r}: write bpe:SIZE with a size from {_LEAST} to {_MOST:,}, such as bpe:32768")
    return int(size)


def train_bpe(texts: Iterable[str], size: int) -> SubwordTokenizer:
    """Train a tokenizer on texts; the same texts in the same order give the same tokenizer.

    Args:
        texts: the training texts.
        size: the number of ids; a small corpus gives fewer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return SubwordTokenizer(f"bpe:{size}", json.loads(backend.to_str()), END_OF_DOCUMENT)
