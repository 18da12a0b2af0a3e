"""The training loop, top to bottom.

`train` opens the run's folder, settles its configuration, takes up the newest whole checkpoint, then does
one optimizer step for every batch of the stream, and now and then a line of metrics, a validation, a
checkpoint. Lines of a step are written before its checkpoint, so that a run that goes on from there lacks
none and repeats none.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from token_superposition.data.prefetch import prefetch
from token_superposition.data.stream import Span, TokenStream
from token_superposition.errors import TrainingDivergedError
from token_superposition.run.checkpoint import (
    discard_newer,
    newest_checkpoint,
    no_whole_checkpoint,
    read_state,
    save_checkpoint,
)
from token_superposition.run.folder import RunFolder
from token_superposition.train.config import RunConfig
from token_superposition.train.device import matrix_peak, peak_memory_bytes
from token_superposition.train.preflight import check_data
from token_superposition.train.progress import MetricsSink, ProgressSink, TensorBoardSink, say, warn
from token_superposition.train.resume import check_unchanged, settle_config, settle_schedule
from token_superposition.train.trainer import Trainer


def train(config: RunConfig, path: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train a run in its folder, from its start or from where it stopped; a run that is done stays as it is.

    Args:
        config: the run's configuration.
        path: the run's folder.
        quiet: no progress on standard error.

    Returns:
        The run's summary, as in `summary.json`.

    Raises:
        UserError: for what the user can mend.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    with RunFolder(path) as folder:
        check_unchanged(config, folder)
        config = settle_config(config, folder)
        checkpoint, complaints = newest_checkpoint(folder.checkpoints)
        if checkpoint is None and complaints:
            raise no_whole_checkpoint(folder.checkpoints, complaints)
        for complaint in complaints:
            warn(f"{complaint}; going on from the checkpoint before it")
        steps_done = read_state(checkpoint)["step"] if checkpoint else 0
        fixed = folder.read_fixed()
        schedule = settle_schedule(config, fixed, steps_done)
        summary = folder.read_summary()
        if summary is not None:
            return summary
        check_data(config, None if quiet else say)
        trainer = Trainer(config, schedule)
        fixed_now = {"stages": schedule.as_dicts(), "data_fingerprint": trainer.dataset.fingerprint}
        trainer.dataset.tokenizer.save(folder.path)
        folder.write_config(config.model_dump(mode="json"), fixed_now)
        state: dict[str, Any] = trainer.load(checkpoint) if checkpoint else {"step": 0, "wall_seconds": 0.0}
        discard_newer(folder.checkpoints, steps_done)
        folder.resume_metrics(steps_done if checkpoint else -1)
        for text in what_is_odd(config, trainer.stream):
            warn(text)
        return _Loop(trainer, folder, state, quiet=quiet).run()


class _Loop:
    """The loop's own state: steps done, time spent, and where its lines go."""

    def __init__(self, trainer: Trainer, folder: RunFolder, state: dict[str, Any], *, quiet: bool) -> None:
        self.trainer = trainer
        self.schedule = trainer.schedule
        self.logging = trainer.config.logging
        self.folder = folder
        self.done: int = state["step"]
        self.seconds_before: float = state["wall_seconds"]
        self.started = time.perf_counter()
        self.peak = matrix_peak(trainer.device, trainer.dtype)
        total = self.schedule.total_steps
        self.sinks: list[MetricsSink] = []
        if self.logging.tensorboard:
            self.sinks.append(TensorBoardSink(str(folder.path / "tensorboard"), self.done))
        self.progress = ProgressSink(total, self.done, quiet=quiet)
        self.sinks.append(self.progress)

    def run(self) -> dict[str, Any]:
        total = self.schedule.total_steps
        log, logging = self.logging.log_interval, self.logging
        first_step, span = self.done, None
        batches = prefetch(self.trainer.batches(self.done))
        try:
            with _stop_requests() as stop:
                if self.done == 0:
                    self.validate(logging.interim_validation_tokens)
                waited, since, mark = 0.0, self.done, time.perf_counter()
                while self.done < total:
                    fetch = time.perf_counter()
                    batch = next(batches)
                    waited += time.perf_counter() - fetch
                    loss, norm = self.trainer.step(batch)
                    self.done, span = batch.step + 1, batch.span
                    last_of_stage = self.done == total or self.schedule.lookup(self.done) != batch.stage
                    stopping = stop.is_set()  # asked once: a request from here on waits for the next step
                    save = self.done % logging.checkpoint_interval == 0 or last_of_stage or stopping
                    if self.done % log == 0 or last_of_stage or save:
                        values = {"loss": loss.item(), "grad_norm": norm.item()}  # waits for the device
                        self.check_finite(values)
                    if self.done % log == 0 or last_of_stage:
                        now = time.perf_counter()
                        self.log(values, self.done - since, now - mark, waited)
                        waited, since, mark = 0.0, self.done, now
                    if self.done % logging.validation_interval == 0 or last_of_stage:
                        self.validate(logging.interim_validation_tokens)
                        mark = time.perf_counter() if since == self.done else mark
                    if save:
                        self.checkpoint(span)
                    if stopping:
                        raise KeyboardInterrupt
            result = self.validate(logging.validation_tokens, final=True)
            self.check_finite({"validation_loss": result["validation_loss"]})
            return self.finish(result)
        except KeyboardInterrupt:
            if self.done > first_step and span is not None:
                self.progress.say(f"stopped after step {self.done}; start it again to go on from there")
            raise
        finally:
            batches.close()  # type: ignore[attr-defined]
            for sink in self.sinks:
                sink.close()

    def check_finite(self, values: dict[str, float]) -> None:
        """Stop before a checkpoint of weights that are no numbers takes the place of a good one."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"{name} is {value} after step {self.done} of {self.folder.path}: the run has diverged "
                    "(a lower train.learning_rate is the usual mend); its earlier checkpoints are good"
                )

    def log(self, values: dict[str, float], steps: int, seconds: float, waited: float) -> None:
        """A line for the step just done; speeds are over the steps since the last line."""
        trained = self.schedule.lookup(self.done - 1)
        counters = self.trainer.counters(self.done)
        speed = steps * self.trainer.config.train.positions_per_step / seconds
        self.emit(
            {
                "step": self.done,
                "phase": trained.phase,
                "bag_size": trained.bag_size,
                "loss": values["loss"],
                "learning_rate": self.trainer.learning_rate.at(self.done - 1),
                "grad_norm": values["grad_norm"],
                "positions": counters["positions"],
                "raw_tokens": counters["raw_tokens"],
                "positions_per_second": speed,
                "seconds_per_step": seconds / steps,
                "mfu": speed * self.trainer.flops_per_position / self.peak,
                "data_wait_fraction": waited / seconds,
            }
        )

    def validate(self, max_tokens: int, *, final: bool = False) -> dict[str, Any]:
        """A next-token validation, marked with the phase that the model is in.

        The last one is on more tokens than those before it, so a curve is drawn through the others.
        """
        trained = self.schedule.lookup(max(self.done - 1, 0))
        result = self.trainer.validate(max_tokens)
        line = {
            "step": self.done,
            "phase": trained.phase,
            "bag_size": trained.bag_size,
            "validation_loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
            "validation_tokens": result.num_tokens,
            "final": final,
            **self.trainer.counters(self.done),
        }
        self.emit(line)
        return line

    def checkpoint(self, span: Span) -> None:
        """Everything that going on needs; the stream's state is a stage and a row number."""
        self.folder.sync_metrics()
        state = {
            "step": self.done,
            "phase": self.schedule.lookup(self.done - 1).phase,
            "stages": self.schedule.as_dicts(),
            "stream": {"stage": span.stage, "row": span.first_row + span.num_rows},
            "wall_seconds": self.wall_seconds(),
            "config": self.trainer.config.model_dump(mode="json"),
        }
        folder, keep = self.folder.checkpoints, self.logging.keep_checkpoints
        save_checkpoint(folder, self.done, self.trainer.tensors(), state, keep)

    def finish(self, validation: dict[str, Any]) -> dict[str, Any]:
        """Write the summary, which says that the run is done."""
        trainer = self.trainer
        coverage = trainer.stream.coverage()
        summary = {
            **validation,
            "final_validation_loss": validation["validation_loss"],
            "steps": self.done,
            "stages": self.schedule.as_dicts(),
            "switch_step": self.schedule.switch_step,
            "seed": trainer.config.train.seed,
            "unique_raw_tokens": coverage.unique_raw_tokens,
            "skipped_tokens": coverage.skipped_tokens,
            "epochs": coverage.epochs,
            "parameters": trainer.num_parameters,
            "wall_seconds": self.wall_seconds(),
            "peak_memory_bytes": peak_memory_bytes(trainer.device),
            "data_fingerprint": trainer.dataset.fingerprint,
        }
        self.folder.sync_metrics()
        self.folder.write_summary(summary)
        return summary

    def emit(self, line: dict[str, Any]) -> None:
        self.folder.log(line)
        for sink in self.sinks:
            sink.write(line)

    def wall_seconds(self) -> float:
        """Seconds trained, earlier starts included."""
        return self.seconds_before + time.perf_counter() - self.started


def what_is_odd(config: RunConfig, stream: TokenStream) -> list[str]:
    """What to say before a run starts: that it repeats data, or superposes into its decay."""
    coverage, schedule, said = stream.coverage(), stream.schedule, []
    if coverage.epochs > 1:
        said.append(
            f"the run reads {coverage.raw_tokens:,} raw tokens, {coverage.epochs:.2f} epochs of the "
            f"{stream.corpus.num_tokens:,} in {config.data.path}: text repeats; more text, a smaller "
            "bag_size or ratio, or mode output_only would avoid that"
        )
    if schedule.switch_step == 0 and (config.superposition.bag_size > 1 or config.superposition.stages):
        said.append("superposition lasts no step: its ratio is under half a step; raise it, or take bag_size 1")
    decay = schedule.total_steps - config.train.decay_steps
    if schedule.switch_step > decay:
        said.append(
            f"superposition lasts until step {schedule.switch_step}, into the learning rate's decay from step "
            f"{decay}: recovery will be short of learning rate; lower the ratio"
        )
    return said


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Set when SIGINT or SIGTERM asks to stop; a second request stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
