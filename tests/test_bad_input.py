"""Every bad input is one clear line, exit code 2, and nothing half-written: the cases people meet, by name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bad_input import World, few_steps, refused, tst
from token_superposition.errors import machine_trouble, one_line
from token_superposition.training.run_folder import RunFolder

SOURCE = Path(__file__).resolve().parents[1] / "src"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with few_steps():
        yield World(tmp_path_factory.mktemp("world"))


def train_refused(world: World, file: Path, *words: object) -> str:
    """The line that a run is refused with; nothing of it stays."""
    line = refused("train", file, "--out", world.work / "a" / "out", "--quiet", *words)
    assert not (world.work / "a").exists()
    return line


# The configuration.

_PLAIN = {"superposition.bag_size": 1}
_BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.intervall", 3, "train.intervall: no such key; did you mean 'logging.log_interval'"),
        ("logging.intervall", 3, "logging.intervall: no such key; did you mean 'logging.log_interval'"),
        ("logging.zzz", 3, "logging.zzz: no such key; the section has the keys log_interval, validation_interval,"),
        ("superposition", {"stages": [{"bag_siz": 2}]}, "no such key; did you mean 'superposition.stages.0.bag_size'"),
        ("superposition", {"stages": [{"bag_size": 2, "ratio": 0.1, "mod": 1}]}, "superposition.stages.0.mod: no such"),
        ("superposition", {"stages": []}, "superposition.stages: list should have at least 1 item"),
        ("superposition", {"ratio": 0.3}, "superposition: ratio has no effect without bag_size"),
        ("superposition", None, "superposition: is empty; add keys to the section, or remove it"),
        ("superposition.bag_size", 10**9, "rows of 16 positions of 1000000000 tokens need 3,264.0 GB"),
        ("model.config.hiden_size", 3, "model.config.hiden_size: llama has no such key; did you mean 'hidden_size'"),
        ("model.config", {3: 1}, "model.config.3: llama has no such key"),
        ("train.total_steps", "12", "train.total_steps: a number is needed, not a text (given: '12')"),
        ("train.total_steps", 10**400, "(given: 1000"),
        ("train.seed", 2**63, "train.seed: input should be less than"),
        ("train.num_threads", 10**6, "train.num_threads"),
        ("train.batch_size", 10**9, "this machine has"),
        ("train.device", "meta", "train.device: a device is auto, cpu, cuda"),
        ("data.path", "a\0b", "data.path: the path is empty or contains a NUL"),
        ("data", {}, "data.path: is missing; expected: dataset folder that `tst prepare` wrote"),
        ("arms", {"a": {}, "b": {}}, "line 1: arms: are only for tst compare"),
    ],
)  # fmt: skip
def test_a_key_or_value_that_does_not_fit(world: World, key: str, value: Any, said: str) -> None:
    assert said in train_refused(world, world.changed(key, value))


def test_total_work_beyond_all_numbers(world: World) -> None:
    line = train_refused(world, world.config, "--train.total_steps", 10**12, "--train.batch_size", 10**12)
    assert "the run would read" in line or "not a multiple" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {path: x}\ndata: {path: y}\n", "line 2: data: is given twice (first on line 1)"),
        ("data: &a {path: *a}\n", "line 1: an alias that contains itself"),
        (_BOMB, "has over 20,000 values"),
        ("[" * 5000, "is nested too deeply"),
        ("train: {seed: " + "9" * 5000 + "}", "line 1: a number of 5,000 digits"),
        ("data: {path: 2020-13-45}", "2020-13-45: no such folder"),
        ("model: {config: {x: !!binary aGVsbG8=}}", "line 1: the YAML tag !!binary"),
        ("#" * 2**20 + "\n", "not a configuration"),
    ],
)  # fmt: skip
def test_a_file_that_yaml_alone_would_accept(world: World, text: str, said: str) -> None:
    assert said in train_refused(world, world.written(text))


def test_a_list_s_item_is_reached_by_its_number(world: World) -> None:
    file = world.changed("superposition", {"stages": [{"bag_size": 2, "steps": 1}]})
    out = world.work / "out"
    assert tst("train", file, "--out", out, "--quiet", "--superposition.stages.0.bag_size", 4).code == 0
    assert json.loads((out / "run.json").read_text())["stages"][0]["bag_size"] == 4
    line = refused("train", file, "--out", out, "--superposition.stages.1.bag_size", 4)
    assert line.startswith("error: --superposition.stages.1.bag_size: no such key: superposition.stages is a list of 1")
    line = refused("train", file, "--out", out, "--data.path.x", 4)
    assert line == "error: --data.path.x: no such key: data.path is a value, not a section"


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": {"superposition.bag_siz": 1}, "b": {}}, "line 3: arms.a: superposition.bag_siz: no such key; did"),
        ({"a": _PLAIN, "b": {"model.config.hiden": 1}}, "arms.b: model.config.hiden: is not what a has"),
        ({"a": _PLAIN, "b": {"train.sequence_length": 99}}, "arms.b: train.sequence_length: is not what a has"),
        ({"a": _PLAIN, "b": {"superposition.bag_size": 10**6}}, "b: the training data has"),
        ({"a": _PLAIN, "b": {"train.device.x": 99}}, "arms.b: train.device.x: no such key"),
        ({"a": _PLAIN, "b": {"train": {"seed": 3}}}, "arms.b: train.seed: arms share their seeds"),
        ({"..": {"superposition.bag_size": 1}, "b": {}}, "arms.'..': a name has"),
        ({"a": _PLAIN, "../b": {}}, "arms.'../b': a name has"),
    ],
)  # fmt: skip
def test_an_arm_that_cannot_run_is_refused_before_any_does(world: World, arms: dict[str, Any], said: str) -> None:
    file = world.changed("arms", arms)
    assert said in refused("compare", file, "--out", world.work / "out", "--quiet")
    assert not (world.work / "out").exists()


# Models that no machine holds, and values that only the family's code refuses.


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("llama", {"hidden_size": 10**9}, "GB for its weights and their training state, but this machine has"),
        ("llama", {"intermediate_size": 10**9}, "this machine has"),
        ("llama", {"vocab_size": 10**10}, "this machine has"),
        ("llama", {"num_hidden_layers": 10**6}, "model.config.num_hidden_layers: 1000000 is too large"),
        ("llama", {"num_hidden_layers": 10**30}, "is too large"),
        ("llama", {"num_hidden_layers": 0}, "has 0 layers; at least 1 is needed"),
        ("llama", {"num_hidden_layers": -1}, "has -1 layers"),
        ("llama", {"hidden_size": -16}, "llama refuses these values"),
        ("llama", {"hidden_size": 0}, "llama refuses these values"),
        ("llama", {"head_dim": 7}, "llama refuses these values"),
        ("llama", {"hidden_act": "x" * 5000}, "llama refuses these values: '" + "x" * 79 + "..."),
        ("llama", {"attention_dropout": 2.0}, "llama cannot run with these values"),
        ("llama", {"num_key_value_heads": 3}, "llama cannot run with these values"),
        ("llama", {"rms_norm_eps": -0.5}, "llama cannot run with these values: its logits are not numbers"),
        ("llama", {"return_dict": False}, "llama cannot run with these values"),
        ("llama", {"model_type": "gpt2"}, "is said by model.architecture"),
        ("gpt2", {"n_layer": 10**6}, "model.config.n_layer: 1000000 is too large"),
        ("gpt2", {"n_positions": 10**10, "n_layer": 1, "n_head": 2, "n_embd": 2}, "this machine has"),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types: 1000000000 is too large"),
        ("qwen3_moe", {"num_experts": 10**9}, "this machine has"),
        ("gemma3", {}, "gemma3 consists of several models"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be(world: World, architecture: str, config: dict[str, Any], said: str) -> None:
    base = world.base["model"]["config"] if architecture == "llama" else {}
    file = world.changed("model", {"architecture": architecture, "config": {**base, **config}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert said in train_refused(world, file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


# Data.


def test_a_flipped_bit_is_found_before_training_unless_told_not_to_look(world: World) -> None:
    folder = world.copied(world.data)
    shard = folder / "validation-00000.tokens"
    data = bytearray(shard.read_bytes())
    data[300] ^= 1
    shard.write_bytes(data)
    out = world.work / "out"
    line = refused("train", world.config, "--out", out, "--data.path", folder)
    assert re.search(r"validation-00000\.tokens: is damaged between bytes 256 and [\d,]+ \(checksum 0 of 1\)", line)
    assert "baseline: " in refused("compare", world.config, "--out", out, "--data.path", folder)
    assert not out.exists()
    assert tst("train", world.config, "--out", out, "--data.path", folder, "--data.verify", "false").code == 0


def test_a_study_verifies_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("token_superposition.training.preflight.verify_folder", lambda path, _: seen.append(path))
    assert tst("compare", world.config, "--out", world.copied(world.study), "--quiet").code == 0
    assert seen == [world.data]


def test_an_id_that_the_tokenizer_does_not_have(world: World) -> None:
    from token_superposition.data.dataset import ShardWriter
    from token_superposition.data.tokenizers import ByteTokenizer

    folder = world.copied(world.data)
    described = json.loads((folder / "dataset.json").read_text())["splits"]["train"]["shards"][0]
    with ShardWriter(folder / "train-00000.tokens", ByteTokenizer()) as writer:
        writer.add(np.arange(described["tokens"]) % 300, 7)
    line = refused("train", world.config, "--out", world.work / "out", "--data.path", folder)
    assert "token 299 has the id 299, but tokenizer 'bytes' has only 257" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../../etc/passwd"}, "names the shard '../../etc/passwd'"),
        ({"file": "validation-00000.tokens"}, "names the shard 'validation-00000.tokens'"),
        ({"tokens": "many"}, "is damaged (split 'train')"),
    ],
)
def test_a_description_is_not_trusted(world: World, change: dict[str, Any], said: str) -> None:
    folder = world.copied(world.data)
    description = json.loads((folder / "dataset.json").read_text())
    description["splits"]["train"]["shards"][0] |= change
    (folder / "dataset.json").write_text(json.dumps(description))
    assert said in refused("train", world.config, "--out", world.work / "out", "--data.path", folder)


# Run folders.


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", "data: [", "config.yaml: is not YAML"),
        ("config.yaml", "data: {path: x}\ntrain: {seed: x}\n", "train.seed: a number is needed"),
        ("config.yaml", None, "config.yaml: is missing from this run"),
        ("run.json", "{}", "run.json: is damaged"),
        ("run.json", '{"stages": [{"bag_size": "2", "steps": 1}]}', "run.json: is damaged (stages: bag_size is '2')"),
        ("run.json", None, "run.json: is missing from this run"),
        ("summary.json", "[" * 10**5, "summary.json: is not JSON; delete it"),
        ("summary.json", '{"steps": "many"}', "summary.json: is damaged (steps is not a number); delete it"),
    ],
)
def test_a_damaged_run_folder(world: World, name: str, content: str | None, said: str) -> None:
    folder = world.copied(world.run)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert said in refused("train", world.config, "--out", folder)
    assert (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "key"), [("summary.json", "final_validation_loss"), ("run.json", "first_total_steps")]
)
def test_a_changed_digit_in_a_run_folder(world: World, name: str, key: str) -> None:
    folder = world.copied(world.run)
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**values, key: values[key] + 1}))
    assert f"{name}: was edited or damaged" in refused("train", world.config, "--out", folder)


def test_a_run_s_stages_are_those_of_its_configuration(world: World) -> None:
    folder = world.copied(world.run)
    fixed = json.loads((folder / "run.json").read_text())
    del fixed["checksum"]  # as in a run of version 0.1
    fixed["stages"][0]["bag_size"] = 4
    (folder / "run.json").write_text(json.dumps(fixed))
    (folder / "summary.json").unlink()
    line = refused("train", world.config, "--out", folder)
    assert "run.json and config.yaml disagree" in line
    assert "bag_size=4" in line


def test_a_damaged_line_of_metrics_is_named_but_for_what_a_kill_leaves(world: World) -> None:
    folder = world.copied(world.run)
    (folder / "summary.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]))
    line = refused("train", world.config, "--out", folder)
    assert line.endswith("metrics.jsonl, line 2: is damaged; delete this line to continue without it")
    (folder / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"step": 9\n' + bytes(100))
    assert tst("train", world.config, "--out", folder, "--quiet").code == 0


@pytest.mark.parametrize("command", ["train", "compare", "prepare"])
@pytest.mark.parametrize("place", ["file", "file/below", "taken", "x" * 300])
def test_a_folder_that_is_not_ours(world: World, command: str, place: str) -> None:
    work = world.clean()
    (work / "file").write_text("mine")
    (work / "taken").mkdir()
    (work / "taken" / "thesis.tex").write_text("years of work")
    what = world.text if command == "prepare" else world.config
    assert place.partition("/")[0] in refused(command, what, "--out", work / place, "--quiet")
    assert sorted(path.name for path in work.rglob("*")) == ["file", "taken", "thesis.tex"]


def test_a_demo_into_a_folder_that_is_not_ours(world: World) -> None:
    assert "thesis.tex" not in refused("demo", "--out", world.text, "--quiet")
    for words in (["--seeds", "0"], ["--jobs", "0"], ["--steps", "9" * 30]):
        assert "--" in refused("demo", "--out", world.clean() / "demo", *words)
        assert not (world.work / "demo").exists()


def test_a_folder_that_was_empty_is_empty_again(world: World) -> None:
    out = world.clean() / "out"
    out.mkdir()
    refused("train", world.config, "--out", out, "--model.config.hidden_size", 0)
    assert not list(out.iterdir())


def test_two_processes_in_one_folder(world: World) -> None:
    with RunFolder(world.clean() / "run") as folder:
        line = refused("train", world.config, "--out", folder.path)
        assert f"another process (pid {os.getpid()}) is using this run" in line
        assert (folder.path / "lock").exists()


# The machine refuses: a full disk, a limit, a read-only folder.


@contextlib.contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """No file can grow beyond that: what a full disk looks like to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 50, 300])
def test_a_full_disk_when_a_run_starts(world: World, num_bytes: int) -> None:
    out = world.clean() / "a" / "out"
    with at_most(num_bytes):
        line = refused("train", world.config, "--out", out, "--quiet")
    assert "File too large; raise the limit" in line
    assert str(out) in line
    assert not (world.work / "a").exists()


