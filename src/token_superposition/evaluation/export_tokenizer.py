"""Our tokenizers as Hugging Face tokenizers, which `AutoTokenizer` loads without this package.

The end of a document is a special token. The same token pads the shorter texts of a batch, because a pad token of its
own would need another row in the model's embedding. Texts are padded on the left, as `generate` needs it.
`split_special_tokens` keeps text that spells a special token: in every encoding the end token stands only where
somebody put its id.
"""

from __future__ import annotations

from typing import Any

from token_superposition.data.tokenizers import Tokenizer


def hugging_face_tokenizer(tokenizer: Tokenizer, *, max_length: int | None = None) -> Any:
    """A `PreTrainedTokenizerFast` with the same ids.

    Args:
        tokenizer: one of ours.
        max_length: positions the model was made for; longer texts are encoded with a warning.
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
        model_input_names=["input_ids", "attention_mask"],  # token types, which it gives else, stop `generate`
        **limits,
    )
