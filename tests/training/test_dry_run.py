"""`--dry-run`: it says what the run then is, allocates nothing of the model's size, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.runs import go
from token_superposition.cli import main
from token_superposition.data.dataset import TokenDataset
from token_superposition.errors import UserError
from token_superposition.models.spec import ModelSpec
from token_superposition.models.step_memory import abstract, estimate_memory
from token_superposition.models.superposed import SuperposedLM
from token_superposition.training.config import parse_config
from token_superposition.training.dry_run import describe, dry_run


def test_it_says_what_the_run_then_is(small_run: dict[str, Any], tmp_path: Path) -> None:
    said = dry_run(parse_config(small_run), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = go(small_run, tmp_path / "run")
    same = ("parameters", "stages", "switch_step", "steps", "flops", "positions", "raw_tokens", "unique_raw_tokens")
    assert {key: said[key] for key in same} == {key: summary[key] for key in same}
    assert said["config"] == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    # The first bags, as text: what a bag predicts is the next bag.
    bags = said["first_batch"]["bags"]
    assert said["first_batch"]["ids_shape"] == [4, 16, 2]
    assert [target for _, target in bags[:-1]] == [given for given, _ in bags[1:]]
    dataset = TokenDataset.open(small_run["data"]["path"], "train")
    assert "".join(given for given, _ in bags) in dataset.tokenizer.decode(dataset.read(0, dataset.num_tokens))


def test_the_command_prints_it_and_writes_nothing(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small_run))
    words = ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["switch_step"] == 6
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "6 steps with bags of 2 (full, uniform); 6 steps of next-token training" in text
    assert "nothing was trained or written" in text
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_it_refuses_what_the_run_would_be_refused_for(small_run: dict[str, Any], tmp_path: Path) -> None:
    go(small_run, tmp_path / "run")
    with pytest.raises(UserError, match=r"started with train\.learning_rate"):
        dry_run(parse_config(small_run, {"train.learning_rate": 1.0}), tmp_path / "run")
    with pytest.raises(UserError, match="did you mean 'llama'"):
        dry_run(parse_config(small_run, {"model.architecture": "lama"}), tmp_path / "other")


def test_it_looks_at_the_data_and_the_folder_as_the_run_does(small_run: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(small_run["data"]["path"], tmp_path / "data")
    damaged = parse_config(small_run, {"data.path": str(tmp_path / "data")})
    dry_run(damaged, tmp_path / "run")
    shard = tmp_path / "data" / "validation-00000.tokens"
    content = bytearray(shard.read_bytes())
    content[300] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="is damaged between bytes"):
        dry_run(damaged, tmp_path / "run")
    with pytest.raises(UserError, match="no such folder"):
        dry_run(parse_config(small_run, {"data.validation_sets": {"x": "nowhere"}}), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not a run folder"):
        dry_run(parse_config(small_run), tmp_path / "other")


def test_muon_keeps_one_number_for_each_hidden_weight(small_run: dict[str, Any], tmp_path: Path) -> None:
    adamw, muon = (
        dry_run(parse_config(small_run, {"train.optimizer": name}), tmp_path / "run") for name in ("adamw", "muon")
    )
    assert adamw["memory"]["optimizer"] == 8 * adamw["parameters"]
    hidden = 4 * 16 * 16 + 3 * 16 * 32  # attention and feed-forward of one layer
    assert muon["memory"]["optimizer"] == 8 * adamw["parameters"] - 4 * hidden


def test_a_model_larger_than_the_machine_is_described(small_run: dict[str, Any], tmp_path: Path) -> None:
    small_run["model"]["config"] |= {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
    }
    said = dry_run(parse_config(small_run), tmp_path / "run")
    assert 4.0e11 < said["parameters"] < 4.1e11
    assert said["memory"]["total"] > 16 * said["parameters"]
    assert "GiB" in describe(said)


@pytest.mark.parametrize(("family", "more"), [("llama", {}), ("gpt2", {}), ("gemma2", {"head_dim": 8})])
def test_the_estimate_counts_what_autograd_really_saves(family: str, more: dict[str, Any]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **more}
    spec = ModelSpec(family, sizes, vocab_size=320, eos_id=256)
    with abstract():
        model = spec.build_unchecked()
        estimate = estimate_memory(model, ids_shape=(2, 16, 4), num_targets=4, dtype=torch.float32, optimizer_states=0)
    model = spec.build(seed=0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(2, 16, 4, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        SuperposedLM(model, verify=False).train()(ids, ids)
    real = sum(storage.nbytes() for storage in saved.values()) + 2 * 4 * 2 * 16 * 320
    assert estimate.activations == pytest.approx(real, rel=0.15)
    assert estimate.weights == estimate.gradients == 4 * sum(p.numel() for p in model.parameters())
    assert estimate.total == 2 * estimate.weights + (estimate.activations or 0)


def test_where_activations_cannot_be_known_it_says_so() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "moe_intermediate_size": 16}
    with abstract():
        model = ModelSpec("qwen3_moe", {**sizes, "num_experts": 4}, vocab_size=320, eos_id=256).build_unchecked()
        estimate = estimate_memory(model, ids_shape=(2, 16, 4), num_targets=4, dtype=torch.float32, optimizer_states=0)
    assert estimate.activations is None
    assert estimate.weights > 0


def test_its_memory_knows_what_makes_steps_smaller() -> None:
    config = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 6}

    def activations(vocab_size: int, **options: Any) -> int:
        with abstract():
            model = ModelSpec("llama", config, vocab_size=vocab_size, eos_id=0).build_unchecked()
            options = {"dtype": torch.float32, "optimizer_states": 0, **options}
            found = estimate_memory(model, ids_shape=(4, 1024, 4), num_targets=4, **options).activations
        assert found is not None
        return found

    logits = 4 * 4096 * 65536
    assert activations(65536, loss_backend="plain") > 3 * logits
    assert activations(65536) < 0.6 * logits  # a chunk, the head's gradient and the layers
    assert activations(256, activation_checkpointing=True) < activations(256) / 2
