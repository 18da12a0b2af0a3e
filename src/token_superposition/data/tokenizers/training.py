"""`bpe:SIZE`: a byte-level BPE trained on the corpus.

Every text can be written (its alphabet is the 256 bytes), spaces and line ends come back as they were, and
nothing is normalised. The end token is one of the SIZE ids. Words are cut as GPT-2 cuts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from token_superposition.data.tokenizers.interface import END_OF_DOCUMENT
from token_superposition.data.tokenizers.subwords import SubwordTokenizer
from token_superposition.errors import UserError

_LEAST, _MOST = 257, 2**20
_LONGEST_TOKEN = 32  # characters; longer ones are rulers of dashes and the like


def bpe_size(name: str) -> int | None:
    """The SIZE of `bpe:SIZE`; None for another name; UserError where the size is none."""
    kind, _, size = name.partition(":")
    if kind != "bpe":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", size) or not _LEAST <= int(size) <= _MOST:
        raise UserError(f"tokenizer {name!r}: write bpe:SIZE with a size from {_LEAST} to {_MOST:,}, such as bpe:32768")
    return int(size)


def train_bpe(texts: Iterable[str], size: int) -> SubwordTokenizer:
    """Train on texts; the same texts in the same order give the same tokenizer.

    Args:
        texts: to train on.
        size: ids; of a small corpus come fewer.
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
