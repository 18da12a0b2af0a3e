"""The training loop.

`train` opens the run (`Run.open`), builds the trainer and loads the newest intact checkpoint. It then does one
optimizer step per batch of the stream. At the intervals of the configuration it writes a line of metrics, validates
and saves a checkpoint. The metrics of a step are written before the step's checkpoint, so that a resumed run neither
lacks nor repeats a line.

Under torchrun every rank runs this loop. Rank 0 alone opens the run folder and decides what is trained; the other ranks
get its decisions (`_open`). See `distributed`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, overload

import torch

from token_superposition import __version__
from token_superposition.data.prefetch import prefetch
from token_superposition.errors import TrainingDivergedError, UserError, first_line, is_out_of_memory
from token_superposition.interrupts import StoppedError, deferred_stop
from token_superposition.models.device import device_type
from token_superposition.output_streams import losable_stderr
from token_superposition.progress import say, warn
from token_superposition.training.checkpoint import discard_newer, discard_old
from token_superposition.training.config import RunConfig
from token_superposition.training.distributed import (
    PeerError,
    World,
    is_lost_peer,
    lost_peer,
    of_all_ranks,
    open_world,
    shorten_timeouts,
)
from token_superposition.training.logger import Recorder
from token_superposition.training.parallel import check_batch_divides
from token_superposition.training.preflight import check_data
from token_superposition.training.run import Run
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.threads import choose_threads
from token_superposition.training.trainer import Trainer, prepare_process
from token_superposition.yaml_files import changed_keys

_LOSS = {
    "plain": "from full logits",
    "chunked": "in chunks, so that memory never holds all logits",
    "liger": "with the kernel of Liger",
    "torch": "with the kernel of torch",
}


@overload
def train(config: RunConfig, path: Path, *, quiet: bool = False) -> dict[str, Any]: ...


@overload
def train(config: RunConfig, path: Path, *, quiet: bool = False, stop_after: int) -> dict[str, Any] | None: ...


def train(
    config: RunConfig, path: Path, *, quiet: bool = False, stop_after: int | None = None
) -> dict[str, Any] | None:
    """Start a run in its folder, or continue it; a finished run does not change.

    A finished run continues if `train.total_steps` is now higher and the decay of its learning rate had not started.

    Args:
        config: the run's configuration.
        path: the run's folder.
        quiet: print no progress on standard error.
        stop_after: stop after this many completed steps, with a checkpoint, like an interrupted run.

    Returns:
        The run's summary, as in `summary.json`; None if `stop_after` ended the run, in this call or before it.

    Raises:
        UserError: if the user can fix the problem.
        TrainingDivergedError: if the run diverges; `diverged.json` in the folder then holds the reason.
        CheckpointError: if the last checkpoint cannot be written, or any checkpoint with
            `logging.fail_on_checkpoint_error`.
        KeyboardInterrupt: after a signal of `interrupts.STOP_SIGNALS`, when a checkpoint has been written.
    """
    with losable_stderr(), open_world(device_type(config.train.device)) as world, contextlib.ExitStack() as stack:
        if world.size > 1:
            # A rank that stops alone would leave the others waiting, so every request waits for the next step.
            world.stop_wanted = stack.enter_context(deferred_stop())
            _check_ranks(world, config)
        folder = RunFolder(path)
        world.on_main(lambda: stack.enter_context(folder), share=lambda _: None)
        try:
            tell: Callable[[str], None] = (lambda _: None) if quiet or not world.is_main else say
            run = _open(world, folder, config, tell)
            if isinstance(run, dict):
                return run
            if stop_after is not None and run.steps_done >= stop_after:
                return None
            prepare_process(run.config)
            with world.together():
                trainer = Trainer(run.config, run.schedule, run.corpora, run.source, world)
            world.on_main(lambda: _write_start(run))
            with world.together():
                state = trainer.load(run.checkpoint) if run.checkpoint else trainer.start()
            if run.source is not None:
                tell(f"starting from {run.source.words}")
            world.on_main(lambda: _clear(run))
            if world.is_main:
                for text in run.warnings(trainer.stream):
                    warn(text)
            record = Recorder(trainer, folder, state, run_id=run.record.id, quiet=quiet)
            record.progress.say(f"the loss is computed {_LOSS[trainer.loss_backend]} (train.loss_backend)")
            if world.size > 1:
                record.progress.say(f"{world.size} processes: {trainer.parallel.layout.words}")
            return _run(trainer, record, stop_after)
        except Exception as error:
            if world.size > 1 and is_lost_peer(error) and not isinstance(error, PeerError):
                raise lost_peer(error) from error
            raise


def _check_ranks(world: World, config: RunConfig) -> None:
    """Refuse ranks with different configurations or versions, and numbers that do not divide."""
    world.check_equal("the version of torch", torch.__version__)
    world.check_equal("the version of token_superposition", __version__)
    ours = config.model_dump(mode="json")
    key = next(iter(changed_keys(world.gather(ours)[0], ours)), None)
    with world.together():
        if key is not None:
            raise UserError(f"{key}: differs from rank 0; start every process with the same configuration")
        if config.train.device.startswith("cuda:"):
            raise UserError(
                f"train.device: {config.train.device} is one GPU, but there are {world.size} processes; use cuda"
            )
        check_batch_divides(config.train.batch_size, config.train.micro_batch_size, world.size)


def _open(world: World, folder: RunFolder, config: RunConfig, tell: Callable[[str], None]) -> Run | dict[str, Any]:
    """Open the run on rank 0, and check and measure its data; returns the run, or the summary of a finished run."""

    def on_main() -> Run:
        picks_threads = config.train.num_threads == "auto"
        run = Run.open(folder, config)
        for text in run.damage:
            warn(f"{text}; continuing from the previous checkpoint")
        if run.result is not None:
            if run.steps_done < run.schedule.total_steps:
                warn(
                    f"{folder.path}: this run is finished, but its checkpoint of step {run.schedule.total_steps} is "
                    f"missing; to train the last steps again, delete {folder.summary_file.name} and run this command "
                    "again"
                )
            return run
        if run.stored is None and picks_threads and run.config.train.device == "cpu":
            for text in choose_threads().remarks():
                tell(text)
        check_data(run.config, tell)
        return run.measure_slot_weights(tell)

    opened: Any = world.on_main(on_main, share=lambda run: (run.config, run.record, run.checkpoint, run.result))
    config, record, checkpoint, result = (
        (opened.config, opened.record, opened.checkpoint, opened.result) if world.is_main else opened
    )
    if result is not None:
        return cast(dict[str, Any], result)
    with world.together():
        run = opened if world.is_main else Run.shared(folder, config, record, checkpoint)
    return cast(Run, run)


def _write_start(run: Run) -> None:
    run.corpora.tokenizer.save(run.folder.path)
    run.folder.write_start(run.config.model_dump(mode="json"), run.record)


def _clear(run: Run) -> None:
    """Remove the record of an earlier end of the run, temporary files of a kill, and checkpoints that are not kept."""
    run.folder.clear_end()
    run.folder.clear_leftovers()
    discard_newer(run.folder.checkpoints, run.steps_done)
    logging = run.config.logging
    discard_old(run.folder.checkpoints, logging.keep_checkpoints, logging.keep_checkpoint_steps)


def _run(trainer: Trainer, record: Recorder, stop_after: int | None) -> dict[str, Any] | None:
    """Do the remaining steps and return the summary; or stop after `stop_after` steps and return None."""
    schedule, logging, total = trainer.schedule, trainer.config.logging, trainer.schedule.total_steps
    first_step, world = record.done, trainer.world
    batches = prefetch(trainer.batches(first_step))
    try:
        with deferred_stop() if world.size == 1 else contextlib.nullcontext(world.stop_wanted) as stop_wanted:
            if first_step == 0:
                record.validate(logging.interim_validation_tokens)
            shorten_timeouts(world, trainer.config.train.parallel.timeout_seconds)
            waited, since, mark = 0.0, first_step, time.perf_counter()
            while record.done < total:
                fetch = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - fetch
                record.add(batch, trainer.step(batch))
                step = record.done
                last_of_stage = step == total or schedule.index_at(step) != batch.span.stage
                # Read once: a later request takes effect after the next step. Several ranks have agreed in the step.
                stopping = stop_wanted() if world.size == 1 else world.stop
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
                mark += time.perf_counter() - pause  # the speed excludes validation and checkpoints
                if stopping:
                    raise StoppedError
                if far_enough:
                    return None
        return record.finish()
    except KeyboardInterrupt:
        if record.done > first_step:
            record.progress.say(f"stopped after step {record.done}; continue with: tst train {record.folder.path}")
        raise
    except TrainingDivergedError as error:
        if world.is_main:
            record.folder.write_diverged(str(error))
        raise of_all_ranks(error) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(_out_of_memory(trainer.config, record, error)) from error
        raise
    finally:
        batches.close()  # type: ignore[attr-defined]
        record.close()


def _out_of_memory(config: RunConfig, record: Recorder, error: Exception) -> str:
    """The message for an out-of-memory error; the run may continue with a smaller micro-batch."""
    rows = config.train.micro_batch_size or config.train.batch_size
    fewer = max((n for n in range(1, rows) if config.train.batch_size % n == 0), default=None)
    advice = f"continue with: tst train {record.folder.path} --train.micro_batch_size {fewer}"
    if record.done == 0:  # the folder of a run that has not started is removed
        advice = f"start it again with --train.micro_batch_size {fewer}"
    if fewer is None:
        advice = "one row per micro-batch is too large: start a new run with a smaller train.sequence_length or model"
    return f"out of memory ({first_line(error)}); {advice}"
