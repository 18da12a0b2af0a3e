"""What the checks of adapters share, and the programs they start: rows, a Trainer that keeps its batches, the core.

Without pytest, for the programs run where it may not be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from token_superposition import SuperposedLM

L, V = 16, 67


class Size(NamedTuple):
    """How large a model is that a check trains, and on what."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    length: int
    rows_per_step: int
    num_steps: int
    learning_rate: float


SIZES = {
    "toy": Size(32, 2, V, L, rows_per_step=4, num_steps=6, learning_rate=1e-2),
    "gpu": Size(512, 6, 32_000, 512, rows_per_step=8, num_steps=12, learning_rate=1e-3),
}


def llama(size: Size, *, tied: bool = True) -> nn.Module:
    """The same model, with the same weights, every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        intermediate_size=2 * size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=4,
        max_position_embeddings=4 * size.length,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


def adamw(model: nn.Module, size: Size) -> torch.optim.AdamW:
    """What the Trainer makes of `optimizer_options`."""
    return torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.0)


def optimizer_options(size: Size) -> dict[str, Any]:
    """AdamW, and nothing besides, as arguments of a Trainer."""
    return {"optim": "adamw_torch", "learning_rate": size.learning_rate, "lr_scheduler_type": "constant"}


def rows(number: int = 64, seed: int = 0, length: int = L, vocab_size: int = V) -> list[dict[str, Any]]:
    """A map-style data set of token ids drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (number, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


class Streaming(IterableDataset[Any]):
    """The same rows, as a stream."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows())


def losses(run: Any) -> list[float]:
    """What a Trainer logged at every step."""
    return [line["loss"] for line in run.state.log_history if "loss" in line]


class Recorded:
    """Put before a Trainer class, it keeps every micro-batch that was trained on."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        if model.training:
            self.__dict__.setdefault("seen", []).append({k: v.clone() for k, v in inputs.items()})
        return super().compute_loss(model, inputs, *rest, **more)  # type: ignore[misc]


def steps_of(batches: Sequence[Any], accumulation: int) -> list[Sequence[Any]]:
    """Micro-batches by optimizer step."""
    return [batches[n : n + accumulation] for n in range(0, len(batches), accumulation)]


def core_losses(
    steps: Sequence[Sequence[dict[str, Tensor]]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: Any = None,
    slot_weights: Tensor | None = None,
) -> list[float]:
    """A bare loop around `SuperposedLM` on a Trainer's batches, clipping as it does by default."""
    superposed = SuperposedLM(model)
    model.train()
    found = []
    for step in steps:
        parts, weights = [], []
        for batch in step:
            ids, labels = batch["input_ids"], batch["labels"]
            if labels.dim() == 2:  # the Trainer's own: position t predicts t + 1, the last predicts nothing
                labels = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
            output = superposed(ids, labels, slot_weights if batch["labels"].dim() == 3 else None)
            parts.append(output.loss * output.weight_sum)
            weights.append(output.weight_sum)
        loss = torch.stack(parts).sum() / torch.stack(weights).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found
