"""Whether a Trainer's own loss is cross-entropy, so that superposition may replace it until the switch.

Subclasses of Trainer override `compute_loss`, to log more (TRL's SFTTrainer) or to train with another loss. While bags
are trained, the loss is computed by `Trainer.compute_loss` and by the model: what an override does besides is left out.
This is right if the override returns the loss that it was given, and wrong if it returns another one. So both are
computed before the first step and compared.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from token_superposition.errors import UserError
from token_superposition.models.checks import evaluating, in_one_line
from token_superposition.schedule import Stage

_OURS = "token_superposition.integrations.transformers"


def check_settings(trainer: Any) -> None:
    """Refuse what is known by name when the trainer is made.

    Raises:
        UserError: for noise on embeddings, a model with a loss of its own, or a class that makes its own batches.
    """
    if trainer.args.neftune_noise_alpha is not None:
        raise UserError(
            "neftune_noise_alpha: does not go with superposition, for the mean over a bag reduces the noise: leave it "
            "away"
        )
    if not _is_cross_entropy(trainer.model):
        kind = getattr(trainer.model.config, "loss_type", None)
        raise UserError(
            f"{type(trainer.model).__name__}: its loss_function{f' (loss_type {kind})' if kind else ''} is not the "
            "cross-entropy of next tokens, which superposition trains with: leave "
            "loss_function and config.loss_type as transformers sets them"
        )
    mixin = next(index for index, found in enumerate(type(trainer).__mro__) if found.__module__ == _OURS)
    maker = who_overrides(trainer, "get_train_dataloader", after=mixin)
    if maker is not None:
        raise UserError(
            f"{maker}: overrides get_train_dataloader, whose batches superposition would not use: give the rows as "
            "train_dataset instead"
        )


def check_loss(trainer: Any) -> None:
    """Refuse a trainer whose `compute_loss` gives another loss than Trainer's; inside `bags_accepted`.

    Raises:
        UserError: if a class, or the trainer itself, overrides `compute_loss` so that its loss is another one or fails.
    """
    vocab_size = trainer.model.get_input_embeddings().weight.shape[0]
    num_targets = Stage(trainer.superposition.bag_size, 1, trainer.superposition.mode).num_targets
    bags_BLs = torch.arange(8 * num_targets).view(1, 8, -1) % vocab_size
    _check_count(trainer, {"input_ids": bags_BLs, "labels": bags_BLs})
    who = who_overrides(trainer, "compute_loss")
    if who is None:
        return
    batches = {"a row of the training data": _plain_batch(trainer), "bags": {"input_ids": bags_BLs, "labels": bags_BLs}}
    # A class behind the mixin in the MRO is given no bags.
    advice = {"bags": f"; derive it from Trainer, and from it `class Mine(SuperpositionMixin, {who})`"}
    probe = copy.copy(trainer)  # what an override counts for its logs is not counted for these batches
    vars(probe).update({name: _copied(value) for name, value in vars(trainer).items()})
    # Its own flag alone: an override may look at it, and a dropout would give two losses.
    with torch.no_grad(), torch.random.fork_rng(), evaluating(trainer.model):
        trainer.model.training = True
        for what, batch in batches.items():
            inputs = trainer._prepare_inputs(batch)
            expected: Any = Trainer.compute_loss(trainer, trainer.model, dict(inputs))
            try:
                found = torch.as_tensor(probe.compute_loss(trainer.model, dict(inputs))).to(expected)
            except Exception as error:
                raise UserError(
                    f"{who}: its compute_loss fails on {what} ({in_one_line(error)}), which superposition runs before "
                    f"the first step{advice.get(what, '')}"
                ) from error
            if not torch.allclose(found, expected, rtol=1e-2, atol=0, equal_nan=True):
                raise UserError(
                    f"{who}: its compute_loss gives {found:.4g} on {what}, where Trainer's gives {expected:.4g}: "
                    f"superposition trains with cross-entropy only{advice.get(what, '')}"
                )


def _check_count(trainer: Any, bags: dict[str, Any]) -> None:
    """Refuse a class that divides the loss of bags by another number than the weights of their targets."""
    mixin = next(found for found in type(trainer).__mro__ if "_get_num_items_in_batch" in vars(found))
    if mixin.__module__ == _OURS:
        return
    ours: Any = next(found for found in type(trainer).__mro__ if found.__module__ == _OURS and "_count" in vars(found))
    device = trainer.args.device
    expected = ours._get_num_items_in_batch(trainer, [bags], device)
    try:
        found = trainer._get_num_items_in_batch([bags], device)
    except Exception as error:
        raise UserError(f"{mixin.__name__}: its _get_num_items_in_batch fails on bags: {in_one_line(error)}") from error
    if found is None or expected is None:
        same = found is expected
    else:
        same = bool(torch.isclose(torch.as_tensor(found).float().cpu(), expected.float().cpu()))
    if not same:
        raise UserError(
            f"{mixin.__name__}: its _get_num_items_in_batch gives {found} for bags whose targets weigh {expected}, so "
            "their loss would be divided by another number: leave it away, or call super() for labels of three "
            "dimensions"
        )


def _plain_batch(trainer: Any) -> dict[str, Any]:
    """The first row as recovery will get it; made up for a stream, which may be read only once."""
    rows = trainer.train_dataset
    if isinstance(rows, IterableDataset) or rows is None or not len(rows):
        ids_BL = torch.arange(8).unsqueeze(0) % trainer.model.get_input_embeddings().weight.shape[0]
        return {"input_ids": ids_BL, "labels": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    batch: dict[str, Any] = trainer._collate([rows[0]])
    return batch


def who_overrides(trainer: Any, method: str, after: int = -1) -> str | None:
    """The first class behind a place in the MRO, other than ours and Trainer, that defines a method."""
    for found in type(trainer).__mro__[after + 1 :]:
        if found is Trainer:
            break
        if found.__module__ != _OURS and method in vars(found):
            return found.__name__
    return f"this {type(trainer).__name__}" if method in vars(trainer) else None


def _is_cross_entropy(model: Any) -> bool:
    """Whether a model's loss function is that of next tokens, found out on a few logits."""
    function = getattr(model, "loss_function", None)
    if function is None or function is ForCausalLMLoss:
        return True
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    logits_BLV = torch.randn(1, 6, 5, generator=generator).to(device)
    labels_BL = torch.tensor([[0, 4, -100, 2, 2, 1]], device=device)
    expected = F.cross_entropy(logits_BLV[0, :-1], labels_BL[0, 1:])
    try:
        found = function(logits=logits_BLV, labels=labels_BL, vocab_size=5)
    except Exception:  # a loss of next tokens does not fail on logits and labels
        return False
    return bool(torch.allclose(torch.as_tensor(found).float(), expected, rtol=1e-2, atol=0))


def _copied(value: Any) -> Any:
    """A container with containers of its own, down to what is no container."""
    if type(value) is list:
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({name: _copied(part) for name, part in value.items()})
        return twin
    return value
