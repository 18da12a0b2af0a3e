"""`SuperposedLM`: a causal language model that also takes bags, without touching it.

Stock Hugging Face causal models accept `inputs_embeds` and call `self.loss_function(logits=...,
labels=..., vocab_size=...)`. So a bag's embeddings are averaged into `inputs_embeds`, the (B, L, s) targets
go in as `labels`, and for the length of one forward `model.loss_function` is ours. The model's own code
does everything else: positions, masks, soft-caps, multipliers, router losses. No fork, no new parameter, no
changed state dict; outside our forward the model is exactly what it was.

With plain inputs the model embeds by itself, and with one target a position the loss is
`F.cross_entropy`: at bag size 1 a step is the ordinary step, bit for bit. Where the logits would be many (a large
vocabulary), the loss is computed from the hidden states in slices, in both phases alike (`head.py`).

All of it happens inside `forward`, so that this module can be the root that FSDP2 wraps: a sharded weight
used outside a forward is an error.
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
from token_superposition.losses.multi_hot import divide_or_zero, multi_hot_cross_entropy, target_weights
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
    """What a forward returns.

    Attributes:
        loss: scalar, the weighted mean over this batch's targets (z-loss included), plus the model's own extra
            terms (a router loss, where its configuration asks for it).
        weight_sum: scalar float32 without gradient, the weights that the mean was divided by. Over several
            micro-batches or ranks, the loss of the whole is the mean of `loss` weighted by `weight_sum`.
        expert_loads: (layers, experts) float32 without gradient, how many of the positions' choices fell on each
            expert; None for a model that returns no router logits.

    Example:
        >>> import torch
        >>> parts = [SuperposedOutput(*torch.tensor(numbers)) for numbers in ([2.0, 30.0], [4.0, 10.0])]
        >>> total = sum(part.loss * part.weight_sum for part in parts) / sum(part.weight_sum for part in parts)
        >>> total.item()  # of two micro-batches
        2.5
    """

    loss: Tensor
    weight_sum: Tensor
    expert_loads: Tensor | None = None


class SuperposedLM(nn.Module):
    """Wrap a causal language model so that it trains on tokens and on bags alike.

    Args:
        model: a Hugging Face causal language model, used as it is and reachable as `.model`.
        verify: refuse families known to use ids elsewhere, and check on a few tokens that the embedding path used
            for bags gives the model's own logits, that no logit sees a later token, and that the loss is computed
            by the function we replace.
        z_loss: the coefficient of logsumexp(logits)^2, in both phases; 0 leaves bag size 1 to `F.cross_entropy`.
        loss_backend: as in `linear_multi_hot_cross_entropy`; `plain` lets the model make its logits, and so does `auto`
            where they are few or the model's head is not one we can take over (`.transform` is None).

    Raises:
        TypeError: where the model cannot be driven this way: no input embedding, no loss function of its
            own to replace, logits that see later tokens, several models in one, or a family that looks ids up
            outside its input embedding (known by name, or by logits that change when ids are replaced by their
            embeddings).

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
        # transformers' property, which falls back to the model's own function once ours is taken away.
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
    ) -> SuperposedOutput:
        """The loss of one batch.

        Args:
            ids: (B, L) tokens or (B, L, s) bags.
            targets: (B, L) next tokens or (B, L, k) next bags, aligned with the inputs (already shifted);
                -100 is ignored.
            slot_weights: (k,), or None for uniform.
            position_ids: (B, L), restarting at 0 with each document, for rows that keep documents apart; a negative id
                is then a bag's slot without a token. Attention stays within documents if `documents_apart` is set.

        Returns:
            The loss and the weight it stands for.

        Raises:
            ValueError: where inputs and targets are not aligned.
        """
        if targets.shape[:2] != ids.shape[:2]:
            raise ValueError(f"ids {tuple(ids.shape)} and targets {tuple(targets.shape)} are not aligned")
        backend = self.backend_for(targets.shape[0] * targets.shape[1])
        computed: list[tuple[Tensor, Tensor]] = []
        asked: list[bool] = []

        def loss_function(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
            asked.append(True)
            if not computed:
                computed.append(loss_and_weight(logits, labels, slot_weights, self.z_loss))
            return computed[0][0]

        inputs = self.embed(ids, padded=position_ids is not None)
        if position_ids is not None:
            inputs |= self._document_inputs(position_ids)
        taken_over = self.head_gives_loss(backend, targets, slot_weights, computed)
        whole = rows_hold_one_document() if position_ids is None else contextlib.nullcontext()
        with loss_replaced(self.model, loss_function), taken_over, whole:
            output = self.model(**inputs, labels=targets, use_cache=False, **logits_asked_for(self.model))
        if not asked:
            raise own_loss(self.model)
        return SuperposedOutput(output.loss, computed[0][1], _expert_loads(self.model.config, output))

    def backend_for(self, num_positions: int) -> ChosenBackend:
        """How the loss of a forward on so many positions is computed."""
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
    ) -> contextlib.AbstractContextManager[None]:
        """Inside the block the model's head computes the loss of these targets and puts it, and its weight, on the
        list.

        With backend `plain` the head is what it was. Afterwards too.
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
            )
            computed.append((loss, target_weights(there_Ns, slot_weights).sum()))

        return head_taken_over(head, compute)

    def embed(self, ids: Tensor, *, padded: bool = False) -> dict[str, Tensor]:
        """The model's input arguments for tokens (B, L), tokens (B, L, 1) or bags (B, L, s), maybe `padded`."""
        if ids.dim() == 2:
            return {"input_ids": ids}
        if ids.shape[-1] == 1:
            return {"input_ids": (ids.clamp(min=0) if padded else ids).squeeze(-1)}
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return {"inputs_embeds": mean_embedding(embedding, ids, padded=padded)}

    def _document_inputs(self, position_ids: Tensor) -> dict[str, Tensor]:
        """Positions, where the model takes any. Without a mask beside them, transformers keeps documents apart."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        mask = {} if self.documents_apart else {"attention_mask": torch.ones_like(position_ids)}
        return {"position_ids": position_ids, **mask}

    def keep_documents_apart(self) -> None:
        """From here on, attention in rows with `position_ids` stays within documents.

        Raises:
            TypeError: where this model's attention does not: it has a backend that takes no notice of positions that
                restart, layers that carry a state along the row, or no positions at all.
        """
        self.documents_apart = True
        check_documents_apart(self.model, self._document_inputs)

    # What stacks ask of a model before they shard it, answered as the model itself would. Unanswered, accelerate
    # makes one FSDP unit of the whole model, and unties tied weights where it loads them on one rank only.

    @property
    def _no_split_modules(self) -> Any:
        return getattr(self.model, "_no_split_modules", None)

    def get_input_embeddings(self) -> nn.Module:
        """The model's own."""
        return self.model.get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> nn.Module | None:
        """The model's own."""
        return self.model.get_output_embeddings()  # type: ignore[operator]

    def tie_weights(self) -> None:
        """As the model does it, where its configuration asks for it."""
        self.model.tie_weights()  # type: ignore[operator]

    @torch.no_grad()
    def _find_transform(self) -> LogitTransform | None:
        """What the model does to its logits, where the loss from hidden states then is its own."""
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
                    self.transform = None  # it does more with its logits, such as a z-loss of its own
        capped = self.transform is not None and self.transform.softcap is not None
        if self.loss_backend != "auto" and (self.transform is None or (capped and self.loss_backend != "chunked")):
            raise TypeError(
                f"{type(self.model).__name__} does more with its logits than loss_backend {self.loss_backend} "
                "knows of; leave it at auto"
            )
        return self.transform


def loss_and_weight(
    logits: Tensor, targets: Tensor, slot_weights: Tensor | None, z_loss: float
) -> tuple[Tensor, Tensor]:
    """The mean loss of (B, L, V) logits against (B, L) or (B, L, k) targets, and its weight sum."""
    logits_NV = logits.flatten(0, -2)
    targets_Ns = targets.reshape(logits_NV.shape[0], -1)
    weight_sum = target_weights(targets_Ns, slot_weights).sum()
    if targets_Ns.shape[1] == 1 and slot_weights is None and not z_loss:
        # A mean that divides by what it is given would be NaN where every target is ignored.
        wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
        total = F.cross_entropy(wide_NV, targets_Ns.squeeze(1), reduction="sum")
    else:
        total = multi_hot_cross_entropy(
            logits_NV, targets_Ns, slot_weights=slot_weights, reduction="sum", z_loss=z_loss
        )
    return divide_or_zero(total, weight_sum), weight_sum


@torch.no_grad()
def _expert_loads(config: Any, output: Any) -> Tensor | None:
    """How often each expert of each layer was chosen, from the router logits that a model returns when asked to."""
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
