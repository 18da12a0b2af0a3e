"""Generation of text; equal seeds give equal text.

transformers does the sampling. This module adds two features. It writes the text in pieces of whole characters, because
a token may be a part of a character. It generates texts that are longer than the positions of the model, by continuing
from the last half of the positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from token_superposition.data.tokenizers import is_tokenizers_own
from token_superposition.errors import UserError
from token_superposition.evaluation.evaluation_options import check_sampling
from token_superposition.evaluation.load import UsableModel
from token_superposition.models.pretrained import quiet_transformers
from token_superposition.models.seeding import seed_torch

_BROKEN = "\ufffd"  # the decoder returns this for a part of a character


def generate(
    loaded: UsableModel,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.8,
    top_p: float = 1.0,
    seed: int = 0,
    write: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue a text until the model ends the document, or until the limit of new tokens.

    Args:
        loaded: the model.
        prompt: the text; an empty prompt starts a document.
        max_new_tokens: largest number of new tokens.
        temperature: sampling temperature; 0 always takes the most probable token.
        top_p: sample from the most probable tokens whose probabilities sum to this.
        seed: seed of the sampling; equal seeds give equal text.
        write: called with each new piece of text.

    Returns:
        `prompt`; `text`, the new text; `tokens`, its ids, including the end token; `ended`, whether the model ended the
        document; `seed`; `warnings`.

    Raises:
        UserError: if a setting is out of range, or the prompt is empty and the tokenizer has no start token.
    """
    check_sampling(max_new_tokens, temperature, top_p, seed)
    sampling = copy.deepcopy(loaded.model.generation_config)
    with quiet_transformers():
        sampling.update(do_sample=temperature > 0, temperature=temperature or 1.0, top_p=top_p, top_k=0, num_beams=1)
    ends = sampling.eos_token_id if isinstance(sampling.eos_token_id, list) else [sampling.eos_token_id]
    context, warnings = max(2, loaded.context_length), list(loaded.warnings)
    window = _prompt_ids(loaded, prompt)
    stream = TextStream(loaded.tokenizer, window, write)
    if len(window) >= context:
        warnings.append(f"the prompt has {len(window):,} tokens; the model sees only the last {context // 2:,}")
        window = window[-(context // 2) :]
    made: list[int] = []
    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet_transformers(), loaded.autocast():
        seed_torch(seed)
        while len(made) < max_new_tokens and not (made and made[-1] in ends):
            sampling.max_new_tokens = min(context - len(window), max_new_tokens - len(made))
            ids_BL = torch.tensor([window], device=loaded.device)
            whole_BL = loaded.model.generate(
                ids_BL,
                attention_mask=torch.ones_like(ids_BL),
                generation_config=sampling,
                streamer=_Streamer(stream),
            )
            whole = whole_BL[0].tolist()
            made += whole[len(window) :]
            window = whole[-(context // 2) :]
    stream.finish()
    ended = bool(made) and made[-1] in ends
    return {"prompt": prompt, "text": stream.text, "tokens": made, "ended": ended, "seed": seed, "warnings": warnings}


class TextStream:
    """Decodes ids one by one into pieces of text, without parts of characters.

    Ids wait until their text does not end with a part of a character. The last shown ids are decoded together with the
    waiting ids, because for some tokenizers the text of a token depends on the tokens before it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        before: the ids before the first new id.
        write: called with each piece of text.

    Attributes:
        text: the complete text so far.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int], write: Callable[[str], None] | None = None) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._write = write
        self._shown = list(before[-8:])
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        """Add the next id."""
        self._waiting.append(token)
        self._show(finish=False)

    def finish(self) -> None:
        """Show the text of all waiting ids, even if it ends with a part of a character."""
        self._show(finish=True)

    def _show(self, *, finish: bool) -> None:
        before, now = self._decode(self._shown), self._decode(self._shown + self._waiting)
        if now.endswith(_BROKEN) and not finish:
            return
        piece = now[len(before) :]
        self._shown, self._waiting = self._waiting or self._shown, []
        if piece:
            self.text += piece
            if self._write is not None:
                self._write(piece)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


class _Streamer:
    """Receives tokens from `generate`: first the prompt, then each new token."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            for token in value.tolist():
                self._stream.add(token)
        self._begun = True

    def end(self) -> None:
        """Do nothing at the end of a window; `TextStream.finish` ends the text."""


def _prompt_ids(loaded: UsableModel, prompt: str) -> list[int]:
    tokenizer = loaded.tokenizer
    try:
        ids: list[int] = tokenizer(prompt, split_special_tokens=True, verbose=False)["input_ids"]
    except BaseException as error:
        if not is_tokenizers_own(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--prompt: the tokenizer of {loaded.path} cannot encode it ({reason})") from None
    if not ids:
        start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if start is None:
            raise UserError(f"{loaded.path}: its tokenizer has no token that starts a text; give a --prompt")
        ids = [start]
    return ids
