"""Multi-hot cross-entropy against five lines in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from token_superposition import linear_multi_hot_cross_entropy, multi_hot_cross_entropy, slot_weights


def reference(logits: Tensor, targets: Tensor, weights: Tensor | None, reduction: str, z_loss: float = 0.0) -> Tensor:
    """The definition: a weighted sum of s ordinary cross-entropies, each with its z-loss."""
    weights = torch.ones(targets.shape[1]) if weights is None else weights
    kept = (targets != -100) * weights.double()
    terms = [F.cross_entropy(logits, targets[:, k], reduction="none") for k in range(targets.shape[1])]
    terms = [term + z_loss * logits.logsumexp(-1).square() for term in terms]
    rows = (torch.stack(terms, dim=1) * kept).sum(dim=1)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / kept.sum().clamp(min=1e-300)}[reduction]


TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@settings(deadline=None, max_examples=200)
@given(
    rows=st.integers(1, 9),
    vocab=st.sampled_from([1, 2, 7, 64, 321]),
    bag_size=st.integers(1, 8),
    dtype=st.sampled_from(list(TOLERANCE)),
    weights=st.sampled_from([None, "power_law", "power_law:1.25", "exponential:0.3", "first_token"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    z_loss=st.sampled_from([0.0, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradient_against_float64(
    rows: int,
    vocab: int,
    bag_size: int,
    dtype: torch.dtype,
    weights: str | None,
    reduction: str,
    ignored: float,
    scale: float,
    z_loss: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, vocab, generator=generator)).to(dtype)
    targets = torch.randint(0, vocab, (rows, bag_size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = -100
    w = None if weights is None else slot_weights(weights, bag_size)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = multi_hot_cross_entropy(ours, targets, slot_weights=w, reduction=reduction, z_loss=z_loss)  # type: ignore[arg-type]
    expected = reference(exact, targets, w, reduction, z_loss)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    upstream = torch.rand(loss.shape, generator=generator)
    loss.backward(upstream.to(loss.dtype))
    expected.backward(upstream.double())
    step = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]  # the loss adds in float32
    torch.testing.assert_close(loss.double(), expected, rtol=step, atol=step * scale)
    size = max(1.0, exact.grad.abs().max().item())
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 1), (5, 33, 4), (17, 320, 2), (3, 1000, 16)])
def test_from_hidden_states_it_is_the_same(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, vocab, bag_size = shape
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8).to(dtype).requires_grad_()
    weight = torch.randn(vocab, 8).to(dtype).requires_grad_()
    bias = torch.randn(vocab).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows, bag_size))
    w = slot_weights("power_law", bag_size)
    linear_multi_hot_cross_entropy(hidden, weight, targets, bias=bias, slot_weights=w).backward()
    inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    reference(F.linear(*inputs), targets, w, "mean").backward()
    tolerance = 3e-2 if dtype == torch.bfloat16 else TOLERANCE[dtype]
    for ours, exact in zip((hidden, weight, bias), inputs, strict=True):
        torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_at_initialisation_the_loss_is_log_of_the_vocabulary() -> None:
    # Trap 2: flattened into a one-hot loss it would be about log(V) / s.
    for bag_size in (1, 2, 4, 16):
        targets = torch.randint(0, 1000, (8, bag_size))
        assert multi_hot_cross_entropy(torch.zeros(8, 1000), targets).item() == pytest.approx(math.log(1000))


def test_a_bag_of_one_repeated_token_is_plain_cross_entropy_on_it() -> None:
    # Trap 3: a multi-hot target made by scatter would drop the duplicates.
    torch.manual_seed(0)
    logits, token = torch.randn(6, 50), torch.randint(0, 50, (6,))
    for weights in (None, slot_weights("power_law", 4)):
        repeated = multi_hot_cross_entropy(logits, token.unsqueeze(1).expand(-1, 4), slot_weights=weights)
        torch.testing.assert_close(repeated, F.cross_entropy(logits, token), rtol=1e-6, atol=0)
    twice = multi_hot_cross_entropy(logits[:1], torch.tensor([[3, 3, 7]]), reduction="sum")
    apart = 2 * F.cross_entropy(logits[:1], torch.tensor([3])) + F.cross_entropy(logits[:1], torch.tensor([7]))
    torch.testing.assert_close(twice, apart)


def test_bag_size_one_is_cross_entropy() -> None:
    # Trap 4.
    torch.manual_seed(0)
    logits, targets = 5 * torch.randn(64, 320), torch.randint(0, 320, (64, 1))
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ours, plain = multi_hot_cross_entropy(a, targets), F.cross_entropy(b, targets.squeeze(1))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    ours.backward()
    plain.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-9)


def test_ragged_bags_weigh_what_their_tokens_weigh() -> None:
    # Trap 5: one sum of weighted terms over one sum of weights, so micro-batches add up to the whole.
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 20), torch.randint(0, 20, (8, 4))
    targets[0, 1:] = -100
    targets[5, 2] = -100
    w = slot_weights("exponential", 4)
    whole = multi_hot_cross_entropy(logits, targets, slot_weights=w)
    parts = [
        multi_hot_cross_entropy(logits[rows], targets[rows], slot_weights=w, reduction="sum")
        for rows in (slice(0, 1), slice(1, 6), slice(6, 8))
    ]
    torch.testing.assert_close(whole, sum(parts) / ((targets != -100) * w).sum())


def test_nothing_to_predict_is_loss_zero_and_gradient_zero() -> None:
    logits = torch.randn(3, 9, requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = multi_hot_cross_entropy(logits, torch.full((3, 2), -100), reduction=reduction)  # type: ignore[arg-type]
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient, torch.zeros(3, 9))


def test_another_ignore_index() -> None:
    logits = torch.randn(2, 9)
    a = multi_hot_cross_entropy(logits, torch.tensor([[1, 0], [2, 3]]), ignore_index=0)
    b = multi_hot_cross_entropy(logits, torch.tensor([[1, -100], [2, 3]]))
    assert torch.equal(a, b)


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, targets = torch.zeros(4, 9), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="do not match"):
        multi_hot_cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match="a bag has 2 targets"):
        multi_hot_cross_entropy(logits, targets, slot_weights=torch.ones(3))
    with pytest.raises(ValueError, match="reduction must be one of"):
        multi_hot_cross_entropy(logits, targets, reduction="max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("power_law", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("power_law:2", [1, 1 / 4, 1 / 9, 1 / 16]),
        ("exponential", [1, 1 / 2, 1 / 4, 1 / 8]),
        ("exponential:0.1", [1, 0.1, 0.01, 0.001]),
        ("first_token", [1, 0, 0, 0]),
        ("mutual_information:0,2,-1", [1, 1 / 2, 1 / 3, 1 / 4]),
        ("mutual_information:1,2,-1", [1, 2 / 3, 5 / 9, 1 / 2]),
    ],
)
def test_slot_weights(name: str, expected: list[float]) -> None:
    weights = slot_weights(name, 4)
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected)


def test_uniform_weights_are_none() -> None:
    assert slot_weights("uniform", 4) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("power-law", "did you mean 'power_law'"),
        ("power_law:x", "not a number"),
        ("power_law:nan", "exponent"),
        ("exponential:1.5", "decay"),
        ("uniform:2", "takes no parameter"),
        ("hinge", "one of uniform"),
        ("mutual_information", r"fit_mutual_information\(tokens, bag_size\)"),
        ("mutual_information:1,2", "takes three numbers, as in mutual_information:0.02,1.2,-1.3"),
        ("mutual_information:1,2,x", "not a number"),
        ("mutual_information:-1,2,-1", "C0 must be at least 0"),
        ("mutual_information:0,0,-1", "a above 0"),
        ("mutual_information:0,1,1", "k below 0"),
        ("mutual_information:0,nan,-1", "a above 0"),
        ("power_law:1,2", "takes one number"),
    ],
)
def test_unknown_slot_weights_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slot_weights(name, 4)


def test_a_target_that_weighs_nothing_may_stand_on_a_masked_logit() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0]], requires_grad=True)
    plain = F.cross_entropy(logits, torch.tensor([1]))
    for targets, weights in (
        (torch.tensor([[1, -100]]), None),
        (torch.tensor([[1, 0]]), slot_weights("first_token", 2)),
    ):
        loss = multi_hot_cross_entropy(logits, targets, slot_weights=weights)
        torch.testing.assert_close(loss, plain)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
