"""The training loop, top to bottom.

`train` opens the run's folder, settles its configuration, takes up the newest whole checkpoint, then does
one optimizer step for every batch of the stream, and now and then a line of metrics, a validation, a
checkpoint. Lines of a step are written before its checkpoint, so that a run that goes on from there lacks
none and repeats none.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload
from uuid import uuid4

from token_superposition.data.prefetch import prefetch
from token_superposition.errors import TrainingDivergedError
from token_superposition.run.checkpoint import discard_newer, newest_checkpoint, no_whole_checkpoint, read_state
from token_superposition.run.folder import RunFolder
from token_superposition.train.config import RunConfig
from token_superposition.train.init_from import open_source
from token_superposition.train.preflight import check_data
from token_superposition.train.progress import say, warn
from token_superposition.train.record import Recorder
from token_superposition.train.resume import (
    check_unchanged,
    first_total_steps,
    settle_config,
    settle_schedule,
    what_is_odd,
)
from token_superposition.train.slot_weights import measure_slot_weights
from token_superposition.train.trainer import Trainer

_LOSS = {
    "plain": "from full logits",
    "chunked": "in slices, so that its logits are never all in memory",
    "liger": "by Liger's kernel",
    "torch": "by torch's kernel",
}


@overload
def train(config: RunConfig, path: Path, *, quiet: bool = False) -> dict[str, Any]: ...


@overload
def train(config: RunConfig, path: Path, *, quiet: bool = False, stop_after: int) -> dict[str, Any] | None: ...


def train(
    config: RunConfig, path: Path, *, quiet: bool = False, stop_after: int | None = None
) -> dict[str, Any] | None:
    """Train a run in its folder, from its start or from where it stopped; a run that is done stays as it is.

    It is done with the steps that it has: given more of them it goes on, if its learning rate has not fallen yet.

    Args:
        config: the run's configuration.
        path: the run's folder.
        quiet: no progress on standard error.
        stop_after: stop once so many steps are done, with a checkpoint, as an interrupted run does.

    Returns:
        The run's summary, as in `summary.json`; None where it stopped before its end, or had come so far already.

    Raises:
        UserError: for what the user can mend.
        TrainingDivergedError: where the run comes to no numbers any more; the folder says so from then on.
        CheckpointError: where the last checkpoint cannot be written, or any and `logging.fail_on_checkpoint_error`.
        KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    with RunFolder(path) as folder:
        check_unchanged(config, folder)
        summary = folder.read_summary()
        checkpoint, complaints = newest_checkpoint(folder.checkpoints)
        if checkpoint is None and complaints:
            raise no_whole_checkpoint(folder.checkpoints, complaints)
        for complaint in complaints:
            warn(f"{complaint}; going on from the checkpoint before it")
        source = open_source(config) if checkpoint is None and summary is None else None
        config = settle_config(config, folder, source)
        steps_done = read_state(checkpoint)["step"] if checkpoint else 0
        fixed = folder.read_fixed()
        schedule = settle_schedule(config, fixed, steps_done)
        if summary is not None and summary["steps"] == schedule.total_steps:
            return summary
        if stop_after is not None and steps_done >= stop_after:
            return None
        check_data(config, None if quiet else say)
        measured = fixed.get("mutual_information") if fixed else None
        if fixed is None:
            config, found = measure_slot_weights(config)
            if found is not None:
                measured, schedule = found.as_dict(), config.schedule()
                if not quiet:
                    say(f"slot weights from the corpus: {found.describe(schedule.bag_size)}")
        trainer = Trainer(config, schedule, source)
        run_id: str = fixed["id"] if fixed else uuid4().hex[:8]
        fixed_now = {
            **(fixed or {}),
            "id": run_id,
            "stages": schedule.as_dicts(),
            "first_total_steps": first_total_steps(fixed) if fixed else schedule.total_steps,
            "data_fingerprint": trainer.corpora.fingerprint,
            **({} if measured is None else {"mutual_information": measured}),
        }
        trainer.corpora.tokenizer.save(folder.path)
        folder.write_config(config.model_dump(mode="json"), fixed_now)
        state = trainer.load(checkpoint) if checkpoint else trainer.start()
        folder.clear_end()
        if source is not None and not quiet:
            say(f"goes on from {source.words}")
        discard_newer(folder.checkpoints, steps_done)
        for text in what_is_odd(config, trainer.stream, source):
            warn(text)
        record = Recorder(trainer, folder, state, run_id=run_id, quiet=quiet)
        record.progress.say(f"the loss is computed {_LOSS[trainer.loss_backend]} (train.loss_backend)")
        try:
            return _run(trainer, record, stop_after)
        except TrainingDivergedError as error:
            folder.write_diverged(str(error))
            raise


def _run(trainer: Trainer, record: Recorder, stop_after: int | None) -> dict[str, Any] | None:
    """Every step that is left, and the summary; or those up to `stop_after`."""
    schedule, logging, total = trainer.schedule, trainer.config.logging, trainer.schedule.total_steps
    first_step = record.done
    batches = prefetch(trainer.batches(first_step))
    try:
        with _stop_requests() as stop:
            if first_step == 0:
                record.validate(logging.interim_validation_tokens)
            waited, since, mark = 0.0, first_step, time.perf_counter()
            while record.done < total:
                fetch = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - fetch
                record.add(batch, trainer.step(batch))
                step = record.done
                last_of_stage = step == total or schedule.index_at(step) != batch.span.stage
                stopping = stop.is_set()  # asked once: a request from here on waits for the next step
                log = step % logging.log_interval == 0 or last_of_stage
                kept = step in logging.keep_checkpoint_steps
                far_enough = step == stop_after
                save = step % logging.checkpoint_interval == 0 or last_of_stage or kept or stopping or far_enough
                if log or save or trainer.device.type == "cpu":
                    values = record.look()  # waits for the device
                if log:
                    now = time.perf_counter()
                    record.log(values, step - since, now - mark, waited)
                    waited, since, mark = 0.0, step, now
                pause = time.perf_counter()
                if step % logging.validation_interval == 0 or last_of_stage:
                    record.validate(logging.interim_validation_tokens)
                if save:
                    record.checkpoint(batch.span)
                mark += time.perf_counter() - pause  # speeds are of training
                if stopping:
                    raise KeyboardInterrupt
                if far_enough:
                    return None
        return record.finish()
    except KeyboardInterrupt:
        if record.done > first_step:
            record.progress.say(f"stopped after step {record.done}; start it again to go on from there")
        raise
    finally:
        batches.close()  # type: ignore[attr-defined]
        record.close()


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
