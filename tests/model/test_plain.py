"""`superpose`: a plain module trains on bags by its own forward, and the wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from token_superposition import superpose

V, D = 31, 16


class Plain(nn.Module):
    """A small causal model as people write them: a scaled embedding, learned positions, logits and a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.places = nn.Embedding(64, D)
        self.mix = nn.Linear(D, D)
        self.out = nn.Linear(D, V)

    def forward(self, ids: Tensor, labels: Tensor | None = None, gain: float = 1.0) -> Any:
        x = self.tokens(ids) * 3 + self.places(torch.arange(ids.shape[1]))
        x = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1).unsqueeze(1)  # causal
        logits = self.out(gain * torch.tanh(self.mix(x)))
        return (logits, F.cross_entropy(logits.flatten(0, 1), labels.flatten())) if labels is not None else logits


def test_on_tokens_it_is_the_modules_own_loss() -> None:
    model = Plain()
    ids, targets = torch.randint(0, V, (2, 3, 8)).unbind(0)
    output = superpose(model, embedding="tokens", head="out")(ids, targets)
    assert torch.equal(output.loss, model(ids, labels=targets)[1])
    assert output.weight_sum == targets.numel()


def test_on_bags_it_is_five_lines_through_the_module() -> None:
    model = Plain()
    ids, targets = torch.randint(0, V, (2, 3, 8, 4)).unbind(0)
    superposed = superpose(model, embedding=model.tokens, head=model.out)
    superposed(ids, targets).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    x = model.tokens(ids).mean(2) * 3 + model.places(torch.arange(8))
    x = x.cumsum(1) / torch.arange(1, 9).unsqueeze(1)
    logits = model.out(torch.tanh(model.mix(x))).flatten(0, 1)
    terms = [F.cross_entropy(logits, targets[..., k].flatten()) for k in range(4)]
    loss = torch.stack(terms).mean()
    loss.backward()
    torch.testing.assert_close(superposed(ids, targets).loss, loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_further_inputs_reach_the_module_and_nothing_stays_behind() -> None:
    model = Plain()
    superposed = superpose(model, embedding="tokens", head="out")
    ids, targets = torch.randint(0, V, (2, 3, 8, 2)).unbind(0)
    assert superposed(ids, targets, gain=0.0).loss != superposed(ids, targets).loss
    assert list(superposed.state_dict()) == [f"model.{name}" for name in model.state_dict()]
    assert not model.tokens._forward_hooks
    assert not model.out._forward_hooks


class LooksTwice(Plain):
    """Ids are hashed into a second table, as n-gram models do."""

    def __init__(self) -> None:
        super().__init__()
        self.ngrams = nn.Embedding(V, V)

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(self.tokens(ids) + self.ngrams(ids * 7 % V)[..., :D])


class SeesAll(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        x = self.tokens(ids)
        return self.out(x + x.mean(1, keepdim=True))


class TwoLookUps(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(self.tokens(ids) + self.tokens(ids))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LooksTwice, "looks ids up outside its embedding"),
        (SeesAll, "is not causal"),
        (TwoLookUps, "uses its embedding 'tokens' 2 times"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(model: type[Plain], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        superpose(model(), embedding="tokens", head="out")


def test_a_submodule_that_is_not_there_is_named() -> None:
    with pytest.raises(TypeError, match="Plain has no submodule 'token'"):
        superpose(Plain(), embedding="token", head="out")
    with pytest.raises(TypeError, match="Plain has no submodule Linear"):
        superpose(Plain(), embedding="tokens", head=nn.Linear(2, 2))