def test_a_full_disk_while_metrics_are_written(world: World) -> None:
    out = world.clean() / "out"
    keys = ["--train.total_steps", "60", "--logging.checkpoint_interval", "1000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.bad_input.STEPS", 60)
        with at_most(8000):
            said = tst("train", world.config, "--out", out, "--quiet", *keys)
        assert said.code == 1  # training went on; at its end there was no room for what was trained
        warning, error = said.err.splitlines()
        assert warning.startswith("warning: step 30: ")
        assert error.startswith(f"error: step 60: {out / 'metrics.jsonl'}: could not be written (File too large)")
        assert tst("train", world.config, "--out", out, "--quiet", *keys).code == 0  # with room again


@pytest.mark.parametrize("num_bytes", [0, 1000, 30_000])
def test_a_full_disk_while_text_is_prepared(world: World, num_bytes: int) -> None:
    out = world.clean() / "a" / "data"
    with at_most(num_bytes):
        line = refused("prepare", world.text, "--out", out, "--quiet")
    assert "File too large" in line
    assert str(out.parent) in line
    assert not list(world.work.iterdir())


def test_a_full_disk_while_a_report_is_written(world: World) -> None:
    folder = world.copied(world.study)
    before = (folder / "report.json").read_bytes(), (folder / "report.html").read_bytes()
    with at_most(len(before[0]) + 2000):  # the page is longer
        line = refused("compare", world.config, "--out", folder, "--quiet")
    assert f"{folder / 'report.html'}: File too large" in line
    assert (folder / "report.html").read_bytes() == before[1]
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_machine_refuses_is_one_line_wherever_it_happens(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("token_superposition.files.os.fsync", fail)
    out = world.clean() / "a" / "out"
    for line in (
        refused("train", world.config, "--out", out, "--quiet"),
        refused("compare", world.config, "--out", out, "--quiet"),
        refused("prepare", world.text, "--out", out, "--quiet"),
    ):
        assert str(out) in line
    assert not (world.work / "a").exists()


def test_only_what_a_person_can_mend_loses_its_traceback(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_trouble(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert machine_trouble(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert machine_trouble(RuntimeError("shapes do not match")) is None
    assert "out of memory (CUDA out of memory. Tried" in str(machine_trouble(RuntimeError("CUDA out of memory. Tried")))
    assert "micro_batch_size" in str(machine_trouble(MemoryError()))

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("token_superposition.training.loop.train", fault)
    with pytest.raises(ZeroDivisionError):
        tst("train", world.config)


def test_a_message_is_one_line_whatever_a_name_holds(world: World) -> None:
    assert one_line("a\nb\x1b[31m\u2028é ü") == "a\\nb\\x1b[31m\\u2028é ü"
    assert "a\\nb" in refused("prepare", "a\nb", "--out", world.clean() / "x")
    assert "is not UTF-8 text" in refused("prepare", "\udcff", "--out", world.work / "x")


# Nothing that a stranger may have sent is run.

_EVIL = "!!python/object/apply:os.mkdir [{}]"


def test_yaml_and_pickles_are_never_run(world: World) -> None:
    pwned = world.work / "pwned"
    evil = _EVIL.format(pwned)
    train_refused(world, world.written(f"data: {evil}\n"))
    refused("train", world.config, f"--train.seed={evil}")
    folder = world.copied(world.run)
    (folder / "config.yaml").write_text(evil)
    refused("train", world.config, "--out", folder)

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(pwned),))

    for name in ("train-00000.tokens", "dataset.json", "tokenizer.json"):
        folder = world.copied(world.data)
        with (folder / name).open("wb") as file:
            np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
        refused("train", world.config, "--out", world.work / "out", "--data.path", folder)
        shutil.copy(folder / name, world.work / f"{name}.txt")
        refused("prepare", world.work / f"{name}.txt", "--out", world.work / "made")
    assert not pwned.exists()


def test_training_on_a_stranger_s_data_unpickles_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", fail)
    folder = world.copied(world.data)
    assert tst("train", world.config, "--out", world.work / "out", "--data.path", folder, "--quiet").code == 0
    assert tst("prepare", world.text, "--out", world.work / "made", "--quiet").code == 0


def test_no_code_from_the_hub_is_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setattr(
        "transformers.models.auto.auto_factory.get_class_from_dynamic_module", lambda *a, **_: reached.append(a)
    )
    evil = {"AutoModelForCausalLM": "evil/repo--modeling.Evil", "AutoConfig": "evil/repo--configuration.Evil"}
    for key, value in (("auto_map", evil), ("attn_implementation", "evil/kernel"), ("_attn_implementation", "evil/k")):
        line = train_refused(world, world.changed(f"model.config.{key}", value))
        assert f"model.config.{key}: llama has no such key" in line
    file = world.changed("model.config._name_or_path", "evil/repo")  # a name, and nothing that is fetched
    assert tst("train", file, "--out", world.work / "out", "--quiet").code == 0
    assert not reached


def test_the_source_has_no_way_to_run_what_it_reads() -> None:
    """What the tests above cannot reach. (DCP unpickles, inside torch, what a run itself has written.)"""
    unsafe = re.compile(
        r"pickle\.load|import pickle|torch\.load\(|allow_pickle=True"
        r"|trust_remote_code=(?!False|options\.trust|trust_remote_code\b)"
        r"|unsafe_load|full_load"
        r"|yaml\.load\((?!text, _Loader\))|\beval\(|\bexec\(|np\.load\("
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if unsafe.search(line) and ".eval()" not in line
    ]
    assert not found
