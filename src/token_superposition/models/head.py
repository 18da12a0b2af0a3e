"""A model's head, taken over for one forward: the loss is computed where the logits would have been made.

For the length of a forward the head's own `forward` is ours. It gets the hidden states as the model hands them over,
computes the loss in slices (`losses/linear.py`), and returns logits of one column, which the model's code may scale
and cap as it likes: nobody reads them. Computed inside the head's call, so that a weight that is sharded is whole.

What the model does to its logits between head and loss (a scale, a soft-cap) is then ours to do. It is not taken on
trust: its own code is shown numbers of our making in place of logits, and what comes out must be what we would have
made of them. A model that does something else keeps its full logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from token_superposition.models.checks import loss_replaced, some_ids
from token_superposition.models.families import LOGIT_SCALES, LOGIT_SOFTCAPS


class LogitTransform(NamedTuple):
    """What becomes of the head's output: `softcap * tanh(scale * x / softcap)`, or `scale * x` without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


@contextlib.contextmanager
def head_taken_over(head: nn.Module, compute: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside the block the head calls `compute(hidden_BLd)` and gives logits of one column."""

    def forward(hidden_BLd: Tensor) -> Tensor:
        compute(hidden_BLd)
        return hidden_BLd.new_zeros((*hidden_BLd.shape[:-1], 1))

    with _forward_replaced(head, forward):
        yield


def linear_head(model: Any) -> nn.Linear | None:
    """The model's head, where it is a linear layer and nothing more; None where it is anything else."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return None
    return None if head._forward_hooks else head


@torch.no_grad()
def find_transform(model: Any) -> LogitTransform | None:
    """What a model's code does to its head's output before the loss; None where it is not one of what we know."""
    head = linear_head(model)
    if head is None:
        return None
    ids_BL = some_ids(model).clamp(max=head.out_features - 1)
    # Numbers of either sign, so large that a cap shows.
    numbers = torch.linspace(-120, 120, ids_BL.numel() * head.out_features, device=ids_BL.device)
    shown = numbers.view(*ids_BL.shape, head.out_features).to(head.weight.dtype)
    seen: list[Tensor] = []

    def keep(logits: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(logits)
        return logits.new_zeros(())

    with _forward_replaced(head, lambda _: shown), loss_replaced(model, keep):
        model(input_ids=ids_BL, labels=ids_BL, use_cache=False)
    if len(seen) != 1 or seen[0].shape != shown.shape:
        return None
    found, given = seen[0].float(), shown.float()
    tolerance = 1e-5 if head.weight.dtype in (torch.float32, torch.float64) else 2e-2
    for transform in _candidates(model.config):
        expected = transform(given)
        if torch.allclose(found, expected, rtol=0, atol=tolerance * expected.abs().max().item()):
            return transform
    return None


def _candidates(config: Any) -> Iterator[LogitTransform]:
    """What the numbers that a configuration has for it could mean, and nothing at all."""
    numbers = _numbers(config, LOGIT_SCALES)
    for softcap in (None, *_numbers(config, LOGIT_SOFTCAPS)):
        for scale in (1.0, *numbers, *(1 / number for number in numbers)):
            yield LogitTransform(scale, softcap)


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = (getattr(config, name, None) for name in names)
    return [float(value) for value in values if isinstance(value, (int, float)) and value]


@contextlib.contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
