"""The records of a run: metrics, checkpoints and summary.

The training loop decides when to record. A `Recorder` builds the content of each line, and keeps the counts that do not
follow from the step: the time spent and the skipped steps. A step is skipped if its loss or gradient is NaN or
infinite. The device knows this at once. The host learns it when it next waits for the device (`look`), so the recorder
keeps the results of all steps since the last `look`.

In a run of several ranks, each rank has a recorder, so that all ranks take the same decisions: whether the run has
diverged, and when they validate and save together. Only the recorder of rank 0 writes and prints.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from token_superposition.data.stream import Batch, Span
from token_superposition.errors import CheckpointError, TrainingDivergedError
from token_superposition.progress import ProgressSink, warn
from token_superposition.training.checkpoint import save_checkpoint
from token_superposition.training.hardware import machine_name, matrix_peak, peak_memory_bytes
from token_superposition.training.metrics import MetricsFile, read_metrics
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.trackers import MetricsSink, open_tracker
from token_superposition.training.trainer import StepResult, Trainer
from token_superposition.training.validation import ValidationResult


class _Done(NamedTuple):
    """A completed step with a result that the host has not read yet."""

    step: int
    span: Span
    result: StepResult


class Recorder:
    """Writes the records of a run.

    Args:
        trainer: the trainer of the run.
        folder: the run folder, which the caller has locked.
        state: the state of the loaded checkpoint, or of a new run (`Trainer.start`).
        run_id: the id of the run, for trackers.
        quiet: print no progress on standard error.

    Raises:
        UserError: on every rank, if the metrics are damaged or a tracker cannot be opened.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, state: dict[str, Any], *, run_id: str, quiet: bool) -> None:
        self.trainer = trainer
        self.schedule = trainer.schedule
        self.logging = trainer.config.logging
        self.folder = folder
        self.done: int = state["step"]
        self.skipped: int = state["skipped_steps"]
        self.init_from: dict[str, Any] | None = state.get("init_from")
        self.unseen: list[_Done] = []
        self.seconds_before: float = state["wall_seconds"]
        self.started = time.perf_counter()
        self.world = world = trainer.world
        self.writes = world.is_main
        self.peak = world.size * world.on_main(lambda: matrix_peak(trainer.device, trainer.dtype))
        self.last_logged: dict[str, Any] = {}
        self.trackers: dict[str, MetricsSink] = {}
        self.metrics: MetricsFile | None = None
        world.on_main(lambda: self._open(run_id))
        superposed = any(stage.bag_size > 1 for stage in self.schedule.stages)
        self.progress = ProgressSink(
            self.schedule.total_steps, self.done, quiet=quiet or not self.writes, superposed=superposed
        )

    def _open(self, run_id: str) -> None:
        """Open the metrics and the trackers."""
        folder, trainer = self.folder, self.trainer
        self.metrics = folder.resume_metrics(self.done if self.done else -1, self._recomputed)
        for line in read_metrics(folder.metrics_file):
            if "loss" in line:
                self.last_logged = line
        try:
            for name in self.logging.trackers:
                self.trackers[name] = open_tracker(
                    name,
                    folder=folder.path,
                    run_id=run_id,
                    project=self.logging.project,
                    config=trainer.config.model_dump(mode="json"),
                    first_step=self.done,
                )
        except BaseException:
            self._close_trackers()
            raise

    def _recomputed(self, line: dict[str, Any]) -> dict[str, Any]:
        """A line from the file, with the values that follow from its step computed again: the file has no checksum."""
        trained = self.schedule.lookup(max(line["step"] - 1, 0))
        known = {"phase": trained.phase, "bag_size": trained.bag_size, **self.trainer.counters(line["step"])}
        return {key: known.get(key, value) for key, value in line.items()}

    def close(self) -> None:
        """Close the progress bar and the trackers; the run folder closes the metrics file."""
        self.progress.close()
        self._close_trackers()

    def _close_trackers(self) -> None:
        for name in list(self.trackers):
            with self._tracker(name) as tracker:
                tracker.close()

    @contextlib.contextmanager
    def _tracker(self, name: str) -> Iterator[MetricsSink]:
        """Drop a tracker that fails, for example on a full disk or without its server; the run continues."""
        try:
            yield self.trackers[name]
        except Exception as error:
            warn(f"logging.trackers: {name} failed and is no longer used: {' '.join(str(error).split())}")
            del self.trackers[name]

    def add(self, batch: Batch, result: StepResult) -> None:
        """Record that a step is done."""
        self.done = batch.step + 1
        self.unseen.append(_Done(self.done, batch.span, result))

    def look(self) -> dict[str, Any] | None:
        """Wait for the steps since the last call; returns the values of the last step, or None if it was skipped.

        Raises:
            TrainingDivergedError: if more than `train.max_skipped_steps` steps were skipped.
        """
        skipped = torch.stack([done.result.skipped for done in self.unseen]).tolist()
        for done, was_skipped in zip(self.unseen, skipped, strict=True):
            if was_skipped:
                self.note_skipped(done)
        last = self.unseen[-1].result
        self.unseen.clear()
        if skipped[-1]:
            return None
        values = {"loss": last.loss.item(), "grad_norm": last.grad_norm.item()}
        return values if last.expert_loads is None else {**values, "expert_load": _expert_load(last.expert_loads)}

    def note_skipped(self, done: _Done) -> None:
        """Log and report a skipped step, with the position of its batch in the corpus."""
        self.skipped += 1
        stage = self.schedule.stages[done.span.stage]
        rows = np.arange(done.span.first_row, done.span.first_row + done.span.num_rows)
        places = self.trainer.stream.locate(done.span.stage, rows)
        starts, folders = [place.start for place in places], list(self.trainer.corpora.datasets.values())
        length = self.trainer.stream.row_length(stage)
        loss, grad_norm = (str(value.item()) for value in done.result[:2])
        self.emit(
            {
                "step": done.step,
                "phase": stage.phase,
                "bag_size": stage.bag_size,
                "skipped_steps": self.skipped,
                "skipped": {
                    "loss": loss,
                    "grad_norm": grad_norm,
                    "row_starts": starts,
                    "row_tokens": length,
                    **({"row_sources": [place.source for place in places]} if len(folders) > 1 else {}),
                },
            }
        )
        limit = self.trainer.config.train.max_skipped_steps
        text = (
            f"step {done.step} of {self.folder.path}: loss {loss}, gradient norm {grad_norm}: skipped "
            f"({self.skipped} of at most {limit}); its {len(starts)} rows of {length} tokens each start at "
            f"{', '.join(f'token {place.start} of {folders[place.source].folder}' for place in places[:3])}"
            f"{', ...' * (len(starts) > 3)}"
        )
        if self.skipped > limit:
            raise TrainingDivergedError(
                f"{text}; this exceeds train.max_skipped_steps: the run has diverged (the usual fix is a lower "
                "train.learning_rate); its checkpoints are usable"
            )
        self.warn(text)

    def warn(self, text: str) -> None:
        """Print a warning once for all ranks."""
        if self.writes:
            warn(text)

    def log(self, values: dict[str, Any] | None, steps: int, seconds: float, waited: float) -> None:
        """Write the line of the last step; its speeds are averages over the steps since the last line.

        Args:
            values: the result of `look`; for a skipped step, None, and no line is written.
            steps: number of steps since the last line.
            seconds: duration of these steps.
            waited: seconds of this duration that were spent waiting for batches.
        """
        if values is None:
            return
        slowest = max(self.world.gather((seconds - waited) / steps))
        trained = self.schedule.lookup(self.done - 1)
        counters = {key: value for key, value in self.trainer.counters(self.done).items() if key != "flops"}
        speed = steps * self.trainer.config.train.positions_per_step / seconds
        self.last_logged = {
            "step": self.done,
            "phase": trained.phase,
            "bag_size": trained.bag_size,
            **values,
            "learning_rate": self.trainer.learning_rate.at(self.done - 1),
            **counters,
            "positions_per_second": speed,
            "seconds_per_step": seconds / steps,
            **({"slowest_rank_seconds_per_step": slowest} if self.world.size > 1 else {}),
            "mfu": speed * self.trainer.flops_per_position / self.peak,
            "data_wait_fraction": waited / seconds,
            "skipped_steps": self.skipped,
        }
        self.emit(self.last_logged)

    def validate(self, max_tokens: int, *, final: bool = False) -> dict[str, Any]:
        """A next-token validation, marked with the phase that the model is in.

        The last one is on more tokens than those before it, so a curve is drawn through the others.
        """
        trained = self.schedule.lookup(max(self.done - 1, 0))
        result, others = self.trainer.validate(max_tokens)
        line = {
            "step": self.done,
            "phase": trained.phase,
            "bag_size": trained.bag_size,
            **_validation(result),
            "final": final,
            **self.trainer.counters(self.done),
        }
        if self.init_from is not None and self.done == 0:
            line["init_from"] = self.init_from["path"]
        if others:
            line["validation_sets"] = {name: _validation(other) for name, other in others.items()}
        if not math.isfinite(result.loss):
            raise self.diverged("the validation loss is NaN or infinite")
        self.emit(line)
        return line

    def diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} after step {self.done} of {self.folder.path}: the run has diverged "
            "(the usual fix is a lower train.learning_rate); its earlier checkpoints are usable"
        )

    def checkpoint(self, span: Span) -> None:
        """Save a checkpoint with everything that a resumed run needs; the stream's state is a stage and a row number.

        Raises:
            TrainingDivergedError: if a weight is NaN or infinite; no checkpoint is then written.
            CheckpointError: if the checkpoint cannot be written, and either `logging.fail_on_checkpoint_error` is set
                or this is the last step, whose weights would be lost.
        """
        if not self.trainer.weights_are_finite():
            raise self.diverged("a weight is NaN or infinite")
        state = {
            "step": self.done,
            "phase": self.schedule.lookup(self.done - 1).phase,
            "stages": self.schedule.as_dicts(),
            "stream": {"stage": span.stage, "row": span.first_row + span.num_rows},
            "skipped_steps": self.skipped,
            "wall_seconds": self.wall_seconds(),
            "init_from": self.init_from,
            "config": self.trainer.config.model_dump(mode="json"),
        }
        folder, logging = self.folder.checkpoints, self.logging
        keep, steps = logging.keep_checkpoints, logging.keep_checkpoint_steps
        try:
            self.world.on_main(self._sync_metrics)
            save_checkpoint(folder, self.done, self.trainer.tensors(), state, keep, steps, self.world)
        except CheckpointError as error:
            if logging.fail_on_checkpoint_error or self.done == self.schedule.total_steps:
                raise CheckpointError(
                    f"step {self.done}: {error}; start the run again to continue from the previous checkpoint"
                ) from error
            self.warn(f"step {self.done}: {error}; the training continues, and the earlier checkpoints are usable")

    def finish(self) -> dict[str, Any]:
        """Run the final validation, and write the summary, which marks the run as finished."""
        trainer = self.trainer
        validation = self.validate(self.logging.validation_tokens, final=True)
        summary = {
            **self.last_logged,
            **validation,
            "final_validation_loss": validation["validation_loss"],
            "steps": self.done,
            "stages": self.schedule.as_dicts(),
            "switch_step": self.schedule.switch_step,
            "seed": trainer.config.train.seed,
            "skipped_steps": self.skipped,
            "parameters": trainer.num_parameters,
            "loss_backend": trainer.loss_backend,
            "wall_seconds": self.wall_seconds(),
            "machine": machine_name(trainer.device),
            "peak_memory_bytes": max(self.world.gather(peak_memory_bytes(trainer.device))),
            **({"processes": self.world.size, "parallel": trainer.parallel.layout.mode} if self.world.size > 1 else {}),
            "data_fingerprint": trainer.corpora.fingerprint,
            "init_from": self.init_from,
        }
        self.world.on_main(lambda: self._write_summary(summary))
        return summary

    def _sync_metrics(self) -> None:
        if self.metrics is not None:
            self.metrics.sync()

    def _write_summary(self, summary: dict[str, Any]) -> None:
        self._sync_metrics()
        self.folder.write_summary(summary)

    def emit(self, line: dict[str, Any]) -> None:
        """Write a line to the metrics, the progress and the trackers, on rank 0."""
        if self.metrics is None:
            return
        self.metrics.write(line)
        self.progress.write(line)
        for name in list(self.trackers):
            with self._tracker(name) as tracker:
                tracker.write(line)

    def wall_seconds(self) -> float:
        """Seconds of training, including the time before the run was resumed."""
        return self.seconds_before + time.perf_counter() - self.started


def _expert_load(loads: Tensor) -> dict[str, dict[str, float]]:
    """Per layer, the largest and smallest share of an expert in the choices, relative to an equal share of 1."""
    shares = (loads * loads.shape[1] / loads.sum(dim=1, keepdim=True)).tolist()
    return {f"layer_{n}": {"most": max(layer), "least": min(layer)} for n, layer in enumerate(shares)}


def _validation(result: ValidationResult) -> dict[str, Any]:
    return {
        "validation_loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "validation_tokens": result.num_tokens,
        **({"text_lost": result.text_lost} if result.text_lost else {}),  # the bits per byte are then too low
    }
