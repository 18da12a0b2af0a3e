"""Programs in benchmarks/ that wait for another machine run at toy size, so that they run when there is one."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.in_process import FORKING, fork_runs, train_here
from token_superposition.cli import main
from token_superposition.errors import UserError

pytestmark = pytest.mark.gpu

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
KINDS = ("s=1", "s=4", "s=16")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/gpu.py`, as a module."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    spec = importlib.util.spec_from_file_location("gpu", BENCHMARKS / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_toy_size() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # the repository alone
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=environment)
    result = json.loads(done.stdout)
    parts = ("backends_checked", "loss", "step")
    assert not [result[part]["failed"] for part in parts if "failed" in result[part]]
    assert len(result["backends_checked"]) == 8
    for name, found in result["backends_checked"].items():
        assert "skipped" in found or found["right"], (name, found)
    step, size = result["step"], result["model"]
    positions = size["rows"] * size["length"]
    assert step["rounds"] >= 2
    assert {"matrix_peak_flops", "peak_memory_bytes", "waits", "s=16 over s=1"} <= set(step)
    for bag_size in KINDS:
        assert step["positions_per_second"][bag_size] == pytest.approx(positions / step["seconds"][bag_size]["median"])
        assert step["mfu"][bag_size] > 0  # on a busy machine the measured peak can be below the speed of a step
    for bag_size in ("s=1", "s=16"):
        loss = result["loss"][bag_size]
        medians = {name: found["median"] for name, found in loss["seconds"].items()}
        assert set(medians) | set(loss["skipped"]) == {"chunked", "liger", "torch", "plain"}
        assert loss["best"] == min(medians, key=lambda name: medians[name])


def test_its_ratios_are_the_right_way_round(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"s=1": 1.0, "s=4": 1.5, "s=16": 3.0, "chunked": 2.0, "torch": 5.0, "liger": 5.0, "plain": 1.0}
    monkeypatch.setattr(
        gpu, "take_turns", lambda kinds, rounds, **_: {name: [seconds[name]] * rounds for name in kinds}
    )
    monkeypatch.setattr(gpu, "matrix_peak", lambda *_, **__: 1e12)
    cpu = torch.device("cpu")
    losses = dict(gpu.measure_losses(gpu.TOY, cpu, math.inf))
    assert losses["s=16"]["best"] == "plain"
    assert losses["s=16"]["ours over the best"]["median"] == 2.0
    steps = dict(gpu.measure_steps(gpu.TOY, cpu, math.inf, 2))
    assert steps["rounds"] == 15
    assert steps["s=16 over s=1"]["median"] == 3.0
    # Positions count, and a bag is one: three times the time is a third of the utilisation.
    assert steps["mfu"]["s=1"] == pytest.approx(3 * steps["mfu"]["s=16"])
    flops = steps["mfu"]["s=1"] * 1e12 / (gpu.TOY.rows * gpu.TOY.length)
    assert 6 * steps["parameters"] > flops > 6 * 0.5 * steps["parameters"]  # the embedding is looked up, not multiplied


def test_the_definition_that_backends_are_held_against_is_that_of_bags(gpu: Any) -> None:
    found = dict(gpu.check_backends(torch.device("cpu")))
    assert found["plain s=8"]["loss_error"] < 1e-3
    assert found["chunked s=8"]["loss_error"] < 1e-3


@pytest.mark.parametrize(
    ("ending", "failed"),
    [
        ("raise SystemExit(0)", None),
        ("os.abort()", "it ended with exit code -6"),
        ("subprocess.Popen(['sleep', '60']); time.sleep(60)", "its time was over"),
    ],
)
def test_what_a_part_had_is_kept_however_it_ends(gpu: Any, tmp_path: Path, ending: str, failed: str | None) -> None:
    program = tmp_path / "program.py"
    lines = (
        "import os, subprocess, time",
        "print('noise')",
        f"print({gpu.MARK!r} + '{{\"a\": 1}}', flush=True)",
        ending,
    )
    program.write_text("\n".join(lines))
    gpu.__file__ = str(program)
    found = gpu.run_part("loss", [], seconds=3.0 if failed == "its time was over" else 60.0, grace=0.0)
    assert found == {"a": 1, **({} if failed is None else {"failed": failed})}


def test_a_part_that_fails_says_why(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(*_: Any) -> Any:
        yield "rows", 7
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(gpu, "measure_losses", break_down)
    gpu.measure_part("loss", gpu.argparse.Namespace(toy=True, micro_batch=2), math.inf)
    said = [json.loads(line.removeprefix(gpu.MARK)) for line in capsys.readouterr().out.splitlines()]
    assert said == [{"rows": 7}, {"failed": "RuntimeError: no room"}]


def test_a_kernel_that_breaks_down_leaves_the_others(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = gpu.backward

    def break_down(backend: str, *arguments: Any) -> Any:
        if backend == "plain":
            raise RuntimeError("out of memory")
        return backward(backend, *arguments)

    monkeypatch.setattr(gpu, "backward", break_down)
    losses = dict(gpu.measure_losses(gpu.TOY, torch.device("cpu"), -math.inf))
    assert losses["s=1"]["skipped"]["plain"] == "RuntimeError: out of memory"
    assert "chunked" in losses["s=1"]["seconds"]


@pytest.mark.parametrize("rows", ["3", "0"])
def test_a_micro_batch_that_divides_nothing_is_refused_at_once(rows: str) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy", "--micro-batch", rows]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--micro-batch {rows} is no divisor of 4 rows" in done.stderr


STUDY_STEPS = 500  # long enough to be stopped in its midst, a second or two per run

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A call of the GPU study at toy size, on the CPU; its time is up when `until` says so."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_study = importlib.import_module("gpu_study")
    monkeypatch.setattr(gpu_study.Clock, "listen", lambda _: None)  # signals are the test runner's
    monkeypatch.setattr(gpu_study, "GRACE", 120.0)  # a machine that is busy takes its time for a checkpoint

    def call(out: Path, *words: str, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        monkeypatch.setattr(gpu_study.Clock, "over", lambda _: until())
        code = gpu_study.main(["--toy", "--json", "--out", str(out), "--steps", str(STUDY_STEPS), *words])
        output = capsys.readouterr()
        assert code == 0, output.out
        assert output.err == ""
        return dict(json.loads(output.out))

    return call


def tst_here(words: Sequence[str], *_: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words, "--json"]) == 0


@pytest.mark.slow
def test_the_gpu_study_stops_in_time_and_goes_on(study: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, carried = tmp_path / "out", tmp_path / "carried"

    def has_trained() -> bool:
        return any('"loss"' in file.read_text() for file in out.glob("studies/*/runs/**/metrics.jsonl"))

    with monkeypatch.context() as patch:
        fork_runs(patch)
        patch.setattr(importlib.import_module("gpu_study"), "subprocess", FORKING)
        first = study(out, until=has_trained)
    assert (first["stopped"], first["complete"]) == (True, False)
    (name,) = first["studies"]
    assert name.startswith(f"bpe-{STUDY_STEPS}-")
    assert first["studies"][name]["report"] is None
    begun = [run["run"] for run in first["studies"][name]["runs"] if run["state"] == "unfinished" and run["step"] > 0]
    assert begun
    runs = out / "studies" / name / "runs"
    assert {len(list((runs / run / "checkpoints").glob("step-*"))) for run in begun} == {1}
    with tarfile.open(out / "state.tar.gz") as archive:  # of what is not finished, nothing travels
        assert not [member for member in archive.getnames() if any(run in member for run in begun)]

    # What follows has nothing to stop, so it needs no processes of its own.
    train_here(monkeypatch)
    monkeypatch.setattr(importlib.import_module("gpu_study"), "tst", tst_here)
    second = study(out)
    assert (second["stopped"], second["complete"]) == (False, True)
    assert [each.partition("-")[0] for each in second["studies"]] == ["bpe", "bytes"]
    for each in second["studies"].values():
        assert [arm["name"] for arm in each["report"]["arms"]] == ["baseline", "s4", "s6"]
        assert "curve" not in json.dumps(each["report"])
        assert [(run["state"], run["step"]) for run in each["runs"]] == [("finished", STUDY_STEPS)] * 3
    for run in begun:  # it went on: what had been logged stands there once
        lines = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
        logged = [line["step"] for line in lines if "loss" in line]
        assert logged == sorted(set(logged))
    assert not list(out.glob("studies/*/runs/**/checkpoints/*"))  # nothing that a finished run does not need
    assert second["state"]["bytes"] == (out / "state.tar.gz").stat().st_size < 1_000_000

    third = study(carried, "--from", str(out))
    assert third["complete"]
    assert third["studies"] == second["studies"]  # seconds included: nothing was trained again


def test_the_gpu_study_prints_its_object_whatever_happens(study: Call, tmp_path: Path) -> None:
    result = study(tmp_path / "out", until=lambda: True)
    assert (result["stopped"], result["complete"], result["studies"]) == (True, False, {})
    bad = tmp_path / "state.tar.gz"
    bad.write_bytes(b"no archive")
    command = [sys.executable, str(BENCHMARKS / "gpu_study.py"), "--toy", "--seconds", "0"]
    done = subprocess.run([*command, "--out", str(tmp_path / "b"), "--from", str(bad)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no state.tar.gz of an earlier call" in json.loads(done.stdout)["failed"]


def test_the_gpu_study_takes_what_text_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_study = importlib.import_module("gpu_study")
    monkeypatch.setattr(gpu_study, "ROOT", tmp_path / "repository")
    tried, damaged = [], {"wikipedia-en.train.parquet"}

    def prepare(words: list[str], *_: Any) -> None:
        tried.append(Path(words[1]).name)
        if tried[-1] in damaged:
            raise UserError("damaged")

    monkeypatch.setattr(gpu_study, "tst", prepare)

    def found() -> tuple[str, list[str]]:
        tried.clear()
        name, _, said = gpu_study.prepare(tmp_path / "out", "bytes", gpu_study.Clock(1.0), toy=False)
        return name, said

    assert found() == ("python", [])
    data = tmp_path / "shared" / "data"
    data.mkdir(parents=True)
    for name in ("wikipedia-en.train.parquet", "gutenberg-children.train.jsonl.gz"):
        (data / name).touch()
    assert found() == ("books", ["wikipedia: damaged"])
    damaged.clear()
    assert found() == ("wikipedia", [])
    monkeypatch.setattr(gpu_study.importlib.util, "find_spec", lambda _: None)  # no pyarrow
    assert found() == ("books", [])
    assert tried == ["gutenberg-children.train.jsonl.gz"]
