"""What is planned in tests: a model of a billion parameters."""

from __future__ import annotations

from typing import Any

from token_superposition.planner.workload import Workload


def workload_of(**changed: Any) -> Workload:
    """A model of a billion parameters with the paper's batch, without any file."""
    values: dict[str, Any] = {
        "source": "test",
        "values": {"data": {"path": "data/none"}},
        "architecture": "llama",
        "parameters": 10**9,
        "active_parameters": 10**9,
        "vocab_size": 32_768,
        "flops_per_position": 6 * 10**9,
        "positions_per_step": 2**21,
        "sequence_length": 2048,
        "total_steps": 20_000,
        "unit": "subwords",
        "start": "fresh",
        "corpus": None,
        "assumptions": [],
    }
    return Workload(**{**values, **changed})
