"""The run folder, the interface of a run to everything above it.

    config.yaml             the resolved configuration
    run.json                what was fixed when the run started: its stages, its data
    tokenizer.json          the data's tokenizer, so that the run can be used without its data
    metrics.jsonl           a line per logged step and per validation
    summary.json            the result, written when the run is done
    diverged.json           instead of a result: why the run stopped, where it came to no numbers any more
    checkpoints/step-NNNNNNN/

In every file `step` is the number of optimizer steps completed. One process at a time holds the folder's
lock (the operating system drops it when the process dies, however it dies).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any, TextIO

import yaml

from token_superposition.errors import UserError
from token_superposition.files import write_json, write_text
from token_superposition.run.metrics import MetricsFile


class RunFolder:
    """A run's folder: made if it is not there, locked from `open` to `close`.

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
        self._made = False
        self._lock: TextIO | None = None
        self._metrics: MetricsFile | None = None

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file, not a run folder")
        if not self.config_file.exists():
            ours = ("lock", "checkpoints", "run.json", "tokenizer.json")  # a kill while the run starts leaves these
            strangers = sorted(p.name for p in self.path.glob("*") if p.name not in ours and p.suffix != ".tmp")
            if strangers:
                raise UserError(f"{self.path}: is not a run folder (it holds {strangers[0]!r}); name an empty one")
        self._made = not self.path.exists()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written to ({error.strerror}); name another folder") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            self._lock.close()
            raise UserError(f"{self.path}: another process (pid {owner}) is using this run") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._made and not self.config_file.exists():
            shutil.rmtree(self.path)  # the run never started: leave nothing behind
        if self._lock is not None:
            self._lock.close()

    def read_config(self) -> dict[str, Any] | None:
        """The configuration the run was started with; None for a new folder."""
        if not self.config_file.exists():
            return None
        values = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UserError(f"{self.config_file}: is not a run's configuration; was it edited?")
        return values

    def read_fixed(self) -> dict[str, Any] | None:
        """What was fixed when the run started; None for a new folder."""
        if not self.run_file.exists() or not self.config_file.exists():
            return None  # a kill between the two files: the run has not started
        fixed: dict[str, Any] = json.loads(self.run_file.read_text(encoding="utf-8"))
        return fixed

    def write_config(self, config: dict[str, Any], fixed: dict[str, Any]) -> None:
        """Keep the resolved configuration, and what is fixed from now on."""
        write_json(self.run_file, fixed)
        write_text(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def read_summary(self) -> dict[str, Any] | None:
        """The result of a run that is done; None before that."""
        if not self.summary_file.exists():
            return None
        summary: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Say that the run is done, and with what result."""
        write_json(self.summary_file, summary)

    def write_diverged(self, message: str) -> None:
        """Say that the run has diverged, for who would otherwise train it again to find out."""
        write_json(self.diverged_file, {"message": message})

    def clear_diverged(self) -> None:
        """Take that back: the run is being trained once more."""
        self.diverged_file.unlink(missing_ok=True)

    def resume_metrics(self, step: int) -> MetricsFile:
        """The metrics, cut back to the lines of completed step `step` and before; closed with the folder."""
        self._metrics = MetricsFile(self.metrics_file, step)
        return self._metrics
