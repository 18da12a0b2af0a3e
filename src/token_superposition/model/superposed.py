"""`SuperposedLM`: a causal language model that also takes bags, without touching it.

Stock Hugging Face causal models accept `inputs_embeds` and call `self.loss_function(logits=...,
labels=..., vocab_size=...)`. So a bag's embeddings are averaged into `inputs_embeds`, the (B, L, s) targets
go in as `labels`, and for the length of one forward `model.loss_function` is ours. The model's own code
does everything else: positions, masks, soft-caps, multipliers, router losses. No fork, no new parameter, no
changed state dict; outside our forward the model is exactly what it was.

With plain inputs the model embeds by itself, and with one target a position the loss is
`F.cross_entropy`: at bag size 1 a step is the ordinary step, bit for bit.

All of it happens inside `forward`, so that this module can be the root that FSDP2 wraps: a sharded weight
used outside a forward is an error.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from token_superposition.model.families import embedding_scale, refusal
from token_superposition.objective.bags import bag_embedding
from token_superposition.objective.loss import divide_or_zero, multi_hot_cross_entropy, target_weights


class SuperposedOutput(NamedTuple):
    """What a forward returns.

    Attributes:
        loss: scalar, the weighted mean over this batch's targets (z-loss included), plus the model's own extra
            terms (a router loss, where its configuration asks for it).
        weight_sum: scalar float32 without gradient, the weights that the mean was divided by. Over several
            micro-batches or ranks, the loss of the whole is the mean of `loss` weighted by `weight_sum`.
        expert_loads: (layers, experts) float32 without gradient, how many of the positions' choices fell on each
            expert; None for a model that returns no router logits.
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

    Raises:
        TypeError: where the model cannot be driven this way: no input embedding, no loss function of its
            own to replace, logits that see later tokens, several models in one, or a family that looks ids up
            outside its input embedding (known by name, or by logits that change when ids are replaced by their
            embeddings).

    Source: arXiv 2605.06546, section 3.
    """

    def __init__(self, model: nn.Module, *, verify: bool = True, z_loss: float = 0.0) -> None:
        super().__init__()
        name = type(model).__name__
        # transformers' property, which falls back to the model's own function once ours is taken away.
        replaceable = isinstance(getattr(type(model), "loss_function", None), property)
        if not callable(getattr(model, "get_input_embeddings", None)) or not replaceable:
            raise TypeError(f"{name} is not a Hugging Face causal language model")
        self.model = model
        self.z_loss = z_loss
        self.documents_apart = False
        if verify:
            known = refusal(model.config)
            if known is not None:
                raise TypeError(known)
            self._verify()

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
        weight_sums: list[Tensor] = []

        def loss_function(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
            loss, weight_sum = loss_and_weight(logits, labels, slot_weights, self.z_loss)
            weight_sums.append(weight_sum)
            return loss

        inputs = self.embed(ids, padded=position_ids is not None)
        if position_ids is not None:
            inputs |= self._document_inputs(position_ids)
        with loss_replaced(self.model, loss_function):
            output = self.model(**inputs, labels=targets, use_cache=False)
        if not weight_sums:
            raise TypeError(f"{type(self.model).__name__} computes its loss without its loss_function")
        return SuperposedOutput(output.loss, weight_sums[0], _expert_loads(self.model.config, output))

    def embed(self, ids: Tensor, *, padded: bool = False) -> dict[str, Tensor]:
        """The model's input arguments for tokens (B, L), tokens (B, L, 1) or bags (B, L, s), maybe `padded`."""
        if ids.dim() == 2:
            return {"input_ids": ids}
        if ids.shape[-1] == 1:
            return {"input_ids": ids.squeeze(-1)}
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return {"inputs_embeds": mean_embedding(embedding, ids, padded=padded)}

    def _document_inputs(self, position_ids: Tensor) -> dict[str, Tensor]:
        """Positions, where the model takes any. Without a mask beside them, transformers keeps documents apart."""
        if "position_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        mask = {} if self.documents_apart else {"attention_mask": torch.ones_like(position_ids)}
        return {"position_ids": position_ids, **mask}

    @torch.no_grad()
    def keep_documents_apart(self) -> None:
        """From here on, attention in rows with `position_ids` stays within documents.

        Raises:
            TypeError: where this model's attention does not: it has a backend that takes no notice of positions that
                restart, layers that carry a state along the row, or no positions at all.
        """
        self.documents_apart = True
        weight = self.model.get_input_embeddings().weight  # type: ignore[operator]
        position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0, 1]], device=weight.device)
        first_BL = (torch.arange(8, device=weight.device) == position_ids).cummin(dim=1).values  # the first document
        ids_BL = torch.linspace(weight.shape[0] - 1, 0, 16, device=weight.device).long().view(2, 8)
        other_BL = torch.where(first_BL & (position_ids < 2), ids_BL.flip(0), ids_BL)
        with evaluating(self.model):
            logits, others = (
                self.model(input_ids=ids, **self._document_inputs(position_ids), use_cache=False).logits.float()
                for ids in (ids_BL, other_BL)
            )
        moved_BL = (logits - others).abs().amax(dim=-1) > 1e-5 * logits.abs().max()
        config: Any = self.model.config
        name = f"{type(self.model).__name__} with {config._attn_implementation} attention"
        if moved_BL[~first_BL].any():
            raise TypeError(f"{name} lets a document see the one before it in its row")
        if not moved_BL[first_BL & (position_ids >= 2)].any():
            raise TypeError(f"{name} has no weights yet that would tell whether documents see each other")

    @torch.no_grad()
    def _verify(self) -> None:
        """Bags of one token repeated must give that token's own logits, or this model is not for us."""
        name = type(self.model).__name__
        embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        if embedding is None:
            raise TypeError(f"{name} has no input embedding to average")
        weight = embedding.weight
        # Descending: never the numbers of the positions, which an embedding of those is given.
        ids_BL = torch.linspace(weight.shape[0] - 1, 0, 8, device=weight.device).long().unsqueeze(0)
        padding = getattr(self.model.config, "pad_token_id", None)
        if isinstance(padding, int) and 0 <= padding < weight.shape[0]:  # what families treat differently, if any
            ids_BL[0, 3] = padding
        with evaluating(self.model):
            with _given(self.model, ids_BL, besides=embedding) as others:
                own = self.model(input_ids=ids_BL, use_cache=False).logits.float()
            bags_BLs = ids_BL.unsqueeze(-1).expand(-1, -1, 2)
            # What no single token has as its embedding: some families search theirs for the ids they miss.
            mixed_BLs = torch.stack([ids_BL, ids_BL.flip(1)], dim=-1)
            other_BL = ids_BL.clone()
            other_BL[0, -1] = ids_BL[0, 0]
            other = self.model(input_ids=other_BL, use_cache=False).logits.float()
            try:
                ours = self.model(inputs_embeds=self.embed(bags_BLs)["inputs_embeds"], use_cache=False).logits.float()
                self.model(inputs_embeds=self.embed(mixed_BLs)["inputs_embeds"], use_cache=False)
            except Exception as error:  # families miss their ids in every way there is
                raise TypeError(f"{name} does not run on averaged embeddings: {_line(error)}") from error
            try:
                self(mixed_BLs, mixed_BLs.clamp(max=own.shape[-1] - 1))  # embeddings can have more rows than heads
            except Exception as error:
                raise TypeError(f"{name} does not leave its loss to its loss_function: {_line(error)}") from error
        if own.isnan().any():
            raise TypeError(f"{name} gives logits that are not numbers")
        tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2
        tolerance *= max(own.abs().max().item(), 1e-6)
        if not torch.allclose(own[:, :-1], other[:, :-1], rtol=0, atol=tolerance / 10):
            raise TypeError(f"{name} is not causal as it is configured: its logits see later tokens")
        if not torch.allclose(own, ours, rtol=0, atol=tolerance):
            raise TypeError(
                f"{name} cannot be superposed: its logits differ when token ids are replaced by their "
                "embeddings, so it looks ids up outside its input embedding too"
            )
        if others:  # fresh weights can be zero, so that no logit tells yet
            raise TypeError(
                f"{name} cannot be superposed: it looks ids up outside its input embedding too, in {others[0]}"
            )


