"""Folding, cutting and averaging, each against the plainest way to write it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from token_superposition import bag_embedding, fold_into_bags, split_inputs_and_targets


def test_bags_of_an_ordered_sequence() -> None:
    # Trap 1: on 0, 1, 2, ... bag j is [js, js + s) and its targets are the next s numbers.
    rows = torch.arange(2 * 3 * 5).view(2, 15)
    inputs, targets = split_inputs_and_targets(rows, 3)
    assert inputs.shape == targets.shape == (2, 4, 3)
    assert inputs[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert torch.equal(targets, inputs + 3)


def test_bag_size_one_is_next_token_prediction() -> None:
    rows = torch.arange(10).view(1, 10)
    for mode in ("full", "output_only", "input_only"):
        inputs, targets = split_inputs_and_targets(rows, 1, mode)  # type: ignore[arg-type]
        assert inputs.squeeze(-1).tolist() == [list(range(9))]
        assert targets.squeeze(-1).tolist() == [list(range(1, 10))]


def test_output_only_predicts_the_next_s_tokens_from_plain_inputs() -> None:
    inputs, targets = split_inputs_and_targets(torch.arange(8).view(1, 8), 3, "output_only")
    assert inputs.tolist() == [[[0], [1], [2], [3], [4]]]
    assert targets.tolist() == [[[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]]


def test_input_only_predicts_the_one_token_after_the_bag() -> None:
    inputs, targets = split_inputs_and_targets(torch.arange(9).view(1, 9), 3, "input_only")
    assert inputs.tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert targets.tolist() == [[[3], [6]]]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_both_phases_have_the_same_latent_length(rows: int, length: int, bag_size: int) -> None:
    # Trap 7: raw rows are s times longer, latent rows are not.
    raw = torch.randint(0, 9, (rows, bag_size * (length + 1)))
    inputs, targets = split_inputs_and_targets(raw, bag_size)
    assert inputs.shape == targets.shape == (rows, length, bag_size)
    assert torch.equal(inputs.reshape(rows, -1), raw[:, : bag_size * length])
    assert torch.equal(targets.reshape(rows, -1), raw[:, bag_size:])


@pytest.mark.parametrize(
    ("shape", "bag_size", "message"),
    [((2, 7), 3, "do not fold"), ((7,), 1, "shape"), ((2, 6), 0, "at least 1")],
)
def test_what_does_not_fold_is_refused(shape: tuple[int, ...], bag_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold_into_bags(torch.zeros(shape, dtype=torch.long), bag_size)


@pytest.mark.parametrize(("length", "bag_size"), [(3, 3), (2, 3), (8, 3), (4, 0)])
def test_rows_of_the_wrong_length_are_refused(length: int, bag_size: int) -> None:
    with pytest.raises(ValueError, match=r"bag"):
        split_inputs_and_targets(torch.zeros(2, length, dtype=torch.long), bag_size)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7)),
    vocab=st.integers(1, 6),  # small, so that tokens repeat inside a bag
    width=st.sampled_from([1, 3, 8, 17]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_bag_embedding_is_the_mean_and_so_is_its_gradient(
    shape: tuple[int, int, int], vocab: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, shape, generator=generator)
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype)
    upstream = torch.randn(*shape[:2], width, generator=generator, dtype=torch.float64).to(dtype)
    ours = weight.clone().requires_grad_()
    mean = bag_embedding(ids, ours)
    mean.backward(upstream)
    exact = weight.double().requires_grad_()
    reference = exact[ids].mean(dim=2)
    reference.backward(upstream.double())
    # One rounding to the dtype at the end, and sums in float32 before it.
    assert mean.dtype == dtype
    step = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(mean.double(), reference, rtol=step, atol=step)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=4 * step, atol=4 * step)


def test_the_sum_is_in_float32_for_a_bfloat16_weight() -> None:
    # Trap 18: on the CPU, torch's own kernel adds in bfloat16 and is off in some values of a hundred.
    torch.manual_seed(0)
    weight, ids = torch.randn(500, 64).bfloat16(), torch.randint(0, 500, (8, 32, 16))
    assert torch.equal(bag_embedding(ids, weight), weight.float()[ids].mean(dim=2).bfloat16())


@pytest.mark.parametrize("padded", [False, True])
def test_same_gradient_every_run(padded: bool) -> None:
    # Trap 18: W[ids] in a backward on several threads is not.
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        ids = torch.randint(-1 if padded else 0, 2, (256, 128, 4))
        upstream = torch.randn(256, 128, 96)
        gradients = []
        for _ in range(8):
            weight = torch.ones(2, 96, requires_grad=True)
            bag_embedding(ids, weight, padded=padded).backward(upstream)
            gradients.append(weight.grad)
        assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])
    finally:
        torch.set_num_threads(threads)


def test_a_padding_row_counts_in_the_mean_and_takes_no_gradient() -> None:
    weight = torch.arange(6.0).view(3, 2).requires_grad_()
    mean = bag_embedding(torch.tensor([[[0, 2]]]), weight, padding_idx=2)
    assert mean.tolist() == [[[2.0, 3.0]]]
    mean.sum().backward()
    assert weight.grad.tolist() == [[0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]


def test_the_embedding_holds_no_tensor_s_times_larger() -> None:
    saved: list[int] = []
    weight = torch.randn(50, 64, requires_grad=True)
    ids = torch.randint(0, 50, (4, 8, 16))

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        bag_embedding(ids, weight).sum()
    assert max(saved) <= max(weight.numel(), ids.numel()) < ids.numel() * 64


@settings(deadline=None)
@given(
    bag_size=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_padding_weighs_nothing_in_a_bags_mean_or_gradient(bag_size: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (3, 4, bag_size), generator=generator)
    real = torch.randint(1, bag_size + 1, (3, 4, 1), generator=generator) > torch.arange(bag_size)
    padded = torch.where(real, ids, -100)
    weight = torch.randn(11, 6, generator=generator).to(dtype).requires_grad_()
    reference = weight.detach().double().requires_grad_()
    mean = bag_embedding(padded, weight, padded=True)
    rows = [reference[bag[bag >= 0]].mean(dim=0) for bag in padded.view(-1, bag_size)]
    expected = torch.stack(rows).view(3, 4, 6)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(mean.double(), expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(mean, weight, direction.to(dtype))
    (wanted,) = torch.autograd.grad(expected, reference, direction.to(dtype).double())
    torch.testing.assert_close(gradient.double(), wanted, rtol=4 * tolerance, atol=4 * tolerance)
    # A full bag is the bag it always was, to the last bit, whatever stands beside it.
    full = real.all(dim=-1)
    assert torch.equal(mean[full], bag_embedding(ids, weight)[full])


def test_what_marks_padding_changes_nothing() -> None:
    ids = torch.tensor([[[3, 4, 5], [6, 7, -100], [8, -100, -100], [-100, -100, -100]]])
    outcomes = []
    for marker in (-100, -1, -7):
        torch.manual_seed(0)
        weight = torch.randn(9, 6, requires_grad=True)
        mean = bag_embedding(torch.where(ids < 0, marker, ids), weight, padded=True)
        (gradient,) = torch.autograd.grad(mean, weight, torch.ones_like(mean))
        assert not gradient[:3].any()  # of tokens that are in no bag
        assert not mean[0, 3].any()  # an empty bag
        outcomes.append((mean, gradient))
    for mean, gradient in outcomes:
        assert torch.equal(mean, outcomes[0][0])
        assert torch.equal(gradient, outcomes[0][1])
