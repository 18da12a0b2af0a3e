"""A test leaves accelerate as it found it: the next one shares its process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def accelerate_afresh() -> Iterator[None]:
    """What a Trainer sets there, such as its compiler or that a step has two micro-batches, holds for later loops."""

    def settings() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}

    before = settings()
    yield
    for name in settings():
        del os.environ[name]
    os.environ.update(before)
    if importlib.util.find_spec("accelerate"):
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