def mean_embedding(module: nn.Module, ids_BLs: Tensor, *, padded: bool = False) -> Tensor:
    """The mean of an embedding module's own outputs over each bag, (B, L, d); see `bag_embedding` for `padded`."""
    scale = embedding_scale(module)
    if scale is not None:
        known: Any = module
        mean_BLd = bag_embedding(ids_BLs, known.weight, padding_idx=known.padding_idx, padded=padded)
        return mean_BLd if isinstance(scale, float) and scale == 1.0 else mean_BLd * scale
    # A module we do not know is asked for one slot at a time: slower, and right whatever it does.
    real_BLs = ids_BLs >= 0
    if padded:
        ids_BLs = ids_BLs.clamp(min=0)
    total_BLd = module(ids_BLs[..., 0])  # a bag's first slot is never free
    dtype = total_BLd.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    total_BLd = total_BLd.to(wide)
    for slot in range(1, ids_BLs.shape[-1]):
        more_BLd = module(ids_BLs[..., slot]).to(wide)
        total_BLd = total_BLd + (more_BLd * real_BLs[..., slot, None] if padded else more_BLd)
    count = real_BLs.sum(dim=-1, keepdim=True) if padded else ids_BLs.shape[-1]
    return (total_BLd / count).to(dtype)


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


@contextlib.contextmanager
def loss_replaced(model: Any, loss_function: Any) -> Iterator[None]:
    """`model.loss_function` is ours inside the block and what it was after it."""
    before = vars(model).get("_loss_function")
    model.loss_function = loss_function
    try:
        yield
    finally:
        if before is None:
            del model._loss_function
        else:
            model._loss_function = before


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _given(model: nn.Module, ids: Tensor, besides: nn.Module) -> Iterator[list[str]]:
    """The names of the embedding modules that are called with just these ids inside the block, one of them left out."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            given = arguments[0] if arguments else None
            if isinstance(given, Tensor) and given.shape == ids.shape and bool((given.to(ids.device) == ids).all()):
                found.append(name)

        return hook

    embeddings = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding) and m is not besides]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in embeddings]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, and in its own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
