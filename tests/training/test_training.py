"""Whole runs: equal to a bare loop, what they write, what they refuse before they start."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.training.runs import go, numbers, weights
from token_superposition.data.dataset import TokenDataset
from token_superposition.data.prepare import prepare
from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError
from token_superposition.models.spec import ModelSpec
from token_superposition.models.superposed import SuperposedLM
from token_superposition.training import loop
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.trainer import Trainer


@pytest.mark.parametrize("bag_size", [1, 2])
def test_a_run_equals_a_bare_loop_bit_for_bit(small_run: dict[str, Any], tmp_path: Path, bag_size: int) -> None:
    """Trap 4: at bag size 1 an ordinary loop. With bags, one optimizer that nobody touches at the switch."""
    run = {**small_run, "superposition": {"bag_size": bag_size, "ratio": 0.5}}
    config = parse_config(run)
    go(run, tmp_path / "ours")

    t = config.train
    dataset = TokenDataset.open(config.data.path, "train")
    stream = TokenStream(dataset, config.schedule(), sequence_length=16, batch_size=4, seed=0)
    model = ModelSpec("llama", config.model.config, vocab_size=320, eos_id=256).build(seed=0)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=t.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    losses = []
    for step in range(12):
        batch = stream.batch(step)
        if batch.bag_size == 1:
            logits = model(input_ids=batch.ids.squeeze(-1)).logits
            loss = F.cross_entropy(logits.view(-1, 320), batch.targets.reshape(-1))
        else:
            loss = SuperposedLM(model, verify=False)(batch.ids, batch.targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm, left = min(1.0, step + 1), min(1.0, (12 - step) / 2)
        for group in optimizer.param_groups:
            group["lr"] = t.learning_rate * min(warm, left)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert [line["loss"] for line in numbers(tmp_path / "ours") if "loss" in line] == losses
    ours = weights(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours[f"model.{name}"], tensor), name


def check_micro_batches(values: dict[str, Any], folder: Path) -> None:
    """A step in four micro-batches is the step in one."""
    go(values, folder / "one")
    go(values, folder / "four", train__micro_batch_size=1)
    for a, b in zip(numbers(folder / "one"), numbers(folder / "four"), strict=True):
        for key in ("loss", "grad_norm", "validation_loss"):
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=2e-4)


def test_gradient_accumulation_is_the_same_step(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["superposition"] = {"bag_size": 4, "ratio": 0.5, "slot_weights": "power_law"}
    check_micro_batches(small_run, tmp_path)


def test_micro_batches_of_unequal_weight_are_the_same_step(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 5: one global sum over one global sum of weights, not a mean of means."""
    original = TokenStream.batch

    def ragged(self: TokenStream, step: int) -> Any:
        batch = original(self, step)
        targets = batch.targets.clone()
        targets[0, 3:] = -100  # the first row has far fewer targets than the others, the second none
        targets[1] = -100
        return replace(batch, targets=targets)

    monkeypatch.setattr(TokenStream, "batch", ragged)
    check_micro_batches(small_run, tmp_path)


