"""The same corpus, seed and optimizer: Hugging Face Trainer reads the batches of `tst train`, and has its losses.

Both deal rows out by `TokenStream`. Cut the corpus into rows of L tokens, as many as fill the stream's windows, and a
Trainer whose `data_seed` is the run's seed groups the very tokens of each of the run's rows, in the same order. One
thing differs: of a row of L tokens, the Trainer's own loss predicts L - 1, a run's recovery all L. So here the rows of
recovery are L + 1 tokens long, in columns beside the one that bags are made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from transformers import TrainingArguments

from tests.integrations.runs import Recorded, losses
from tests.training.runs import go
from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer
from token_superposition.training.config import parse_config
from token_superposition.training.metrics import read_metrics
from token_superposition.training.trainer import Trainer

STEPS, SEED = 20, 3


class Recording(Recorded, SuperpositionTrainer):
    """Keeps what it was trained on."""


def corpus_rows(run: Trainer) -> list[dict[str, Any]]:
    """The run's corpus as a data set: `ids` to make bags of, and rows of one token more for recovery."""
    length, period = run.config.train.sequence_length, run.schedule.input_period
    (corpus,) = run.corpora.datasets.values()
    number = corpus.num_tokens // (length * period) * period + 1  # and one for the last group to look ahead into
    tokens = torch.from_numpy(corpus.read(0, number * length + 1))
    rows = [tokens[start : start + length + 1] for start in range(0, number * length, length)]
    return [{"ids": row[:-1], "input_ids": row, "labels": row} for row in rows]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("bag_size", "slot_weights"), [(2, "uniform"), (4, "uniform"), (4, "power_law")])
def test_the_losses_of_tst_train(
    small_run: dict[str, Any], tmp_path: Path, bag_size: int, slot_weights: str, micro_batches: int
) -> None:
    rows_a_forward = small_run["train"]["batch_size"] // micro_batches
    overrides = {
        "superposition": {"bag_size": bag_size, "ratio": 0.5, "slot_weights": slot_weights},
        "train.total_steps": STEPS,
        "train.seed": SEED,
        "train.micro_batch_size": rows_a_forward,
        "train.dtype": "float32",
        "logging.checkpoint_interval": STEPS,
        "logging.validation_interval": STEPS,
    }
    go(small_run, tmp_path / "run", **{name.replace(".", "__"): value for name, value in overrides.items()})
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["bag_size"] for line in lines] == [bag_size] * 10 + [1] * 10

    config = parse_config(small_run, overrides)
    start = Trainer(config, config.schedule())  # the run as it started: its weights and optimizer, its stream
    (optimizer,) = start.optimizers.parts
    peak, rate = config.train.learning_rate, start.learning_rate
    trainer: Any = Recording(
        model=start.model.model,
        args=TrainingArguments(
            str(tmp_path / "trained"),
            max_steps=STEPS,
            per_device_train_batch_size=rows_a_forward,
            gradient_accumulation_steps=micro_batches,
            max_grad_norm=config.train.max_grad_norm,
            data_seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=corpus_rows(start),
        superposition=SuperpositionArguments(bag_size, superposition_ratio=0.5, slot_weights=slot_weights),
        token_column="ids",
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate.at(step) / peak)),
    )
    trainer.train()

    for step, batch in enumerate(start.stream.batches()):
        seen = trainer.seen[step * micro_batches : (step + 1) * micro_batches]
        ids, labels = (torch.cat([part[name] for part in seen]) for name in ("input_ids", "labels"))
        if batch.bag_size == 1:
            ids, labels = ids[:, :-1].unsqueeze(-1), labels[:, 1:].unsqueeze(-1)
        assert torch.equal(ids, batch.ids)
        assert torch.equal(labels, batch.targets)
    assert losses(trainer) == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["phase"] for line in logged] == [line["phase"] for line in lines]
    for name in ("learning_rate", "grad_norm"):
        assert [line[name] for line in logged] == pytest.approx([line[name] for line in lines], rel=1e-4), name
