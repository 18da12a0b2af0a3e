"""`superpose`: a plain module trains on bags by its own forward, and the wrong ones are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import tiny_model
from token_superposition import SuperposedLM, superpose

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


class Returns(Plain):
    """What the forward returns is a function of the model, its hidden states x and its logits z."""

    def __init__(self, returned: Callable[[Any], Any]) -> None:
        super().__init__()
        self.returned = returned
        self.bias = nn.Parameter(torch.zeros(V))  # fresh: it changes no logit yet
        self.ahead = nn.Linear(D, V)

    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        x = torch.tanh(self.mix(self.tokens(ids).cumsum(1)))
        return self.returned(SimpleNamespace(model=self, x=x, z=self.out(x)))


def few_bags(k: int = 4) -> tuple[Tensor, Tensor]:
    ids, targets = torch.randint(0, V, (2, 2, 8, k), generator=torch.Generator().manual_seed(1)).unbind(0)
    return ids, targets


@pytest.mark.parametrize(
    "returned",
    [
        lambda s: (s.z, None),
        lambda s: [s.x, s.z],
        lambda s: {"loss": None, "logits": s.z},
        lambda s: SimpleNamespace(logits=s.z),
        lambda s: s.z.bfloat16(),
        lambda s: s.z.double(),
        lambda s: s.z.view(-1, V),
        lambda s: s.z.transpose(1, 2),
        lambda s: F.log_softmax(s.z, dim=-1),
    ],
    ids=["tuple", "list", "dict", "attribute", "bfloat16", "float64", "flat", "transposed", "log-softmax"],
)
def test_logits_are_found_in_what_a_module_returns(returned: Any) -> None:
    superposed = superpose(Returns(returned), embedding="tokens", head="out")
    model, (ids, targets) = superposed.model, few_bags()
    logits = model.out(torch.tanh(model.mix(model.tokens(ids).mean(2).cumsum(1)))).flatten(0, 1)
    expected = torch.stack([F.cross_entropy(logits, targets[..., k].flatten()) for k in range(4)]).mean()
    torch.testing.assert_close(superposed(ids, targets).loss, expected)


@pytest.mark.parametrize(
    "returned",
    [
        lambda s: 30 * torch.tanh(s.z / 30),
        lambda s: s.z.clamp(-100, 100),
        lambda s: 1.02 * s.z,
        lambda s: (s.z + s.model.bias, None),
        lambda s: s.z[..., :-1],
        lambda s: {"logits": s.z.masked_fill(torch.arange(V) == 0, -1e9)},
        lambda s: s.z + s.model.ahead(s.x),
        lambda s: s.model.ahead(s.x),
        lambda s: (s.model.ahead(s.x), s.z),
        lambda s: s.model.out(s.x[:, -1:]),
        lambda s: s.z.chunk(2, dim=1)[1],
        lambda s: s.z.mean(),
        lambda _: None,
        lambda s: F.dropout(s.z, 0.5, s.model.training),
        lambda s: 3 * s.z if s.model.training else s.z,
    ],
)
def test_a_head_whose_output_is_not_what_the_module_returns_is_refused(returned: Any) -> None:
    with pytest.raises(TypeError, match="head 'out'") as refused:
        superpose(Returns(returned), embedding="tokens", head="out")
    assert "\n" not in str(refused.value)


def test_the_check_leaves_modes_buffers_and_random_numbers_as_they_were() -> None:
    model = Returns(lambda s: s.z if s.model.norm(s.z.transpose(1, 2)).sum() > -math.inf else None)
    model.norm = torch.nn.BatchNorm1d(V)
    model.mix.eval()
    buffers, state = {k: v.clone() for k, v in model.named_buffers()}, torch.get_rng_state()
    superpose(model, embedding="tokens", head="out")
    assert model.training
    assert not model.mix.training
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_on_flat_hidden_states_is_taken() -> None:
    flat, stacked = FlatHidden(), Returns(lambda s: s.z)
    stacked.load_state_dict(flat.state_dict(), strict=False)
    losses = [superpose(model, embedding="tokens", head="out")(*few_bags()).loss for model in (flat, stacked)]
    torch.testing.assert_close(losses[0], losses[1])


class Capped(nn.Module):
    """The advice followed: the head and what comes after it in one submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, V)

    def forward(self, x: Tensor) -> Tensor:
        return 0.1 * torch.tanh(self.linear(x) / 0.1)


