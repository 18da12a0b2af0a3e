"""Experiment trackers: the numbers of metrics.jsonl, sent to where people look at them.

One small protocol, `MetricsSink`, and a class for each tracker, each an optional extra that is imported when a
run asks for it (`logging.trackers`). The trackers' own environment variables and settings hold, such as
WANDB_MODE=offline and TRACKIO_DIR. A run that goes on appends to the same tracked run; what it repeats from its
checkpoint is logged again at the same step.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from token_superposition.errors import UserError


class MetricsSink(Protocol):
    """Something that takes the lines of metrics.jsonl as they are written."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_tracker(
    name: str, *, folder: Path, run_id: str, project: str, config: Mapping[str, Any], first_step: int
) -> MetricsSink:
    """A tracker by its name.

    Args:
        name: `tensorboard`, `wandb` or `trackio`.
        folder: the run's folder; its name is the tracked run's.
        run_id: the run's own, the same when it goes on.
        project: what wandb and trackio file the run under.
        config: the run's configuration.
        first_step: completed steps at the start.

    Raises:
        UserError: where the extra of that name is not installed, or the tracker refuses.
    """
    try:
        if name == "tensorboard":
            return _TensorBoard(folder, first_step)
        if name == "wandb":
            return _WeightsAndBiases(folder, run_id, project, config)
        return _Trackio(folder, run_id, project, config)
    except ImportError as error:
        raise UserError(
            f"logging.trackers: {name} needs an extra: pip install 'token-superposition[{name}]' ({error})"
        ) from None
    except Exception as error:  # a missing key, a name it does not take: each tracker has errors of its own
        raise UserError(f"logging.trackers: {name} cannot be opened: {' '.join(str(error).split())}") from error


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of a line, nested ones by their path; without the step, which stands beside them."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value


class _TensorBoard:
    """Event files under the run's folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        for name, value in numbers(line):
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases, its files under the run's folder."""

    def __init__(self, folder: Path, run_id: str, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=project, name=folder.name, id=run_id, resume="allow", dir=str(folder), config=dict(config)
        )
        # A step of its own: wandb's must never fall, but a run that goes on repeats a few.
        self._run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({**dict(numbers(line)), "step": line["step"]})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio."""

    def __init__(self, folder: Path, run_id: str, project: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._finish = trackio.finish  # the run's own would leave its farewell to the process's end
        with contextlib.redirect_stdout(sys.stderr):  # it greets, where our result will stand
            self._run = trackio.init(
                project=project, name=f"{folder.name}-{run_id}", config=dict(config), resume="allow", embed=False
            )

    def write(self, line: dict[str, Any]) -> None:
        self._run.log(dict(numbers(line)), step=line["step"])

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()
