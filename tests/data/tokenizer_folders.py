"""Tokenizers of other people, made small: what a folder from the hub looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "To be, or not to be, that is the question: é 日本 🙂.\n  Two  spaces, <|endo and </s too>.\n" * 20
END = "<|endoftext|>"


def gpt2_folder(folder: Path, *, end: bool = True) -> Path:
    """As GPT-2's: a byte-level BPE, its end token the last id, and a template that nobody asked for."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, backend.token_to_id(END))]
    )
    backend.enable_truncation(16)
    backend.enable_padding(pad_id=0, pad_token="!")
    return _write(folder, backend, {"eos_token": {"content": END, "lstrip": False}} if end else {})


def unigram_folder(folder: Path) -> Path:
    """As T5's: pieces of a normalised text, among them the end token, which text can spell."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    backend.train_from_iterator([TEXT], trainer)
    return _write(folder, backend, {"eos_token": "</s>"})


def _write(folder: Path, backend: Any, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
