"""Subclasses of Trainer that touch the loss or the batches: taken if their loss is Trainer's own, refused if not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tests.conftest import tiny_model
from tests.integrations.runs import Streaming, losses, rows
from token_superposition.errors import UserError
from token_superposition.integrations.transformers import (
    SuperpositionArguments,
    SuperpositionMixin,
    SuperpositionTrainer,
)


def trainer(folder: Path, cls: type = SuperpositionTrainer, data: Any = None, **options: Any) -> Any:
    return cls(
        model=options.pop("model", None) or tiny_model("llama", tied=True),
        args=TrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        ),
        train_dataset=rows() if data is None else data,
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
    )


class Counts:
    """An override that only looks: it reads the labels as next tokens, which fails on bags."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)  # type: ignore[misc]
        found = self.__dict__.setdefault("found", {"right": []})
        found["right"].append((outputs.logits[:, :-1].argmax(-1) == inputs["labels"][:, 1:]).sum().item())
        return (loss, outputs) if return_outputs else loss


class Smoothed:
    """An override with another loss, on next tokens and on bags."""

    def compute_loss(self, *arguments: Any, return_outputs: bool = False, **options: Any) -> Any:
        loss, outputs = super().compute_loss(*arguments, return_outputs=True, **options)  # type: ignore[misc]
        loss = loss + 0.1 * outputs.logits.logsumexp(-1).pow(2).mean()
        return (loss, outputs) if return_outputs else loss


class CountingTrainer(Counts, Trainer): ...


class SmoothedTrainer(Smoothed, Trainer): ...


class Behind(SuperpositionMixin, CountingTrainer): ...


class Before(Counts, SuperpositionTrainer): ...


class OtherLossBehind(SuperpositionMixin, SmoothedTrainer): ...


class OtherLossBefore(Smoothed, SuperpositionTrainer): ...


@pytest.mark.parametrize("data", [rows(), Streaming()], ids=["map-style", "streaming"])
def test_an_override_that_only_logs_trains_as_the_stock_class_and_sees_recovery(tmp_path: Path, data: Any) -> None:
    stock, logging = trainer(tmp_path, data=data), trainer(tmp_path, Behind, data=data)
    stock.train()
    logging.train()
    assert losses(logging) == losses(stock)
    assert len(logging.found["right"]) == 2  # two steps of recovery, and not the batches of the check


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OtherLossBehind, "SmoothedTrainer|Smoothed"),
        (OtherLossBefore, "Smoothed: its compute_loss gives"),
        (Before, "Counts: its compute_loss fails on bags.*SuperpositionMixin, Counts"),
    ],
)
def test_another_loss_is_refused_by_name_before_a_step(tmp_path: Path, cls: type, message: str) -> None:
    run = trainer(tmp_path, cls)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(UserError, match=message) as refused:
        run.train()
    assert "\n" not in str(refused.value)
    assert run.state.global_step == 0
    assert run.model.training
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())


def test_a_compute_loss_put_on_the_trainer_itself_is_checked(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.compute_loss = lambda model, inputs, **_: 2 * model(**inputs).loss
    with pytest.raises(UserError, match="this SuperpositionTrainer: its compute_loss gives"):
        run.train()


class OwnBatches(Trainer):
    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=2)


class OwnBatchesBehind(SuperpositionMixin, OwnBatches): ...


class OwnBatchesBefore(SuperpositionTrainer):
    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=2)


def test_batches_of_the_subclass_are_refused_for_they_are_no_bags(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OwnBatches: overrides get_train_dataloader"):
        trainer(tmp_path, OwnBatchesBehind)
    run = trainer(tmp_path, OwnBatchesBefore)
    with pytest.raises(UserError, match="OwnBatchesBefore: its get_train_dataloader"):
        run.train()
    assert run.state.global_step == 0


class OwnCount(SuperpositionTrainer):
    def _get_num_items_in_batch(self, batch_samples: Any, _: Any) -> Any:
        return sum((batch["labels"][..., 1:] != -100).sum() for batch in batch_samples)


def test_another_count_of_targets_is_refused_for_it_would_scale_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, OwnCount)
    with pytest.raises(UserError, match="OwnCount: its _get_num_items_in_batch"):
        run.train()
    assert run.state.global_step == 0


def focal(logits: Any, labels: Any, **_: Any) -> Any:
    terms = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return (terms * (1 - (-terms).exp()) ** 2).mean()


def cross_entropy(logits: Any, labels: Any, num_items_in_batch: Any = None, **_: Any) -> Any:
    kind = "mean" if num_items_in_batch is None else "sum"
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=kind)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def test_a_loss_function_of_the_models_own_and_noise_are_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    model = tiny_model("llama", tied=True)
    model.loss_function = focal
    with pytest.raises(UserError, match="LlamaForCausalLM: its loss_function"):
        trainer(tmp_path, model=model)
    model.loss_function = cross_entropy
    trainer(tmp_path, model=model).train()
    with pytest.raises(UserError, match="neftune_noise_alpha"):
        trainer(tmp_path, neftune_noise_alpha=5.0)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the extra `trl` is not installed")
@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_trls_sft_trainer(tmp_path: Path, loss_type: str) -> None:
    """Its loss of next tokens is taken, and in recovery its own; dynamic fine-tuning is another loss."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    class Mine(SuperpositionMixin, SFTTrainer): ...

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(67)}, unk_token="w0"))
    stock = trainer(tmp_path, max_grad_norm=0.0)
    config = {name: getattr(stock.args, name) for name in ("max_steps", "learning_rate", "logging_steps", "use_cpu")}
    args = SFTConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        loss_type=loss_type,
        **config,
    )
    run = Mine(
        model=tiny_model("llama", tied=True),
        args=args,
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows()]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w65", eos_token="w66"),
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
    )
    if loss_type == "dft":
        with pytest.raises(UserError, match="SFTTrainer: its compute_loss gives"):
            run.train()
        return
    run.train()
    stock.train()
    assert losses(run) == pytest.approx(losses(stock), rel=1e-5)
    logged = [line for line in run.state.log_history if "loss" in line]
    assert ["mean_token_accuracy" in line for line in logged] == [False, False, True, True]
