"""Check on a few tokens that a plain module gets the right loss on bags with the given embedding and head.

A wrong name raises no error: training would run with a wrong loss. Therefore the module runs a few times before
training:

- on token ids, to record the inputs and outputs of its embedding and its head;
- with other ids but the same embeddings, which must give the same logits, because nothing else may read the ids;
- with a random tensor instead of the head's output, which the module must return unchanged, in evaluation and in
  training mode. The loss is computed from the head's output, so it would miss a soft-cap, a scale, a bias, dropout or a
  slice after the head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from token_superposition.models.checks import evaluating, ids_given, in_one_line
from token_superposition.models.plain_module import Call, SuperposedModule, in_rows

_SHAPE = torch.Size((2, 8))
_LARGE = 40.0  # so large that a soft-cap changes them; it hardly changes the small logits of untrained weights


@torch.no_grad()
def check_plain(superposed: SuperposedModule) -> None:
    """Raise TypeError for a module that would be trained with a wrong loss; the message says what to do.

    Sets `superposed.gives_targets` for a module that returns logits for all positions only if it gets targets.
    """
    module, name = superposed.model, type(superposed.model).__name__
    ids_BL = _some_ids(superposed)
    with evaluating(module):
        with ids_given(module, ids_BL, outside=superposed.part("embedding")) as others:
            try:
                returned, looked_up, headed = _run_on_all_positions(superposed, ids_BL)
            except TypeError as error:
                raise TypeError(f"{in_one_line(error)}{_instead(superposed, others)}") from error
        _check_embedding(superposed, looked_up, ids_BL, others)
        _check_dependence(superposed, looked_up.output, headed, ids_BL)
        if others:  # if untrained weights are zero, the logits do not show this
            raise TypeError(f"{name} cannot be superposed: it looks ids up outside its embedding too, in {others[0]!r}")
        _check_head(superposed, returned, headed.output, ids_BL)
    _check_head_in_training(superposed, headed.output, ids_BL)


def _run_on_all_positions(superposed: SuperposedModule, ids_BL: Tensor) -> tuple[Any, Call, Call]:
    """Run a forward on tokens; the ids are also the targets if the module needs targets to return all logits."""
    try:
        returned, looked_up, headed = superposed.run(ids_BL)
        missing = _missing_positions(returned, headed.output)
        if missing and superposed.targets_argument and not superposed.gives_targets:
            superposed.gives_targets = True
            returned, looked_up, headed = superposed.run(ids_BL)
            missing = _missing_positions(returned, headed.output)
    except Exception as error:
        if isinstance(error, TypeError) and "in a forward, not once" in str(error):
            raise
        raise TypeError(
            f"{type(superposed.model).__name__} does not run as module(ids) on token ids of shape {tuple(ids_BL.shape)}"
            f": {in_one_line(error)}"
        ) from error
    if missing:
        raise superposed.no_logits(headed.output)
    return returned, looked_up, headed


def _missing_positions(returned: Any, put_out: Any) -> bool:
    if in_rows(put_out, _SHAPE) is None:
        return True
    logits = _logits_in(returned, put_out)
    return logits is not None and logits.dim() > 1 and logits.numel() == put_out.numel() // _SHAPE[1]


def _check_embedding(superposed: SuperposedModule, call: Call, ids_BL: Tensor, others: list[str]) -> None:
    """Check that the embedding gets the token ids, and that each output vector depends on the id alone."""
    name, part = type(superposed.model).__name__, superposed.names["embedding"]
    given, vectors = call
    if not isinstance(given, Tensor) or given.shape != ids_BL.shape or not torch.equal(given, ids_BL):
        raise TypeError(
            f"{name} does not give its token ids (B, L) to its embedding {part!r}: name the submodule that looks token "
            f"ids up{_instead(superposed, others)}"
        )
    if not isinstance(vectors, Tensor) or vectors.dim() != 3 or vectors.shape[:2] != ids_BL.shape:
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise TypeError(f"{name}: its embedding {part!r} gives {shape}, not vectors (B, L, d)")
    flipped = superposed.part("embedding")(ids_BL.flip(1)).flip(1)
    if not torch.allclose(vectors, flipped, rtol=0, atol=_tolerance(vectors)):
        raise TypeError(
            f"{name}: the output of its embedding {part!r} depends on the position too, not on the token id alone: "
            "name the submodule in it that looks token ids up"
        )


def _check_dependence(superposed: SuperposedModule, vectors: Tensor, headed: Call, ids_BL: Tensor) -> None:
    """Check that the logits depend only on the embeddings of the same and of earlier tokens."""
    name = type(superposed.model).__name__
    other = superposed.run(ids_BL.flip(1), embedded=vectors)[2]
    changed_BL = torch.cat([ids_BL[:, :-1], ids_BL[:, :1]], dim=1)
    changed = superposed.run(changed_BL)[2]
    # The input of the head is compared too, because a head with untrained weights of zero gives logits of zero.
    for outputs in zip(headed, other, changed, strict=True):
        own, same, later = (in_rows(output, ids_BL.shape) for output in outputs)
        if own is None or same is None or later is None:
            continue
        if not own.isfinite().all():
            raise TypeError(f"{name} gives logits that are NaN or infinite")
        if not torch.allclose(own, same, rtol=0, atol=_tolerance(own)):
            raise TypeError(f"{name} cannot be superposed: it looks ids up outside its embedding too")
        if not torch.allclose(own[:, :-1], later[:, :-1], rtol=0, atol=_tolerance(own)):
            raise TypeError(f"{name} is not causal: its logits depend on later tokens")


def _check_head(superposed: SuperposedModule, returned: Any, put_out: Tensor, ids_BL: Tensor) -> None:
    """Check that the module returns its head's output; another dtype, shape or a log-softmax gives the same loss."""
    name, part = type(superposed.model).__name__, superposed.names["head"]
    if _logits_in(returned, put_out) is None:
        raise TypeError(
            f"{name} returns no logits to compare with the output of its head {part!r}: return the logits alone, "
            "first in a tuple, as .logits or under the key 'logits'"
        )
    replacement = _replacement(put_out)
    with torch.enable_grad():
        logits = _logits_in(superposed.run(ids_BL, put_out=replacement)[0], put_out)
    # If a parameter acts after the head, the logits require a gradient, even if it changes nothing yet (a zero bias).
    if logits is None or logits.requires_grad or not _same_loss(logits, replacement, bool(superposed.z_loss)):
        shapes = "" if logits is None or logits.shape == put_out.shape else f", to shape {tuple(logits.shape)}"
        raise TypeError(
            f"{name} changes its logits after its head {part!r}{shapes}, or returns other logits: name the submodule "
            "whose output is the returned logits, or put the head and the operations after it (scale, bias, soft-cap, "
            "slice) into one submodule and name that"
        )


