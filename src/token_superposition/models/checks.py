"""Whether a model can be driven on bags, found out on a few tokens before anything is trained.

Families that train wrongly on averaged embeddings do not raise: their logits are merely others. So the path that bags
take is run beside the model's own, on token ids, and what differs is refused in one line. Families that are known by
name are in `families.py`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def check_takes_bags(model: Any, embed: Callable[[Tensor], dict[str, Tensor]], loss: Callable[..., Any]) -> None:
    """Bags of one token repeated must give that token's own logits, or this model is not for us.

    Args:
        model: a Hugging Face causal language model.
        embed: from bags (B, L, s) to the model's arguments.
        loss: from bags and targets (B, L, k) to the loss, by way of the model's own forward.

    Raises:
        TypeError: see `SuperposedLM`.
    """
    name = type(model).__name__
    embedding = model.get_input_embeddings()
    if embedding is None:
        raise TypeError(f"{name} has no input embedding to average")
    weight = embedding.weight
    ids_BL = some_ids(model)
    with evaluating(model):
        with ids_given(model, ids_BL, besides=embedding) as others:
            own = model(input_ids=ids_BL, use_cache=False).logits.float()
        bags_BLs = ids_BL.unsqueeze(-1).expand(-1, -1, 2)
        # What no single token has as its embedding: some families search theirs for the ids they miss.
        mixed_BLs = torch.stack([ids_BL, ids_BL.flip(1)], dim=-1)
        other_BL = ids_BL.clone()
        other_BL[0, -1] = ids_BL[0, 0]
        other = model(input_ids=other_BL, use_cache=False).logits.float()
        try:
            ours = model(inputs_embeds=embed(bags_BLs)["inputs_embeds"], use_cache=False).logits.float()
            model(inputs_embeds=embed(mixed_BLs)["inputs_embeds"], use_cache=False)
        except Exception as error:  # families miss their ids in every way there is
            raise TypeError(f"{name} does not run on averaged embeddings: {in_one_line(error)}") from error
        model.training = True  # its own flag alone: a patched forward may have another loss for training
        try:
            loss(mixed_BLs, mixed_BLs.clamp(max=own.shape[-1] - 1))  # embeddings can have more rows than heads
        except Exception as error:
            raise TypeError(f"{name} does not leave its loss to its loss_function: {in_one_line(error)}") from error
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
        raise TypeError(f"{name} cannot be superposed: it looks ids up outside its input embedding too, in {others[0]}")


@torch.no_grad()
def check_documents_apart(model: Any, document_inputs: Callable[[Tensor], dict[str, Tensor]]) -> None:
    """Raise TypeError where a token changed in one document of a row moves the logits of another.

    Args:
        model: a Hugging Face causal language model.
        document_inputs: from position ids (B, L), restarting with each document, to the model's arguments.
    """
    weight = model.get_input_embeddings().weight
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 0, 1]], device=weight.device)
    first_BL = (torch.arange(8, device=weight.device) == position_ids).cummin(dim=1).values  # the first document
    ids_BL = torch.linspace(weight.shape[0] - 1, 0, 16, device=weight.device).long().view(2, 8)
    other_BL = torch.where(first_BL & (position_ids < 2), ids_BL.flip(0), ids_BL)
    with evaluating(model):
        logits, others = (
            model(input_ids=ids, **document_inputs(position_ids), use_cache=False).logits.float()
            for ids in (ids_BL, other_BL)
        )
    moved_BL = (logits - others).abs().amax(dim=-1) > 1e-5 * logits.abs().max()
    name = f"{type(model).__name__} with {model.config._attn_implementation} attention"
    if moved_BL[~first_BL].any():
        raise TypeError(f"{name} lets a document see the one before it in its row")
    if not moved_BL[first_BL & (position_ids >= 2)].any():
        raise TypeError(f"{name} has no weights yet that would tell whether documents see each other")


def some_ids(model: Any) -> Tensor:
    """Eight different ids, (1, 8), the padding's among them."""
    weight = model.get_input_embeddings().weight
    # Descending: never the numbers of the positions, which an embedding of those is given.
    ids_BL = torch.linspace(weight.shape[0] - 1, 0, 8, device=weight.device).long().unsqueeze(0)
    padding = getattr(model.config, "pad_token_id", None)
    if isinstance(padding, int) and 0 <= padding < weight.shape[0]:  # what families treat differently, if any
        ids_BL[0, 3] = padding
    return ids_BL


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


def own_loss(model: nn.Module) -> TypeError:
    """What to raise where a forward did not call the loss function that we put in place."""
    return TypeError(
        f"{type(model).__name__} computes its loss without its loss_function, so bags would be scored wrongly; where a "
        "patch of its forward does that (a Liger without skip_logits), leave it away"
    )


def logits_asked_for(model: nn.Module) -> dict[str, bool]:
    """What makes a forward that Liger has patched put out logits and call the model's `loss_function`.

    Unasked, while training, it computes a loss of its own from hidden states and labels. Given bags of labels, that
    loss is wrong without an error: the kernel reads the first B * L of B * L * s labels.
    """
    return {"skip_logits": False} if "skip_logits" in inspect.signature(model.forward).parameters else {}


def in_one_line(error: Exception) -> str:
    """The message of an exception in one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def ids_given(model: nn.Module, ids: Tensor, besides: nn.Module) -> Iterator[list[str]]:
    """The names of the embedding modules that are called with just these ids inside the block, those in `besides` left
    out."""
    found: list[str] = []
    left_out = set(besides.modules())

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            given = arguments[0] if arguments else None
            if isinstance(given, Tensor) and given.shape == ids.shape and bool((given.to(ids.device) == ids).all()):
                found.extend([] if name in found else [name])

        return hook

    embeddings = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Embedding) and m not in left_out]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in embeddings]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()
