"""Hugging Face Trainer with superposition: the core's losses, the Trainer's own recovery, right under what it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

import transformers
from transformers import HfArgumentParser, Trainer, TrainingArguments

from tests.conftest import tiny_model
from tests.integrations.runs import L, Recorded, Streaming, core_losses, losses, rows, steps_of
from token_superposition.errors import UserError
from token_superposition.integrations.transformers import (
    SuperpositionArguments,
    SuperpositionMixin,
    SuperpositionTrainer,
)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        },
    )


def trainer(
    folder: Path, bag_size: int = 2, data: Any = None, cls: type = SuperpositionTrainer, **options: Any
) -> SuperpositionTrainer:
    more = {name: options.pop(name) for name in ("mode", "slot_weights", "superposition_ratio") if name in options}
    evaluated = options.pop("eval_dataset", None)
    superposition = SuperpositionArguments(bag_size=bag_size, **{"superposition_ratio": 0.5, **more})
    return cls(  # type: ignore[no-any-return]
        model=tiny_model("llama", tied=True),
        args=arguments(folder, **options),
        train_dataset=rows() if data is None else data,
        eval_dataset=evaluated,
        superposition=superposition,
    )


class Recording(Recorded, SuperpositionTrainer):
    """Keeps what it was trained on."""


def reference(run: Any) -> list[float]:
    """The core on the batches of a run, with the stock Trainer's own optimizer and schedule."""
    model = tiny_model("llama", tied=True)
    steps = steps_of(run.seen, run.args.gradient_accumulation_steps)
    stock = Trainer(model=model, args=run.args)
    stock.create_optimizer_and_scheduler(len(steps))
    return core_losses(steps, model, stock.optimizer, scheduler=stock.lr_scheduler, slot_weights=run._weights)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    ("mode", "slot_weights"), [("full", "uniform"), ("full", "power_law"), ("output_only", "uniform")]
)
def test_fed_the_same_batches_the_losses_are_the_cores(
    tmp_path: Path, accumulation: int, mode: str, slot_weights: str
) -> None:
    run: Any = trainer(
        tmp_path,
        cls=Recording,
        max_steps=20,
        gradient_accumulation_steps=accumulation,
        mode=mode,
        slot_weights=slot_weights,
    )
    run.train()
    assert [batch["labels"].dim() for batch in run.seen] == [3] * 10 * accumulation + [2] * 10 * accumulation
    assert losses(run) == pytest.approx(reference(run), rel=1e-5)


def test_the_phase_may_be_short_or_given_in_steps(tmp_path: Path) -> None:
    for superposition, steps in (
        (SuperpositionArguments(bag_size=4, superposition_ratio=0.1, slot_weights="power_law"), 1),
        (SuperpositionArguments(bag_size=4, superposition_steps=6, slot_weights="exponential"), 6),
    ):
        run = SuperpositionTrainer(
            model=tiny_model("llama", tied=True),
            args=arguments(tmp_path),
            train_dataset=rows(),
            superposition=superposition,
        )
        run.train()
        assert [line["bag_size"] for line in run.state.log_history if "loss" in line] == [4] * steps + [1] * (8 - steps)


def test_trap_13_no_slot_of_a_bag_is_missing_from_the_count(tmp_path: Path) -> None:
    """Counted over labels[..., 1:], the loss of bags would be s / (s - 1) too large: twice, here."""
    run = trainer(tmp_path, max_steps=4)
    run.train()
    assert losses(run)[0] == pytest.approx(losses(stock(tmp_path))[0], rel=0.2)


def stock(folder: Path, **options: Any) -> Trainer:
    run = Trainer(model=tiny_model("llama", tied=True), args=arguments(folder, **options), train_dataset=rows())
    run.train()
    return run


def test_bag_size_one_is_the_stock_trainer_bit_for_bit(tmp_path: Path) -> None:
    run = trainer(tmp_path, bag_size=1)
    run.train()
    assert losses(run) == losses(stock(tmp_path))


def test_the_switch_comes_at_its_step_under_accumulation_and_several_epochs(tmp_path: Path) -> None:
    # 12 rows, 2 a batch, 2 batches a step: 3 steps an epoch; 4 epochs are 12 steps, 6 of them superposed.
    run: Any = trainer(
        tmp_path, data=rows(12), cls=Recording, max_steps=-1, num_train_epochs=4, gradient_accumulation_steps=2
    )
    run.train()
    assert run.state.global_step == 12
    assert [batch["labels"].dim() for batch in run.seen] == [3] * 12 + [2] * 12
    lines = [line for line in run.state.log_history if "loss" in line]
    assert [line["phase"] for line in lines] == ["superposition"] * 6 + ["recovery"] * 6
    assert [line["bag_size"] for line in lines] == [2] * 6 + [1] * 6
    assert [line["raw_tokens"] for line in lines][5::6] == [6 * 4 * L * 2, 6 * 4 * L * 3]
    assert lines[-1]["positions"] == 12 * 4 * L


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("stop", [3, 4, 6])
def test_resumed_it_lands_in_the_right_phase_and_place(tmp_path: Path, stop: int, streamed: bool) -> None:
    data = Streaming() if streamed else None
    whole: Any = trainer(tmp_path / "whole", data=data, cls=Recording)
    whole.train()
    first = trainer(tmp_path / "run", data=data, save_strategy="steps", save_steps=stop)
    first.add_callback(_Stop(stop))
    first.train()
    again: Any = trainer(tmp_path / "run", data=data, cls=Recording, save_strategy="steps", save_steps=stop)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(again.seen, whole.seen[stop:], strict=True) for name in a)
    assert losses(again)[stop:] == losses(whole)[stop:]


