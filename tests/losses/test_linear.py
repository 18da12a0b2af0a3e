"""The loss from hidden states, by every backend, against five lines in float64, whatever the chunk."""

import importlib.util
import math
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from token_superposition import linear_multi_hot_cross_entropy, multi_hot_cross_entropy, slot_weights
from token_superposition.losses import linear
from token_superposition.losses.fused import kernel_is_there
from token_superposition.losses.linear import chosen_backend

LIGER = importlib.util.find_spec("liger_kernel") is not None and (
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
)
BACKENDS = ["chunked", "chunked", "plain", *(["torch"] if kernel_is_there("torch") else [])]  # half of them ours
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor | None,
    *,
    reduction: str = "mean",
    z_loss: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The definition: a weighted sum of s ordinary cross-entropies over all the logits, each with its z-loss."""
    logits = scale * F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    kept = (targets != -100) * (torch.ones(targets.shape[1]) if weights is None else weights).double()
    terms = [F.cross_entropy(logits, targets[:, k], reduction="none") for k in range(targets.shape[1])]
    rows = (torch.stack([t + z_loss * logits.logsumexp(-1).square() for t in terms], dim=1) * kept).sum(dim=1)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / kept.sum().clamp(min=1e-300)}[reduction]


@settings(deadline=None, max_examples=300)
@given(
    rows=st.integers(1, 11),
    vocab=st.sampled_from([1, 2, 7, 64, 321]),
    width=st.sampled_from([1, 5, 16]),
    bag_size=st.integers(1, 8),
    dtype=st.sampled_from(list(TOLERANCE)),
    weights=st.sampled_from([None, "power_law", "exponential:0.3", "first_token"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    biased=st.booleans(),
    padding=st.sampled_from([0, 3]),
    head=st.sampled_from([(1.0, None), (0.0625, None), (1.0, 3.0), (2.0, 5.0)]),
    z_loss=st.sampled_from([0.0, 1e-3]),
    chunk_rows=st.integers(1, 12),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_against_float64(
    rows: int,
    vocab: int,
    width: int,
    bag_size: int,
    dtype: torch.dtype,
    weights: str | None,
    reduction: str,
    ignored: float,
    biased: bool,
    padding: int,
    head: tuple[float, float | None],
    z_loss: float,
    chunk_rows: int,
    backend: str,
    seed: int,
) -> None:
    assume(backend != "torch" or not (head[1] or z_loss or reduction == "none"))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(vocab + padding, width, generator=generator).to(dtype)
    bias = torch.randn(vocab + padding, generator=generator).to(dtype) if biased else None
    targets = torch.randint(0, vocab, (rows, bag_size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = -100
    w = None if weights is None else slot_weights(weights, bag_size)
    ours = [None if part is None else part.clone().requires_grad_() for part in (hidden, weight, bias)]
    exact = [None if part is None else part.double().requires_grad_() for part in (hidden, weight, bias)]
    scale, softcap = head
    loss = linear_multi_hot_cross_entropy(
        ours[0],  # type: ignore[arg-type]
        ours[1],  # type: ignore[arg-type]
        targets,
        bias=ours[2],
        slot_weights=w,
        reduction=reduction,  # type: ignore[arg-type]
        z_loss=z_loss,
        logit_scale=scale,
        softcap=softcap,
        vocab_size=vocab,
        backend=backend,  # type: ignore[arg-type]
        chunk_bytes=chunk_rows * vocab * (8 if dtype == torch.float64 else 4),
    )
    expected = reference(
        exact[0],  # type: ignore[arg-type]
        exact[1][:vocab],  # type: ignore[index]
        None if exact[2] is None else exact[2][:vocab],
        targets,
        w,
        reduction=reduction,
        z_loss=z_loss,
        scale=scale,
        softcap=softcap,
    )
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    upstream = torch.rand(loss.shape, generator=generator)
    loss.backward(upstream.to(loss.dtype))
    expected.backward(upstream.double())
    size = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=TOLERANCE[dtype] * size)
    for mine, theirs in zip(ours, exact, strict=True):
        if mine is not None and theirs is not None:
            assert mine.grad is not None
            assert theirs.grad is not None
            assert mine.grad.dtype == dtype
            size = max(1.0, theirs.grad.abs().max().item())
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=2 * TOLERANCE[dtype] * size)


def problem(vocab: int = 300, rows: int = 24, width: int = 8, bag_size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (rows, bag_size), generator=generator)


def chunked(*args: Any, rows: int = 5, **options: Any) -> Tensor:
    return linear_multi_hot_cross_entropy(*args, backend="chunked", chunk_bytes=rows * 4 * args[1].shape[0], **options)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_the_result_does_not_depend_on_the_chunk(dtype: torch.dtype, rounding: float) -> None:
    # Trap 6. A small entry is a sum of larger terms, and rounds as they do: the largest entry is the measure.
    found = []
    for rows in (1, 7, 24, 1000):
        hidden, weight, targets = problem()
        hidden, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight))
        loss = chunked(hidden, weight, targets, rows=rows)
        loss.backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=rounding * a.abs().max().item())


def test_no_tensor_is_as_large_as_the_logits() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return result

    hidden, weight, targets = problem(vocab=300, rows=240)
    with Largest() as seen:
        chunked(hidden, weight, targets, rows=8).backward()
    assert seen.numel == 300 * 8  # the weight's gradient, and a chunk of 8 rows


def test_a_head_tied_to_the_embedding_takes_both_gradients() -> None:
    hidden, weight, targets = problem()
    ids = torch.arange(24)
    results = []
    for backend in ("chunked", "plain"):
        table = weight.detach().clone().requires_grad_()
        states = F.embedding(ids, table) + hidden.detach()
        linear_multi_hot_cross_entropy(states, table, targets, backend=backend).backward()  # type: ignore[arg-type]
        results.append(table.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_gradients_accumulate_over_micro_batches_and_a_second_backward() -> None:
    hidden, weight, targets = problem()
    chunked(hidden, weight, targets).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    whole = (hidden.grad.clone(), weight.grad.clone())
    hidden.grad = weight.grad = None
    for rows in (slice(0, 10), slice(10, 24)):
        share = (rows.stop - rows.start) / 24
        (chunked(hidden[rows], weight, targets[rows]) * share).backward()
    torch.testing.assert_close((hidden.grad, weight.grad), whole, rtol=2e-6, atol=1e-7)
    hidden.grad = weight.grad = None
    loss = chunked(hidden, weight, targets)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close((hidden.grad, weight.grad), tuple(2 * part for part in whole))


def test_a_frozen_head_or_frozen_states_are_no_trouble() -> None:
    hidden, weight, targets = problem()
    chunked(hidden, weight, targets).backward()
    for frozen in (0, 1):
        parts = [hidden.detach().clone(), weight.detach().clone()]
        parts[1 - frozen].requires_grad_()
        chunked(*parts, targets).backward()
        assert parts[frozen].grad is None
        torch.testing.assert_close(parts[1 - frozen].grad, (hidden.grad, weight.grad)[1 - frozen])
    with torch.no_grad():
        assert not chunked(hidden, weight, targets).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["chunked", "plain"])
def test_a_bias_alone_takes_its_gradient(backend: str, reduction: str) -> None:
    hidden, weight, targets = (part.detach() for part in problem())
    torch.manual_seed(0)
    bias, exact = torch.randn(300, requires_grad=True), torch.zeros(300, dtype=torch.float64, requires_grad=True)
    linear_multi_hot_cross_entropy(
        hidden,
        weight,
        targets,
        bias=bias,
        backend=backend,
        reduction=reduction,  # type: ignore[arg-type]
    ).sum().backward()
    shifted = exact + bias.detach()
    reference(hidden.double(), weight.double(), shifted, targets, None, reduction=reduction).sum().backward()
    assert bias.grad is not None
    size = exact.grad.abs().max().item()  # type: ignore[union-attr]
    torch.testing.assert_close(bias.grad.double(), exact.grad, rtol=0, atol=1e-6 * size)


def test_no_gradient_is_formed_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    total = linear.chunked_total

    def watch(*arguments: Any) -> Any:
        asked.append(arguments[-2:])
        return total(*arguments)

    monkeypatch.setattr(linear, "chunked_total", watch)
    hidden, weight, targets = problem()
    chunked(hidden, weight, targets)
    chunked(hidden.detach(), weight, targets)
    chunked(hidden, weight.detach(), targets)
    with torch.no_grad():
        chunked(hidden, weight, targets)
    assert asked == [(True, True), (False, True), (True, False), (False, False)]


@pytest.mark.parametrize("backend", sorted(set(BACKENDS)))
def test_any_id_can_stand_for_no_target(backend: str) -> None:
    hidden, weight, targets = problem()
    none = targets[0, 0].item()
    marked = targets.where(targets != none, -100)
    found, expected = (
        linear_multi_hot_cross_entropy(hidden, weight, ids, ignore_index=index, backend=backend)  # type: ignore[arg-type]
        for ids, index in ((targets, none), (targets.where(targets != none, 10**6), 10**6))
    )
    wanted = linear_multi_hot_cross_entropy(hidden, weight, marked, backend=backend)  # type: ignore[arg-type]
    assert torch.equal(found, wanted)
    assert torch.equal(expected, wanted)


def test_under_autocast_the_weight_keeps_its_own_precision() -> None:
    hidden, weight, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    reference(*exact, None, targets, None).backward()
    for mine, theirs in zip((hidden, weight), exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=0.02 * theirs.grad.abs().max().item())


def test_under_autocast_products_are_in_its_dtype() -> None:
    hidden, weight, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked(hidden, weight, targets)
    assert torch.equal(loss, chunked(hidden.bfloat16(), weight, targets))
    assert not torch.equal(loss, chunked(hidden, weight, targets))


@pytest.mark.parametrize("backend", ["plain", "chunked"])
def test_float16_gradients_of_many_logits_are_no_zeros(backend: str) -> None:
    # A mean over 512 rows and 32,768 logits gives each about 6e-8, the least that float16 has.
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 8).half(), (0.1 * torch.randn(32_768, 8)).half()
    targets = torch.randint(0, 100, (512, 2))
    ours = [part.clone().requires_grad_() for part in (hidden, weight)]
    exact = [part.double().requires_grad_() for part in (hidden, weight)]
    loss = linear_multi_hot_cross_entropy(*ours, targets, backend=backend)  # type: ignore[arg-type]
    (loss * 2.0**16).backward()
    (reference(*exact, None, targets, None) * 2.0**16).backward()
    for rows in (slice(0, 100), slice(100, None)):  # targets, and what only the softmax gives a gradient
        assert ours[1].grad is not None
        assert exact[1].grad is not None
        error = (ours[1].grad[rows].double() - exact[1].grad[rows]).norm() / exact[1].grad[rows].norm()
        assert error < 2e-3


def test_float16_gradients_do_not_leave_its_range() -> None:
    # A loss scaler multiplies after the gradients were formed: formed small, they would be zero.
    rows, targets = 4096, torch.randint(0, 50, (4096, 4))
    hidden = torch.randn(rows, 8).half().requires_grad_()
    weight = torch.zeros(50, 8).half().requires_grad_()
    (linear_multi_hot_cross_entropy(hidden, weight, targets, backend="chunked") * 2.0**14).backward()
    exact = torch.zeros(50, 8, dtype=torch.float64, requires_grad=True)
    (reference(hidden.detach().double(), exact, None, targets, None) * 2.0**14).backward()
    assert weight.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=0, atol=5e-3 * exact.grad.abs().max().item())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiled_there_is_no_graph_break(reduction: str) -> None:
    hidden, weight, targets = problem()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked(2 * hidden, weight, targets, reduction=reduction).sum()

    loss(hidden, weight).backward()
    eager = (hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden, weight).backward()
    torch.testing.assert_close((hidden.grad, weight.grad), eager)


def test_compiled_once_it_takes_any_number_of_rows() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(chunked, fullgraph=True, dynamic=True, backend=backend)
    for rows in (24, 9, 17):
        hidden, weight, targets = problem(rows=rows)
        torch.testing.assert_close(compiled(hidden, weight, targets), chunked(hidden, weight, targets))
    assert len(graphs) == 1


def test_a_gradient_of_the_gradient_is_refused() -> None:
    # Silence would be wrong: what flows through the softmax would count as a constant.
    logits, targets = torch.randn(3, 7, requires_grad=True), torch.zeros(3, 2, dtype=torch.long)
    loss = multi_hot_cross_entropy(logits, targets)
    with pytest.raises(RuntimeError, match="do not use create_graph"):
        torch.autograd.grad(loss, logits, create_graph=True)
    hidden, weight, targets = problem()
    for reduction in ("mean", "none"):
        total = linear_multi_hot_cross_entropy(hidden, weight, targets, reduction=reduction, backend="chunked").sum()
        with pytest.raises(RuntimeError, match="do not use create_graph"):
            torch.autograd.grad(total, hidden, create_graph=True)


def test_the_operators_are_what_torch_expects_of_one() -> None:
    hidden, weight, targets = problem()
    operators = torch.ops.token_superposition
    for bias in (None, torch.randn(300, dtype=torch.float64, requires_grad=True)):
        arguments = (hidden, weight, bias, targets, torch.ones(24, 4), 1e-3, 0.5, 3.0, 300, 7)
        torch.library.opcheck(operators.linear_multi_hot_total, (*arguments, True, True))
        torch.library.opcheck(operators.linear_multi_hot_rows, arguments)


def test_as_a_layer_it_agrees_with_a_finite_difference() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(4, 7).double()
    targets = torch.tensor([[0, 0, 6], [3, -100, 1], [5, 4, 2]])
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_multi_hot_cross_entropy(
            h, w, targets, bias=b, z_loss=1e-2, softcap=2.0, logit_scale=1.5, backend="chunked", chunk_bytes=112
        ),
        (hidden, head.weight, head.bias),
    )


def test_few_logits_take_the_plain_path() -> None:
    assert chosen_backend("auto", 2048, 256) == "plain"
    assert chosen_backend("auto", 512, 32768) == "chunked"
    assert chosen_backend("plain", 512, 32768) == "plain"
    hidden, weight, targets = problem()
    plain = multi_hot_cross_entropy(F.linear(hidden, weight), targets)
    assert torch.equal(linear_multi_hot_cross_entropy(hidden, weight, targets), plain)


def test_at_initialisation_the_loss_is_log_of_the_vocabulary() -> None:
    # Trap 2; and padding rows of the head take no part.
    hidden, targets = torch.zeros(8, 4), torch.randint(0, 1000, (8, 4))
    loss = linear_multi_hot_cross_entropy(hidden, torch.randn(1024, 4), targets, vocab_size=1000, backend="chunked")
    assert loss.item() == pytest.approx(math.log(1000))


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets = problem()
    for options, message in (
        ({"bias": torch.zeros(3)}, "bias has shape"),
        ({"vocab_size": 301}, "vocab_size 301"),
        ({"softcap": 0.0}, "softcap must be positive"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"backend": "fast"}, "backend must be one of"),
        ({"slot_weights": torch.ones(3)}, "a bag has 4 targets"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_multi_hot_cross_entropy(hidden, weight, targets, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not match"):
        linear_multi_hot_cross_entropy(hidden, weight[:, :3], targets)
    with pytest.raises(ValueError, match="do not match"):
        linear_multi_hot_cross_entropy(hidden, weight, targets[:3])


@pytest.mark.skipif(not kernel_is_there("torch"), reason="F.linear_cross_entropy is not in this torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bag_size", [1, 4])
@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.0])
def test_a_kernel_for_one_target_scores_bags(dtype: torch.dtype, bag_size: int, ignored: float) -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 300, (24, bag_size))
    targets[torch.rand(targets.shape) < ignored] = -100
    parts = [torch.randn(24, 8), torch.randn(303, 8), torch.randn(303)]
    ours = [part.to(dtype).requires_grad_() for part in parts]
    exact = [part.detach().double().requires_grad_() for part in ours]
    w = slot_weights("power_law", bag_size)
    loss = linear_multi_hot_cross_entropy(
        ours[0], ours[1], targets, bias=ours[2], slot_weights=w, logit_scale=0.5, vocab_size=300, backend="torch"
    )
    loss.backward()
    expected = reference(exact[0], exact[1][:300], exact[2][:300], targets, w, scale=0.5)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        size = max(1e-3, theirs.grad.abs().max().item())
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=2 * TOLERANCE[dtype] * size)


def test_a_kernel_that_is_not_there_or_cannot_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = problem()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="loss_backend liger needs liger-kernel and CUDA; use auto"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, backend="liger")
    with pytest.raises(ValueError, match="loss_backend torch supports no softcap"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, softcap=3.0, backend="torch")
    with pytest.raises(ValueError, match="loss_backend torch supports no softcap and no reduction 'none'"):
        linear_multi_hot_cross_entropy(hidden, weight, targets, reduction="none", backend="torch")
    if kernel_is_there("torch"):
        with pytest.raises(ValueError, match="loss_backend torch does not support z_loss"):
            linear_multi_hot_cross_entropy(hidden, weight, targets, z_loss=0.1, backend="torch")


@pytest.mark.skipif(not LIGER, reason="needs liger-kernel, and without a GPU triton and TRITON_INTERPRET=1")
@pytest.mark.parametrize("bag_size", [1, 4])
def test_ligers_kernel_scores_bags(monkeypatch: pytest.MonkeyPatch, bag_size: int) -> None:
    monkeypatch.setattr("token_superposition.losses.fused.kernel_is_there", lambda _: True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for backend in ("liger", "chunked"):
        torch.manual_seed(0)
        hidden, weight = (torch.randn(rows, 8, device=device, requires_grad=True) for rows in (12, 50))
        targets = torch.randint(0, 50, (12, bag_size), device=device)
        targets[3] = -100
        loss = linear_multi_hot_cross_entropy(hidden, weight, targets, backend=backend, z_loss=1e-3)  # type: ignore[arg-type]
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