def test_time_spent_waiting_for_data_is_logged(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 12: a slow source shows."""
    original = TokenStream.batch

    def slow(self: TokenStream, step: int) -> Any:
        time.sleep(0.1)
        return original(self, step)

    monkeypatch.setattr(TokenStream, "batch", slow)
    go(small_run, tmp_path / "run")
    fractions = [
        line["data_wait_fraction"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "mfu" in line
    ]
    assert sum(fractions[4:]) / len(fractions[4:]) > 0.5


def test_what_a_run_writes(whole: Path) -> None:
    lines = list(read_metrics(whole / "metrics.jsonl"))
    trained = [line for line in lines if "loss" in line]
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert [line["phase"] for line in trained] == ["superposition"] * 6 + ["recovery"] * 6
    assert [line["bag_size"] for line in trained] == [2] * 6 + [1] * 6
    assert [line["positions"] for line in trained] == [64 * k for k in range(1, 13)]
    assert trained[5]["raw_tokens"] == 6 * 128
    assert trained[-1]["raw_tokens"] == 6 * 128 + 6 * 64
    # Trap 15: speed counts positions, whatever the bag size.
    for line in trained:
        assert line["positions_per_second"] == pytest.approx(64 / line["seconds_per_step"])
        assert 0 < line["mfu"] < 1.5
        assert 0 <= line["data_wait_fraction"] <= 1
    # Before the first step, every 4 steps, at the switch, and at the end; then once more on more tokens.
    assert [(line["step"], line["phase"]) for line in validated] == [
        (0, "superposition"),
        (4, "superposition"),
        (6, "superposition"),
        (8, "recovery"),
        (12, "recovery"),
        (12, "recovery"),
    ]
    assert [line["validation_tokens"] for line in validated] == [256] * 5 + [1024]
    assert [line["final"] for line in validated] == [False] * 5 + [True]
    # Every byte is a token here but for the ends of documents, so the two figures nearly agree.
    for line in validated:
        assert line["bits_per_byte"] == pytest.approx(line["validation_loss"] / math.log(2), rel=0.01)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["switch_step"] == 6
    assert summary["steps"] == summary["step"] == 12
    assert summary["flops"] == validated[-1]["flops"] > 0
    assert summary["unique_raw_tokens"] == summary["raw_tokens"] == trained[-1]["raw_tokens"]
    assert {key: summary[key] for key in trained[-1]} == trained[-1]  # the last line's figures once more
    for key in ("wall_seconds", "peak_memory_bytes", "parameters", "final_validation_loss", "bits_per_byte"):
        assert summary[key] > 0
    assert {p.name for p in (whole / "checkpoints").iterdir()} == {f"step-{k:07d}" for k in (3, 6, 9, 12)}


def test_training_lowers_the_loss_in_both_phases(small_run: dict[str, Any], tmp_path: Path) -> None:
    go(small_run, tmp_path / "run", train__total_steps=120, train__learning_rate=1e-3)
    lines = numbers(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(math.log(320), rel=0.02)  # Trap 2
    assert sum(losses[50:60]) / 10 < 0.9 * losses[0]
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert validated[120] < validated[60] < validated[0]


def test_a_folder_in_use_is_refused(small_run: dict[str, Any], tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(UserError, match=rf"another process \(pid {os.getpid()}\)"):
        go(small_run, tmp_path / "run")


def test_a_folder_that_is_not_ours_is_refused(small_run: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not a run folder \(it holds 'thesis.tex'\)"):
        go(small_run, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__architecture": "lama"}, "model.architecture: 'lama' .* did you mean 'llama'"),
        ({"model__config__hiden_size": 3}, "llama has no such key; did you mean 'hidden_size'"),
        ({"model__config__num_attention_heads": 0}, "model.config: llama refuses"),
        ({"model__config__rms_norm_eps": "small"}, "model.config: llama refuses"),
        ({"model": {"architecture": "electra", "config": {"is_decoder": False, "num_hidden_layers": 1}}}, "not causal"),
        ({"model__config__vocab_size": 256}, "model.config.vocab_size: 256 is smaller than the data's"),
        ({"train__sequence_length": 128}, "max_position_embeddings of 64"),
        ({"train__device": "cuda:99"}, "train.device: 'cuda:99' cannot be used here"),
        ({"train__sequence_length": 64, "superposition__bag_size": 5000}, "prepare more text, or lower"),
        ({"data__path": "nowhere"}, "nowhere"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_start_leaves_nothing_behind(
    small_run: dict[str, Any], tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        go(small_run, tmp_path / "run", **overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_repeating_the_corpus_is_said_before_it_starts(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(small_run, tmp_path / "run", train__total_steps=300, train__sequence_length=64, train__batch_size=16)
    errors = capsys.readouterr().err
    assert "epochs of the" in errors
    assert "text repeats" in errors


def test_superposition_into_the_decay_is_a_warning(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(small_run, tmp_path / "run", superposition__ratio=0.9)
    assert "into the learning rate's decay" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["full", "output_only", "input_only"])
def test_every_mode_trains(small_run: dict[str, Any], tmp_path: Path, mode: str) -> None:
    summary = go(small_run, tmp_path / "run", superposition__mode=mode)
    raw = 6 * 64 * (1 if mode == "output_only" else 2) + 6 * 64
    assert summary["raw_tokens"] == raw
    assert summary["positions"] == 12 * 64


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_with_z_loss_lowers_the_loss(small_run: dict[str, Any], tmp_path: Path, optimizer: str) -> None:
    """In both phases; and the term is in the training loss, not in the validation."""
    settings = {"train__optimizer": optimizer, "train__total_steps": 60, "train__learning_rate": 3e-3}
    go(small_run, tmp_path / "plain", **settings)
    go(small_run, tmp_path / "z", train__z_loss=0.01, **settings)
    plain, z = numbers(tmp_path / "plain"), numbers(tmp_path / "z")
    assert z[0]["validation_loss"] == plain[0]["validation_loss"]
    assert z[1]["loss"] == pytest.approx(plain[1]["loss"] + 0.01 * math.log(320) ** 2, abs=0.01)
    losses = [line["loss"] for line in z if "loss" in line]
    assert losses[29] < losses[0] - 0.2
    assert losses[-1] < losses[30] - 0.1


def test_further_validation_sets_are_validated_beside_the_own(
    small_run: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("".join(f"{number * number} sheep\n" for number in range(9000)))
    prepare([tmp_path / "other.txt"], out=tmp_path / "other", quiet=True)
    small_run["data"]["validation_sets"] = {"sheep": str(tmp_path / "other"), "again": small_run["data"]["path"]}
    go(small_run, tmp_path / "run")
    lines = [line for line in numbers(tmp_path / "run") if "validation_loss" in line]
    for line in lines:
        own = {key: line[key] for key in ("validation_loss", "bits_per_byte", "validation_tokens")}
        assert line["validation_sets"]["again"] == own
        assert line["validation_sets"]["sheep"]["validation_loss"] != line["validation_loss"]
    assert [{k: v for k, v in line.items() if k != "validation_sets"} for line in numbers(tmp_path / "run")] == numbers(
        whole
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_sets"] == lines[-1]["validation_sets"]


def test_a_validation_set_of_another_tokenizer_is_refused(
    small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TokenDataset.open

    class Others:
        name = "others"
        fingerprint = "another"

    def opened(folder: Any, split: str) -> TokenDataset:
        dataset = original(small_run["data"]["path"] if folder == "other" else folder, split)
        if folder == "other":
            dataset.tokenizer = Others()  # type: ignore[assignment]
            dataset.folder = Path(folder)
        return dataset

    monkeypatch.setattr(TokenDataset, "open", opened)
    small_run["data"] |= {"validation_sets": {"x": "other"}, "verify": False}
    config = parse_config(small_run, {"train.dtype": "float32"})
    with pytest.raises(UserError, match=r"^other: was prepared with tokenizer 'others', the training data in .* both"):
        Trainer(config, config.schedule())


def test_the_load_of_experts_is_logged_in_both_phases(small_run: dict[str, Any], tmp_path: Path) -> None:
    moe = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    small_run["model"] = {
        "architecture": "qwen3_moe",
        "config": {**small_run["model"]["config"], **moe, "num_key_value_heads": 2},
    }
    go(small_run, tmp_path / "run", train__micro_batch_size=2)
    lines = [line for line in numbers(tmp_path / "run") if "loss" in line]
    assert len(lines) == 12
    for line in lines:
        (layer,) = line["expert_load"].values()
        assert 0 <= layer["least"] <= 1 <= layer["most"] <= 2  # of 4 experts 2 are chosen: at most twice a fair share


def test_the_loop_has_no_word_of_phases() -> None:
    """The stage a batch carries is the only switch: the trainer's step never compares a step with one."""
    assert "switch_step" not in Path(loop.__file__).with_name("trainer.py").read_text()


def test_a_config_survives_its_own_yaml(small_run: dict[str, Any]) -> None:
    config = parse_config(small_run)
    again = RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True))))
    assert again == config