def test_the_head_and_its_cap_in_one_submodule_are_taken_and_its_linear_part_is_not() -> None:
    model = Returns(lambda s: s.z)
    model.out = Capped()
    ids, targets = few_bags()
    logits = model.out(torch.tanh(model.mix(model.tokens(ids).mean(2).cumsum(1)))).flatten(0, 1)
    expected = torch.stack([F.cross_entropy(logits, targets[..., k].flatten()) for k in range(4)]).mean()
    torch.testing.assert_close(superpose(model, embedding="tokens", head="out")(ids, targets).loss, expected)
    with pytest.raises(TypeError, match=r"after its head 'out\.linear'"):
        superpose(model, embedding="tokens", head="out.linear")


def test_the_z_loss_needs_the_logits_themselves() -> None:
    model = Returns(lambda s: F.log_softmax(s.z, dim=-1))
    with pytest.raises(TypeError, match="head 'out'"):
        superpose(model, embedding="tokens", head="out", z_loss=1e-4)


class WithPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.places = nn.Embedding(V, D), nn.Embedding(64, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) + self.places(torch.arange(ids.shape[1]))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.up = nn.Embedding(V, D // 2), nn.Linear(D // 2, D)

    def forward(self, ids: Tensor) -> Tensor:
        return self.up(self.inner(ids))


class UnusedParts(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Embedding(V, D)
        self.drop = nn.Dropout(0.1)


class ReadsPadding(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(self.tokens(ids).masked_fill((ids == 0).unsqueeze(-1), 0.0))


class FreshHead(LooksTwice):
    """A head of zeros, as many start with: no logit shows the second table."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.out.weight)


class FlatIds(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(self.tokens(ids.flatten())).view(*ids.shape, V)


class FlatHidden(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(torch.tanh(self.mix(self.tokens(ids).cumsum(1))).flatten(0, 1))


class PositionsFirst(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        return self.out(torch.tanh(self.mix(self.tokens(ids).cumsum(1))).transpose(0, 1).flatten(0, 1))


class TwoHeads(Plain):
    def forward(self, ids: Tensor, *_: Any, **__: Any) -> Any:
        x = self.tokens(ids)
        return torch.cat([self.out(part) for part in x.chunk(2, dim=1)], dim=1)


class Needs(Plain):
    def forward(self, ids: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        return self.out(self.tokens(ids)) * mask


@pytest.mark.parametrize(
    ("model", "embedding", "message"),
    [
        (LooksTwice, "tokens", "looks ids up outside its embedding"),
        (FreshHead, "tokens", "looks ids up outside its embedding"),
        (ReadsPadding, "tokens", "looks ids up outside its embedding"),
        (SeesAll, "tokens", "is not causal"),
        (TwoLookUps, "tokens", "calls its embedding 'tokens' 2 times"),
        (FlatIds, "tokens", "does not give its token ids .* to its embedding 'tokens'"),
        (PositionsFirst, "tokens", "is not causal"),
        (TwoHeads, "tokens", "calls its head 'out' 2 times"),
        (Plain, "places", "does not give its token ids .* to its embedding 'places'.*it seems to be 'tokens'"),
        (Plain, "mix", "does not give its token ids .* to its embedding 'mix'"),
        (UnusedParts, "unused", "calls its embedding 'unused' 0 times"),
        (UnusedParts, "drop", "its embedding 'drop' has no weights"),
        (Needs, "tokens", "does not run as module.ids.*mask"),
    ],
)
def test_what_would_be_trained_wrongly_is_refused(model: type[Plain], embedding: str, message: str) -> None:
    with pytest.raises(TypeError, match=message) as refused:
        superpose(model(), embedding=embedding, head="out")
    assert "\n" not in str(refused.value)


def test_an_embedding_that_adds_positions_is_refused_and_one_that_projects_is_not() -> None:
    model = Returns(lambda s: s.z)
    model.tokens = WithPlaces()
    with pytest.raises(TypeError, match="depends on the position"):
        superpose(model, embedding="tokens", head="out")
    superpose(model, embedding="tokens.inner", head="out")
    model.tokens = Scaled()
    superpose(model, embedding="tokens", head="out")


class GPT(nn.Module):
    """The interface of nanoGPT's model: `idx.view`, tied weights, and without targets the last position's logits."""

    def __init__(self, block_size: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = block_size
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(V, D), "wpe": nn.Embedding(block_size, D)})
        self.mix = nn.Linear(D, D)
        self.lm_head = nn.Linear(D, V, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert idx.view(-1).numel() <= self.block_size * len(idx)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.shape[1]))
        x = x + torch.tanh(self.mix(x.cumsum(1)))
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, V), targets.view(-1), ignore_index=-1)


class CappedGPT(GPT):
    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(idx, targets)
        return 15 * torch.tanh(logits / 15), loss


class LastOnly(GPT):
    def forward(self, idx: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(idx)[0]


class NeedsTargets(GPT):
    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().forward(idx, targets)


@pytest.mark.parametrize("kind", [GPT, NeedsTargets])
def test_a_forward_that_gives_all_logits_only_with_targets(kind: type[GPT]) -> None:
    model = kind()
    superposed = superpose(model, embedding="transformer.wte", head="lm_head")
    ids, targets = few_bags()
    plain = superposed(ids[..., 0], targets[..., 0]).loss
    torch.testing.assert_close(plain, model(ids[..., 0].contiguous(), targets[..., 0].contiguous())[1])
    superposed(ids, targets).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    x = model.transformer["wte"](ids).mean(2) + model.transformer["wpe"](torch.arange(8))
    logits = model.lm_head(x + torch.tanh(model.mix(x.cumsum(1)))).flatten(0, 1)
    torch.stack([F.cross_entropy(logits, targets[..., k].flatten()) for k in range(4)]).mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_forward_for_the_last_position_only_is_refused() -> None:
    for kind, message in ((LastOnly, "for all positions"), (CappedGPT, "changes its logits after its head 'lm_head'")):
        with pytest.raises(TypeError, match=message):
            superpose(kind(), embedding="transformer.wte", head="lm_head")
    unverified = superpose(LastOnly(), embedding="transformer.wte", head="lm_head", verify=False)
    with pytest.raises(TypeError, match="for all positions"):
        unverified(*few_bags())


def test_a_submodule_that_is_not_there_is_named() -> None:
    with pytest.raises(TypeError, match="Plain has no submodule 'token'; did you mean 'tokens'"):
        superpose(Plain(), embedding="token", head="out")
    with pytest.raises(TypeError, match="Plain has no submodule Linear"):
        superpose(Plain(), embedding="tokens", head=nn.Linear(2, 2))


def test_without_names_it_is_for_hugging_face_models() -> None:
    model = tiny_model("llama", tied=True)
    superposed = superpose(model, z_loss=1e-4, loss_backend="chunked")
    assert isinstance(superposed, SuperposedLM)
    assert (superposed.model, superposed.z_loss, superposed.loss_backend) == (model, 1e-4, "chunked")
    by_name = superpose(model, embedding="model.embed_tokens", head="lm_head")
    ids, targets = few_bags()
    torch.testing.assert_close(by_name(ids, targets).loss, superpose(model)(ids, targets).loss)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Plain(), {}, "Plain is not a Hugging Face .*embedding="),
        (Plain(), {"embedding": "tokens"}, "both"),
        (Plain(), {"head": "out"}, "both"),
        (Plain(), {"embedding": "tokens", "head": "out", "loss_backend": "chunked"}, "loss_backend"),
        ("gpt2", {}, "not a str"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        superpose(model, **options)
