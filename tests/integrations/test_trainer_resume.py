"""A run that is resumed keeps its switch and its phase; what predicts bags is never handed back in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from tests.conftest import tiny_model
from tests.integrations.runs import L, Recorded, Streaming, losses, rows
from tests.integrations.test_transformers import arguments, trainer
from token_superposition.errors import UserError
from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer


class Recording(Recorded, SuperpositionTrainer):
    """Keeps what it was trained on."""


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def interrupted(folder: Path, stop: int, data: Any = None, **options: Any) -> None:
    """A run of 8 steps that switches after 4, up to its checkpoint at `stop`."""
    run = trainer(folder, data=data, save_strategy="steps", save_steps=stop, **options)
    run.add_callback(StopAt(stop))
    run.train()
    assert run.state.global_step == stop


def phases(run: Any) -> list[str]:
    """Of the micro-batches that were trained."""
    return ["superposition" if batch["labels"].dim() == 3 else "recovery" for batch in run.seen]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stop", [2, 4, 6])
@pytest.mark.parametrize(
    "change",
    [
        {"ignore_data_skip": True},
        {"max_steps": 16},
        {"per_device_train_batch_size": 4},
        {"gradient_accumulation_steps": 2},
        {"superposition_ratio": 0.9},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_switch_stays_where_the_run_was_started_with_it(
    tmp_path: Path, change: dict[str, Any], stop: int, streamed: bool
) -> None:
    data = Streaming() if streamed else None
    interrupted(tmp_path, stop, data)
    run: Any = trainer(tmp_path, data=data, cls=Recording, **change)
    run.train(resume_from_checkpoint=True)
    steps, accumulation = run.state.max_steps, run.args.gradient_accumulation_steps
    expected = ["superposition"] * max(4 - stop, 0) + ["recovery"] * (steps - max(stop, 4))
    assert phases(run)[::accumulation] == expected
    logged = [line for line in run.state.log_history if "loss" in line]
    assert [line["phase"] for line in logged] == ["superposition"] * 4 + ["recovery"] * (steps - 4)
    trained = sum(batch["input_ids"].numel() for batch in run.seen)
    assert logged[-1]["raw_tokens"] - logged[stop - 1]["raw_tokens"] == trained


@pytest.mark.parametrize("stop", [2, 6])
def test_without_skipping_the_rows_go_on_all_the_same(tmp_path: Path, stop: int) -> None:
    whole: Any = trainer(tmp_path / "whole", cls=Recording)
    whole.train()
    interrupted(tmp_path, stop)
    run: Any = trainer(tmp_path, cls=Recording, ignore_data_skip=True)
    run.train(resume_from_checkpoint=True)
    for batch, expected in zip(run.seen, whole.seen[stop:], strict=True):
        assert torch.equal(batch["input_ids"], expected["input_ids"])


def test_more_epochs_lengthen_recovery_alone(tmp_path: Path) -> None:
    # 12 rows, 2 a batch: 6 steps an epoch; half of 2 epochs is superposed.
    options: dict[str, Any] = {"data": rows(12), "max_steps": -1}
    interrupted(tmp_path, 3, num_train_epochs=2, **options)
    run: Any = trainer(tmp_path, cls=Recording, num_train_epochs=4, save_strategy="steps", save_steps=3, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert phases(run) == ["superposition"] * 3 + ["recovery"] * 18
    again: Any = trainer(tmp_path, cls=Recording, num_train_epochs=5, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert phases(again) == ["recovery"] * 21
    logged = [line for line in again.state.log_history if "loss" in line]
    assert logged[-1]["positions"] == 30 * 2 * L
    assert logged[-1]["raw_tokens"] == (30 + 6) * 2 * L


def test_an_epoch_that_a_callback_cuts_short_does_not_move_the_switch(tmp_path: Path) -> None:
    class CutShort(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_epoch_stop = state.global_step == 2

    run: Any = trainer(tmp_path, data=rows(12), cls=Recording, max_steps=-1, num_train_epochs=2)
    run.add_callback(CutShort())
    run.train()
    assert run.state.global_step == 8
    assert phases(run) == ["superposition"] * 6 + ["recovery"] * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bag_size": 4}, "bag_size 2"),
        ({"mode": "input_only"}, "mode full"),
        ({"slot_weights": "power_law"}, "slot_weights uniform"),
        ({"max_steps": 3}, "step 4"),
    ],
)
def test_other_bags_or_an_end_before_the_switch_are_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    interrupted(tmp_path, 2)
    run: Any = trainer(tmp_path, cls=Recording, **change)
    with pytest.raises(UserError, match=named) as refused:
        run.train(resume_from_checkpoint=True)
    assert "\n" not in str(refused.value)
    assert not hasattr(run, "seen")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"max_steps": 16}, ["after step 4"]),
        ({"per_device_train_batch_size": 4}, ["rows per step", "2 before, now 4"]),
        ({"data_seed": 7}, ["data_seed"]),
        ({"data": rows(50)}, ["64 before, now 50"]),
    ],
)
def test_what_does_not_go_on_as_it_was_is_said(
    tmp_path: Path, change: dict[str, Any], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(tmp_path, 6)
    capsys.readouterr()
    trainer(tmp_path, **change).train(resume_from_checkpoint=True)
    printed = [line for line in capsys.readouterr().err.splitlines() if "switch" in line or "phase is kept" in line]
    assert len(printed) == bool(said)
    assert all(word in printed[0] for word in said)


def test_a_checkpoint_of_the_stock_trainer_is_gone_on_from_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = Trainer(
        model=tiny_model("llama", tied=True),
        args=arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2),
        train_dataset=rows(),
    )
    stock.train()
    run: Any = trainer(tmp_path, cls=Recording, save_strategy="steps", save_steps=3)
    run.train(resume_from_checkpoint=True)
    assert "has no record of the end of superposition" in capsys.readouterr().err
    assert phases(run) == ["superposition"] * 2 + ["recovery"] * 4
    # And the other way round: our checkpoints are the stock Trainer's too.
    stock = Trainer(model=tiny_model("llama", tied=True), args=arguments(tmp_path), train_dataset=rows())
    stock.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert stock.state.global_step == 8


@pytest.mark.parametrize(
    "damage", ["{", '{"stateful_callbacks": {"token_superposition": {"stages": [{"steps": "x"}]}}}']
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    interrupted(tmp_path, 2)
    path = tmp_path / "checkpoint-2" / "trainer_state.json"
    path.write_text(damage)
    with pytest.raises(UserError, match=r"trainer_state\.json"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_line_over_both_phases_says_so(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_steps=3)
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    assert [line["phase"] for line in lines] == ["superposition", "superposition and recovery"]


class Judged(Recorded, SuperpositionTrainer):
    """Its evaluations are the best in superposition, where a model predicts bags, and get worse."""

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        found = {"eval_loss": 1.0 + self.state.global_step / 10}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


BEST = {
    "max_steps": 12,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": True,
}


def judged(folder: Path, **options: Any) -> Any:
    return Judged(
        model=tiny_model("llama", tied=True),
        args=arguments(folder, **{**BEST, **options}),
        train_dataset=rows(),
        eval_dataset=rows(4),
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
        callbacks=[EarlyStoppingCallback(3)],
    )


def test_early_stopping_and_the_best_model_begin_with_recovery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = judged(tmp_path)
    run.train()
    assert "evaluations up to step 6" in capsys.readouterr().err
    assert run.state.best_global_step == 7  # the first of recovery
    assert run.state.global_step == 10  # and three that were not better
    assert Path(run.state.best_model_checkpoint).name == "checkpoint-7"


def test_a_learning_rate_that_follows_evaluations_begins_with_recovery(tmp_path: Path) -> None:
    """The evaluations get worse with each step."""
    run = judged(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0})
    run.train()
    rates = [line["learning_rate"] for line in run.state.log_history if "loss" in line]
    assert rates[:7] == rates[:1] * 7
    assert rates[8] < rates[0]


def test_a_best_model_of_superposition_is_forgotten_at_a_resume(tmp_path: Path) -> None:
    first = judged(tmp_path)
    first.add_callback(StopAt(3))
    first.train()
    path = tmp_path / "checkpoint-3" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert state["best_metric"] is None
    best = {"best_metric": 0.1, "best_global_step": 2, "best_model_checkpoint": str(tmp_path / "checkpoint-2")}
    path.write_text(json.dumps({**state, **best}))  # as a version that counted them
    run = judged(tmp_path)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert run.state.best_global_step == 7


@pytest.mark.parametrize(("stop", "said"), [(2, True), (4, True), (5, False)])
def test_a_run_that_ends_before_recovery_says_what_its_model_is(
    tmp_path: Path, stop: int, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path)
    run.add_callback(StopAt(stop))
    run.train()
    assert ("predicts bags" in capsys.readouterr().err) == said


def test_losses_of_a_longer_run_are_those_of_one_that_was_never_interrupted(tmp_path: Path) -> None:
    """At a constant learning rate: more steps change nothing of the steps before."""
    options = {"lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", max_steps=16, superposition_ratio=0.25, **options)
    whole.train()
    interrupted(tmp_path, 2, **options)
    run = trainer(tmp_path, max_steps=16, **options)
    run.train(resume_from_checkpoint=True)
    assert losses(run) == losses(whole)
