"""Programs in benchmarks/ that wait for another machine run at toy size, so that they run when there is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
