"""Generation: the same seed, the same text; whole characters; no end but the model's or the asked one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer
from token_superposition.evaluation.generate import TextStream, generate
from token_superposition.evaluation.load import UsableModel

TOKENIZER = hugging_face_tokenizer(ByteTokenizer())


def streamed(ids: list[int]) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(TOKENIZER, [97], pieces.append)
    for token in ids:
        stream.add(token)
    stream.finish()
    assert stream.text == "".join(pieces)
    return pieces


@given(text=st.text(st.characters(exclude_characters="\ufffd", codec="utf-8")))
def test_pieces_hold_whole_characters(text: str) -> None:
    assert streamed(list(text.encode())) == list(text)


@given(ids=st.lists(st.integers(0, 319)))
def test_pieces_together_are_what_the_ids_decode_to(ids: list[int]) -> None:
    assert "".join(streamed(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_the_same_seed_gives_the_same_text(loaded: UsableModel) -> None:
    torch.manual_seed(1)
    first = generate(loaded, "abc", seed=3, max_new_tokens=14)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert generate(loaded, "abc", seed=3, max_new_tokens=14) == first
    assert generate(loaded, "abc", seed=4, max_new_tokens=14)["tokens"] != first["tokens"]
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own randomness is untouched


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_a_token_is_drawn_at_its_temperature(loaded: UsableModel, temperature: float) -> None:
    logits = loaded.model(torch.tensor([list(b"the")])).logits[0, -1].detach()
    logits[257:] = -torch.inf  # ids that stand for nothing are never drawn
    for seed in range(8):
        torch.manual_seed(seed)
        drawn = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1).tolist()
        assert generate(loaded, "the", temperature=temperature, max_new_tokens=1, seed=seed)["tokens"] == drawn


def test_temperature_zero_takes_the_likeliest(loaded: UsableModel) -> None:
    result = generate(loaded, "the", temperature=0, max_new_tokens=5, seed=1)
    ids = list(b"the")
    for _ in range(5):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0, -1]
        logits[257:] = -torch.inf  # ids that stand for nothing
        ids.append(int(logits.argmax()))
    assert result["tokens"] == ids[3:]
    assert result == {**generate(loaded, "the", temperature=0, max_new_tokens=5, seed=2), "seed": 1}
    assert generate(loaded, "the", temperature=5.0, top_p=1e-6, max_new_tokens=5)["tokens"] == ids[3:]


def test_it_is_shown_while_it_is_made(loaded: UsableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    forwards: list[int] = []
    original = loaded.model.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        forwards.append(len("".join(seen)))
        return original(*arguments, **options)

    monkeypatch.setattr(loaded.model, "forward", forward)
    result = generate(loaded, "abc", temperature=0, max_new_tokens=6, write=seen.append)
    assert "".join(seen) == result["text"] == loaded.tokenizer.decode(result["tokens"])
    assert len(forwards) == 6
    assert forwards[-1] > 0


def test_the_end_token_stops_it_and_is_not_text(loaded: UsableModel) -> None:
    plain = generate(loaded, "abc", temperature=0, max_new_tokens=8)
    assert (plain["ended"], len(plain["tokens"])) == (False, 8)
    with torch.no_grad():  # a model that always ends: its embedding is its head
        embedding = loaded.model.get_input_embeddings().weight
        hidden = loaded.model.model(torch.tensor([list(b"abc")])).last_hidden_state[0, -1]
        embedding[256] = hidden * 100
    ended = generate(loaded, "abc", temperature=0, max_new_tokens=8)
    assert (ended["tokens"], ended["text"], ended["ended"]) == ([256], "", True)


def test_it_goes_on_beyond_the_model_s_positions(loaded: UsableModel) -> None:
    result = generate(loaded, "abc", max_new_tokens=50, seed=5)
    assert len(result["tokens"]) == 50 or result["ended"]
    long = generate(loaded, "abc" * 20, max_new_tokens=3)
    assert len(long["tokens"]) == 3
    (warning,) = long["warnings"]
    assert "60 tokens" in warning
    assert "the last 8" in warning


def test_an_empty_prompt_starts_a_document(loaded: UsableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = loaded.model.generate

    def spy(ids_BL: Any, **options: Any) -> Any:
        seen.append(ids_BL.tolist())
        return original(ids_BL, **options)

    monkeypatch.setattr(loaded.model, "generate", spy)
    assert len(generate(loaded, "", max_new_tokens=3)["tokens"]) == 3
    assert seen == [[[256]]]


def test_a_prompt_that_spells_the_end_token_is_text(loaded: UsableModel) -> None:
    assert generate(loaded, "<|endoftext|>", max_new_tokens=1)["tokens"]
    assert 256 not in loaded.tokenizer("<|endoftext|>")["input_ids"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "--temperature must be 0, or at least 0.01 and at most 100, not -1"),
        ({"temperature": 1e-45}, "--temperature must be 0, or at least 0.01"),
        ({"temperature": float("nan")}, "--temperature must be 0, or at least 0.01 and at most 100, not nan"),
        ({"top_p": 0.0}, "--top-p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.5}, "--top-p must be above 0 and at most 1, not 1.5"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_settings_out_of_range(loaded: UsableModel, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(loaded, "abc", **setting)
