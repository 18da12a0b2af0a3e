"""What several rooms' tests need: small models, small corpora, the shared data where it is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; read when its library is first imported


class ArrayTokens:
    """A corpus in memory, for what reads through the stream's protocol."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self.ids = ids

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        if start < 0 or start + length > len(self.ids):
            raise IndexError(f"tokens {start} to {start + length} of {len(self.ids)}")
        return self.ids[start : start + length]

    def document_ends(self) -> NDArray[np.int64]:
        """Documents end with id 0 here."""
        return np.flatnonzero(self.ids == 0) + 1


# Under nohup SIGHUP is ignored, and the product rightly leaves it so; the tests of signals need the default.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora, where this checkout has one."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared corpora are not beside this checkout")
    return SHARED / "data"


TINY: dict[str, tuple[str, dict[str, Any]]] = {
    # name: (architecture, configuration); every family small enough to run in milliseconds.
    "llama": ("llama", {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen3": (
        "qwen3",
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.05,
        },
    ),
    "gemma2": (
        "gemma2",
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "gpt2": ("gpt2", {"n_layer": 2, "n_head": 4}),
}


def tiny_model(family: str, *, tied: bool, vocab_size: int = 67, seed: int = 0) -> torch.nn.Module:
    """A small model of a family, without dropout, its weights large enough for losses to differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, config = TINY[family]
    if architecture == "gpt2":
        config = {**config, "n_embd": 32, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    else:
        config = {**config, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    torch.manual_seed(seed)
    resolved = AutoConfig.for_model(
        architecture,
        **config,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=None,
    )
    model: torch.nn.Module = AutoModelForCausalLM.from_config(resolved)
    return model


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of about 120,000 bytes of made-up words, in several documents."""
    from token_superposition.data.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("etaoinshrdlu"), size)) for size in generator.integers(2, 9, 60)]
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number:02d}.txt").write_text(" ".join(generator.choice(words, 500)))
    prepare([folder / "text"], out=folder / "data", validation_fraction=0.1, quiet=True)
    return folder / "data"


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study's runs are trained in the test's process; their names."""
    from tests.in_process import train_here

    return train_here(monkeypatch)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's runs are trained in forks of the test's process."""
    from tests.in_process import fork_runs

    fork_runs(monkeypatch)


@pytest.fixture
def small_run(small_data: Path) -> dict[str, Any]:
    """A run's configuration that trains in a second or two; change what a test needs."""
    return small_run_on(small_data)


def small_run_on(small_data: Path) -> dict[str, Any]:
    """The same, for fixtures that live longer than a test."""
    return {
        "data": {"path": str(small_data)},
        "model": {
            "architecture": "llama",
            "config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
            },
        },
        "superposition": {"bag_size": 2, "ratio": 0.5},
        "train": {
            "total_steps": 12,
            "sequence_length": 16,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.1,
            "device": "cpu",
            "num_threads": 1,
        },
        "logging": {
            "log_interval": 1,
            "validation_interval": 4,
            "interim_validation_tokens": 256,
            "validation_tokens": 1024,
            "checkpoint_interval": 3,
            "keep_checkpoints": 99,
        },
    }
