"""A run's configuration: what it accepts, and the one line it says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from token_superposition import Stage
from token_superposition.errors import UserError
from token_superposition.training.config import changed_keys, load_config, parse_config, parse_override

MINIMAL = {"data": {"path": "somewhere"}}


def test_without_a_superposition_section_a_run_is_ordinary() -> None:
    assert parse_config(MINIMAL).schedule().switch_step == 0


def test_ratio_steps_and_stages() -> None:
    run = {**MINIMAL, "train": {"total_steps": 1000}}
    by_ratio = parse_config({**run, "superposition": {"bag_size": 4, "ratio": 0.2, "mode": "output_only"}})
    assert by_ratio.schedule().stages == (Stage(4, 200, "output_only"), Stage(1, 800))
    assert parse_config({**run, "superposition": {"bag_size": 4}}).schedule().switch_step == 250
    short = {"stages": "8:0.1, 4:0.1,2:0.05"}
    assert parse_config({**run, "superposition": short}).schedule().stages == (
        Stage(8, 100),
        Stage(4, 100),
        Stage(2, 50),
        Stage(1, 750),
    )
    staged = {"stages": [{"bag_size": 4, "ratio": 0.15}, {"bag_size": 2, "steps": 100}]}
    assert parse_config({**run, "superposition": staged}).schedule().stages == (
        Stage(4, 150),
        Stage(2, 100),
        Stage(1, 750),
    )


def test_overrides_go_by_dotted_path_and_leave_the_callers_dictionaries_alone() -> None:
    values: dict[str, Any] = {**MINIMAL, "train": {"total_steps": 10}}
    config = parse_config(values, {"train.total_steps": 20, "superposition.bag_size": 2})
    assert (config.train.total_steps, config.superposition.bag_size) == (20, 2)
    assert values == {**MINIMAL, "train": {"total_steps": 10}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("null", None),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ("llama", "llama"),
        ("1e-3", 1e-3),
        ("2E6", 2e6),
    ],
)
def test_values_on_the_command_line_are_read_as_yaml(text: str, value: object) -> None:
    assert parse_override(text) == value


def test_a_learning_rate_without_a_point_is_a_number() -> None:
    # YAML 1.1 reads 1e-3 as a text, which a model's own configuration would refuse.
    values = {"train.learning_rate": parse_override("1e-3"), "model.config.rms_norm_eps": parse_override("1e-6")}
    config = parse_config(MINIMAL, values)
    assert (config.train.learning_rate, config.model.config["rms_norm_eps"]) == (1e-3, 1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("train:\n  learning_rte: 1", "line 4: train.learning_rte: no such key; did you mean 'train.learning_rate'"),
        ("trian:\n  seed: 1", "line 3: trian: no such key; did you mean 'train'?"),
        ("bag_size: 2", "did you mean 'superposition.bag_size'?"),
        ("superposition:\n  bag_size: 0", "line 4: superposition.bag_size: input should be greater than or equal to 1"),
        ("superposition:\n  bag_size: two", "line 4: superposition.bag_size: a number is needed, not a text"),
        ("superposition:\n  bag_size: true", "superposition.bag_size: a number is needed"),
        ("superposition:\n  ratio: 1.0", "ratio: input should be less than 1 (given: 1.0)"),
        ("superposition:\n  ratio: .nan", "superposition.ratio: "),
        ("superposition:\n  {bag_size: 2, ratio: 0.1, superposition_steps: 3}", "give either ratio or"),
        ("superposition:\n  {bag_size: 2, stages: [{bag_size: 2, ratio: 0.1}]}", "stages replaces bag_size"),
        ("superposition:\n  stages: 8:0.1;4:0.1", "superposition.stages: give a list of bag sizes and shares"),
        ("superposition:\n  stages: eight:0.1,4:0.1", "such as 8:0.1,4:0.1 (given: 'eight:0.1"),
        ("superposition:\n  stages: 8:1:30", "such as 8:0.1,4:0.1 (given: '8:1:30"),
        ("superposition:\n  stages: [{bag_size: 2}]", "a stage needs either ratio or steps"),
        ("superposition:\n  stages: [{bag_size: 2, steps: 4000}]", "leave no step of train.total_steps (4000)"),
        ("superposition:\n  {bag_size: 2, superposition_steps: 4000}", "below total_steps (4000)"),
        ("superposition:\n  slot_weights: power-law", "did you mean 'power_law'"),
        ("superposition:\n  mode: both", "superposition.mode"),
        ("train:\n  micro_batch_size: 3", "batch_size 16 is not a multiple of micro_batch_size 3"),
        ("train:\n  {warmup_ratio: 0.6, decay_ratio: 0.6}", "sum of warmup_ratio and decay_ratio is above 1"),
        ("train:\n  betas: [0.9]", "train.betas"),
        ("train: 3", "train"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, section: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data:\n  path: x\n{section}\n")
    with pytest.raises(UserError) as caught:
        load_config(file)
    text = str(caught.value)
    assert message in text
    assert str(file) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no keys"), ("- a\n- b", "has no keys"), ("a: [", "is not YAML"), ("train: {}", "data: is missing")],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(file)
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_a_wrong_override_is_named_as_it_was_given() -> None:
    with pytest.raises(UserError, match=r"^--train.seed: "):
        parse_config(MINIMAL, {"train.seed": "x"})


def test_of_two_keys_that_exclude_each_other_the_one_given_is_named_and_how_to_take_the_other_out() -> None:
    values = {**MINIMAL, "train": {"warmup_ratio": 0.1}}
    with pytest.raises(UserError, match=r"^--train.warmup_steps: train: give either .* set the other to null$"):
        parse_config(values, {"train.warmup_steps": 3, "train.seed": 1})
    config = parse_config(
        values, {"train.warmup_steps": 3, "train.seed": 1, "train.warmup_ratio": parse_override("null")}
    )
    assert config.train.num_warmup_steps == 3


def test_changed_keys() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    assert changed_keys(old, {"a": 1, "b": {"c": 2, "d": 4}, "e": 5}) == ["b.d", "e"]
    assert changed_keys(old, old) == []
