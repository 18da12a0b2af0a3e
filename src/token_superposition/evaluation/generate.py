"""Generation: text as it is made, the same for the same seed.

Sampling is transformers' own. What is added: pieces of text that hold whole characters (a token may be a part
of one), and texts longer than the model's positions, by going on from the last half of them.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from token_superposition.data.tokenizers import is_tokenizers_own
from token_superposition.errors import UserError
from token_superposition.evaluation.evaluation_options import check_sampling
from token_superposition.evaluation.load import UsableModel
from token_superposition.models.pretrained import quiet_transformers
from token_superposition.models.seeding import seed_torch

_BROKEN = "\ufffd"  # what a part of a character is decoded to


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
    """Continue a text until the model ends the document, or there are enough tokens.

    Args:
        loaded: the model.
        prompt: the text; an empty one starts a document.
        max_new_tokens: the most tokens to add.
        temperature: of sampling; 0 takes the most likely token each time.
        top_p: sample from the most likely tokens that have this much probability together.
        seed: of sampling; the same seed gives the same text.
        write: called with each piece of text when it is made.

    Returns:
        `prompt`; `text`, what was added; `tokens`, its ids, the end token included; `ended`, whether the model
        ended it; `seed`; `warnings`.

    Raises:
        UserError: for a setting out of range, or a model that cannot start from nothing.
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
    """Turns ids into text while they come, never a part of a character.

    Ids wait until what they decode to does not end in a broken character. The ids shown last stay in front of
    those that wait, because some tokenizers decode a token by what stands before it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        before: the ids before the first.
        write: called with each piece of text.

    Attributes:
        text: all that was written.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int], write: Callable[[str], None] | None = None) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._write = write
        self._shown = list(before[-8:])
        self._waiting: list[int] = []

    def add(self, token: int) -> None:
        """The next id."""
        self._waiting.append(token)
        self._show(finish=False)

    def finish(self) -> None:
        """Show what still waits, broken or not."""
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
    """What `generate` tells of its tokens: first the prompt, then each as it is made."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            for token in value.tolist():
                self._stream.add(token)
        self._begun = True

    def end(self) -> None:
        """A window is full, or the text has ended: the stream knows by itself."""


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
            raise UserError(f"{loaded.path}: its tokenizer has no token to start a text from; give a --prompt")
        ids = [start]
    return ids


# Where generated text meets a terminal, and a prompt standard input.


# A model may write any byte. On a terminal these would move the cursor, ring the bell or change colours.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def write_piece(piece: str) -> None:
    """Show a piece of text at once; on a terminal without control characters."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding shows what it can
    sys.stdout.write(piece.translate(_CONTROL) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def read_prompt() -> str:
    """All of standard input, as it is."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt -: standard input is not UTF-8 text (byte {error.start}: {error.reason})") from None
