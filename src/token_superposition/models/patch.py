"""Make a Hugging Face model itself take bags, for frameworks that wrap and call the model themselves.

`SuperposedLM` is a separate module. A framework that holds the model, wraps it and calls it with `input_ids` and
`labels` cannot use such a module. Instead, `bags_accepted` makes the model itself take (B, L, s) ids and (B, L, k)
labels inside a block:

- A hook at the start of the model's forward turns bags into `inputs_embeds`. It runs inside the forward, because only
  there sharded weights are gathered.
- The model's `loss_function` accepts labels of three dimensions.

Calls with ids and labels of two dimensions are not changed.

A framework may also patch the model's forward inside the block, as Trainer does for Liger. If such a forward would
compute its own loss on bags, an argument makes it return logits. If it has no such argument, a hook at its end raises
an error.
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
    """Make `model(input_ids=ids_BLs, labels=targets_BLk)` a forward on bags inside the block.

    Args:
        model: a Hugging Face causal language model that `SuperposedLM` takes.
        slot_weights: (k,), or None for uniform.
        z_loss: as in `SuperposedLM`.
        transform: the value of `SuperposedLM(model).transform`. With a transform, the loss is chunked if there are many
            logits; a forward on bags then returns logits of one column.

    If the caller passes an `attention_mask` (B, L), negative ids are slots without a token, and the mean of a bag
    leaves them out.

    Labels are aligned with the inputs, not shifted by one. If the caller passes `num_items_in_batch`, the weighted sum
    is divided by this number instead of by the sum of its weights. A forward on bags raises TypeError if the model
    computes its loss without its `loss_function`.
    """
    superposed = SuperposedLM(model, verify=False, z_loss=z_loss)
    superposed.transform = transform
    own: Any = model.loss_function
    # State of the running forward. Both lists must be empty between forwards, or torch.compile would compile again.
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
        return loss if count is None else loss * (weight_sum / count).to(loss.dtype)

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
