"""`tst bench`: what it says hangs together, it leaves nothing behind, and what it refuses. Nothing is timed here."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.bad_input import refused
from token_superposition.bench import find_batch as batch_size
from token_superposition.bench import memory, rounds
from token_superposition.bench.bench_progress import BenchProgress
from token_superposition.bench.bench_run import opened
from token_superposition.bench.find_batch import find_batch, largest
from token_superposition.bench.rounds import Rounds, Turn, median_interval
from token_superposition.bench.step_table import reading
from token_superposition.cli import main
from token_superposition.data.dataset import TokenDataset
from token_superposition.schedule import Schedule, Stage

QUIET = BenchProgress(quiet=True)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test is: an empty folder beside the one for temporary files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No seconds spent on the machine itself: small matrix products, and memory said, not measured."""
    monkeypatch.setattr(rounds, "_MATRIX_SIZES", {"cpu": (16, 32)})
    monkeypatch.setattr(rounds, "_MATRIX_SECONDS", 0.0)
    monkeypatch.setattr(memory, "measure_memory", lambda _, bag_size, rows: 1000 * bag_size + rows)


@pytest.fixture
def config(small_run: dict[str, Any], place: Path) -> Path:
    file = place / "small.yaml"
    file.write_text(yaml.safe_dump(small_run))
    return file


