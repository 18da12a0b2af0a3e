"""`SuperposedLM` on tiny models of five families, against the model itself and against five lines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import TINY, tiny_model
from token_superposition import SuperposedLM, slot_weights, split_inputs_and_targets
from token_superposition.losses import linear
from token_superposition.models.families import embedding_scale

FAMILIES = [(family, tied) for family in TINY for tied in (True, False)]
VOCAB = 67


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert found
    return found


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = (ours[name] - expected).norm()
        assert difference <= tolerance * expected.norm() + 1e-12, f"{name}: {difference} of {expected.norm()}"


def rows(bag_size: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, (3, bag_size * (12 + 1)), generator=torch.Generator().manual_seed(seed))


def router_term(output: Any) -> Tensor:
    """What a mixture of experts adds to its loss, 0 for the others."""
    aux = getattr(output, "aux_loss", None)
    return torch.zeros(()) if aux is None else 0.05 * aux


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_bag_size_one_equals_the_models_own_labels(family: str, tied: bool) -> None:
    # Trap 4: relative 1e-6 in float32, loss and gradients, router loss kept.
    model = tiny_model(family, tied=tied)
    superposed = SuperposedLM(model)
    ids = rows(1)
    # The model shifts its labels itself; the last position has no target there.
    targets = torch.cat([ids[:, 1:], torch.full((3, 1), -100)], dim=1)
    own = model(input_ids=ids, labels=ids).loss
    own.backward()
    expected = gradients(model)
    ours = superposed(ids, targets)
    torch.testing.assert_close(ours.loss, own, rtol=1e-6, atol=0)
    ours.loss.backward()
    assert_same_gradients(gradients(model), expected, 1e-6)
    assert ours.weight_sum.item() == 3 * 12


@pytest.mark.parametrize("weights", [None, "power_law"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_bags_equal_five_lines(family: str, tied: bool, weights: str | None) -> None:
    model = tiny_model(family, tied=tied)
    superposed = SuperposedLM(model)
    inputs, targets = split_inputs_and_targets(rows(4), 4)
    w = slot_weights(weights or "uniform", 4)

    embeddings = model.get_input_embeddings()(inputs).mean(dim=2)  # type: ignore[operator]
    output = model(inputs_embeds=embeddings)
    terms = [F.cross_entropy(output.logits.flatten(0, 1), targets[..., k].flatten()) for k in range(4)]
    scale = torch.full((4,), 0.25) if w is None else w / w.sum()
    expected = (torch.stack(terms) * scale).sum() + router_term(output)
    expected.backward()
    expected_gradients = gradients(model)

    ours = superposed(inputs, targets, w)
    torch.testing.assert_close(ours.loss, expected, rtol=2e-6, atol=0)
    ours.loss.backward()
    assert_same_gradients(gradients(model), expected_gradients, 2e-6)
    expected = 3 * 12 * (4.0 if w is None else w.double().sum().item())
    assert ours.weight_sum.item() == pytest.approx(expected, rel=1e-12)


def documents() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of two documents in bags of 3: their last bags are short, and predict nothing."""
    ids, targets = split_inputs_and_targets(rows(3)[:, :39], 3)
    position_ids = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]).expand(3, -1)
    ids, targets = ids.clone(), targets.clone()
    ids[:, 4, 1:] = ids[:, 11, 2:] = -100
    targets[:, 3, 1:] = targets[:, 4] = targets[:, 10, 2:] = targets[:, 11] = -100
    return ids, targets, position_ids


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "gpt2"])
def test_padded_bags_equal_a_few_lines(family: str, apart: bool) -> None:
    model = tiny_model(family, tied=False)
    superposed = SuperposedLM(model)
    if apart:
        superposed.keep_documents_apart()
        superposed.model.config.output_router_logits = False  # its loss is over the whole row
    ids, targets, position_ids = documents()
    module = model.get_input_embeddings()  # type: ignore[operator]
    means = [module(bag[bag >= 0]).mean(dim=0) for bag in ids.flatten(0, 1)]
    embeddings = torch.stack(means).view(3, 12, -1)
    first = torch.arange(12) < 5
    if apart:  # each document in rows of its own
        parts = [model(inputs_embeds=embeddings[:, part]) for part in (first, ~first)]
        logits, extra = torch.cat([part.logits for part in parts], dim=1), torch.zeros(())
    else:
        output = model(
            inputs_embeds=embeddings, position_ids=position_ids, attention_mask=torch.ones(3, 12, dtype=torch.long)
        )
        logits, extra = output.logits, router_term(output)
    total = F.cross_entropy(logits.unsqueeze(2).expand(-1, -1, 3, -1).flatten(0, 2), targets.flatten(), reduction="sum")
    expected = total / (targets >= 0).sum() + extra
    expected.backward()
    wanted = gradients(model)
    ours = superposed(ids, targets, None, position_ids)
    torch.testing.assert_close(ours.loss, expected, rtol=2e-6, atol=0)
    assert ours.weight_sum == (targets >= 0).sum()
    ours.loss.backward()
    assert_same_gradients(gradients(model), wanted, 2e-6)


