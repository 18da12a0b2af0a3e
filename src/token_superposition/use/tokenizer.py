"""Our tokenizers as Hugging Face tokenizers, which `AutoTokenizer` loads without this package.

Bytes become a byte-level BPE without merges: its vocabulary is the 256 bytes, each under the character that
byte-level BPE writes it as, so every text falls into its UTF-8 bytes and id b is byte b. The end of a
document is a special token. `split_special_tokens` keeps text that spells it text: in every encoding the end
token stands only where somebody put its id.
"""

from __future__ import annotations

from typing import Any

from token_superposition.data.tokenizers import ByteTokenizer, Tokenizer

END_OF_DOCUMENT = "<|endoftext|>"


def hugging_face_tokenizer(tokenizer: Tokenizer, *, max_length: int | None = None) -> Any:
    """A `PreTrainedTokenizerFast` with the same ids.

    Args:
        tokenizer: one of ours.
        max_length: positions the model was made for; longer texts are encoded with a warning.

    Raises:
        TypeError: for a tokenizer that this does not know how to convert.
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, ByteTokenizer):
        raise TypeError(f"tokenizer {tokenizer.name!r} has no Hugging Face form")
    limits = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_backend(tokenizer.end_of_document_id),
        eos_token=END_OF_DOCUMENT,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # token types, which it gives else, stop `generate`
        **limits,
    )


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes each byte as: itself where it can be seen, else one from U+0100."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


def _byte_backend(end_id: int) -> Any:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    # The end stands in the vocabulary too: an added token of its own would take the next free id.
    backend = Backend(models.BPE(vocab={**vocabulary, END_OF_DOCUMENT: end_id}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_DOCUMENT, special=True, normalized=False)])
    return backend
