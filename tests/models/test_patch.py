"""A model that takes bags where it stands; what frameworks do around it: tests/adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import tiny_model
from token_superposition import SuperposedLM, slot_weights, split_inputs_and_targets
from token_superposition.losses import linear
from token_superposition.models.patch import bags_accepted


def bags(bag_size: int, seed: int) -> dict[str, torch.Tensor]:
    rows = torch.randint(0, 67, (2, bag_size * 13), generator=torch.Generator().manual_seed(seed))
    inputs, targets = split_inputs_and_targets(rows, bag_size)
    return {"input_ids": inputs, "labels": targets}


@pytest.mark.parametrize("weights", ["uniform", "power_law"])
def test_bags_are_scored_as_by_the_core_and_tokens_by_the_model(weights: str) -> None:
    model: Any = tiny_model("llama", tied=True)
    batch, ids = bags(4, seed=0), torch.randint(0, 67, (2, 12))
    own = model(input_ids=ids, labels=ids).loss
    expected = SuperposedLM(model)(*batch.values(), slot_weights(weights, 4))
    with bags_accepted(model, slot_weights=slot_weights(weights, 4)):
        assert torch.equal(model(**batch).loss, expected.loss)
        counted = model(**batch, num_items_in_batch=2 * expected.weight_sum).loss
        torch.testing.assert_close(counted, expected.loss / 2)
        assert torch.equal(model(input_ids=ids, labels=ids).loss, own)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert torch.equal(model(input_ids=ids, labels=ids).loss, own)


def test_each_phase_is_compiled_once() -> None:
    """State kept between forwards would make torch.compile start anew, and give up after some steps."""
    compiled: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model: Any = tiny_model("llama", tied=True)
    call, counts = torch.compile(model, backend=compiler), []
    with bags_accepted(model):
        for bag_size in (4, 4, 4, 1, 1, 1):
            batch = bags(bag_size, seed=len(counts))
            if bag_size == 1:
                batch = {name: value.squeeze(-1) for name, value in batch.items()}
            call(**batch).loss.backward()
            counts.append(len(compiled))
    assert counts[0] == counts[2] < counts[3] == counts[5]


@pytest.mark.parametrize("compiled", [False, True])
def test_many_logits_are_not_made(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    model: Any = tiny_model("gemma2", tied=True)
    batch, ids = bags(4, seed=0), torch.randint(0, 67, (2, 12))
    superposed = SuperposedLM(model)
    expected, own = superposed(*batch.values()).loss, model(input_ids=ids, labels=ids).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(linear, "_FEW_LOGITS", 0)
    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager") if compiled else model
    with bags_accepted(model, transform=superposed.transform):
        for _ in range(2):
            model.zero_grad()
            output = call(**batch)
            assert output.logits.shape == (2, 12, 1)
            torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)
            output.loss.backward()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(model(input_ids=ids, labels=ids).loss, own)
        with pytest.raises(Exception, match=r"(?i)index"):  # a forward that fails leaves the head as it was
            model(input_ids=batch["input_ids"], labels=batch["labels"] + 10**6)
        assert torch.equal(model(input_ids=ids, labels=ids).loss, own)
    assert "forward" not in vars(model.get_output_embeddings())
