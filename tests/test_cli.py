"""The door: what each command takes, prints and refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.in_process import little_python
from token_superposition import __version__
from token_superposition.cli import main
from token_superposition.files import read_record
from token_superposition.study import demo

COMMANDS = {"demo", "prepare", "train", "compare", "eval", "generate", "export", "bench", "plan"}
HEAVY = ("torch", "transformers", "numpy", "pydantic")


def tst(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "token_superposition", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a wrong input is refused with."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """The JSON object that is the last line of standard output, of a command that succeeds."""
    capsys.readouterr()
    assert main([str(argument) for argument in (*arguments, "--json", "--quiet")]) == 0
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


def listed(text: str) -> set[str]:
    """The commands in a help text."""
    return set(re.findall(r"^    (\w+) {2,}", text.partition("\ncommands:\n")[2], re.MULTILINE))


@pytest.fixture
def config(small_run: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    return file


# Help.


def test_help_lists_the_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    commands = listed(capsys.readouterr().out)
    assert commands >= COMMANDS
    choices = refused(capsys, "no-such-command").partition("choose from ")[2].partition(")")[0]
    assert {choice.strip(" '") for choice in choices.split(",")} == commands


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_its_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tst {command}")
    for option in ("--json", "--quiet"):
        assert option in text
    assert ("--out" in text) == (command in ("demo", "prepare", "train", "compare", "bench", "plan"))
    assert ("--allow-superposed" in text) == (command in ("eval", "generate", "export"))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["--version"], ["demo", "--help"], ["bench", "--help"], ["plan", "--help"]],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from token_superposition.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_and_version_from_the_shell() -> None:
    done = tst("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert listed(done.stdout) >= COMMANDS
    assert tst("--version").stdout == f"tst {__version__}\n"


# What is refused.


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_missing_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    assert "nowhere.yaml" in refused(capsys, command, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_misspelt_key_on_the_command_line(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path, command: str
) -> None:
    line = refused(capsys, command, config, "--out", tmp_path / "out", "--train.lerning_rate", "1")
    assert "--train.lerning_rate" in line
    assert "'train.learning_rate'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_misspelt_key_in_the_file(
    capsys: pytest.CaptureFixture[str], small_run: dict[str, Any], tmp_path: Path, command: str
) -> None:
    small_run["train"]["totl_steps"] = 3
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(small_run))
    number = next(n for n, line in enumerate(file.read_text().splitlines(), 1) if "totl_steps" in line)
    line = refused(capsys, command, file)
    assert f"bad.yaml, line {number}" in line
    assert "'train.total_steps'" in line


def test_a_file_that_is_no_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("train: [1,\nmodel: {")
    assert "bad.yaml" in refused(capsys, "train", file)


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'trian'" in refused(capsys, "trian")
    refused(capsys)


@pytest.mark.parametrize("command", ["demo", "prepare", "train", "compare"])
def test_an_unknown_option(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path, command: str) -> None:
    where = {"demo": [], "prepare": [config]}.get(command, [config])
    line = refused(capsys, command, *where, "--out", tmp_path / "out", "--nonsense", "3")
    assert "--nonsense" in line
    assert not (tmp_path / "out").exists()


def test_a_value_that_is_missing(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert "--train.seed" in refused(capsys, "train", config, "--train.seed")
    assert "--out" in refused(capsys, "train", config, "--out")
    assert "CONFIG.yaml" in refused(capsys, "train")
    assert "--out" in refused(capsys, "prepare", config)


def test_a_value_of_the_wrong_kind(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--train.total_steps" in refused(capsys, "train", config, "--out", out, "--train.total_steps", "many")
    assert "--seeds" in refused(capsys, "compare", config, "--out", out, "--seeds", "many")
    assert "--seeds" in refused(capsys, "compare", config, "--out", out, "--seeds", "0")
    assert "--steps" in refused(capsys, "demo", "--out", out, "--steps", "3")
    assert "give one of the two" in refused(capsys, "demo", "--out", out, "--steps", "12", "--budgets", "12,24")
    assert "--budgets: 12 is there twice" in refused(capsys, "compare", config, "--out", out, "--budgets", "12,12")
    other = ("--budgets", "20,24", "--train.total_steps", "12")
    assert "none of the budgets" in refused(capsys, "compare", config, "--out", out, *other)
    assert "cannot be read" in refused(capsys, "train", config, "--out", out, "--train.betas", "[0.9")
    assert not out.exists()


def test_a_sweep_that_cannot_be(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "did you mean 'train.learning_rate'" in refused(
        capsys, "compare", config, "--out", out, "--sweep", "train.lerning_rate=1,2"
    )
    assert "cannot be swept" in refused(capsys, "demo", "--out", out, "--sweep=train.total_steps=10,20")
    assert "--sweep-seeds needs --sweep" in refused(capsys, "compare", config, "--out", out, "--sweep-seeds", "2")
    rates = ["--sweep", "train.learning_rate=1e-3,2e-3"]
    assert "--sweep-seeds" in refused(capsys, "compare", config, "--out", out, *rates, "--sweep-seeds", "0")
    assert "set by --train.learning_rate" in refused(
        capsys, "compare", config, "--out", out, *rates, "--train.learning_rate", "1e-3"
    )
    assert not out.exists()


def test_a_word_too_many(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert "second.yaml" in refused(capsys, "train", config, "second.yaml")


def test_a_missing_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nowhere" in refused(capsys, "prepare", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    line = refused(capsys, "train", config, "--out", tmp_path / "out", "--data.path", tmp_path / "nowhere")
    assert "nowhere" in line


def test_a_comparison_of_nothing(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    line = refused(capsys, "compare", config, "--out", tmp_path / "out", "--superposition.bag_size", "1")
    assert "nothing to compare" in line


def test_a_refusal_from_the_shell(tmp_path: Path) -> None:
    done = tst("train", tmp_path / "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "nowhere.yaml" in done.stderr


def test_keys_of_a_configuration_where_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "export", tmp_path, tmp_path / "out", "--train.seed", "3")
    assert "--train.seed: tst export takes no configuration keys" in line


@pytest.mark.parametrize("command", ["eval", "generate", "export"])
def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    rest = {"eval": [tmp_path], "generate": ["--prompt", "a"], "export": [tmp_path / "out"]}[command]
    assert "nowhere" in refused(capsys, command, tmp_path / "nowhere", *rest)
    assert not (tmp_path / "out").exists()


def test_options_of_use_out_of_range(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "nothing to evaluate" in refused(capsys, "eval", tmp_path)
    assert "--max-tokens: at least 1, not 0" in refused(capsys, "eval", tmp_path, "x", "--max-tokens", "0")
    assert "--batch-size" in refused(capsys, "eval", tmp_path, "x", "--batch-size", "many")
    assert "--prompt" in refused(capsys, "generate", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "--device: 'cuda:99'" in refused(capsys, "generate", tmp_path, "--prompt", "a", "--device", "cuda:99")
    assert "--dtype" in refused(capsys, "export", tmp_path, tmp_path / "out", "--dtype", "int8")


# What is done.


def test_train_prints_its_result_as_json(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tst("train", config, "--out", out, "--json", "--train.total_steps", "4", "--train.seed=1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0]) == read_record(out / "summary.json", "")
    assert json.loads(lines[0])["steps"] == 4
    assert json.loads(lines[0])["seed"] == 1


def test_keys_are_overridden_in_both_spellings(
    capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    keys = ["--train.total_steps", "4", "--train.seed=1", "--train.betas", "[0.8, 0.9]", "--train.max_grad_norm=null"]
    summary = result_of(capsys, "train", config, "--out", out, *keys, "--superposition.ratio", "0.25")
    assert (summary["steps"], summary["seed"], summary["switch_step"]) == (4, 1, 1)
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["train"]["betas"] == [0.8, 0.9]
    assert resolved["train"]["max_grad_norm"] is None


def test_train_says_its_result_in_words(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["train", str(config), "--out", str(out), "--quiet", "--train.total_steps=4"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    loss = json.loads((out / "summary.json").read_text())["final_validation_loss"]
    assert f"{loss:.4f} nats per token" in captured.out
    assert str(out) in captured.out


def test_prepare_prints_its_result_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, out = tmp_path / "text", tmp_path / "data"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.txt").write_text(f"document {number} " * 50)
    result = result_of(capsys, "prepare", source, "--out", out)
    assert set(result["splits"]) == {"train", "validation"}
    assert sum(split["documents"] for split in result["splits"].values()) == 20
    assert not result["reused"]
    assert (out / "dataset.json").exists()
    assert result_of(capsys, "prepare", source, "--out", out)["reused"]
    assert main(["prepare", str(source), "--out", str(out), "--quiet"]) == 0
    assert f"train: {result['splits']['train']['tokens']:,} tokens" in capsys.readouterr().out


def test_compare_ends_with_the_report_s_path(capsys: pytest.CaptureFixture[str], config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["compare", str(config), "--out", str(out), "--quiet", "--train.total_steps", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("One seed does not decide whether superposition helps")
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert (out / "report.html").exists()
    report = result_of(capsys, "compare", config, "--out", out, "--train.total_steps", "4")  # trains nothing
    assert report == json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_the_demo_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = demo.demo_config()
    values["train"] |= {"batch_size": 2}
    values["logging"] = {"validation_tokens": 4096, "interim_validation_tokens": 1024}
    monkeypatch.setattr(demo, "demo_config", lambda: deepcopy(values))
    little_python(monkeypatch)
    out = tmp_path / "demo"
    report = result_of(capsys, "demo", "--seeds", "1", "--out", out, "--steps", "12")
    assert report == json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in report["arms"]] == ["baseline", "superposition"]
    assert all(seed["steps"] == 12 for arm in report["arms"] for seed in arm["seeds"])
    assert report["equal_flops"]["confidence_interval"] is None
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "data" / "dataset.json").exists()

    later = result_of(capsys, "demo", "--out", out, "--budgets", "16,12", "--equal-data")
    baseline, superposition = later["arms"]
    assert [budget["total_steps"] for budget in baseline["budgets"]] == [12, 16, 21]
    again, before = superposition["budgets"][0]["seeds"], report["arms"][1]["seeds"]
    assert [seed["final_validation_loss"] for seed in again] == [seed["final_validation_loss"] for seed in before]
    assert later["equal_data"]["total_steps"] == 21
    assert later["command"] == f"tst demo --seeds 1 --out {out} --budgets 16,12 --equal-data"


def test_a_run_is_scored_continued_and_exported(
    capsys: pytest.CaptureFixture[str],
    config: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    summary = result_of(capsys, "train", config, "--out", run)

    result = result_of(capsys, "eval", run, f"mine={small_data}", "--max-tokens", "1024")
    (scored,) = result["sets"]
    assert scored["name"] == "mine"
    assert scored["validation_loss"] == summary["final_validation_loss"]
    assert (result["step"], result["tasks"], result["warnings"]) == (12, {}, [])
    assert main(["eval", str(run), str(small_data), "--max-tokens", "1024"]) == 0
    assert f"{summary['bits_per_byte']:.4f} bits per byte  1,024 tokens" in capsys.readouterr().out

    exported = result_of(capsys, "export", run, out)
    assert set(exported["files"]) == {path.name for path in out.iterdir()}
    assert refused(capsys, "export", run, out).endswith("(--overwrite)")

    words = ["generate", str(out), "--max-new-tokens", "12", "--seed", "3", "--prompt"]
    result = result_of(capsys, *words, "thé")
    assert (result["prompt"], result["seed"], len(result["tokens"])) == ("thé", 3, 12)
    assert main([*words, "thé"]) == 0
    assert capsys.readouterr().out == result["text"] + "\n"  # no terminal: as it is
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("thé".encode())))
    assert result_of(capsys, *words, "-") == result
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert "standard input is not UTF-8" in refused(capsys, *words, "-")

    for checkpoint in ("09", "12"):
        shutil.rmtree(run / "checkpoints" / f"step-00000{checkpoint}")
    for rest in (
        ["eval", str(run), str(small_data)],
        [*words[:1], str(run), "--prompt", "a"],
        ["export", str(run), "x"],
    ):
        assert refused(capsys, *rest).endswith("--allow-superposed")
    assert main(["generate", str(run), "--prompt", "a", "--max-new-tokens", "1", "--allow-superposed"]) == 0
    assert "warning: " in capsys.readouterr().err


def test_a_terminal_is_spared_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    from token_superposition.evaluation.terminal import write_piece

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    write_piece("a\x1b[31m\x07\n\té")
    assert sys.stdout.getvalue() == "a\ufffd[31m\ufffd\n\té"  # type: ignore[attr-defined]
