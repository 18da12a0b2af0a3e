"""What docs/models.md says of each family, proved at tiny size; the page's tables are written by this file.

Every reference goes through the model's own forward: scales, soft-caps, multipliers and router losses are the
family's, never written again here. Each test checks its own row of the page, so the order and the process that
they run in do not matter. `UPDATE_DOCS=1 pytest tests/models/test_families.py` (in one process) writes the tables.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.families import FAMILIES, Family, make
from tests.models.families import IDS_ELSEWHERE as TINY_IDS_ELSEWHERE
from token_superposition import SuperposedLM, split_inputs_and_targets
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError
from token_superposition.evaluation.export import tokenizer_class, write_model
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer
from token_superposition.models import families
from token_superposition.models.families import RESIDUAL_PROJECTIONS
from token_superposition.models.pretrained import quiet_transformers

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
UPDATE = bool(os.environ.get("UPDATE_DOCS"))
TEXT = "the quick brown fox jumps over the lazy dog; " * 40
L = 16
COLUMNS = (
    "s = 1: its own `labels=`",
    "s = 4: the reference",
    "state dict",
    "loss falls",
    "export's logits",
    "many logits",
)


def rows(bag_size: int, batch_size: int = 3) -> Tensor:
    """Rows of a tiny text, at other places for other rows."""
    ids = torch.tensor(list(TEXT.encode()))
    return torch.stack([ids[7 * row :][: bag_size * (L + 1)] for row in range(batch_size)])


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    whole = torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    for name, expected in theirs.items():
        difference = (ours[name] - expected).norm()
        assert difference <= 1e-5 * expected.norm() + 1e-7 * whole, f"{name}: {difference} of {expected.norm()}"


def equals_its_own_labels(model: nn.Module) -> str:
    """(a) Bag size 1: the loss and gradients of the model's own `labels=`."""
    ids = rows(1)
    own = model(input_ids=ids, labels=ids).loss
    # The model shifts its labels itself; the last position has no target there.
    ours = SuperposedLM(model)(ids, torch.cat([ids[:, 1:], torch.full((3, 1), -100)], dim=1)).loss
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=0)
    assert_same_gradients(gradients(ours, model), gradients(own, model))
    return "equal"


def equals_the_reference(model: nn.Module) -> str:
    """(b) Bag size 4: mean embeddings through the model itself, and four cross-entropies in float64."""
    inputs, targets = split_inputs_and_targets(rows(4), 4)
    embeddings = model.get_input_embeddings()(inputs).mean(dim=2)  # type: ignore[operator]
    # What the family adds to any loss (router, z-loss) is what its own loss has over cross-entropy.
    labels = inputs[..., 0]
    own = model(inputs_embeds=embeddings, labels=labels)
    added = own.loss - F.cross_entropy(own.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    wide = own.logits.double().flatten(0, 1)
    expected = sum(F.cross_entropy(wide, targets[..., k].flatten(), reduction="sum") for k in range(4))
    expected = expected / targets.numel() + added
    ours = SuperposedLM(model)(inputs, targets).loss
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=0)
    assert_same_gradients(gradients(ours, model), gradients(expected, model))
    if added.item() <= 1e-4:
        return "equal"
    return "equal, router loss kept" if own.get("aux_loss") is not None else "equal, z-loss kept"


