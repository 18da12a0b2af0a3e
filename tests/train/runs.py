"""What tests of whole runs share: to train one, to stop one, and what of it must be equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from token_superposition.run.metrics import read_metrics
from token_superposition.train.config import parse_config
from token_superposition.train.loop import train
from token_superposition.train.trainer import Trainer

TIMES = {
    "positions_per_second",
    "seconds_per_step",
    "mfu",
    "data_wait_fraction",
    "wall_seconds",
    "peak_memory_bytes",
}  # what is measured, and differs from run to run


class Stopped(BaseException):
    """Stands for a kill: nothing after it runs."""


def go(values: dict[str, Any], folder: Path, **overrides: Any) -> dict[str, Any]:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return train(parse_config(values, dotted), folder, quiet=True)


def go_until(step: int, values: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch, **overrides: Any) -> None:
    """Train, and stop as a kill would before the step of that number."""
    original = Trainer.step

    def stop(self: Trainer, batch: Any) -> Any:
        if batch.step == step:
            raise Stopped
        return original(self, batch)

    with patch.context() as patched:
        patched.setattr(Trainer, "step", stop)
        with pytest.raises(Stopped):
            go(values, folder, **overrides)


def weights(folder: Path) -> dict[str, Any]:
    """The newest checkpoint's weights."""
    config = parse_config(yaml.safe_load((folder / "config.yaml").read_text()))
    trainer = Trainer(config, config.schedule())
    trainer.load(sorted((folder / "checkpoints").glob("step-*"))[-1])
    return dict(trainer.model.state_dict())


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what is measured in time."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]
