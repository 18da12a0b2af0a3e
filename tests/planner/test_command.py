"""The command `tst plan`: the JSON result, the file that it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bad_input import refused, tst
from token_superposition.data.prepare import prepare

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def plan_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The result of the command."""
    capsys.readouterr()
    said = tst("plan", *words, "--json", "--quiet")
    assert said.code == 0, said.err
    value = json.loads(said.out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


@pytest.fixture
def config(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    return file


def test_the_papers_3b_from_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    setting = ("--superposition.bag_size", 6, "--superposition.ratio", 0.3)
    speed = ("--hardware", "b200", "--mfu", 0.4)
    plan = plan_of(capsys, CONFIGS / "paper-3b.yaml", *setting, *speed, "--train.total_steps", 50_000)
    assert plan["workload"]["parameters"] == pytest.approx(3.34e9, rel=0.01)
    assert plan["without"]["device_hours"] == pytest.approx(622, rel=0.2)  # the paper's hours
    assert round(plan["without"]["raw_tokens"] / 1e9) == 105
    assert plan["verdict"] == "use"


def test_a_plan_becomes_a_run(config: Path, small_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    setting = ("--superposition.bag_size", 4, "--superposition.ratio", 0.25)
    plan = plan_of(capsys, config, "--tokens", 64 * 20, *setting, "--out", "plan.yaml")
    dry = tst("train", "plan.yaml", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    run = json.loads(dry.out.splitlines()[-1])
    assert run["parameters"] == plan["workload"]["parameters"]
    assert run["flops"] == plan["same_cost"]["runs"][0]["flops"]
    assert run["raw_tokens"] == plan["same_cost"]["runs"][0]["raw_tokens"]
    assert run["switch_step"] == plan["same_cost"]["runs"][0]["switch_step"] == 5
    assert run["epochs"] == pytest.approx(plan["same_cost"]["runs"][0]["epochs"], abs=1e-6)
    assert run["train_tokens"] == sum(part["num_tokens"] for part in plan["workload"]["corpus"]["sources"])
    assert run["config"]["train"]["warmup_ratio"] == small_run["train"]["warmup_ratio"]
    text = tst("plan", config, "--tokens", 64 * 20, "--out", "plan.yaml").out  # an earlier plan makes way
    assert "Do not use superposition here." in text
    assert "superposition" not in yaml.safe_load(Path("plan.yaml").read_text())
    assert "raw tokens" in text


def test_of_a_mixture_plan_and_run_count_the_same(
    config: Path, small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(chr(97 + number) * 50)
    little = tmp_path / "little"
    prepare([text], out=little, validation_fraction=0.1, quiet=True)
    sources = {"words": {"path": small_run["data"]["path"]}, "few": {"path": str(little)}}
    config.write_text(yaml.safe_dump({**small_run, "data": {"sources": sources}}))
    plan = plan_of(capsys, config, "--train.total_steps", 40, "--out", "plan.yaml")
    assert "already reads source few (" in plan["same_cost"]["reasons"][0]
    assert "50% of what is read) more than once" in plan["same_cost"]["reasons"][0]
    assert plan["without"]["unique_raw_tokens"] < 0.8 * plan["without"]["raw_tokens"]
    run = json.loads(tst("train", "plan.yaml", "--dry-run", "--json").out.splitlines()[-1])
    for key in ("raw_tokens", "unique_raw_tokens", "epochs"):
        assert run[key] == pytest.approx(plan["without"][key], rel=0.02)


def test_warm_up_in_steps_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--parameters", "1B", "--tokens", "42B", "--train.warmup_steps", 1000)
    plan = plan_of(capsys, *words, "--out", tmp_path / "plan.yaml")
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text())["train"]["warmup_steps"] == 1000
    assert "warmup_ratio" not in plan["config"]["train"]


def test_a_model_of_a_size_becomes_a_run_on_ones_own_data(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("--data.path", small_data, "--train.batch_size", 2, "--train.sequence_length", 16)
    plan = plan_of(capsys, "--parameters", "200k", "--tokens", 320, *keys, "--out", "plan.yaml")
    assert (plan["workload"]["vocab_size"], plan["workload"]["unit"]) == (320, "bytes")
    assert plan["without"]["total_steps"] == 10
    assert any("a Llama of width" in text for text in plan["workload"]["assumptions"])
    dry = tst("train", "plan.yaml", "--dry-run", "--json")
    assert dry.code == 0, dry.err
    assert json.loads(dry.out.splitlines()[-1])["parameters"] == plan["workload"]["parameters"]


def test_the_less_costly_run_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--parameters", "1B", "--tokens", "60B", "--goal", "cost", "--hardware", "h100", "--num-devices", 8)
    plan = plan_of(capsys, *words, "--out", tmp_path / "plan.yaml")
    low, high = plan["same_loss"]["runs"]
    assert plan["without"]["total_steps"] > low["total_steps"] > high["total_steps"]
    assert plan["without"]["cost"] > low["cost"] > high["cost"]
    written = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert written["train"]["total_steps"] == low["total_steps"]
    assert written["superposition"]["bag_size"] == plan["setting"]["bag_size"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parameters", "1B"], "--parameters needs a budget: one of --tokens, --flops, --hours, --money"),
        ([], "give one of CONFIG.yaml and --parameters"),
        (["--parameters", "1B", "--tokens", "0"], "argument --tokens: an amount above 0"),
        (["--parameters", "1B", "--tokens", "nan"], "'nan' is not an amount above 0; write 300M, 10B"),
        (["--parameters", "1B", "--tokens", "10Q"], "'10Q' is not an amount"),
        (["--parameters", "1B", "--tokens", "1B", "--hours", "3"], "--hours: not allowed with argument --tokens"),
        (["--parameters", "1B", "--tokens", "1B", "--hardware", "h10"], "'h10' is not known; did you mean 'h100'?"),
        (["--parameters", "1B", "--tokens", "1B", "--hardware", "abacus"], "(known: b200, h200, h100"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "-1"], "argument --price: a price of at least 0"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "40"], "above 0 and at most 1 is needed, such as 0.4"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "€3"], "in dollars"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "3,50"], "argument --price"),
        (["--parameters", "1B", "--tokens", "1B", "--price", ""], "argument --price"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "inf"], "argument --price"),
        (["--parameters", "1B", "--tokens", "1B", "--price", "1e30"], "argument --price"),
        (["--parameters", "1B", "--money", "£500", "--hardware", "h100"], "in dollars"),
        (["--parameters", "1B", "--money", "-5", "--hardware", "h100"], "argument --money"),
        (["--parameters", "1B", "--tokens", "1,5B"], "'1,5B' is not an amount"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "1e-320"], "argument --mfu"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "high"], "such as 0.4"),
        (["--parameters", "1B", "--tokens", "1B", "--num-devices", "2.5"], "a whole number"),
        (["--parameters", "1B", "--tokens", "1B", "--num-devices", "1e30"], "argument --num-devices"),
        (["--parameters", "1B", "--tokens", "1B", "--num-devices", "-8"], "argument --num-devices"),
        (["--parameters", "1B", "--hours", "0", "--hardware", "h100"], "argument --hours"),
        (["--parameters", "1B", "--hours", "1e20", "--hardware", "h100"], "argument --hours"),
        (["--parameters", "1B", "--tokens", "1B", "--peak-flops", "1e30"], "argument --peak-flops"),
        (["--parameters", "1B", "--tokens", "1B", "--mfu", "0.4"], "--mfu is a share of the peak FLOPs"),
        (["--parameters", "1B", "--tokens", "1B", "--num-devices", "0"], "argument --num-devices"),
        (["--parameters", "1B", "--tokens", "100"], "100 is less than one step of 1,048,576 positions"),
        (["--parameters", "1B", "--tokens", "1e29"], "more than any run has"),
        (["--parameters", "1B", "--hours", "3"], "--hours needs to know the machine"),
        (["--parameters", "1B", "--money", "3", "--hardware", "mi300x"], "--money needs what a device costs an hour"),
        (["--parameters", "1B", "--tokens", "10B", "--corpus-tokens", "100"], "is smaller than one row"),
        (["--parameters", "100", "--tokens", "10B"], "no usual shape has about 100 parameters"),
        (["--parameters", "1e25", "--tokens", "10B"], "no usual shape has about"),
        (["--parameters", "1B", "--tokens", "10B", "--train.lerning_rate", "3"], "mean 'train.learning_rate'"),
        (["--parameters", "1B", "--tokens", "10B", "--train.sequence_length", "x"], "train.sequence_length"),
        (["--parameters", "1B", "--tokens", "10B", "--superposition.ratio", "2"], "superposition.ratio"),
        (["--parameters", "1B", "--tokens", "42B", "--train.warmup_steps", "1000000"], "train.warmup_steps"),
        (["--parameters", "1B", "--tokens", "10B", "--out", "."], "is a folder; name a file"),
        (["--parameters", "1B", "--tokens", "10B", "--out", "no/where.yaml"], "there is no folder no"),
        (["nowhere.yaml"], "does not exist"),
        (["small.yaml", "--parameters", "1B"], "give one of CONFIG.yaml and --parameters"),
        (["small.yaml", "--vocab-size", "99"], "--vocab-size needs --parameters"),
        (["small.yaml", "--data.path", "nowhere"], "nowhere is not there, so the vocabulary is not known"),
        (["small.yaml", "--model.config.hiden_size", "3"], "did you mean 'hidden_size'"),
        (["small.yaml", "--train.sequence_length", "100"], "max_position_embeddings"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(config: Path, words: list[str], said: str) -> None:
    assert said in refused("plan", *words)
    assert [path.name for path in config.parent.iterdir()] == ["small.yaml"]


def test_nobody_elses_file_is_written_over(config: Path) -> None:
    before = config.read_text()
    assert "exists and was not written by tst plan" in refused("plan", config, "--out", config)
    assert config.read_text() == before


def test_a_price_may_have_its_dollar_sign(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--parameters", "1B", "--hardware", "h100", "--money", "$5,000", "--price")
    assert [plan_of(capsys, *words, text)["hardware"]["price"] for text in ("$2.50", "2.5", "2.5 USD")] == [2.5] * 3
