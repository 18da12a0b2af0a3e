"""A run of a study, as the process that trains it and who watches it see it: files, and how far it is."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from token_superposition.progress import phase_words
from token_superposition.training.branch import branch_diverged, make_branch
from token_superposition.training.checkpoint import checkpoint_path
from token_superposition.training.config import RunConfig, load_config
from token_superposition.training.run import branch_config
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun


@dataclass(frozen=True)
class Job:
    """One run: what to call it, its configuration file, its folder, and how many steps it has.

    Attributes:
        branch_step: how many of the steps it has from another run.
        parent: that run, where this one has yet to begin.
    """

    name: str
    config: Path
    folder: Path
    total_steps: int
    branch_step: int = 0
    parent: Job | None = None

    @property
    def trunk(self) -> Job:
        """The run that is there, or begins on its own, whose first steps this one has; mostly itself."""
        return self if self.parent is None else self.parent.trunk

    @property
    def log(self) -> Path:
        """Where the run's standard output and error go."""
        return self.config.with_suffix(".log")

    @property
    def done(self) -> bool:
        """Whether the run has its result: one of fewer steps is that of a run that is to go on."""
        summary = RunFolder(self.folder).read_summary()
        return summary is not None and bool(summary["steps"] == self.total_steps)

    @property
    def diverged(self) -> bool:
        """Whether the run has stopped without one, because its loss is no longer a number."""
        return not self.done and RunFolder(self.folder).diverged_file.exists()

    @property
    def ready(self) -> bool:
        """Whether it can start: what it begins with is there."""
        if self.parent is None or self._begun:
            return True
        return checkpoint_path(RunFolder(self.parent.folder).checkpoints, self.branch_step).exists()

    @property
    def standing(self) -> str:
        """What to say of the run while no process trains it."""
        if self.done or self.diverged:
            return "done" if self.done else "diverged"
        if not self.ready and self.parent is not None:
            return f"waits for {self.parent.name}"
        return "queued"

    @cached_property
    def _superposed(self) -> bool:
        """Whether a run that has begun has a superposition phase."""
        record = RunFolder(self.folder).read_record()
        return record is not None and any(stage.bag_size > 1 for stage in record.schedule.stages)

    @property
    def _begun(self) -> bool:
        return RunFolder(self.folder).config_file.exists()

    def prepare(self) -> None:
        """Make the folder of a run that begins as another one, from that one's checkpoint."""
        if self.parent is not None and not self._begun:
            parent, config = RunFolder(self.parent.folder), self._branch_config(self.parent)
            make_branch(parent, self.folder, self.branch_step, config)

    def diverge(self) -> None:
        """Say of a run that it diverges as the one that it would begin as has."""
        if self.parent is not None:
            parent, config = RunFolder(self.parent.folder), self._branch_config(self.parent)
            message = f"it begins as {parent.path}, which diverged in the steps that both share"
            branch_diverged(parent, self.folder, self.branch_step, config, message)

    def _branch_config(self, parent: Job) -> RunConfig:
        return branch_config(load_config(self.config), StoredRun.read(RunFolder(parent.folder)))

    def last_step(self) -> tuple[int, str]:
        """Completed steps and the last loss, from the metrics' end; a diverged run has no steps left."""
        if self.diverged:
            return self.total_steps, "diverged"
        if not self.ready and self.parent is not None:
            return self.branch_step, f"waits for {self.parent.name}"
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().splitlines()
        except OSError:
            return self.branch_step, "starting"
        for text in reversed(lines):
            with contextlib.suppress(ValueError, LookupError, TypeError):  # half a line, or a damaged one
                line = json.loads(text)
                if "loss" in line:
                    # A branch may have been made after the last line of the run that it comes from.
                    step = max(int(line["step"]), self.branch_step)
                    return step, f"{phase_words(line, superposed=self._superposed)}, loss {line['loss']:.3f}"
        return self.branch_step, "starting"