def _check_head_in_training(superposed: SuperposedModule, put_out: Tensor, ids_BL: Tensor) -> None:
    """Check that the module returns its head's output in training mode too, for example without dropout on the logits.

    A module that needs other inputs in training mode, or returns no logits then, is not checked.
    """
    replacement = _replacement(put_out)
    devices = [ids_BL.device] if ids_BL.is_cuda else []
    with torch.random.fork_rng(devices), _training(superposed.model):
        try:
            logits = _logits_in(superposed.run(ids_BL, put_out=replacement)[0], put_out)
        except Exception:  # the first step reports it
            return
    if logits is None or logits.numel() != replacement.numel():
        return
    if not _same_loss(logits, replacement, bool(superposed.z_loss)):
        raise TypeError(
            f"{type(superposed.model).__name__} changes its logits in training mode after its head "
            f"{superposed.names['head']!r}: put the head and the operations after it (dropout, scale, noise) into one "
            "submodule and name that"
        )


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Put every submodule into training mode inside the block, and restore modes and buffers afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # such as the statistics of batch normalisation
    model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, kept in buffers:
            buffer.copy_(kept)


def _replacement(put_out: Tensor) -> Tensor:
    """Random logits in place of the head's output."""
    generator = torch.Generator().manual_seed(0)
    return (_LARGE * torch.randn(put_out.shape, generator=generator)).to(put_out)


def _logits_in(returned: Any, put_out: Tensor) -> Tensor | None:
    """Return the logits in the result of a forward: the first tensor with the width of the head's output, if any."""
    tensors = [value for value in _tensors_in(returned) if value.dim() > 1 and value.is_floating_point()]
    alike = [value for value in tensors if value.shape[-1] == put_out.shape[-1] or value.numel() == put_out.numel()]
    return next(iter([*alike, *tensors]), None)


def _tensors_in(returned: Any) -> list[Tensor]:
    if isinstance(returned, Tensor):
        return [returned]
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return [logits]
    parts = list(returned.values()) if isinstance(returned, Mapping) else returned
    return [value for value in parts if isinstance(value, Tensor)] if isinstance(parts, list | tuple) else []


def _same_loss(logits: Tensor, replacement: Tensor, exactly: bool) -> bool:
    """Return whether both give the same cross-entropy; `exactly` requires the same logits, as the z-loss does."""
    if logits.numel() != replacement.numel():
        return False
    transposed = logits.dim() == 3 and logits.shape != replacement.shape
    if transposed and logits.transpose(1, 2).shape == replacement.shape:
        logits = logits.transpose(1, 2)
    coarse = logits.dtype if torch.finfo(logits.dtype).eps > torch.finfo(replacement.dtype).eps else replacement.dtype
    expected = replacement.to(coarse).double()
    gap = logits.reshape(replacement.shape).double() - expected
    if not exactly:
        gap = gap - gap.mean(dim=-1, keepdim=True)
    return bool((gap.abs() <= 2 * torch.finfo(coarse).eps * expected.abs().max()).all())


def _instead(superposed: SuperposedModule, others: list[str]) -> str:
    named = superposed.names["embedding"]
    return f" (it seems to be {others[0]!r}, not {named!r})" if len(others) == 1 else ""


def _tolerance(tensor: Tensor) -> float:
    relative = 1e-4 if tensor.dtype in (torch.float32, torch.float64) else 5e-2
    return relative * max(tensor.abs().max().item(), 1e-6)


def _some_ids(superposed: SuperposedModule) -> Tensor:
    """Return (2, 8) small ids, because a head can have fewer rows than the embedding.

    The ids are in descending order, so that they never equal the position ids.
    """
    part = superposed.part("embedding")
    weight = next(part.parameters(), None)
    if weight is None:
        raise TypeError(
            f"{type(superposed.model).__name__}: its embedding {superposed.names['embedding']!r} has no weights: name "
            "the submodule that looks token ids up"
        )
    sizes = [found.num_embeddings for found in part.modules() if isinstance(found, nn.Embedding)]
    size = min([*sizes, _SHAPE.numel()])
    return (torch.arange(_SHAPE.numel() - 1, -1, -1, device=weight.device) % size).view(_SHAPE)