def bench(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The result of the command."""
    assert main(["bench", *map(str, words), "--json", "--quiet"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def nothing_stays(place: Path) -> bool:
    """Neither here nor of ours among temporary files: torch keeps a folder of its own there."""
    return not list((place / "work").iterdir()) and not list((place / "temporary").glob("*tst*"))


# What it says.


@pytest.mark.usefixtures("quick")
def test_the_figures_hang_together(config: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench(capsys, config, "--bag-sizes", "4,1,2", "--steps", 6)
    assert (result["batch_size"], result["sequence_length"], result["positions_per_step"]) == (4, 16, 64)
    assert result["random_data"] is None
    assert result["peak_matrix_size"] in (16, 32)
    assert result["rounds"] * result["steps_per_round"] >= 6
    assert [row["bag_size"] for row in result["bag_sizes"]] == [1, 2, 4]
    for row in result["bag_sizes"]:
        assert row["positions_per_second"] * row["step_seconds"] == pytest.approx(64)
        assert row["raw_tokens_per_second"] == pytest.approx(row["bag_size"] * row["positions_per_second"])
        flops = row["positions_per_second"] * result["flops_per_position"]
        assert row["mfu"] == pytest.approx(flops / result["peak_flops_per_second"])
        low, high = row["step_seconds_10_to_90"]
        assert 0 < low <= row["step_seconds"] <= high
        assert 0 <= row["data_wait_fraction"] < 1
        assert row["peak_memory_bytes"] == 1000 * row["bag_size"] + 4
        if row["bag_size"] > 1:
            low, high = row["ratio_interval"]
            assert 0 < low <= row["ratio"] <= high
        else:
            assert row["ratio"] is None
            assert row["ratio_reason"]
    low, high = result["bag_sizes"][-1]["ratio_interval"]
    assert result["reading"].startswith("A superposition step at s=4")
    assert ("too few steps to say" in result["reading"]) == (low <= 1 <= high)
    assert nothing_stays(place)


@pytest.mark.usefixtures("quick")
def test_the_table_and_the_file(config: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(config), "--bag-sizes", "2,1", "--steps", "1", "--out", "../result.json"]) == 0
    captured = capsys.readouterr()
    result = json.loads((place / "result.json").read_text())
    head, *rows = captured.out.split("\n\n")[1].splitlines()
    assert "raw tokens/s" in head
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert " ".join(result["reading"].split()) in " ".join(captured.out.split())
    assert "too few steps to say" in result["reading"].lower()
    assert result["bag_sizes"][1]["ratio_interval"] is None  # of one round
    assert "at least 6 rounds" in result["bag_sizes"][1]["ratio_reason"]
    assert "measuring" in captured.err
    assert nothing_stays(place)


@pytest.mark.usefixtures("quick")
def test_plain_inputs_read_no_more_tokens(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mode = ("--superposition.mode", "output_only")
    (row,) = bench(capsys, config, "--bag-sizes", 4, "--steps", 1, *mode)["bag_sizes"]
    assert (row["mode"], row["raw_tokens_per_second"]) == ("output_only", row["positions_per_second"])
    assert row["ratio_reason"] == "bag size 1 was not measured"


@pytest.mark.usefixtures("quick")
def test_weights_of_a_corpus_cost_what_others_do(config: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"]["path"] = "not/prepared"  # so there is nothing to measure them on
    values["superposition"]["slot_weights"] = "mutual_information"
    config.write_text(yaml.safe_dump(values))
    result = bench(capsys, config, "--bag-sizes", "1,4", "--steps", 2)
    assert [row["bag_size"] for row in result["bag_sizes"]] == [1, 4]
    assert nothing_stays(place)


@pytest.mark.usefixtures("quick")
def test_without_a_configuration_the_demo_s_model_reads_random_tokens(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--bag-sizes", "1,2", "--steps", 1, "--train.sequence_length", 8, "--train.device", "cpu")
    result = bench(capsys, *words)
    assert result["parameters"] == 390_816
    assert "using random tokens with a vocabulary of 320" in result["random_data"]
    assert nothing_stays(place)


@pytest.mark.parametrize("vocab_size", [5000, 100_000])
def test_random_tokens_are_of_the_models_vocabulary(config: Path, place: Path, vocab_size: int) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"]["path"] = "not/prepared"
    values["model"]["config"]["vocab_size"] = vocab_size
    config.write_text(yaml.safe_dump(values))
    with opened(config, {}, [1, 3, 5]) as subject:
        assert subject.random_data
        assert subject.random_data.startswith("not/prepared does not exist")
        assert f"random tokens with a vocabulary of {vocab_size:,}" in subject.random_data
        dataset = TokenDataset.open(subject.config.data.path, "train")
        dataset.read(0, 10)
        largest_id = int(dataset.read(0, 100_000).max())
        assert 0.9 * min(vocab_size, 2**16) < largest_id < min(vocab_size, 2**16)
        trainer = subject.trainer()
        assert trainer.model.model.get_input_embeddings().weight.shape[0] == vocab_size
        starts = trainer.schedule.starts
        assert [trainer.stream.batch(start).ids.shape for start in starts] == [(4, 16, 1), (4, 16, 3), (4, 16, 5)]
    assert nothing_stays(place)


def test_a_killed_measurement_leaves_nothing(config: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "matrix_peak_of_sizes", stop)
    assert main(["bench", "--quiet"]) == 130
    assert main(["bench", str(config), "--out", "result.json", "--quiet"]) == 130
    assert nothing_stays(place)


# How it measures.


class _Recorded:
    """A clock that writes down when it was asked."""

    order: ClassVar[list[int]] = []

    def __init__(self, bag_size: int) -> None:
        self.bag_size = bag_size

    def take_turn(self, steps: int) -> Turn:
        self.order.append(self.bag_size)
        return Turn(steps, 1.0 * self.bag_size, 0.0)


def test_bag_sizes_take_turns_in_a_rotating_order() -> None:
    _Recorded.order.clear()
    result = Rounds({size: [] for size in (1, 2, 4)})
    clocks: Any = {size: _Recorded(size) for size in (1, 2, 4)}
    rounds._run(clocks, result, QUIET, 4, 2, None)
    assert _Recorded.order == [1, 2, 4, 2, 4, 1, 4, 1, 2, 1, 2, 4]
    assert result.step_seconds(4) == [2.0] * 4
    assert result.ratios(4) == [4.0] * 4


def test_the_least_rounds_are_done_however_short_the_time() -> None:
    result = Rounds({1: []})
    clocks: Any = {1: _Recorded(1)}
    rounds._run(clocks, result, QUIET, 100, 1, 1e-9)
    assert len(result.turns[1]) == 6


def test_a_clock_trains_the_steps_of_its_stage_one_after_the_other() -> None:
    schedule = Schedule([Stage(1, 100), Stage(2, 100)])
    trained: list[int] = []
    trainer: Any = SimpleNamespace(
        device=torch.device("cpu"), batches=lambda first: iter(range(first, schedule.total_steps)), step=trained.append
    )
    clock = rounds._Clock(trainer, schedule.starts[1])
    assert clock.take_turn(3).steps == 3
    clock.take_turn(2)
    assert trained == list(range(100, 107))


def test_the_interval_of_a_median() -> None:
    assert median_interval([1.0] * 5) is None
    assert median_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert median_interval(range(1, 21)) == (6, 15)  # as tables of the sign test have it
    assert median_interval(range(1, 101)) == (40, 61)


def row(bag_size: int, **more: Any) -> dict[str, Any]:
    speeds = {"step_seconds": 0.5, "positions_per_second": 10.0, "raw_tokens_per_second": 10.0 * bag_size}
    return {"bag_size": bag_size, "ratio": None, "ratio_interval": None, "data_wait_fraction": 0.0, **speeds, **more}


def test_the_sentence() -> None:
    compared = row(16, ratio=1.014, ratio_interval=[1.001, 1.02])
    text = reading({"bag_sizes": [row(1), compared]})
    assert "costs 1.01 times an ordinary step (95% interval 1.00 to 1.02)" in text
    assert "reads 16 times as many tokens" in text
    assert "measure bag size 1 too" in reading({"bag_sizes": [row(4)]})
    slow = reading({"bag_sizes": [row(1, data_wait_fraction=0.02), {**compared, "data_wait_fraction": 0.3}]})
    assert slow.endswith("At s=16 training waits for data 30.0% of the time.")


@pytest.mark.parametrize(
    ("interval", "ratio"), [([0.8, 1.3], 1.02), ([0.5, 1.01], 0.9), (None, 1.4), ([1.0, 1.2], 1.1)]
)
def test_noise_is_not_stated_as_a_fact(interval: list[float] | None, ratio: float) -> None:
    text = reading({"bag_sizes": [row(1), row(4, ratio=ratio, ratio_interval=interval)]})
    assert "too few steps to say" in text.lower()
    assert "costs 1" not in text


# --find-batch.


@given(st.sets(st.integers(1, 500), min_size=1), st.integers(0, 501))
def test_the_search_finds_the_largest_that_fits(candidates: set[int], limit: int) -> None:
    tried: list[int] = []

    def fits(rows: int) -> bool:
        tried.append(rows)
        return rows <= limit

    ordered = sorted(candidates)
    assert largest(ordered, fits) == max((rows for rows in ordered if rows <= limit), default=None)
    assert len(tried) == len(set(tried)) <= max(ordered).bit_length() + len(ordered).bit_length() + 1
    assert tried[0] == ordered[0]


def found(config: Path, memory_there: Callable[[Any], float], patch: pytest.MonkeyPatch, **keys: Any) -> dict[str, Any]:
    """The search on a machine that has as much memory as `memory_there` makes of the expectations."""
    overrides = {"train.batch_size": 12, **{key.replace("__", "."): value for key, value in keys.items()}}
    with opened(config, overrides, [1, 2]) as subject:
        free = memory_there(batch_size._Machine(subject, 2).expect)
        patch.setattr(batch_size, "available_memory", lambda: free / (1 - batch_size.MARGIN))
        return find_batch(subject, QUIET)


def test_the_largest_divisor_that_is_expected_to_fit_is_verified(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "measure_memory", lambda *_, rows, **__: 1000 + rows)
    result = found(config, lambda expect: expect(5), monkeypatch)
    assert (result["micro_batch_size"], result["batch_size"], result["bag_size"]) == (4, 12, 2)
    assert result["tried"] == [{"rows": 4, "bytes": 1004, "fits": True}]
    assert result["memory_bytes"] == 1004 <= result["limit_bytes"]


def test_what_takes_more_than_expected_is_not_believed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {12: None, 6: 10**12, 4: 1000}
    monkeypatch.setattr(batch_size, "measure_memory", lambda *_, rows, **__: taken[rows])
    result = found(config, lambda expect: expect(12) + 1, monkeypatch)
    assert result["micro_batch_size"] == 4
    assert [(each["rows"], each["fits"]) for each in result["tried"]] == [(12, False), (6, False), (4, True)]


def test_a_family_without_an_estimate_is_tried_from_the_smallest(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size._Machine, "_estimate", lambda *_: None)
    monkeypatch.setattr(batch_size, "measure_memory", lambda *_, rows, **__: 1000 * rows)
    result = found(config, lambda _: 3500, monkeypatch)
    assert result["micro_batch_size"] == 3
    assert [each["rows"] for each in result["tried"]] == [1, 2, 4, 3]


def test_the_command_says_what_to_write(
    config: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_size, "measure_memory", lambda *_, **__: 2**20)
    words = ["bench", str(config), "--bag-sizes", "2", "--find-batch", "--quiet"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "whole batch of 4 rows fits into memory at s=2 (1 MiB of " in text
    assert yaml.safe_load(text.partition("configuration:\n")[2]) == {"train": {"micro_batch_size": 4}}
    monkeypatch.setattr(batch_size, "available_memory", lambda: 1000)
    assert "not even one row of 16 positions at bag size 2 fits" in refused(*words)
    assert nothing_stays(place)


def test_memory_is_that_of_a_process_of_its_own(config: Path) -> None:
    with opened(config, {"train.batch_size": 2048}, [2]) as subject:
        logits = 4 * 1024 * 16 * 320  # float32, of one micro-batch
        taken = memory.measure_memory(subject, bag_size=2, rows=1024)
        assert taken is not None
        assert logits < taken < 100 * logits


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not limit a process's memory")
def test_a_step_that_takes_too_much_ends_itself(config: Path) -> None:
    with opened(config, {"train.batch_size": 2**18}, [2]) as subject:  # logits of 5 GB
        assert memory.measure_memory(subject, bag_size=2, rows=2**18, limit=2**24) is None


# What it refuses.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bag-sizes", "1,two"], "'two' is not a bag size; give whole numbers, such as 1,2,4"),
        (["--bag-sizes", "0"], "'0' is not a bag size"),
        (["--bag-sizes", "1,,2"], "'' is not a bag size"),
        (["--bag-sizes", "2.0"], "'2.0' is not a bag size"),
        (["--bag-sizes", "1,2,1"], "'1,2,1' contains a bag size twice"),
        (["--steps", "0"], "--steps: at least 1"),
        (["--steps", str(10**9)], "--steps: at most 100,000"),
        (["--seconds", "nan"], "a number is needed"),
        (["--steps", "1", "--seconds", "1"], "not allowed with argument --steps"),
        (["--find-batch", "--steps", "1"], "--find-batch measures memory, not time"),
        (["--out", "no/such/folder/x.json"], "--out: no/such/folder/x.json: there is no folder no/such/folder"),
        (["--out", "/proc/x.json"], "--out: /proc/x.json: cannot be written"),
        (["--out", "."], "--out: .: is a folder; name a file"),
        (["--train.device", "cuda:99"], "train.device: 'cuda:99' cannot be used here"),
        (["--train.lerning_rate", "1"], "did you mean 'train.learning_rate'"),
        (["--data.path", "nowhere"], "--data.path: nowhere: no such folder; make it with: tst prepare"),
        (["--model.config.hidden_size", "2000000"], "model.config: the model needs over"),
        (["--train.batch_size", str(10**9)], "train.batch_size: 1000000000 rows of"),
        (["--bag-sizes", "9999991,9999973"], "rows of 16 positions of 9999991 tokens need"),
    ],
)
def test_bad_input_is_one_line(config: Path, place: Path, words: list[str], said: str) -> None:
    if said.startswith("rows of"):
        words = [*words, "--train.batch_size", "1000"]
    assert said in refused("bench", config, *words, "--quiet")
    assert nothing_stays(place)


def test_data_that_is_there_and_no_data_set(config: Path, place: Path) -> None:
    (place / "empty").mkdir()
    assert "is not a prepared dataset" in refused("bench", config, "--data.path", place / "empty", "--quiet")
    assert "does not exist" in refused("bench", place / "none.yaml", "--quiet")
    assert nothing_stays(place)


def test_bag_sizes_without_a_common_window(place: Path) -> None:
    line = refused("bench", "--bag-sizes", "997,991,983", "--quiet", "--train.device", "cpu")
    assert "--bag-sizes: a window of 128 positions times the bag sizes' least common multiple 971,230,541" in line
    assert nothing_stays(place)
