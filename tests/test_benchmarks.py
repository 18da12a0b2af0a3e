"""Programs in benchmarks/ that wait for another machine run at toy size, so that they run when there is one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from token_superposition.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_the_gpu_benchmark_runs_at_toy_size() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--toy"], capture_output=True, text=True, check=True, timeout=300
    )
    result = json.loads(done.stdout)
    parts = ("backends_checked", "loss", "step")
    assert not [result[part]["failed"] for part in parts if "failed" in result[part]]
    for name, found in result["backends_checked"].items():
        assert "skipped" in found or found["right"], (name, found)
    step, size = result["step"], result["model"]
    positions = size["rows"] * size["length"]
    for bag_size in ("s=1", "s=4", "s=16"):
        assert step["positions_per_second"][bag_size] == pytest.approx(positions / step["seconds"][bag_size]["median"])
        assert 0 < step["mfu"][bag_size] < 1
        assert bag_size == "s=4" or result["loss"][bag_size]["best"] in ("chunked", "liger", "torch", "plain")


STUDY_STEPS = 1000  # long enough to be stopped in its midst, two or three seconds a run

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


def test_the_gpu_study_stops_in_time_and_goes_on(study: Call, tmp_path: Path) -> None:
    out, carried = tmp_path / "out", tmp_path / "carried"

    def has_trained() -> bool:
        return any('"loss"' in file.read_text() for file in out.glob("studies/*/runs/**/metrics.jsonl"))

    first = study(out, until=has_trained)
    assert (first["stopped"], first["complete"]) == (True, False)
    (name,) = first["studies"]
    assert name.startswith(f"bytes-{STUDY_STEPS}-")
    assert first["studies"][name]["report"] is None
    begun = [run["run"] for run in first["studies"][name]["runs"] if run["state"] == "unfinished" and run["step"] > 0]
    assert begun
    runs = out / "studies" / name / "runs"
    assert {len(list((runs / run / "checkpoints").glob("step-*"))) for run in begun} == {1}
    with tarfile.open(out / "state.tar.gz") as archive:  # of what is not finished, nothing travels
        assert not [member for member in archive.getnames() if any(run in member for run in begun)]

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
