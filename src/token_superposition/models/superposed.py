"""`SuperposedLM` makes a Hugging Face causal language model take bags, without a change to the model.

Hugging Face causal models accept `inputs_embeds` and call `self.loss_function(logits=..., labels=..., vocab_size=...)`.
`SuperposedLM` averages the embeddings of each bag into `inputs_embeds`, passes the (B, L, s) targets as `labels`, and
replaces `model.loss_function` during one forward. The model's own code does everything else: positions, masks,
soft-caps, multipliers, router losses. There is no fork, no new parameter and no change of the state dict. Outside the
forward the model is unchanged.

With plain inputs the model looks up its embeddings itself, and with one target per position the loss is
`F.cross_entropy`. At bag size 1 a step is therefore the ordinary step, bit for bit. If there would be many logits (a
large vocabulary), the loss is chunked in both phases: it is computed from the hidden states (`head.py`).

All of this happens inside `forward`, so that FSDP2 can wrap this module as its root: a sharded weight cannot be used
outside a forward.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from token_superposition.losses.linear import (
    ChosenBackend,
    LossBackend,
    chosen_backend,
    linear_multi_hot_cross_entropy,
)
from token_superposition.losses.multi_hot import (
    divide_or_zero,
    multi_hot_cross_entropy,
    target_weights,
    weight_total,
)
from token_superposition.models.checks import (
    check_documents_apart,
    check_takes_bags,
    evaluating,
    logits_asked_for,
    loss_replaced,
    own_loss,
    some_ids,
)
from token_superposition.models.embedding import mean_embedding
from token_superposition.models.families import refusal
from token_superposition.models.head import LogitTransform, find_transform, head_taken_over
from token_superposition.models.transformers_compat import rows_hold_one_document


class SuperposedOutput(NamedTuple):
    """The result of a forward.

    Attributes:
        loss: scalar, the weighted mean over the targets of this batch (z-loss included), plus the extra terms of the
            model (a router loss, if the configuration of the model turns it on).
        weight_sum: scalar float64 without gradient, the sum of the weights of this batch's targets. Over several
            micro-batches or ranks, the total loss is the mean of `loss` weighted by `weight_sum`; or give each
            forward the sum over all of them as `divisor`, and add up the losses.
        expert_loads: (layers, experts) float32 without gradient, how often positions chose each expert; None for a
            model that returns no router logits.

    Example:
        >>> import torch
        >>> parts = [SuperposedOutput(*torch.tensor(numbers)) for numbers in ([2.0, 30.0], [4.0, 10.0])]
        >>> total = sum(part.loss * part.weight_sum for part in parts) / sum(part.weight_sum for part in parts)
        >>> total.item()  # the loss of two micro-batches
        2.5
    """

    loss: Tensor
    weight_sum: Tensor
    expert_loads: Tensor | None = None


class SuperposedLM(nn.Module):
    """Wrap a causal language model so that it trains on tokens and on bags.

    Args:
        model: a Hugging Face causal language model. It is not changed, and is available as `.model`.
        verify: refuse families that are known to use ids outside the input embedding, and check three properties on a
            few tokens: the embedding path of bags gives the model's own logits, no logit depends on a later token, and
            the model computes its loss with the function that is replaced.
        z_loss: the coefficient of logsumexp(logits)^2, in both phases; at 0, bag size 1 uses `F.cross_entropy`.
        loss_backend: as in `linear_multi_hot_cross_entropy`. With `plain` the model computes its logits. With `auto`
            the model does so if the logits are few, or if its head cannot be replaced (`.transform` is None).

    Raises:
        TypeError: if the model does not support bags: it has no input embedding or no replaceable loss function, its
            logits depend on later tokens, it consists of several models, or its family looks ids up outside its input
            embedding (known by name, or found because the logits change when ids are replaced by their embeddings).

    Source: arXiv 2605.06546, section 3.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> superposed = SuperposedLM(LlamaForCausalLM(LlamaConfig(vocab_size=64, **size)))
        >>> inputs, targets = torch.randint(0, 64, (2, 3, 8, 4))  # (B, L, s) each
        >>> superposed(inputs, targets).weight_sum.item()  # the number of targets
        96.0
    """

    def __init__(
        self, model: nn.Module, *, verify: bool = True, z_loss: float = 0.0, loss_backend: LossBackend = "auto"
    ) -> None:
        super().__init__()
        name = type(model).__name__
        # In transformers this is a property, which returns the model's own function after ours is removed.
        replaceable = isinstance(getattr(type(model), "loss_function", None), property)
        if not callable(getattr(model, "get_input_embeddings", None)) or not replaceable:
            raise TypeError(f"{name} is not a Hugging Face causal language model")
        self.model = model
        self.z_loss = z_loss
        self.loss_backend = loss_backend
        self.transform: LogitTransform | None = None
        self.documents_apart = False
        if verify:
            known = refusal(model.config)
            if known is not None:
                raise TypeError(known)
            check_takes_bags(model, self.embed, self)
            if loss_backend != "plain":
                self.transform = self._find_transform()

    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        slot_weights: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        divisor: Tensor | None = None,
        share: float = 1.0,
    ) -> SuperposedOutput:
        """Return the loss of one batch, or of a part of a batch.

        Args:
            ids: (B, L) tokens or (B, L, s) bags.
            targets: (B, L) next tokens or (B, L, k) next bags, aligned with the inputs (already shifted);
                -100 is ignored.
            slot_weights: (k,), or None for uniform.
            position_ids: (B, L), for rows that keep documents apart; they restart at 0 with each document. A negative
                token id then marks a slot without a token. Attention stays within documents if `documents_apart` is
                set.
            divisor: the number to divide the loss by, as a scalar tensor: the sum of the weights over all micro-batches
                and ranks (see `losses.multi_hot.weight_total`). None: the sum of this call's weights.
            share: share of this call in the positions of the whole batch. Terms that the model adds to the loss, such
                as a router loss, are averages over the call, and are multiplied by this share.

        Returns:
            The loss and the sum of the weights of this call's targets.

        Raises:
            ValueError: if inputs and targets are not aligned.
        """
        if targets.shape[:2] != ids.shape[:2]:
            raise ValueError(f"ids {tuple(ids.shape)} and targets {tuple(targets.shape)} are not aligned")
        backend = self.backend_for(targets.shape[0] * targets.shape[1])
        computed: list[tuple[Tensor, Tensor]] = []
        asked: list[bool] = []

        def loss_function(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
            asked.append(True)
            if not computed:
                computed.append(loss_and_weight(logits, labels, slot_weights, self.z_loss, divisor))
            return computed[0][0]

        inputs = self.embed(ids, padded=position_ids is not None)
        if position_ids is not None:
            inputs |= self._document_inputs(position_ids)
        taken_over = self.head_gives_loss(backend, targets, slot_weights, computed, divisor)
        whole = rows_hold_one_document() if position_ids is None else contextlib.nullcontext()
        with loss_replaced(self.model, loss_function), taken_over, whole:
            output = self.model(**inputs, labels=targets, use_cache=False, **logits_asked_for(self.model))
        if not asked:
            raise own_loss(self.model)
        own, weight_sum = computed[0]
        loss = output.loss if share == 1 or output.loss is own else own + share * (output.loss - own)
        return SuperposedOutput(loss, weight_sum, _expert_loads(self.model.config, output))

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Return the model's own logits of plain tokens, (B, L, V), such as for validation."""
        logits: Tensor = self.model(input_ids=ids_BL, use_cache=False).logits
        return logits

    def backend_for(self, num_positions: int) -> ChosenBackend:
        """Return the loss backend of a forward on this number of positions."""
        if self.transform is None:
            return "plain"
        vocab_size: int = self.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        return chosen_backend(self.loss_backend, num_positions, vocab_size)

    def head_gives_loss(
        self,
        backend: ChosenBackend,
        targets: Tensor,
        slot_weights: Tensor | None,
        computed: list[tuple[Tensor, Tensor]],
        divisor: Tensor | None = None,
    ) -> contextlib.AbstractContextManager[None]:
        """Make the model's head compute the loss inside the block and append the loss and its weight sum to `computed`.

        With backend `plain` the head is not changed. After the block the head is restored.
        """
        if backend == "plain":
            return contextlib.nullcontext()
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        transform = self.transform or LogitTransform()
        targets_Ns = targets.reshape(targets.shape[0] * targets.shape[1], -1)

        def compute(hidden_BLd: Tensor) -> None:
            there_Ns = targets_Ns.to(hidden_BLd.device)
            loss = linear_multi_hot_cross_entropy(
                hidden_BLd.flatten(0, -2),
                head.weight,
                there_Ns,
                bias=head.bias,
                slot_weights=slot_weights,
                z_loss=self.z_loss,
                logit_scale=transform.scale,
                softcap=transform.softcap,
                backend=backend,
                divisor=divisor,
            )
            computed.append((loss, weight_total(target_weights(there_Ns, slot_weights))))

        return head_taken_over(head, compute)

    def embed(self, ids: Tensor, *, padded: bool = False) -> dict[str, Tensor]:
        """Return the model's input arguments for tokens (B, L), tokens (B, L, 1) or bags (B, L, s).

        With `padded`, negative ids are slots without a token.
        """
        if ids.dim() == 2:
            return {"input_ids": ids}
        if ids.shape[-1] == 1:
            return {"input_ids": (ids.clamp(min=0) if padded else ids).squeeze(-1)}
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return {"inputs_embeds": mean_embedding(embedding, ids, padded=padded)}

    def _document_inputs(self, position_ids: Tensor) -> dict[str, Tensor]:
        """Return the position ids, if the model takes any; without a mask, transformers then keeps documents apart."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        mask = {} if self.documents_apart else {"attention_mask": torch.ones_like(position_ids)}
        return {"position_ids": position_ids, **mask}

    def keep_documents_apart(self) -> None:
        """Restrict attention in rows with `position_ids` to the tokens of one document, from this call on.

        Raises:
            TypeError: if the model does not support this: its attention backend ignores positions that restart, its
                layers carry a state along the row, or it has no positions.
        """
        self.documents_apart = True
        check_documents_apart(self.model, self._document_inputs)

    # Frameworks read these attributes before they shard a model, so they return the values of the wrapped model.
    # Without them, accelerate makes one FSDP unit of the whole model, and unties tied weights that it loads on one
    # rank only.

    @property
    def _no_split_modules(self) -> Any:
        return getattr(self.model, "_no_split_modules", None)

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding of the model."""
        return self.model.get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the head of the model."""
        return self.model.get_output_embeddings()  # type: ignore[operator]

    def tie_weights(self) -> None:
        """Tie the weights as the model does, if its configuration says so."""
        self.model.tie_weights()  # type: ignore[operator]

    @torch.no_grad()
    def _find_transform(self) -> LogitTransform | None:
        """Find the transform of the logits with which the loss from hidden states equals the loss of the model."""
        with evaluating(self.model):
            self.transform = find_transform(self.model)
            if self.transform is not None:
                ids_BL = some_ids(self.model)
                bags_BLs = torch.stack([ids_BL, ids_BL.flip(1)], dim=-1)
                head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
                targets_BLs = bags_BLs.clamp(max=head.out_features - 1)
                wanted, losses = self.loss_backend, []
                for self.loss_backend in ("plain", "chunked"):
                    losses.append(self(bags_BLs, targets_BLs).loss.item())
                self.loss_backend = wanted
                wide = next(self.model.parameters()).dtype in (torch.float32, torch.float64)
                if not math.isclose(*losses, rel_tol=1e-4 if wide else 2e-2):
                    self.transform = None  # the model does more with its logits, such as a z-loss of its own
        capped = self.transform is not None and self.transform.softcap is not None
        if self.loss_backend != "auto" and (self.transform is None or (capped and self.loss_backend != "chunked")):
            raise TypeError(
                f"{type(self.model).__name__} changes its logits in a way that loss_backend {self.loss_backend} does "
                "not support; use auto"
            )
        return self.transform


def loss_and_weight(
    logits: Tensor,
    targets: Tensor,
    slot_weights: Tensor | None,
    z_loss: float,
    divisor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of (B, L, V) logits against (B, L) or (B, L, k) targets, and its weight sum.

    With a divisor, the sum of the weighted losses is divided by it instead of by the weight sum.
    """
    logits_NV = logits.flatten(0, -2)
    targets_Ns = targets.reshape(logits_NV.shape[0], -1)
    weight_sum = weight_total(target_weights(targets_Ns, slot_weights))
    if targets_Ns.shape[1] == 1 and slot_weights is None and not z_loss:
        # The mean of F.cross_entropy would be NaN if every target is ignored.
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        total = F.cross_entropy(wide_NV, targets_Ns.squeeze(1), reduction="sum")
    else:
        total = multi_hot_cross_entropy(
            logits_NV, targets_Ns, slot_weights=slot_weights, reduction="sum", z_loss=z_loss
        )
    return divide_or_zero(total, weight_sum if divisor is None else divisor), weight_sum


@torch.no_grad()
def _expert_loads(config: Any, output: Any) -> Tensor | None:
    """Return how often each expert of each layer was chosen, from the router logits; None if there are none."""
    router_logits, chosen = getattr(output, "router_logits", None), getattr(config, "num_experts_per_tok", None)
    if not router_logits or not chosen:
        return None
    loads = [
        torch.zeros(logits.shape[-1], device=logits.device).index_add_(
            0, index := logits.flatten(0, -2).topk(chosen, dim=-1).indices.flatten(), torch.ones_like(index).float()
        )
        for logits in router_logits
    ]
    return torch.stack(loads)
