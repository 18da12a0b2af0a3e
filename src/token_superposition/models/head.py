"""Replace the forward of a model's head, so that the head computes the chunked loss instead of the logits.

During one forward of the model, the head's own `forward` is replaced. The replacement gets the hidden states from the
model, computes the chunked loss (`losses/linear.py`), and returns logits of one column. The model's code may scale and
cap these logits, because nothing uses them. The loss is computed inside the call of the head, because a sharded weight
is gathered only there.

The model may transform its logits between the head and the loss (a scale, a soft-cap). The chunked loss must then apply
the same transform. `find_transform` tests the transform: it gives known numbers to the model's code as the output of
the head, and compares the result with the expected result. A model with any other transform computes its full logits.
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
    """The transform of the head's output: `softcap * tanh(scale * x / softcap)`, or `scale * x` without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


@contextlib.contextmanager
def head_taken_over(head: nn.Module, compute: Callable[[Tensor], None]) -> Iterator[None]:
    """Make the head call `compute(hidden_BLd)` and return logits of one column inside the block."""

    def forward(hidden_BLd: Tensor) -> Tensor:
        compute(hidden_BLd)
        return hidden_BLd.new_zeros((*hidden_BLd.shape[:-1], 1))

    with _forward_replaced(head, forward):
        yield


def linear_head(model: Any) -> nn.Linear | None:
    """Return the model's head if it is a plain linear layer; None otherwise."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return None
    return None if head._forward_hooks else head


@torch.no_grad()
def find_transform(model: Any) -> LogitTransform | None:
    """Return the transform that the model applies to its head's output before the loss; None if it is not known."""
    head = linear_head(model)
    if head is None:
        return None
    ids_BL = some_ids(model).clamp(max=head.out_features - 1)
    # Positive and negative numbers that are so large that a soft-cap changes them.
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
    """Yield every transform that the numbers in the configuration can mean, and the transform that changes nothing."""
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
