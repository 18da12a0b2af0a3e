"""Liger's patches: a forward that scores hidden states by itself while training, put in place when training starts.

Liger's kernels need a GPU. What stands for them here behaves as its forwards do: with labels, while training, no logits
and no `loss_function`, and as many labels read as there are hidden states, so that bags of labels are scored wrongly
and without an error. `skip_logits`, which its versions since 2025 take, is how it is asked for logits.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from transformers import TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.conftest import tiny_model
from tests.integrations.runs import losses, rows
from token_superposition import SuperposedLM, split_inputs_and_targets
from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer
from token_superposition.models.patch import bags_accepted

FUSED: list[int] = []  # the dimensions of the labels that the fused loss was given


def fused_loss(model: Any, hidden_BLd: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    FUSED.append(labels.dim())
    hidden_Nd = hidden_BLd.flatten(0, 1)
    shifted = F.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)[: len(hidden_Nd)]
    total = F.cross_entropy(model.lm_head(hidden_Nd), shifted, reduction="sum")
    return total / ((shifted != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def older_forward(
    self: Any, input_ids: Any = None, inputs_embeds: Any = None, labels: Any = None, **options: Any
) -> CausalLMOutputWithPast:
    """A forward of a version that makes logits only for evaluation."""
    return newer_forward(self, input_ids, inputs_embeds, labels, **options)


def newer_forward(
    self: Any,
    input_ids: Any = None,
    inputs_embeds: Any = None,
    labels: Any = None,
    skip_logits: bool | None = None,
    **options: Any,
) -> CausalLMOutputWithPast:
    hidden_BLd = self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
    if skip_logits is None:
        skip_logits = self.training and labels is not None
    if skip_logits:
        return CausalLMOutputWithPast(
            loss=fused_loss(self, hidden_BLd, labels, options.get("num_items_in_batch")), logits=None
        )
    logits = self.lm_head(hidden_BLd)
    loss = None
    if labels is not None:
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
    return CausalLMOutputWithPast(loss=loss, logits=logits)


def patch(model: Any, _: Any = None, *, forward: Any) -> None:
    model.forward = MethodType(forward, model)


@pytest.fixture(autouse=True)
def nothing_fused() -> None:
    FUSED.clear()


def trainer(folder: Path, **options: Any) -> SuperpositionTrainer:
    args = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return SuperpositionTrainer(
        model=tiny_model("llama", tied=True),
        args=args,
        train_dataset=rows(),
        eval_dataset=rows(4, seed=1),
        superposition=SuperpositionArguments(bag_size=4, superposition_ratio=0.5, slot_weights="power_law"),
    )


@pytest.mark.parametrize("backend", [None, "eager"])
def test_bags_take_our_loss_and_recovery_the_fused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", partial(patch, forward=newer_forward))
    plain, fused = trainer(tmp_path), trainer(tmp_path, use_liger_kernel=True, torch_compile_backend=backend)
    plain.train()
    fused.train()
    assert losses(fused) == pytest.approx(losses(plain), rel=1e-5)
    assert set(FUSED) == {2}
    assert fused.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_version_that_cannot_be_asked_for_logits_is_refused_before_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | None
) -> None:
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", partial(patch, forward=older_forward))
    run = trainer(tmp_path, use_liger_kernel=True, torch_compile_backend=backend)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(TypeError, match="LlamaForCausalLM computes its loss without its loss_function"):
        run.train()
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
    assert not run.model._forward_pre_hooks
    assert not run.model._forward_hooks


def test_models_patched_before_are_taken_or_refused_when_they_are_wrapped() -> None:
    stock, newer, older = (tiny_model("llama", tied=True) for _ in range(3))
    patch(newer, forward=newer_forward)
    patch(older, forward=older_forward)
    with pytest.raises(TypeError, match="computes its loss without its loss_function"):
        SuperposedLM(older)
    bags = split_inputs_and_targets(rows(1, length=36)[0]["input_ids"].unsqueeze(0), 4)
    assert torch.equal(SuperposedLM(newer)(*bags).loss, SuperposedLM(stock)(*bags).loss)
    assert older.training
    with bags_accepted(newer):
        loss = newer(input_ids=bags[0], labels=bags[1]).loss
    assert torch.equal(loss, SuperposedLM(stock)(*bags).loss)


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs liger-kernel, triton and TRITON_INTERPRET=1; on a GPU tests/gpu/adapters.py does it",
)
def test_ligers_own_forward_scores_bags_as_the_stock_model() -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    stock, patched = (tiny_model("llama", tied=True).train() for _ in range(2))
    apply_liger_kernel_to_llama(rope=False, swiglu=False, rms_norm=False, model=patched)  # not all are interpreted
    bags = split_inputs_and_targets(rows(1, length=36)[0]["input_ids"].unsqueeze(0), 4)
    expected = SuperposedLM(stock)(*bags).loss
    expected.backward()
    found = [SuperposedLM(patched)(*bags).loss]
    with bags_accepted(patched):
        found.append(patched(input_ids=bags[0], labels=bags[1]).loss)
    for loss in found:
        patched.zero_grad()
        loss.backward()
        assert torch.equal(loss, expected)
        for ours, theirs in zip(patched.parameters(), stock.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
    ids = bags[0][..., 0]
    torch.testing.assert_close(patched(input_ids=ids, labels=ids).loss, stock(input_ids=ids, labels=ids).loss)
