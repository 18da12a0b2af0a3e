"""What tests of whole runs share: to train one, to stop one, and what of it must be equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from token_superposition.training.checkpoint import newest_checkpoint, read_state
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.trainer import Trainer

TIMES = {
    "positions_per_second",
    "seconds_per_step",
    "mfu",
    "data_wait_fraction",
    "wall_seconds",
    "peak_memory_bytes",
    "checksum",  # of values that include the measured ones
}  # what is measured, and differs from run to run


TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "rope_theta": 5000.0,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": 5,
    "vocab_size": 257,  # every id of the data, and not the multiple of 64 that a fresh model would have
}


class Stopped(BaseException):
    """Stands for a kill: nothing after it runs."""


def go(values: dict[str, Any], folder: Path, **overrides: Any) -> dict[str, Any]:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return train(parse_config(values, dotted), folder, quiet=True)


def go_until(step: int, values: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch, **overrides: Any) -> None:
    """Train, and stop as a kill would before the step of that number."""
    original = Trainer.step

    def stop(self: Trainer, batch: Any) -> Any:
        if batch.step == step:
            raise Stopped
        return original(self, batch)

    with patch.context() as patched:
        patched.setattr(Trainer, "step", stop)
        with pytest.raises(Stopped):
            go(values, folder, **overrides)


def weights(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's weights."""
    config = parse_config(yaml.safe_load((folder / "config.yaml").read_text()))
    trainer = Trainer(config, config.schedule())
    trainer.load(sorted((folder / "checkpoints").glob("step-*"))[-1])
    return dict(trainer.model.state_dict())


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what is measured in time."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


def everything(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The newest checkpoint's tensors, flat, and its state without times."""
    checkpoint, complaints = newest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    assert not complaints
    state = read_state(checkpoint)
    config = parse_config(state["config"])
    trainer = Trainer(config, config.schedule())
    trainer.load(checkpoint)
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{prefix}.{key}", below)
        elif isinstance(value, list | tuple):
            for key, below in enumerate(value):
                walk(f"{prefix}.{key}", below)
        else:
            flat[prefix] = value

    walk("", trainer.tensors())
    return flat, {key: value for key, value in state.items() if key not in TIMES}


def check_equal(branched: Path, whole: Path) -> None:
    """Metrics, weights, optimizer, checkpoint and summary to the last bit; times aside."""
    assert numbers(branched) == numbers(whole)
    (ours, state), (theirs, whole_state) = everything(branched), everything(whole)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq" in name for name in ours)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name
    assert state == whole_state
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (branched, whole))
    assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


def stranger(folder: Path, dtype: torch.dtype = torch.float32, *, tied: bool = False, **config: Any) -> Path:
    """A Hugging Face folder as anybody writes it: without a word of ours, and without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**{**TINY, **config}, tie_word_embeddings=tied)).to(dtype).save_pretrained(folder)
    return folder


def going_on(values: dict[str, Any], source: Path, **keys: Any) -> dict[str, Any]:
    """A run's configuration that goes on from a folder and says nothing else of its model."""
    return {**values, "model": {"init_from": str(source), **keys}}


def shared_steps(run: RunFolder) -> int:
    """Number of steps that a run has from its parent run."""
    record = run.read_record()
    assert record is not None
    return record.shared_steps
