"""What tests of `prepare` share: corpora made up, what came out of them, and the one line of a refusal."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.errors import UserError


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def corpus_texts(number: int = 200, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{seed}.{n} " + "word " * draw.randrange(1, 40) for n in range(number)]


def documents(folder: Path, split: str) -> list[str]:
    dataset = TokenDataset.open(folder, split)
    ids = dataset.read(0, dataset.num_tokens)
    ends = np.flatnonzero(ids == dataset.tokenizer.end_of_document_id)
    return [dataset.tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def text_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def complaint(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        prepare(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message
