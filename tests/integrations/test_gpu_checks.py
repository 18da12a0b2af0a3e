"""What `tests/gpu` checks on GPUs, at toy size on the CPU: all of it but Liger's kernels, FSDP2 over gloo included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

SCRIPT = Path(__file__).parents[1] / "gpu" / "adapters.py"


def check(part: str) -> dict[str, Any]:
    """What the script says of one of its parts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)  # it needs nothing but the repository
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--size", "toy", "--only", part]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["versions"]["torch"]
    found: dict[str, Any] = result["checks"]
    return found


@pytest.mark.parametrize("part", ["in_place", "trainer"])
def test_each_kind_of_training_is_held_against_the_core(part: str) -> None:
    found = check(part)
    assert list(found) == [f"{part}, {kind}" for kind in ("float32", "bfloat16", "compiled", "liger")]
    liger = found.pop(f"{part}, liger")
    assert liger["outcome"] == "skipped"
    assert "Liger" in liger["reason"] or "liger_kernel" in liger["reason"]
    for kind in ("float32", "compiled"):
        assert found[f"{part}, {kind}"]["losses_apart"] < 1e-5


def test_sharded_models_train_as_whole_ones_do() -> None:
    """FSDP2 in two processes: by hand with `SuperposedLM` as the root, through accelerate, and in Trainer."""
    found = check("sharded")["sharded"]
    assert found["processes"] == 2
    ways = {name: way for name, way in found.items() if isinstance(way, dict)}
    assert list(ways) == [f"{way}, {kind}" for way in ("root", "accelerate", "trainer") for kind in ("tied", "untied")]
    for name, way in ways.items():
        assert way["bags"] == [True] * 3 + [False] * 3, name
        assert way["losses"] == pytest.approx(way["unsharded"], rel=1e-5), name
        assert way["same_keys"], name
        assert way["weights_apart"] < 1e-4, name  # of steps of 1e-2
        assert "FSDPLlamaDecoderLayer" in way["units"], name  # not one unit of the whole model
        # Accelerate gives embeddings a unit of their own, so that bags find their weight in pieces.
        assert ("FSDPEmbedding" in way["units"]) == (not name.startswith("root")), name