def test_what_marks_padding_changes_no_bit() -> None:
    outcomes = []
    for marker in (-100, -1):
        model = tiny_model("llama", tied=True)
        ids, targets, position_ids = documents()
        loss = SuperposedLM(model)(ids.where(ids >= 0, marker), targets, None, position_ids).loss
        loss.backward()
        outcomes.append((loss, gradients(model)))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    assert all(torch.equal(gradient, outcomes[1][1][name]) for name, gradient in outcomes[0][1].items())


def test_the_router_loss_is_there() -> None:
    model = tiny_model("qwen3_moe", tied=False)
    inputs, targets = split_inputs_and_targets(rows(4), 4)
    with_router = SuperposedLM(model)(inputs, targets).loss
    model.config.output_router_logits = False  # type: ignore[union-attr]
    without = SuperposedLM(model)(inputs, targets).loss
    model.config.output_router_logits = True  # type: ignore[union-attr]
    aux = model(inputs_embeds=model.get_input_embeddings()(inputs).mean(dim=2)).aux_loss  # type: ignore[operator]
    torch.testing.assert_close(with_router - without, 0.05 * aux, rtol=1e-4, atol=1e-6)
    assert aux > 0.5


@pytest.mark.parametrize("family", list(TINY))
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = tiny_model(family, tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = set(vars(model))
    inputs, targets = split_inputs_and_targets(rows(2), 2)
    model.eval()
    ids = inputs[..., 0]
    own = model(input_ids=ids, labels=ids).loss
    SuperposedLM(model)(inputs, targets).loss.backward()
    assert not any(module.training for module in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(vars(model)) == attributes
    assert torch.equal(model(input_ids=ids, labels=ids).loss, own)


def test_the_models_own_loss_function_comes_back_after_an_error() -> None:
    model = tiny_model("llama", tied=True)
    marker = lambda **_: torch.zeros(())  # noqa: E731
    model.loss_function = marker
    superposed = SuperposedLM(model)
    with pytest.raises(ValueError, match="are not aligned"):
        superposed(torch.zeros(1, 4, 2, dtype=torch.long), torch.zeros(1, 3, 2, dtype=torch.long))
    assert model.loss_function is marker


@pytest.mark.parametrize("family", list(TINY))
def test_first_loss_is_log_of_the_vocabulary(family: str) -> None:
    # Trap 2, through whole models: small weights make every logit nearly the same.
    model = tiny_model(family, tied=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-3)  # type: ignore[operator]
    superposed = SuperposedLM(model)
    router = 0.05 * 4 if family == "qwen3_moe" else 0  # its loss is about the number of active experts
    for bag_size in (1, 2, 6):
        inputs, targets = split_inputs_and_targets(rows(bag_size), bag_size)
        assert superposed(inputs, targets).loss.item() == pytest.approx(math.log(VOCAB), rel=0.02, abs=router)


@pytest.mark.parametrize("mode", ["full", "output_only", "input_only"])
def test_no_earlier_loss_sees_a_later_token(mode: Any) -> None:
    # Trap 1: change one raw token; every bag whose inputs and targets end before it keeps its loss.
    model = tiny_model("llama", tied=True)
    superposed = SuperposedLM(model)
    bag_size, row = 3, rows(3)[:1]
    inputs, targets = split_inputs_and_targets(row, bag_size, mode)
    number = torch.arange(row.shape[1]).unsqueeze(0)
    _, target_places = split_inputs_and_targets(number, bag_size, mode)

    def losses(ids: Tensor) -> list[float]:
        inputs, targets = split_inputs_and_targets(ids, bag_size, mode)
        found = []
        for position in range(targets.shape[1]):
            only = torch.full_like(targets, -100)
            only[:, position] = targets[:, position]
            with torch.no_grad():
                found.append(superposed(inputs, only).loss.item())
        return found

    changed_at = row.shape[1] // 2
    other = row.clone()
    other[0, changed_at] = (other[0, changed_at] + 1) % VOCAB
    before, after = losses(row), losses(other)
    sees = [bool((places >= changed_at).any()) for places in target_places[0]]
    assert any(sees)
    assert not all(sees)
    for a, b, may_differ in zip(before, after, sees, strict=True):
        assert may_differ or a == b
    assert before != after
    assert inputs.shape[1] == targets.shape[1]


def test_all_targets_ignored_is_loss_zero_and_gradient_zero() -> None:
    # Trap 5.
    model = tiny_model("llama", tied=False)
    for ids, targets in (
        (torch.zeros(2, 5, 3, dtype=torch.long), torch.full((2, 5, 3), -100)),
        (torch.zeros(2, 5, dtype=torch.long), torch.full((2, 5), -100)),
    ):
        output = SuperposedLM(model)(ids, targets)
        output.loss.backward()
        assert output.loss.item() == output.weight_sum.item() == 0
        assert all(not gradient.any() for gradient in gradients(model).values())


def test_micro_batches_weighted_by_their_weights_are_the_batch() -> None:
    # Trap 5, for a dense model: one global sum over one global sum of weights.
    model = tiny_model("llama", tied=True)
    superposed = SuperposedLM(model)
    inputs, targets = split_inputs_and_targets(rows(3), 3)
    targets = targets.clone()
    targets[0, 2:] = -100
    superposed(inputs, targets).loss.backward()
    whole = gradients(model)
    total = (targets != -100).sum()
    for row in range(3):
        output = superposed(inputs[row : row + 1], targets[row : row + 1])
        (output.loss * output.weight_sum / total).backward()
    assert_same_gradients(gradients(model), whole, 1e-5)


def test_gemmas_scale_is_kept() -> None:
    # Trap 19: the embedding's raw weight would miss a factor of sqrt(width).
    model = tiny_model("gemma2", tied=True)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    assert float(embedding_scale(embedding)) == pytest.approx(math.sqrt(32))  # type: ignore[arg-type]
    ids = rows(2)[:, :8].view(3, 4, 2)
    ours = SuperposedLM(model).embed(ids)["inputs_embeds"]
    torch.testing.assert_close(ours, embedding(ids).mean(dim=2))


class DoublingEmbedding(nn.Embedding):
    """An embedding module that no table knows."""

    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def test_an_unknown_embedding_module_is_asked_itself() -> None:
    model = tiny_model("llama", tied=False)
    unknown = DoublingEmbedding(VOCAB, 32)
    model.set_input_embeddings(unknown)  # type: ignore[operator]
    ids = rows(3)[:, :12].view(3, 4, 3)
    torch.testing.assert_close(SuperposedLM(model).embed(ids)["inputs_embeds"], unknown(ids).mean(dim=2))
    short = ids.clone()
    short[0, 1, 2] = short[2, 3, 1] = short[2, 3, 2] = -100
    mean = SuperposedLM(model).embed(short, padded=True)["inputs_embeds"]
    expected = unknown(ids).mean(dim=2)
    expected[0, 1], expected[2, 3] = unknown(ids[0, 1, :2]).mean(dim=0), unknown(ids[2, 3, 0])
    torch.testing.assert_close(mean, expected)


def test_a_hooked_embedding_is_asked_itself() -> None:
    model = tiny_model("llama", tied=False)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_hook(lambda _module, _inputs, output: output + 1)
    ids = rows(3)[:, :12].view(3, 4, 3)
    torch.testing.assert_close(SuperposedLM(model).embed(ids)["inputs_embeds"], embedding(ids).mean(dim=2))


def test_a_model_that_looks_ids_up_elsewhere_is_refused() -> None:
    # Trap 17: never trained wrongly in silence.
    model = tiny_model("llama", tied=False)
    inner: Any = model.model
    original = inner.forward

    def forward(input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **rest: Any) -> Any:
        if input_ids is not None:
            inputs_embeds = model.get_input_embeddings()(input_ids) + input_ids.unsqueeze(-1) / VOCAB  # type: ignore[operator]
        return original(inputs_embeds=inputs_embeds, **rest)

    inner.forward = forward
    with pytest.raises(TypeError, match="looks ids up outside its input embedding"):
        SuperposedLM(model)


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(TypeError, match="not a Hugging Face causal language model"):
        SuperposedLM(nn.Linear(2, 2))


@pytest.mark.parametrize("few", [2**22, 0])  # also where the head computes the loss, and nobody asks for it
def test_a_model_with_a_loss_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(linear, "_FEW_LOGITS", few)
    model = tiny_model("llama", tied=False)
    superposed = SuperposedLM(model)
    original = model.forward

    def forward(**arguments: Any) -> Any:
        arguments["labels"] = None
        output = original(**arguments)
        output.loss = output.logits.mean()
        return output

    model.forward = forward
    with pytest.raises(TypeError, match="without its loss_function"):
        superposed(torch.zeros(1, 4, 2, dtype=torch.long), torch.zeros(1, 4, 2, dtype=torch.long))


def test_expert_loads_count_every_choice() -> None:
    model = tiny_model("qwen3_moe", tied=True)
    ids, targets = torch.randint(0, 67, (2, 3, 8, 4)).unbind(0)
    output = SuperposedLM(model)(ids, targets)
    embedded = model.get_input_embeddings()(ids).mean(dim=2)  # type: ignore[operator]
    router_logits = model(inputs_embeds=embedded, output_router_logits=True).router_logits
    for layer, logits in enumerate(router_logits):
        chosen = logits.topk(2, dim=-1).indices.flatten()
        assert output.expert_loads[layer].tolist() == torch.bincount(chosen, minlength=4).tolist()
    assert output.expert_loads.shape == (2, 4)
    assert SuperposedLM(tiny_model("llama", tied=True))(ids, targets).expert_loads is None
