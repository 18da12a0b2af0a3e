"""Tokenizers of this package as Hugging Face tokenizers, which `AutoTokenizer` loads without this package.

The end of a document is a special token. The same token pads the shorter texts of a batch, because a separate pad token
would need another row in the embedding of the model. Texts are padded on the left, because `generate` needs this. With
`split_special_tokens`, text that looks like a special token is encoded as ordinary text, so the end token appears only
where its id was added explicitly.
"""

from __future__ import annotations

from typing import Any

from token_superposition.data.tokenizers import Tokenizer


def hugging_face_tokenizer(tokenizer: Tokenizer, *, max_length: int | None = None) -> Any:
    """A `PreTrainedTokenizerFast` with the same ids.

    Args:
        tokenizer: a tokenizer of this package.
        max_length: number of positions of the model; longer texts are encoded with a warning.
    """
    from transformers import PreTrainedTokenizerFast

    limits = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend(),
        eos_token=tokenizer.end_token,
        pad_token=tokenizer.end_token,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        # The default includes token types, with which `generate` fails.
        model_input_names=["input_ids", "attention_mask"],
        **limits,
    )
