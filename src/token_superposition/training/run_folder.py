"""The run folder, the interface of a run to everything above it.

    config.yaml             the resolved configuration
    run.json                what was fixed when the run started: its stages, its steps, its data
    tokenizer.json          the data's tokenizer, so that the run can be used without its data;
                            of a subword tokenizer there is tokenizer_config.json too
    metrics.jsonl           a line per logged step and per validation
    summary.json            the result, written when the run is done
    diverged.json           instead of a result: why the run stopped, where it came to no numbers any more
    checkpoints/step-NNNNNNN/

In every file `step` is the number of optimizer steps completed. One process at a time holds the folder's
lock (the operating system drops it when the process dies, however it dies).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import yaml

from token_superposition.errors import UserError
from token_superposition.files import (
    is_whole_number,
    make_folder,
    naming,
    read_object,
    remove_empty,
    write_json,
    write_text,
)
from token_superposition.schedule import Schedule
from token_superposition.training.metrics import MetricsFile, is_number
from token_superposition.yaml_files import read_yaml
from token_superposition.yaml_values import plain

# What is written when a run starts; a kill before config.yaml, which comes last of these, may leave the others.
_BEFORE_CONFIG = ("lock", "run.json", "tokenizer.json", "tokenizer_config.json")
_NEW = "name another folder for a new run"
# The numbers that every summary has.
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


class RunFolder:
    """A run's folder: made if it is not there, locked from `open` to `close`.

    A run that is refused or fails before it has logged anything leaves nothing behind.

    Raises:
        UserError: where the folder holds other things than a run, or another process uses it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.diverged_file = path / "diverged.json"
        self.run_file = path / "run.json"
        self.checkpoints = path / "checkpoints"
        self._new = False  # no run was started here before
        self._made: list[Path] = []
        self._lock: TextIO | None = None
        self._metrics: MetricsFile | None = None

    def check_place(self) -> None:
        """Refuse a path that is a file, or a folder that holds other things than a run; UserError says what."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file, not a run folder")
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
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); name another folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that was refused removes its lock: what was opened may be no more the file of that name.
            ours = os.path.samestat(os.fstat(self._lock.fileno()), (self.path / "lock").stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UserError(f"{self.path}: another process{f' (pid {owner})' if owner else ''} is using this run")
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
        if self._new and (kind is not None or not self.config_file.exists()) and not self._has_begun():
            for name in ("metrics.jsonl", "config.yaml", *_BEFORE_CONFIG):
                (self.path / name).unlink(missing_ok=True)
            for name in ("tensorboard", "wandb"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            remove_empty([self.checkpoints, *self._made])
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.close()

    def _has_begun(self) -> bool:
        """Whether there is anything that was trained or measured."""
        logged = self.metrics_file.exists() and self.metrics_file.stat().st_size > 0
        return logged or any(self.checkpoints.glob("*"))

    def _refuse_strangers(self) -> None:
        """A folder without a configuration must be empty, but for what a kill leaves while a run starts."""
        if self.summary_file.exists() or any(self.checkpoints.glob("step-*")):
            raise UserError(f"{self.config_file}: is missing from this run; put it back, or {_NEW}")
        ours = (*_BEFORE_CONFIG, "checkpoints")
        strangers = sorted(p.name for p in self.path.glob("*") if p.name not in ours and p.suffix != ".tmp")
        if strangers:
            raise UserError(f"{self.path}: is not a run folder (it holds {strangers[0]!r}); name an empty one")

    def read_config(self) -> dict[str, Any] | None:
        """The configuration the run was started with; None for a new folder."""
        if not self.config_file.exists():
            return None
        try:
            values: dict[str, Any] = plain(read_yaml(self.config_file)[0])
            return values
        except UserError as error:
            raise UserError(f"{error}; it was edited or damaged: put it right, or {_NEW}") from None

    def read_fixed(self) -> dict[str, Any] | None:
        """What was fixed when the run started; None for a new folder."""
        if not self.config_file.exists():
            return None  # a kill between the two files: the run has not started
        mend = f"put it back as it was, or {_NEW}"
        try:
            fixed = read_object(self.run_file, mend)
        except FileNotFoundError:
            raise UserError(f"{self.run_file}: is missing from this run; {mend}") from None
        try:
            Schedule.from_dicts(fixed["stages"])
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{self.run_file}: is damaged (stages: {error}); {mend}") from None
        for key in ("id", "data_fingerprint"):
            if not isinstance(fixed.get(key), str):
                raise UserError(f"{self.run_file}: is damaged (no {key}); {mend}")
        if not is_whole_number(fixed.get("first_total_steps", 1), 1):
            raise UserError(f"{self.run_file}: is damaged (first_total_steps is no number of steps); {mend}")
        return fixed

    def write_config(self, config: dict[str, Any], fixed: dict[str, Any]) -> None:
        """Keep the resolved configuration, and what is fixed from now on."""
        write_json(self.run_file, fixed)
        write_text(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def read_summary(self) -> dict[str, Any] | None:
        """The result of a run that is done; None before that."""
        mend = "remove it, and the run will end again from its last checkpoint"
        try:
            summary = read_object(self.summary_file, mend)
        except FileNotFoundError:
            return None
        for key in FIGURES:
            if not is_number(summary.get(key)):
                raise UserError(f"{self.summary_file}: is damaged ({key} is not a number); {mend}")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Say that the run is done, and with what result."""
        write_json(self.summary_file, summary)

    def write_diverged(self, message: str) -> None:
        """Say that the run has diverged, for who would otherwise train it again to find out."""
        write_json(self.diverged_file, {"message": message})

    def clear_end(self) -> None:
        """Take back what was said of the run's end, good or bad: it is being trained on."""
        self.summary_file.unlink(missing_ok=True)
        self.diverged_file.unlink(missing_ok=True)

    def clear_leftovers(self) -> None:
        """Remove what a kill left of files that were being written; call it under the lock."""
        for path in self.path.glob(".*.tmp"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def resume_metrics(self, step: int, mend: Callable[[dict[str, Any]], dict[str, Any]]) -> MetricsFile:
        """The metrics, cut back to the lines of completed step `step` and before; closed with the folder.

        Args:
            step: completed steps.
            mend: what to make of each line that is kept.
        """
        self._metrics = MetricsFile(self.metrics_file, step, mend)
        return self._metrics