def surroundings(model: nn.Module) -> dict[str, Any]:
    """The attributes of each module, and how many hooks."""
    return {
        name: {key: len(value) if isinstance(value, OrderedDict) else None for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


def is_left_as_it_was(model: nn.Module) -> str:
    """(c) No key, value, attribute or hook differs after forwards and backwards in both phases."""
    model(input_ids=rows(1))  # transformers hooks what it captures by itself, in a model's first forward
    before, around = {name: tensor.clone() for name, tensor in model.state_dict().items()}, surroundings(model)
    for bag_size in (4, 1):
        SuperposedLM(model)(*split_inputs_and_targets(rows(bag_size), bag_size)).loss.backward()
    model.zero_grad(set_to_none=True)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert surroundings(model) == around
    return "untouched"


def trains(model: nn.Module) -> str:
    """(d) A few dozen steps lower the loss in the superposition phase, then in recovery."""
    superposed = SuperposedLM(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for bag_size in (4, 1):
        inputs, targets = split_inputs_and_targets(rows(bag_size), bag_size)
        losses = []
        for _ in range(24):
            loss = superposed(inputs, targets).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert max(losses[-3:]) < 0.8 * losses[0], losses
    return "both phases"


def exports(model: nn.Module, folder: Path) -> str:
    """(e) The folder that an export writes: stock transformers gives the same logits, bit for bit."""
    tokenizer = ByteTokenizer()
    with quiet_transformers():
        write_model(model, hugging_face_tokenizer(tokenizer), folder)
        read, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)  # type: ignore[misc]
        reader = tokenizer_class(folder, tokenizer)
    assert not any(found.values()), found
    with torch.no_grad():
        assert torch.equal(read.eval()(rows(1)).logits, model.eval()(rows(1)).logits)
    return "equal" if reader == "AutoTokenizer" else f"equal (tokenizer: `{reader}`)"


def is_the_same_chunked(model: nn.Module) -> str:
    """(f) The loss from hidden states, which makes no (B, L, V) logits: loss and gradients of the path that does."""
    if SuperposedLM(model).transform is None:
        return "made"
    for bag_size in (1, 4):
        inputs, targets = split_inputs_and_targets(rows(bag_size), bag_size)
        full, chunked = (SuperposedLM(model, loss_backend=name)(inputs, targets).loss for name in ("plain", "chunked"))
        torch.testing.assert_close(chunked, full, rtol=1e-6, atol=0)
        assert_same_gradients(gradients(chunked, model), gradients(full, model))
    return "chunked"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def region(name: str, written: list[str] | None = None) -> list[str]:
    """The lines of the page between two marks; with `UPDATE_DOCS`, `written` are put there first."""
    text = PAGE.read_text(encoding="utf-8")
    start, end = f"<!-- {name}: written by tests/models/test_families.py -->\n", f"<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    found, _, after = rest.partition(end)
    if written is not None and UPDATE:
        found = "".join(f"{line}\n" for line in written)
        PAGE.write_text(before + start + found + end + after, encoding="utf-8")
    return found.splitlines()


HEAD = [row("family", "`model_type`", "what sets it apart", *COLUMNS), row(*["---"] * (3 + len(COLUMNS)))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_what_the_page_says(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = make(family)
    proved = [equals_its_own_labels(model), equals_the_reference(model), is_left_as_it_was(model)]
    many = is_the_same_chunked(model)
    proved += [trains(model), exports(model, tmp_path / "out"), many]
    expected = row(name, f"`{family.model_type}`", family.particular, *proved)
    if UPDATE:
        known = {line.split(" | ")[0]: line for line in [*region("proved"), expected]}
        region("proved", HEAD + [known[f"| {one}"] for one in FAMILIES if f"| {one}" in known])
    assert expected in region("proved")


def test_the_page_has_just_these_rows() -> None:
    assert region("proved")[:2] == HEAD
    assert [line.split(" | ")[0] for line in region("proved")[2:]] == [f"| {name}" for name in FAMILIES]
    needed = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = re.search(r"\ntransformers==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert needed is not None
    assert pinned is not None
    versions = [f"Proved with transformers {needed[1]} and {pinned[1]}, on the CPU in float32, at tiny size."]
    assert region("versions", versions) == versions
    refused = [row("`model_type`", "what it does with ids", "accepted if"), row("---", "---", "---")]
    for found, kinds in groupby(families.IDS_ELSEWHERE, key=families.IDS_ELSEWHERE.__getitem__):
        refused.append(row(", ".join(f"`{kind}`" for kind in kinds), found.reason, found.unless))
    assert region("refused", refused) == refused


@pytest.mark.parametrize("kind", families.IDS_ELSEWHERE)
def test_a_family_that_uses_ids_elsewhere_is_refused_by_name(kind: str) -> None:
    # Trap 17: never trained wrongly in silence. The configuration is enough: nothing is built.
    config = TINY_IDS_ELSEWHERE.get(kind, ({}, None))[0]
    line = f"{kind} cannot be superposed: it {families.IDS_ELSEWHERE[kind].reason}, and a bag has"
    with pytest.raises(UserError, match=f"^model.architecture: {line}"):
        make(Family(kind, config))
    model = make(FAMILIES["Llama"])
    model.config = AutoConfig.for_model(kind, **config, eos_token_id=2)
    with pytest.raises(TypeError, match=f"^{line}"):
        SuperposedLM(model)


@pytest.mark.parametrize("kind", TINY_IDS_ELSEWHERE)
def test_the_check_by_numbers_would_find_it_too(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, without = TINY_IDS_ELSEWHERE[kind]
    if without is not None:
        SuperposedLM(make(Family(kind, {**config, **without})))
    monkeypatch.setattr(families, "IDS_ELSEWHERE", {})
    with pytest.raises(TypeError, match=r"outside its input embedding too|does not run on averaged embeddings"):
        SuperposedLM(make(Family(kind, config)))


def test_an_embedding_beside_the_first_is_found_while_it_is_zero() -> None:
    model = make(FAMILIES["Llama"])
    inner: Any = model.model
    inner.beside = nn.Embedding.from_pretrained(torch.zeros(320, 32))
    original = inner.forward

    def forward(input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **rest: Any) -> Any:
        if input_ids is not None:
            inputs_embeds = inner.embed_tokens(input_ids) + inner.beside(input_ids)
        return original(inputs_embeds=inputs_embeds, **rest)

    inner.forward = forward
    with pytest.raises(TypeError, match=r"outside its input embedding too, in model\.beside$"):
        SuperposedLM(model)
    assert not inner.beside._forward_pre_hooks


def test_a_model_of_several_is_refused_with_its_text_model() -> None:
    model = make(FAMILIES["Llama"])
    model.config = AutoConfig.for_model("gemma3")
    with pytest.raises(TypeError, match=r"use its text model, gemma3_text \(Gemma3ForCausalLM\)"):
        SuperposedLM(model)
    model.config = AutoConfig.for_model("gemma3n")
    with pytest.raises(TypeError, match=r"gemma3n consists of several models.*; gemma3n_text cannot be superposed"):
        SuperposedLM(model)


@pytest.mark.parametrize("name", [name for name in FAMILIES if RESIDUAL_PROJECTIONS.get(FAMILIES[name].model_type)])
def test_what_writes_into_the_residual_stream_is_scaled(name: str) -> None:
    family = FAMILIES[name]
    own, scaled = (dict(make(family, scale).named_parameters()) for scale in (False, True))
    found = {key for key in own if not torch.equal(own[key], scaled[key])}
    for key in found:
        torch.testing.assert_close(scaled[key], own[key] / 2)  # sqrt(2 * 2 layers)
    for layer in (".0.", ".1."):  # attention or what stands in its place, and a feed-forward block
        assert len({key.split(layer)[1].split(".")[0] for key in found if layer in key}) >= 2
