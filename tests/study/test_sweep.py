"""What a sweep takes and refuses, and the names of its settings."""

from __future__ import annotations

from typing import Any

import pytest

from token_superposition.errors import UserError
from token_superposition.study.compare import Study, make_study
from token_superposition.study.sweep import Sweep, at_setting, parse_sweep, setting_name, sweep_words

RATES = "train.learning_rate=1e-3,2e-3"


def parse(study: Study, *options: str, num_seeds: int = 1) -> Sweep:
    return parse_sweep(options, study.arms, num_seeds=num_seeds, given=study.given)


def refused(study: Study, *options: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(study, *options)
    message = str(caught.value)
    assert message.startswith("--sweep")
    assert "\n" not in message
    return message


@pytest.fixture
def study(small_run: dict[str, Any]) -> Study:
    return make_study(small_run)


def test_values_are_numbers_in_rising_order(study: Study) -> None:
    sweep = parse(study, "train.learning_rate=4e-3,1e-3,0.002", num_seeds=3)
    assert sweep.values == {"train.learning_rate": [0.001, 0.002, 0.004]}
    assert sweep.num_seeds == 3


def test_several_keys_make_a_grid(study: Study) -> None:
    sweep = parse(study, RATES, "train.weight_decay=0,0.1")
    assert [tuple(setting.values()) for setting in sweep.settings()] == [(1e-3, 0), (1e-3, 0.1), (2e-3, 0), (2e-3, 0.1)]


def test_lists_and_null_are_values_too(study: Study) -> None:
    sweep = parse(study, "train.betas=[0.9,0.95],[0.9,0.99]", "train.max_grad_norm=null,0.5")
    assert sweep.values == {"train.betas": [[0.9, 0.95], [0.9, 0.99]], "train.max_grad_norm": [None, 0.5]}
    first = sweep.settings()[0]
    assert at_setting(study.arms["baseline"], first).train.max_grad_norm is None
    assert setting_name(first) == "train.betas=[0.9,0.95],train.max_grad_norm=null"


def test_a_setting_changes_its_keys_only_and_has_one_name(study: Study) -> None:
    arm = study.arms["superposition"]
    changed = at_setting(arm, {"train.learning_rate": 2e-3})
    assert changed.train.learning_rate == 0.002
    assert changed.model_copy(update={"train": arm.train}) == arm
    assert setting_name({"train.learning_rate": 2e-3}) == "train.learning_rate=0.002"
    both = {"train.weight_decay": 0.1, "train.learning_rate": 1e-5}
    assert setting_name(both) == setting_name(dict(reversed(both.items())))
    assert "/" not in setting_name({"train.path": "a/b"})


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("train.lerning_rate=1,2", "did you mean 'train.learning_rate'?"),
        ("learning_rate=1,2", "did you mean 'train.learning_rate'?"),
        ("train=1,2", "is a section"),
        ("train.learning_rate=1e-3,fast", "given: 'fast'"),
        ("train.learning_rate=1e-3,true", "not true or false"),
        ("train.learning_rate=0,1e-3", "greater than 0"),
        ("train.betas=0.9,0.95", "tuple"),
        ("train.warmup_ratio=0.5,0.9", "sum of warmup_ratio and decay_ratio is above 1"),
        ("train.learning_rate=1e-3,0.001", "0.001 twice"),
        ("train.learning_rate=1e-3", "at least two values"),
        ("train.learning_rate", "not a key with its values"),
        ("train.learning_rate=", "not a key with its values"),
        ("train.learning_rate=1e-3,,2e-3", "commas between"),
        ("train.learning_rate=[1e-3,2e-3", "commas between"),
    ],
)
def test_what_does_not_fit_is_refused(study: Study, option: str, words: str) -> None:
    assert words in refused(study, option)


@pytest.mark.parametrize(
    "option",
    [
        "data.path=a,b",
        "model.config.hidden_size=16,32",
        "superposition.ratio=0.1,0.2",
        "logging.validation_tokens=100,200",
        "train.total_steps=10,20",
        "train.batch_size=4,8",
        "train.sequence_length=8,16",
        "train.seed=0,1",
        "train.num_threads=1,2",
    ],
)
def test_what_makes_runs_incomparable_is_refused(study: Study, option: str) -> None:
    assert "cannot be swept" in refused(study, option)


def test_a_key_comes_once(study: Study) -> None:
    assert "given twice" in refused(study, RATES, RATES)


def test_a_key_that_is_set_elsewhere_is_refused(small_run: dict[str, Any]) -> None:
    arms = {"plain": {"superposition.bag_size": 1}, "fast": {"train.learning_rate": 2e-2}}
    named = make_study({**small_run, "arms": arms}, source="study.yaml")
    assert "set by study.yaml: arms.fast too" in refused(named, RATES)
    assert parse(named, "train.weight_decay=0,0.1").values == {"train.weight_decay": [0, 0.1]}
    whole = make_study({**small_run, "arms": {**arms, "fast": {"train": small_run["train"]}}}, source="study.yaml")
    assert "arms.fast" in refused(whole, RATES)
    overridden = make_study(small_run, {"train.learning_rate": 1e-2})
    assert "set by --train.learning_rate too" in refused(overridden, RATES)


def test_no_seed_is_refused(study: Study) -> None:
    with pytest.raises(UserError, match="--sweep-seeds is at least 1, not 0"):
        parse(study, RATES, num_seeds=0)


def test_the_options_can_be_typed_again() -> None:
    assert sweep_words([RATES, "a.b=1,2"], 2) == ["--sweep", RATES, "--sweep", "a.b=1,2", "--sweep-seeds", "2"]
    assert sweep_words([RATES], 1) == ["--sweep", RATES]
    assert sweep_words([], 2) == []
