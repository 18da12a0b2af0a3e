"""A head taken over computes the loss that its model would, with all that belongs to it; others are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import tiny_model
from token_superposition import SuperposedLM, slot_weights, split_inputs_and_targets
from token_superposition.models.head import linear_head

VOCAB = 67


def with_bias(family: str) -> nn.Module:
    """A model whose head has a bias, as some have that call themselves by the same name."""
    model = tiny_model(family, tied=False)
    old = model.get_output_embeddings()  # type: ignore[operator]
    head = nn.Linear(old.in_features, old.out_features)
    torch.manual_seed(3)
    nn.init.normal_(head.bias)
    head.weight = old.weight
    model.set_output_embeddings(head)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("weights", [None, "power_law"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bias_slot_weights_and_z_loss_count_as_in_full_logits(family: str, weights: str | None, z_loss: float) -> None:
    rows = torch.randint(0, VOCAB, (3, 3 * 13), generator=torch.Generator().manual_seed(1))
    ids, targets = split_inputs_and_targets(rows, 3)
    targets = targets.clone()
    targets[0, 2:, 1] = -100
    found = []
    for backend in ("plain", "chunked"):
        model = with_bias(family)
        superposed = SuperposedLM(model, z_loss=z_loss, loss_backend=backend)  # type: ignore[arg-type]
        output = superposed(ids, targets, None if weights is None else slot_weights(weights, 3))
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((output.loss.detach(), output.weight_sum, gradients))
    (loss, weight_sum, gradients), (expected, expected_sum, wanted) = reversed(found)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    assert torch.equal(weight_sum, expected_sum)
    assert gradients.keys() == wanted.keys()
    assert any(name.endswith("lm_head.bias") for name in gradients)
    for name, gradient in gradients.items():
        assert isinstance(gradient, Tensor)
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


class Doubling(nn.Linear):
    """More than a linear layer."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


def test_a_head_that_does_more_than_multiply_keeps_its_logits() -> None:
    model = tiny_model("llama", tied=False)
    assert linear_head(model) is not None
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: None)  # type: ignore[operator]
    assert linear_head(model) is None
    hook.remove()
    patched = model.get_output_embeddings()  # type: ignore[operator]
    patched.forward = lambda hidden: hidden @ patched.weight.t()
    assert linear_head(model) is None
    del patched.forward
    assert linear_head(model) is patched
    doubling = Doubling(32, VOCAB, bias=False)
    model.set_output_embeddings(doubling)  # type: ignore[operator]
    assert linear_head(model) is None
    assert SuperposedLM(model).transform is None