class _Stop(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streaming_data_set_is_read_in_order(tmp_path: Path, workers: int) -> None:
    run: Any = trainer(tmp_path, data=Streaming(), cls=Recording, dataloader_num_workers=workers)
    run.train()
    read = torch.cat([batch["input_ids"].reshape(-1) for batch in run.seen])
    assert torch.equal(read, torch.cat([row["input_ids"] for row in rows()])[: len(read)])


def test_evaluation_is_next_token_in_both_phases(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2, eval_dataset=rows(6, seed=1))
    run.train()
    evaluated = [line["eval_loss"] for line in run.state.log_history if "eval_loss" in line]
    assert len(evaluated) == 4
    assert run.evaluate()["eval_loss"] == pytest.approx(evaluated[-1])
    plain = Trainer(model=run.model, args=run.args, eval_dataset=rows(6, seed=1))
    assert plain.evaluate()["eval_loss"] == pytest.approx(evaluated[-1])


def test_the_model_is_left_as_it_was_and_saved_as_it_is(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    hooks, keys = dict(run.model._forward_pre_hooks), list(run.model.state_dict())
    run.train()
    assert dict(run.model._forward_pre_hooks) == hooks
    assert list(run.model.state_dict()) == keys
    assert "_loss_function" not in vars(run.model)
    run.save_model(str(tmp_path / "saved"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = rows(1)[0]["input_ids"].unsqueeze(0)
    assert torch.equal(loaded(ids).logits, run.model.eval()(ids).logits)


@pytest.mark.parametrize(("option", "tolerance"), [("bf16", 2e-2), ("torch_compile", 1e-5)])
def test_mixed_precision_and_compilation_train_the_same(tmp_path: Path, option: str, tolerance: float) -> None:
    plain, other = trainer(tmp_path, max_steps=6), trainer(tmp_path, max_steps=6, **{option: True})
    plain.train()
    other.train()
    assert losses(other) == pytest.approx(losses(plain), rel=tolerance)


def test_flops_count_positions(tmp_path: Path) -> None:
    """Trap 15."""
    run = trainer(tmp_path)
    run.train()
    assert run.state.total_flos == stock(tmp_path).state.total_flos


@dataclass
class Mine(SuperpositionArguments, TrainingArguments):
    """Both in one, as some scripts want it."""


def test_arguments_are_parsed_beside_or_inside_the_trainers(tmp_path: Path) -> None:
    words = [
        "--output_dir",
        str(tmp_path),
        "--bag_size",
        "4",
        "--superposition_ratio",
        "0.3",
        "--slot_weights",
        "power_law",
    ]
    _, parsed = HfArgumentParser((TrainingArguments, SuperpositionArguments)).parse_args_into_dataclasses(words)
    assert parsed == SuperpositionArguments(bag_size=4, superposition_ratio=0.3, slot_weights="power_law")

    class YourTrainer(Trainer):
        pass

    class YourSuperposed(SuperpositionMixin, YourTrainer):
        pass

    args = Mine(output_dir=str(tmp_path), bag_size=2, max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
    run = YourSuperposed(model=tiny_model("llama", tied=True), args=args, train_dataset=rows())
    run.train()
    assert run.state.global_step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: is not supported with superposition"),
        ({"bag_size": 2, "mode": "ful"}, "mode must be one of full"),
        ({"slot_weights": "linear"}, "slot_weights must be one of uniform"),
        ({"slot_weights": "mutual_information"}, "fit_mutual_information"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        trainer(tmp_path, **options)


def test_more_passes_than_one_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, data=rows(12)).train()
    assert "reads its training data 2.00 times" in capsys.readouterr().err


def test_the_log_history_is_json(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert json.loads(json.dumps(run.state.log_history))[0]["phase"] == "superposition"


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_two_processes_are_one_of_twice_the_batches(tmp_path: Path, kind: str) -> None:
    """DDP through accelerate, with gloo; both switch at the same step, and every row is read by one of them."""
    script = Path(__file__).with_name("two_processes.py")
    # On CPUs, accelerate's own --cpu starts one process; the script itself says use_cpu.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path), kind], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = json.loads((tmp_path / "lines.json").read_text())
    data = Streaming() if kind == "stream" else None
    alone = trainer(tmp_path, data=data, max_steps=6, gradient_accumulation_steps=4)
    alone.train()
    assert [line["loss"] for line in lines] == pytest.approx(losses(alone), rel=1e-5)
    assert [line["raw_tokens"] for line in lines] == [
        line["raw_tokens"] for line in alone.state.log_history if "loss" in line
    ]
