"""A Hugging Face model that takes bags where it stands, for stacks that wrap and call the model themselves.

`SuperposedLM` is a module of its own; a framework that holds the model, wraps it and calls it with `input_ids` and
`labels` has no place for one. Here the model itself learns to take (B, L, s) ids and (B, L, k) labels, for the
length of a block: a hook at the start of its own forward turns bags into `inputs_embeds` (inside the forward, where
sharded weights are whole), and its `loss_function` takes labels of three dimensions. Calls of two dimensions are what
they were.

A framework may also patch the model's forward inside the block, as Trainer does for Liger. A forward that would compute
its own loss of bags is asked for logits; one that cannot be asked is refused by a hook at its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from token_superposition.models.checks import logits_asked_for, loss_replaced, own_loss
from token_superposition.models.head import LogitTransform
from token_superposition.models.superposed import SuperposedLM, loss_and_weight


@contextlib.contextmanager
def bags_accepted(
    model: nn.Module,
    *,
    slot_weights: Tensor | None = None,
    z_loss: float = 0.0,
    transform: LogitTransform | None = None,
) -> Iterator[None]:
    """Inside the block `model(input_ids=ids_BLs, labels=targets_BLk)` is a forward on bags.

    Args:
        model: a Hugging Face causal language model that `SuperposedLM` takes.
        slot_weights: (k,), or None for uniform.
        z_loss: as in `SuperposedLM`.
        transform: what `SuperposedLM(model).transform` found; with it, many logits are not made, and a forward on bags
            then returns logits of one column.

    Where an `attention_mask` (B, L) is given too, negative ids are slots without a token, left out of a bag's mean.

    Labels are aligned with the inputs, not shifted by one; `num_items_in_batch`, where the caller gives it, is what
    the weighted sum is divided by instead of its own weights. Such a forward raises TypeError where the model
    computes its loss by itself.
    """
    superposed = SuperposedLM(model, verify=False, z_loss=z_loss)
    superposed.transform = transform
    own: Any = model.loss_function
    # Of the forward that is running; empty between forwards, or torch.compile would compile anew.
    computed: list[tuple[Tensor, Tensor]] = []
    asked: list[bool] = []
    taken_over = contextlib.ExitStack()

    def take_bags(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ids: Any = options.get("input_ids")
        labels: Any = options.get("labels")
        if isinstance(ids, Tensor) and ids.dim() == 3:
            options = {name: value for name, value in options.items() if name != "input_ids"}
            options.update(superposed.embed(ids, padded=options.get("attention_mask") is not None))
        if _are_bags(labels):
            options = {**options, **logits_asked_for(model)}
            backend = superposed.backend_for(labels.shape[0] * labels.shape[1])
            if backend != "plain":
                taken_over.enter_context(superposed.head_gives_loss(backend, labels, slot_weights, computed))
        return arguments, options

    def loss_function(logits: Tensor, labels: Tensor, *rest: Any, **options: Any) -> Tensor:
        if not _are_bags(labels):
            return own(logits, labels, *rest, **options)
        asked.append(True)
        if not computed:
            weights = None if slot_weights is None else slot_weights.to(logits.device)
            computed.append(loss_and_weight(logits, labels.to(logits.device), weights, z_loss))
        loss, weight_sum = computed[0]
        count = options.get("num_items_in_batch")
        return loss if count is None else loss * (weight_sum / count)

    def check(_: nn.Module, __: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if _are_bags(options.get("labels")):
            taken_over.close()
            missed = not asked and output is not None  # None: the forward has failed
            asked.clear()
            computed.clear()
            if missed:
                raise own_loss(model)

    hooks = [
        model.register_forward_pre_hook(take_bags, with_kwargs=True),
        model.register_forward_hook(check, with_kwargs=True, always_call=True),
    ]
    try:
        with loss_replaced(model, loss_function):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _are_bags(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 3
