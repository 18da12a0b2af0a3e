"""A Hugging Face model that takes bags where it stands, for stacks that wrap and call the model themselves.

`SuperposedLM` is a module of its own; a framework that holds the model, wraps it and calls it with `input_ids` and
`labels` has no place for one. Here the model itself learns to take (B, L, s) ids and (B, L, k) labels, for the
length of a block: a hook at the start of its own forward turns bags into `inputs_embeds` (inside the forward, where
sharded weights are whole), and its `loss_function` takes labels of three dimensions. Calls of two dimensions are what
they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from token_superposition.model.checks import loss_replaced
from token_superposition.model.superposed import SuperposedLM, loss_and_weight


@contextlib.contextmanager
def bags_accepted(model: nn.Module, *, slot_weights: Tensor | None = None, z_loss: float = 0.0) -> Iterator[None]:
    """Inside the block `model(input_ids=ids_BLs, labels=targets_BLk)` is a forward on bags.

    Args:
        model: a Hugging Face causal language model that `SuperposedLM` takes.
        slot_weights: (k,), or None for uniform.
        z_loss: as in `SuperposedLM`.

    Labels are aligned with the inputs, not shifted by one; `num_items_in_batch`, where the caller gives it, is what
    the weighted sum is divided by instead of its own weights.
    """
    embed = SuperposedLM(model, verify=False).embed
    own: Any = model.loss_function

    def take_bags(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ids = options.get("input_ids")
        if isinstance(ids, Tensor) and ids.dim() == 3:
            options = {name: value for name, value in options.items() if name != "input_ids"}
            options.update(embed(ids))
        return arguments, options

    def loss_function(logits: Tensor, labels: Tensor, *rest: Any, **options: Any) -> Tensor:
        if labels is None or labels.dim() != 3:
            return own(logits, labels, *rest, **options)
        weights = None if slot_weights is None else slot_weights.to(logits.device)
        loss, weight_sum = loss_and_weight(logits, labels.to(logits.device), weights, z_loss)
        count = options.get("num_items_in_batch")
        return loss if count is None else loss * (weight_sum / count)

    hook = model.register_forward_pre_hook(take_bags, with_kwargs=True)
    try:
        with loss_replaced(model, loss_function):
            yield
    finally:
        hook.remove()
