"""The run folder, which other parts of the package use to read a run.

    config.yaml             the resolved configuration
    run.json                settings fixed at the start of the run: stages, number of steps, fingerprint of the data
    tokenizer.json          the tokenizer of the data, so that the run can be used without its data
    tokenizer_config.json   only for a subword tokenizer
    metrics.jsonl           one line per logged step and per validation
    summary.json            the result, written when the run is done
    diverged.json           the reason why the run diverged; a diverged run has no summary.json
    checkpoints/step-NNNNNNN/

In every file, `step` is the number of completed optimizer steps. Only one process at a time can hold the lock of the
folder. The operating system releases the lock when the process ends for any reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import uuid4

import yaml

from token_superposition.errors import UserError
from token_superposition.files import (
    is_whole_number,
    make_folder,
    naming,
    read_record,
    remove_empty,
    write_json,
    write_record,
    write_text,
)
from token_superposition.schedule import Schedule
from token_superposition.training.metrics import MetricsFile, is_number
from token_superposition.yaml_files import read_yaml
from token_superposition.yaml_values import plain

# Files that are written before config.yaml when a run starts; a kill during the start may leave some of them.
_BEFORE_CONFIG = ("lock", "run.json", "tokenizer.json", "tokenizer_config.json")
_NEW = "use another folder for a new run"
# The numbers in every summary.
FIGURES = (
    "steps",
    "positions",
    "raw_tokens",
    "unique_raw_tokens",
    "flops",
    "final_validation_loss",
    "bits_per_byte",
    "validation_tokens",
    "parameters",
    "wall_seconds",
    "peak_memory_bytes",
)


class BranchPoint(NamedTuple):
    """Where a run was branched from another run: the id of the parent run, and the number of shared steps."""

    parent: str
    step: int


@dataclass(frozen=True)
class RunRecord:
    """The settings that are fixed when a run starts (`run.json`).

    Attributes:
        id: a random name in hex, for trackers and branches.
        schedule: the stages; only the number of recovery steps can change later.
        data_fingerprint: hash of the training data.
        first_total_steps: `train.total_steps` at the start of the run. A warm-up that is a share of the steps depends
            on this number, even if the total has changed since.
        mutual_information: the measurement of the slot weights; None if the run needed no measurement.
        branch: where the run was branched from another run; None for a run of its own.
    """

    id: str
    schedule: Schedule
    data_fingerprint: str
    first_total_steps: int
    mutual_information: dict[str, Any] | None = None
    branch: BranchPoint | None = None

    @classmethod
    def new(cls, schedule: Schedule, data_fingerprint: str, **keys: Any) -> RunRecord:
        """The record of a run that starts now."""
        return cls(uuid4().hex[:8], schedule, data_fingerprint, schedule.total_steps, **keys)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """The record from the content of `run.json`; ValueError if the content is not a record."""
        try:
            schedule = Schedule.from_dicts(values["stages"])
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"stages: {error}") from None
        for key in ("id", "data_fingerprint"):
            if not isinstance(values.get(key), str):
                raise ValueError(f"no {key}")
        first = values.get("first_total_steps", schedule.total_steps)  # absent from runs of version 0.1
        if not is_whole_number(first, 1):
            raise ValueError("first_total_steps is not a number of steps")
        branch = values.get("branch")
        if branch is not None:
            if not (isinstance(branch, dict) and is_whole_number(branch.get("step"))):
                raise ValueError("branch has no step")
            branch = BranchPoint(str(branch.get("parent")), branch["step"])
        measured = values.get("mutual_information")
        return cls(values["id"], schedule, values["data_fingerprint"], first, measured, branch)

    def as_dict(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return {
            "id": self.id,
            "stages": self.schedule.as_dicts(),
            "data_fingerprint": self.data_fingerprint,
            "first_total_steps": self.first_total_steps,
            **({} if self.mutual_information is None else {"mutual_information": self.mutual_information}),
            **({} if self.branch is None else {"branch": self.branch._asdict()}),
        }

    @property
    def shared_steps(self) -> int:
        """Number of steps that the run has from its parent run; 0 without a parent."""
        return 0 if self.branch is None else self.branch.step


class RunFolder:
    """A run folder; as a context manager, it creates the folder if necessary and locks it.

    A new run that fails before its first line of metrics leaves no files.

    Raises:
        UserError: if the folder has files that are not of a run, or if another process uses the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.diverged_file = path / "diverged.json"
        self.run_file = path / "run.json"
        self.checkpoints = path / "checkpoints"
        self._new = False  # whether the folder has no earlier run
        self._made: list[Path] = []
        self._lock: TextIO | None = None
        self._metrics: MetricsFile | None = None

    def check_place(self) -> None:
        """Raise UserError if the path is a file, or a folder with files that are not of a run."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file, not a run folder; use another path")
        if not self.config_file.exists():
            self._refuse_strangers()

    def __enter__(self) -> RunFolder:
        self.check_place()
        self._new = not self.config_file.exists()
        try:
            self._made = make_folder(self.checkpoints)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            remove_empty(self._made)
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); use another folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A refused run deletes its lock file, so the opened file may differ from the present file of that name.
            ours = os.path.samestat(os.fstat(self._lock.fileno()), (self.path / "lock").stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UserError(
                f"{self.path}: another process{f' (pid {owner})' if owner else ''} is using this run; wait for it"
            )
        try:
            with naming(self.path / "lock"):
                self._lock.truncate(0)
                self._lock.write(f"{os.getpid()}\n")
                self._lock.flush()
        except OSError as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        metrics, self._metrics = self._metrics, None
        if metrics is not None:
            metrics.close()
        if self._new and (kind is not None or not self.config_file.exists()) and not self._has_started():
            for name in ("metrics.jsonl", "config.yaml", *_BEFORE_CONFIG):
                (self.path / name).unlink(missing_ok=True)
            for name in ("tensorboard", "wandb"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            remove_empty([self.checkpoints, *self._made])
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.close()

    def _has_started(self) -> bool:
        """Whether the folder has metrics or checkpoints."""
        logged = self.metrics_file.exists() and self.metrics_file.stat().st_size > 0
        return logged or any(self.checkpoints.glob("*"))

    def _refuse_strangers(self) -> None:
        """Refuse a folder without a configuration, unless it is empty or has only files of an interrupted start."""
        if self.summary_file.exists() or any(self.checkpoints.glob("step-*")):
            raise UserError(f"{self.config_file}: is missing from this run; restore the file, or {_NEW}")
        ours = (*_BEFORE_CONFIG, "checkpoints")
        strangers = sorted(p.name for p in self.path.glob("*") if p.name not in ours and p.suffix != ".tmp")
        if strangers:
            raise UserError(f"{self.path}: is not a run folder (it contains {strangers[0]!r}); use an empty folder")

    def read_config(self) -> dict[str, Any] | None:
        """The configuration that the run was started with; None for a new folder."""
        if not self.config_file.exists():
            return None
        try:
            values: dict[str, Any] = plain(read_yaml(self.config_file)[0])
            return values
        except UserError as error:
            raise UserError(f"{error}; the file was edited or damaged: fix it, or {_NEW}") from None

    def read_record(self) -> RunRecord | None:
        """The content of `run.json`; None for a new folder."""
        if not self.config_file.exists():
            return None  # a kill before config.yaml was written: the run has not started
        fix = f"restore the file, or {_NEW}"
        try:
            return RunRecord.from_dict(read_record(self.run_file, fix))
        except FileNotFoundError:
            raise UserError(f"{self.run_file}: is missing from this run; {fix}") from None
        except ValueError as error:
            raise UserError(f"{self.run_file}: is damaged ({error}); {fix}") from None

    def write_start(self, config: dict[str, Any], record: RunRecord) -> None:
        """Write the resolved configuration to `config.yaml` and the fixed settings to `run.json`."""
        write_record(self.run_file, record.as_dict())
        write_text(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def read_summary(self) -> dict[str, Any] | None:
        """The result of a finished run; None for an unfinished run."""
        fix = "delete it and start the run again to get the result from the last checkpoint"
        try:
            summary = read_record(self.summary_file, fix)
        except FileNotFoundError:
            return None
        for key in FIGURES:
            if not is_number(summary.get(key)):
                raise UserError(f"{self.summary_file}: is damaged ({key} is not a number); {fix}")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        write_record(self.summary_file, summary)

    def write_diverged(self, message: str) -> None:
        """Record that the run has diverged, so that a study does not train the run again."""
        write_json(self.diverged_file, {"message": message})

    def clear_end(self) -> None:
        """Delete the records of the end of the run, because its training continues."""
        self.summary_file.unlink(missing_ok=True)
        self.diverged_file.unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Delete temporary files that a kill left behind; call this function while the lock is held."""
        for path in self.path.glob(".*.tmp"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def resume_metrics(self, step: int, recompute: Callable[[dict[str, Any]], dict[str, Any]]) -> MetricsFile:
        """The metrics, truncated to the lines of step `step` and before; the folder closes the file.

        Args:
            step: completed steps.
            recompute: function that maps each kept line to the line to write.
        """
        self._metrics = MetricsFile(self.metrics_file, step, recompute)
        return self._metrics
