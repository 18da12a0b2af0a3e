"""Programs in benchmarks/ that wait for another machine run at toy size, so that they run when there is one."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
        assert 0 < step["mfu"][bag_size] < 1
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
