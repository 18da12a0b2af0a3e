"""Check on a few tokens, before training, that a model can be trained on bags.

A family that cannot train on averaged embeddings raises no error: its logits are only wrong. Therefore the model runs
on the same token ids twice, through its own input path and through the path of bags. A model with different logits is
refused with a message of one line. Families that are refused by name are in `families.py`.
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
    """Check that a bag that repeats one token gives the logits of that token, and refuse the model otherwise.

    Args:
        model: a Hugging Face causal language model.
        embed: maps bags (B, L, s) to the arguments of the model.
        loss: maps bags and targets (B, L, k) to the loss, through the model's own forward.

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
        with ids_given(model, ids_BL, outside=embedding) as others:
            own = model(input_ids=ids_BL, use_cache=False).logits.float()
        bags_BLs = ids_BL.unsqueeze(-1).expand(-1, -1, 2)
        # These means are the embedding of no token. Some families search their embedding for the missing ids.
        mixed_BLs = torch.stack([ids_BL, ids_BL.flip(1)], dim=-1)
        other_BL = ids_BL.clone()
        other_BL[0, -1] = ids_BL[0, 0]
        other = model(input_ids=other_BL, use_cache=False).logits.float()
        try:
            ours = model(inputs_embeds=embed(bags_BLs)["inputs_embeds"], use_cache=False).logits.float()
            model(inputs_embeds=embed(mixed_BLs)["inputs_embeds"], use_cache=False)
        except Exception as error:  # a family can fail with any exception if its ids are missing
            raise TypeError(f"{name} does not run on averaged embeddings: {in_one_line(error)}") from error
        model.training = True  # only the flag of the model itself: a patched forward may have another loss in training
        try:
            loss(mixed_BLs, mixed_BLs.clamp(max=own.shape[-1] - 1))  # an embedding can have more rows than the head
        except Exception as error:
            raise TypeError(f"{name} does not leave its loss to its loss_function: {in_one_line(error)}") from error
    if own.isnan().any():
        raise TypeError(f"{name} gives logits that are NaN")
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    tolerance *= max(own.abs().max().item(), 1e-6)
    if not torch.allclose(own[:, :-1], other[:, :-1], rtol=0, atol=tolerance / 10):
        raise TypeError(f"{name} is not causal with this configuration: its logits depend on later tokens")
    if not torch.allclose(own, ours, rtol=0, atol=tolerance):
        raise TypeError(
            f"{name} cannot be superposed: its logits differ when token ids are replaced by their "
            "embeddings, so it looks ids up outside its input embedding too"
        )
    if others:  # if untrained weights are zero, the logits do not show this
        raise TypeError(f"{name} cannot be superposed: it looks ids up outside its input embedding too, in {others[0]}")


@torch.no_grad()
def check_documents_apart(model: Any, document_inputs: Callable[[Tensor], dict[str, Tensor]]) -> None:
    """Raise TypeError if a changed token in one document of a row changes the logits of another document.

    Args:
        model: a Hugging Face causal language model.
        document_inputs: maps position ids (B, L), which restart with each document, to the arguments of the model.
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
    name = f"{type(model).__name__} with {model.config._attn_implementation} attention"
    if not (torch.isfinite(logits).all() and torch.isfinite(others).all()):  # NaN would pass every comparison below
        raise TypeError(f"{name} gives logits that are NaN or infinite when documents are kept apart")
    moved_BL = (logits - others).abs().amax(dim=-1) > 1e-5 * logits.abs().max()
    if moved_BL[~first_BL].any():
        raise TypeError(f"{name} lets a document attend to the document before it in its row")
    if not moved_BL[first_BL & (position_ids >= 2)].any():
        raise TypeError(f"{name} has untrained weights that do not show whether documents attend to each other")


def some_ids(model: Any) -> Tensor:
    """Return eight different ids, (1, 8); the padding id is one of them, if the model has one."""
    weight = model.get_input_embeddings().weight
    # The ids are in descending order, so that they never equal the position ids, which a position embedding gets.
    ids_BL = torch.linspace(weight.shape[0] - 1, 0, 8, device=weight.device).long().unsqueeze(0)
    padding = getattr(model.config, "pad_token_id", None)
    if isinstance(padding, int) and 0 <= padding < weight.shape[0]:  # some families treat this id differently
        ids_BL[0, 3] = padding
    return ids_BL


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode inside the block, and restore its mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def loss_replaced(model: Any, loss_function: Any) -> Iterator[None]:
    """Replace `model.loss_function` inside the block, and restore it afterwards."""
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
    """Return the error for a forward that did not call the replaced loss function."""
    return TypeError(
        f"{type(model).__name__} computes its loss without its loss_function, so the loss of bags would be wrong; if a "
        "patch of its forward does that (a Liger without skip_logits), remove the patch"
    )


def logits_asked_for(model: nn.Module) -> dict[str, bool]:
    """Return the argument with which a forward that Liger has patched returns logits and calls the `loss_function`.

    Without this argument, the patched forward computes its own loss from hidden states and labels during training. For
    bags of labels this loss is wrong without an error: the kernel reads the first B * L of B * L * s labels.
    """
    return {"skip_logits": False} if "skip_logits" in inspect.signature(model.forward).parameters else {}


def in_one_line(error: Exception) -> str:
    """Return the message of an exception in one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def ids_given(model: nn.Module, ids: Tensor, outside: nn.Module) -> Iterator[list[str]]:
    """Collect the names of the embedding modules that are called with exactly these ids inside the block.

    Modules inside `outside` are left out.
    """
    found: list[str] = []
    left_out = set(outside.modules())

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
