"""Whatever stands in a configuration or on the command line: done, or one line and exit code 2, never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.bad_input import World, examples, few_steps, judged

_NUMBERS = [-(10**18), -1, 0, 1, 2, 3, 5, 16, 64, 10**9, 2**31, 2**63, 10**30, 10**400]
_FLOATS = [0.0, -0.0, 0.3, 0.999999, 1.0, 1.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")]
_WORDS = ["", "auto", "cpu", "cuda", "mps", "meta", "llama", "gpt2", "bert", "uniform", "power_law:nan", "full", "12"]
_WORDS += [
    "exponential:0",
    "float16",
    "null",
    "~",
    "../..",
    "/",
    "a\nb",
    "\x7f",
    "é\u2028",
    "𝔘",
    "{",
    "!!x",
    "1e400",
    "x" * 3000,
]

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_NUMBERS),
    st.sampled_from(_FLOATS),
    st.sampled_from(_WORDS),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)
_junk = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)

# Every key there is, and keys of the model's family, whose values go to transformers.
_KEYS = """
    data data.path data.verify model model.init_from model.architecture model.config model.scale_residual_init
    superposition
    superposition.bag_size superposition.ratio superposition.superposition_steps superposition.mode
    superposition.slot_weights superposition.stages train.total_steps train.sequence_length train.batch_size
    train.micro_batch_size train.seed train.learning_rate train.warmup_ratio train.decay_ratio
    train.final_learning_rate_ratio train.betas train.epsilon train.weight_decay train.max_grad_norm train.device
    train.dtype train.num_threads train logging logging.log_interval logging.validation_interval
    logging.interim_validation_tokens logging.validation_tokens logging.checkpoint_interval logging.keep_checkpoints
    logging.tensorboard model.config.hidden_size model.config.intermediate_size model.config.num_hidden_layers
    model.config.num_attention_heads model.config.num_key_value_heads model.config.head_dim
    model.config.max_position_embeddings model.config.vocab_size model.config.hidden_act
    model.config.initializer_range model.config.rms_norm_eps model.config.rope_parameters
    model.config.attention_bias model.config.attention_dropout model.config.mlp_bias model.config.pad_token_id
    model.config.bos_token_id model.config.eos_token_id model.config.tie_word_embeddings model.config.dtype
    model.config.output_attentions model.config.output_hidden_states model.config.return_dict model.config.use_cache
    model.config.architectures model.config.auto_map model.config.id2label model.config.problem_type
    model.config.chunk_size_feed_forward model.config._name_or_path model.config.is_encoder_decoder
    model.config.pretraining_tp model.config.transformers_version model.config.attn_implementation
    model.config.model_type arms arms.a arms.b budgets equal_data train.warmup_steps
    logging.keep_checkpoint_steps
