"""What makes steps cheaper changes no result: compiled layers, recomputed activations, the chunked loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, make
from tests.training.runs import go, numbers
from token_superposition.errors import UserError
from token_superposition.models.layers import checkpoint_activations, compile_layers, layers_of
from token_superposition.models.spec import ModelSpec
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train
from token_superposition.training.trainer import Trainer


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in numbers(folder) if "loss" in line]


def test_compiled_layers_are_not_compiled_again_at_the_switch(
    small_run: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    graphs, step = [], Trainer.step

    def count(self: Trainer, batch: Any) -> Any:
        result = step(self, batch)
        graphs.append(counters["stats"]["unique_graphs"])
        return result

    monkeypatch.setattr(Trainer, "step", count)
    go(small_run, tmp_path / "compiled", train__compile=True)
    assert len(graphs) == 12  # the switch is at step 6, and validations lie between
    assert graphs[0] >= 1
    assert set(graphs) == {graphs[0]}
    assert not counters["graph_break"]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(whole), rel=1e-5)


def test_layers_share_their_compiled_code() -> None:
    config = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 5}
    model = ModelSpec("llama", config, vocab_size=64, eos_id=0).build(seed=0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(model)
    model(input_ids=torch.zeros(2, 8, dtype=torch.long), use_cache=False).logits.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_recomputed_activations_give_the_same_run(small_run: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    go(small_run, tmp_path / "checkpointed", train__activation_checkpointing=True)
    assert losses(tmp_path / "checkpointed") == pytest.approx(losses(whole), rel=1e-5)


def test_recomputed_activations_keep_a_layers_input_only() -> None:
    saved = {}
    for checkpointed in (False, True):
        config = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
        model = ModelSpec("llama", config, vocab_size=64, eos_id=0).build(seed=0)
        if checkpointed:
            checkpoint_activations(model)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.zeros(2, 64, dtype=torch.long), use_cache=False)
        saved[checkpointed] = sum(kept.values())
    assert saved[True] < saved[False] / 4


def test_the_chunked_loss_gives_the_same_run(small_run: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    go(small_run, tmp_path / "chunked", train__loss_backend="chunked")
    assert losses(tmp_path / "chunked") != losses(whole)  # another path
    assert losses(tmp_path / "chunked") == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("backend", "words"),
    [("auto", "from full logits"), ("chunked", "in chunks, so that memory never holds all logits")],
)
def test_how_the_loss_is_computed_is_said_once(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, words: str
) -> None:
    train(parse_config(small_run, {"train.loss_backend": backend}), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "the loss is computed" in line]
    assert len(said) == 1
    assert f"the loss is computed {words} (train.loss_backend)" in said[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_what_the_family_calls_so(name: str) -> None:
    model = make(FAMILIES[name])
    layers = layers_of(model)
    assert len(layers) == model.config.num_hidden_layers


def test_a_layer_within_a_layer_is_part_of_it() -> None:
    class Block(torch.nn.Module):
        def __init__(self, *parts: torch.nn.Module) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

    inner, alone = Block(), Block()
    outer = Block(inner)
    model = torch.nn.Sequential(outer, alone)
    model._no_split_modules = ["Block"]  # type: ignore[assignment]
    assert layers_of(model) == [outer, alone]


def test_what_a_family_cannot_is_refused() -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ModelSpec("llama", config, vocab_size=64, eos_id=0).build(seed=0)
    model._no_split_modules = []  # type: ignore[assignment]
    model.supports_gradient_checkpointing = False  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^train\.compile: LlamaForCausalLM does not name its layers"):
        compile_layers(model)
    with pytest.raises(UserError, match=r"^train\.activation_checkpointing: LlamaForCausalLM does not support"):
        checkpoint_activations(model)


def test_without_a_compiler_compilation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ModelSpec("llama", config, vocab_size=64, eos_id=0).build(seed=0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^train\.compile: no C\+\+ compiler was found"):
        compile_layers(model)


def test_a_kernel_that_is_not_there_is_one_line(small_run: dict[str, Any], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may have the kernel")
    with pytest.raises(UserError, match=r"^train\.loss_backend liger needs liger-kernel and CUDA; use auto"):
        go(small_run, tmp_path / "run", train__loss_backend="liger")
    with pytest.raises(UserError, match=r"train\.loss_backend liger supports only full bags"):
        go(small_run, tmp_path / "run", train__loss_backend="liger", data__bag_boundary="document")
    with pytest.raises(UserError, match="loss_backend torch does not support z_loss"):
        go(small_run, tmp_path / "run", train__loss_backend="torch", train__z_loss=0.1)
