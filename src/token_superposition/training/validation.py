"""Validation: the next-token loss at bag size 1, in both phases, always on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from token_superposition.errors import UserError
from token_superposition.models.flops import bits_per_byte
from token_superposition.models.superposed import SuperposedLM
from token_superposition.training.distributed import World

_MOST_LOGITS = 2**27  # half a gigabyte of float32


class ScoredTokens(Protocol):
    """A sequence of tokens with the size of its text, such as a `TokenDataset`."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, length: int) -> NDArray[np.int64]: ...

    def count_bytes(self, start: int, length: int) -> int: ...

    @property
    def text_lost(self) -> float | None: ...


@dataclass(frozen=True)
class ValidationResult:
    """The result of a validation.

    Attributes:
        loss: nats per token.
        bits_per_byte: sum of the losses in bits, divided by the bytes of the text of the targets; end-of-document
            tokens have no bytes.
        num_tokens: number of targets.
        num_bytes: bytes of the text of the targets.
        text_lost: share of the characters of the text that the tokenizer lost; None if it is unknown. Above
            `data.manifest.LOST_TEXT`, the bits per byte are reported with a warning.
    """

    loss: float
    bits_per_byte: float
    num_tokens: int
    num_bytes: int
    text_lost: float | None = 0.0


class Validator:
    """Measures the loss on the first tokens of a validation set, in rows of L positions without overlap.

    Args:
        dataset: the validation set.
        sequence_length: L.
        batch_size: rows per forward pass; reduced if the logits would be too large.

    Raises:
        UserError: if the split is shorter than one row.
    """

    def __init__(self, dataset: ScoredTokens, *, sequence_length: int, batch_size: int) -> None:
        self.dataset = dataset
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.num_rows = (dataset.num_tokens - 1) // sequence_length
        if self.num_rows < 1:
            raise UserError(
                f"the validation data has {dataset.num_tokens} tokens, fewer than one row of "
                f"train.sequence_length {sequence_length}: prepare more text"
            )

    def num_tokens(self, max_tokens: int) -> int:
        """Number of tokens that are scored for a limit of `max_tokens`: whole rows, at least one."""
        return min(self.num_rows, max(1, max_tokens // self.sequence_length)) * self.sequence_length

    @torch.no_grad()
    def run(
        self,
        model: nn.Module,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        world: World | None = None,
    ) -> ValidationResult:
        """Measure the loss of a causal language model in evaluation mode; the mode is restored afterwards.

        The ranks share the batches. The sums of the batches are added up in the order of the batches, so the result has
        the same bits on any number of ranks.

        Args:
            model: a `SuperposedLM`, or another causal language model of transformers.
            max_tokens: limit of the tokens to score.
            device, dtype: device and data type of the computation.
            world: the ranks of the run; None for one process.
        """
        world = world or World()
        num_rows = self.num_tokens(max_tokens) // self.sequence_length
        num_tokens = num_rows * self.sequence_length
        was_training = model.training
        model.eval()
        inner = model.model if isinstance(model, SuperposedLM) else model
        vocab_size = getattr(getattr(inner, "config", None), "vocab_size", None) or 1
        # The size of a batch must not depend on the number of ranks: it changes the last bits of the logits.
        batch_size = max(1, min(self.batch_size, _MOST_LOGITS // (self.sequence_length * vocab_size)))
        starts = range(0, num_rows, batch_size)
        nats_b = torch.zeros(len(starts), dtype=torch.float64)
        for number in range(world.rank, -(-len(starts) // world.size) * world.size, world.size):
            # Every rank must do equally many forwards, because each gathers weights; the additional ones are ignored.
            first = starts[number % len(starts)]
            rows = min(batch_size, num_rows - first)
            start, length = first * self.sequence_length, rows * self.sequence_length
            span = self.dataset.read(start, length + 1)
            ids, targets = (torch.from_numpy(np.ascontiguousarray(part)) for part in (span[:-1], span[1:]))
            ids_BL = ids.view(rows, self.sequence_length).to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = _logits(model, ids_BL)
            losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.to(device), reduction="none")
            if number < len(starts):
                nats_b[number] = losses.sum(dtype=torch.float64 if device.type != "mps" else None).cpu()
        model.train(was_training)
        total = float(sum(world.sum(nats_b).tolist()))
        # Count all rows at once: the sum of rounded counts per row would differ.
        num_bytes = self.dataset.count_bytes(1, num_tokens)
        bits = bits_per_byte(total, num_bytes)
        return ValidationResult(total / num_tokens, bits, num_tokens, num_bytes, self.dataset.text_lost)


def _logits(model: Any, ids_BL: Tensor) -> Tensor:
    logits: Tensor = (
        model.logits(ids_BL) if isinstance(model, SuperposedLM) else model(input_ids=ids_BL, use_cache=False).logits
    )
    return logits