"""
_PATHS = _KEYS.split()
_STAGE = ("bag_size", "ratio", "steps", "mode", "slot_weights")

_paths = st.sampled_from(_PATHS)
_misspelt = st.tuples(_paths, st.integers(0, 30), st.sampled_from(["", "x", "_", ".", "é"])).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + 1 :]
)
_stages = st.lists(
    st.fixed_dictionaries(
        {"bag_size": st.sampled_from([1, 2, 4]) | _scalars},
        optional={
            "steps": st.sampled_from([1, 2]) | _scalars,
            "ratio": st.sampled_from([0.25, 0.5]) | _scalars,
            "mode": st.sampled_from(["full", "input_only"]) | _scalars,
            "slot_weights": st.sampled_from(["power_law", "exponential:0.5"]) | _scalars,
            "bag_siz": st.just(2),
        },
    ),
    max_size=3,
)
_change = st.one_of(
    st.tuples(st.just("set"), _paths, _scalars),
    st.tuples(st.just("set"), _paths, _junk),
    st.tuples(st.just("set"), _misspelt, _scalars),
    st.tuples(st.just("remove"), _paths, st.none()),
)
_staged = st.tuples(st.just("set"), st.just("superposition"), st.fixed_dictionaries({"stages": _stages}))
_changes = st.lists(_change, min_size=1, max_size=2) | st.lists(_change | _staged, min_size=1, max_size=3)


def changed(base: dict[str, Any], changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    values = copy.deepcopy(base)
    for kind, dotted, value in changes:
        place: Any = values
        *above, last = dotted.split(".")
        for key in above:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        if kind == "set":
            place[last] = value
        else:
            place.pop(last, None)
    return values


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with few_steps():
        yield World(tmp_path_factory.mktemp("world"))


def nothing_left(world: World, *arguments: object) -> None:
    """What is refused leaves no folder; nothing is ever written outside the one that was named."""
    out = world.work / "deep" / "out"
    before = sorted(world.work.iterdir())
    said = judged(*arguments, "--out", out, "--quiet")
    if said.code == 2:
        assert sorted(world.work.iterdir()) == before, said


@examples(150)
@given(dotted=_paths, value=st.sampled_from(_NUMBERS) | st.sampled_from(_FLOATS) | _scalars)
def test_any_value_of_one_key(world: World, dotted: str, value: Any) -> None:
    file = world.written(yaml.safe_dump(changed(world.base, [("set", dotted, value)]), allow_unicode=True))
    nothing_left(world, "train", file)


@examples(120)
@given(changes=_changes)
@example(changes=[("set", "model.config.num_hidden_layers", 0)])
@example(changes=[("set", "model.config.attention_dropout", 2.0)])
def test_any_configuration(world: World, changes: list[tuple[str, str, Any]]) -> None:
    file = world.written(yaml.safe_dump(changed(world.base, changes), allow_unicode=True))
    nothing_left(world, "train", file)


@examples(60)
@given(changes=_changes, arm=st.dictionaries(_paths | _misspelt, _junk, max_size=2))
def test_any_study(world: World, changes: list[tuple[str, str, Any]], arm: dict[str, Any]) -> None:
    """A study is refused before a run of it starts, whichever arm cannot run."""
    values = changed(world.base, changes)
    values.setdefault("arms", {"baseline": {"superposition.bag_size": 1}, "other": arm})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("token_superposition.study.runner.run_jobs", _no_jobs)
        said = judged("compare", world.written(yaml.safe_dump(values)), "--out", world.work / "out", "--quiet")
        assert said.code in (2, 130)
        assert said.code == 130 or not (world.work / "out").exists(), said


def _no_jobs(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@examples(80)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text(alphabet=" \n\t-:[]{},&*!|>'\"%@`?#<=.ab1~", max_size=40),
    ),
    place=st.integers(0, 600),
    length=st.integers(0, 12),
)
def test_any_text_in_a_file(world: World, text: str, place: int, length: int) -> None:
    """Text in the middle of a configuration, and as the whole of it."""
    good = world.config.read_text()
    cleaned = text.encode("utf-8", errors="ignore").decode()
    nothing_left(world, "train", world.written(good[:place] + cleaned + good[place + length :]))
    nothing_left(world, "train", world.written(cleaned))


@examples(80)
@given(
    words=st.lists(
        st.tuples(
            st.one_of(_paths, _misspelt, st.sampled_from(["superposition.stages.0.bag_size", "a.b", ".", "..", "a."])),
            st.booleans(),
            st.one_of(
                _scalars.map(str),
                st.text(alphabet=" -:[]{},&*!|>'\"%?#<=.ab1~", max_size=12),
                st.sampled_from(["", "1", "[1, 2]", "{a: 1}", "!!python/object/apply:os.getcwd []", "&a [*a]", "1e-3"]),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_override(world: World, words: list[tuple[str, bool, str]]) -> None:
    arguments: list[str] = []
    for name, joined, value in words:
        arguments += [f"--{name}={value}"] if joined else [f"--{name}", value]
    world.clean()
    nothing_left(world, "train", world.config, *arguments)


_WORD_LIST = """
    demo prepare train compare eval export generate plan bench demo prepare train compare
    --out --json --quiet --help --seeds --jobs --steps --seed --text-key --overwrite -h --tokenizer --version
    run.yaml out text bytes --train.seed --train.seed=1 --no-such -1 0 2
"""
_ANY_WORD = st.text(alphabet="abcxyz019-=,: é\udcff\0\n", max_size=6).filter(lambda word: word not in ("-", "--"))


@examples(120)
@given(
    first=st.sampled_from([[], ["prepare", "text"], ["train", "run.yaml"], ["compare", "run.yaml"], ["demo"]]),
    words=st.lists(st.sampled_from(_WORD_LIST.split()) | _ANY_WORD, max_size=5),
)
def test_any_words(world: World, monkeypatch: pytest.MonkeyPatch, first: list[str], words: list[str]) -> None:
    monkeypatch.chdir(world.clean())
    monkeypatch.setattr("token_superposition.study.runner.run_jobs", _no_jobs)
    monkeypatch.setattr("token_superposition.study.demo.prepare", _no_jobs)
    monkeypatch.setattr("token_superposition.bench.bench_run.Trainer", _no_jobs)
    (world.work / "run.yaml").write_text(world.config.read_text())
    (world.work / "text").mkdir()
    judged(*first, *words)
