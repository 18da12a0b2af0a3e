"""Experiment trackers, which receive the numbers of metrics.jsonl.

Each tracker is a class with the protocol `MetricsSink`. Each tracker is an optional extra, and is imported only if
`logging.trackers` names it. The environment variables and settings of the trackers apply, such as WANDB_MODE=offline
and TRACKIO_DIR. A resumed run appends to the same tracked run. Steps that the run repeats after its checkpoint are
logged again with the same step number.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from token_superposition.errors import UserError


class MetricsSink(Protocol):
    """A receiver of the lines of metrics.jsonl."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_tracker(
    name: str, *, folder: Path, run_id: str, project: str, config: Mapping[str, Any], first_step: int
) -> MetricsSink:
    """Open a tracker by its name.

    Args:
        name: `tensorboard`, `wandb` or `trackio`.
        folder: the run folder; the tracked run gets its name.
        run_id: id of the run; a resumed run has the same id.
        project: project name for wandb and trackio.
        config: configuration of the run.
        first_step: completed steps at the start.

    Raises:
        UserError: if the extra is not installed, or the tracker cannot be opened.
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
    except Exception as error:  # such as a missing key or an invalid name; each tracker has its own errors
        raise UserError(f"logging.trackers: {name} cannot be opened: {' '.join(str(error).split())}") from error


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """The numbers of a line with their names; nested names are paths. The step is left out."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value


class _TensorBoard:
    """Event files of TensorBoard in the run folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        for name, value in numbers(line):
            self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of Weights & Biases, with its files in the run folder."""

    def __init__(self, folder: Path, run_id: str, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=project, name=folder.name, id=run_id, resume="allow", dir=str(folder), config=dict(config)
        )
        # wandb's own step must never decrease, but a resumed run repeats some steps; so use a separate step.
        self._run.define_metric("*", step_metric="step")

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({**dict(numbers(line)), "step": line["step"]})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio."""

    def __init__(self, folder: Path, run_id: str, project: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._finish = trackio.finish  # the run's own method would print its last message at the end of the process
        with contextlib.redirect_stdout(sys.stderr):  # standard output is reserved for the result
            self._run = trackio.init(
                project=project, name=f"{folder.name}-{run_id}", config=dict(config), resume="allow", embed=False
            )

    def write(self, line: dict[str, Any]) -> None:
        self._run.log(dict(numbers(line)), step=line["step"])

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()
