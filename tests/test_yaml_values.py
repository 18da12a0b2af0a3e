"""Values as people write them: decimal numbers, texts that look like numbers, and files within limits."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from token_superposition import yaml_values
from token_superposition.errors import UserError
from token_superposition.training.config import load_config, parse_config
from token_superposition.yaml_files import parse_override, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("08", 8),
        ("+3", 3),
        ("-007", -7),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("01.5e01", 15.0),
        (".inf", math.inf),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        ("0b11", "0b11"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("1.2.3", "1.2.3"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("'010'", "010"),
        ("!!str 010", "010"),
        ("!!int 010", 10),
        ("!!float 1", 1.0),
        ("2020-13-45", "2020-13-45"),
    ],
)
def test_what_a_text_stands_for(text: str, value: object) -> None:
    found = parse_override(text)
    assert found == value
    assert isinstance(found, type(value))


def test_a_number_is_a_text_where_a_text_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {sources: {2015: {path: 010}, on: {path: 1e3}}, validation_sets: {no: 1_0}}\n"
        "logging: {project: 2024}\ntrain: {seed: 010, batch_size: 08, compile: off}\n"
        "model: {config: {rope_theta: 1_0e3, attention_bias: no}}\n"
    )
    config = load_config(file, {"data.validation_sets.x": parse_override("007")})
    assert {name: source.path for name, source in config.data.sources.items()} == {"2015": "010", "on": "1e3"}
    assert config.data.validation_sets == {"no": "1_0", "x": "007"}
    assert config.logging.project == "2024"
    assert (config.train.seed, config.train.batch_size, config.train.compile) == (10, 8, False)
    assert config.model.config == {"rope_theta": 10000.0, "attention_bias": False}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))  # plain numbers, which yaml can write
    assert load_config(again) == config


@pytest.mark.parametrize("text", ["1:30", "0x10", "yes", "true", "'3'", "12 # 3 4'"])
def test_what_is_no_number_is_refused_where_a_number_is_needed(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"data: {{path: x}}\ntrain:\n  seed: {text}\n")
    if text.startswith("12"):
        assert load_config(file).train.seed == 12
        return
    with pytest.raises(UserError, match=r"line 3: train.seed: a number is needed"):
        load_config(file)


@pytest.mark.parametrize("home", ["~/a", "~root/a"])
def test_home_folders_are_found_in_every_path(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    path = {"~/a": "/somewhere/a", "~root/a": str(Path("~root/a").expanduser())}[home]
    config = parse_config(
        {
            "data": {"sources": {"s": {"path": home}}, "validation_sets": {"v": home}},
            "model": {"init_from": home},
        }
    )
    assert (config.data.sources["s"].path, config.data.validation_sets["v"], config.model.init_from) == (path,) * 3
    assert parse_config({"data": {"path": home}}).data.path == path
    with pytest.raises(UserError, match=r"data\.path: .*~nobody-here"):
        parse_config({"data": {"path": "~nobody-here/a"}})


_MANY = 2**18 - 40


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n".join(f"k{number}: 1" for number in range(25_000)), "values"),
        ("a: [" + "1, " * (_MANY // 3), "values"),
        ("a: \"" + "x y " * (_MANY // 4), "is not YAML"),
        ("a: {b: '" + "\n" * _MANY, "is not YAML"),
        ("b0: &b0 {k: 1}\n" + "".join(f"b{n}: &b{n} {{<<: *b{n - 1}, k{n}: 1}}\n" for n in range(1, 5000)), "values"),
        ("[" * _MANY, "nested too deeply"),
        ("{a: " * (_MANY // 4), "nested too deeply"),
        ("- " * (_MANY // 2), "nested too deeply"),
        ("? " * (_MANY // 2), "nested too deeply"),
        ("a: " + "!!x " * (_MANY // 4), "is not YAML"),
        ("a: !!" + "x" * (_MANY - 10) + " 1", "the YAML tag"),
        ("#" * 2**20, "not a configuration"),
        ("? " + "k" * 100_000 + "\n: 1", "no such key"),
        ("a: 1\n---\nb: 1", "several YAML documents"),
        ("a: !!bool x", "line 1"),
        ("a: !!int x", "line 1"),
        ("a: !!null x", "line 1"),
        ("a: !!float yes", "line 1"),
        ("a: !local x", "tag !local"),
        ("a: !!python/object/apply:os.getcwd []", "line 1"),
        ("a: !!timestamp 2001-01-01", "line 1"),
        ("a: !!set {x, y}", "line 1"),
        ("a: !!omap [x: 1]", "line 1"),
        ("!!python/name:os.system {}", "line 1"),
        ("a: *nothing", "anchor"),
        ("? [a, b]\n: 1", "a key is a text"),
        ("a: {<<: 3}", "takes a section"),
        ("a: {on: 1, 'on': 2}", "given twice"),
        ('data: {path: "\\ud800"}', ""),
    ],
    ids=range(29),
)  # fmt: skip
def test_any_file_is_answered_soon_in_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert time.process_time() - start < 3
    assert said in str(caught.value)
    from token_superposition.errors import one_line

    assert len(one_line(str(caught.value))) < 700 + len(str(file))


def test_a_merged_section_fills_what_is_not_given(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: {<<: *b}\n")
    values, _ = read_yaml(file)
    assert values["c"] == {"x": 3, "y": 1, "z": 2}
    assert values["d"] == {"y": 2, "z": 2}


def test_the_parser_without_c_reads_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "a: &a [010, '1', !!str 2, ~, {b: .5}]\nc: {<<: {d: *a}, e: |\n    x\n  }\n".replace("|\n    x\n  ", "x")
    file = tmp_path / "run.yaml"
    file.write_text(text)
    fast, _ = read_yaml(file)
    monkeypatch.setattr(yaml_values, "_PARSER", yaml.SafeLoader)
    assert read_yaml(file)[0] == fast


def test_options_are_decimal_and_find_home_folders() -> None:
    from token_superposition.cli import _parser, _split

    def read(*words: str) -> Any:
        return _parser().parse_args(_split(words)[0])

    assert read("compare", "x", "--seeds", "010", "--jobs=08").seeds == 10
    home = Path.home()
    assert read("train", "~/x.yaml", "--out=~/a.b").config == home / "x.yaml"
    assert read("train", "x", "--out=~/a.b").out == home / "a.b"
    assert read("train", "x", "--out", "010").out == Path("010")
    assert read("prepare", "~/a", "--out", "x", "--tokenizer", "~/t").sources == [str(home / "a")]
    assert read("prepare", "~/a", "--out", "x", "--tokenizer", "~/t").tokenizer == str(home / "t")
    assert read("bench", "--out", "~/x.json").out == home / "x.json"


def test_a_name_that_the_file_system_cannot_have_is_one_line(tmp_path: Path, small_run: dict[str, Any]) -> None:
    """Under an ASCII file system, a path and the name of an arm, which is a folder's."""
    for number, change in enumerate(
        [
            {"data": {"path": "späce"}},
            {"arms": {"bäse": {"superposition.bag_size": 1}, "other": {}}},
        ]
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump({**small_run, **change}, allow_unicode=True), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "token_superposition", ["train", "compare"][number], str(file), "--quiet"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            env={
                "LC_ALL": "C",
                "PYTHONUTF8": "0",
                "PYTHONCOERCECLOCALE": "0",
                "PATH": "",
                "PYTHONPATH": ":".join(sys.path),
            },
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert "PYTHONUTF8=1" in done.stderr
