"""Whether the runs of a study are what they are compared as.

A study is often trained in several goes, and what a run began with it keeps. So runs that one configuration asks for
may have become different ones, and their difference would be taken for the method's. That is refused, before anything
is trained where it can be known by then, and before anything is reported in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from token_superposition.errors import UserError
from token_superposition.schedule import Schedule
from token_superposition.training.config import RunConfig
from token_superposition.training.optim import WarmupStableDecay, build_learning_rate
from token_superposition.training.run import resolve_device_keys
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

Asked = tuple[RunFolder, RunConfig]  # where a run lies, or will, and what is asked for there
_Steps = tuple[Schedule, WarmupStableDecay]


def check_lengths(runs: Sequence[Asked]) -> None:
    """Refuse runs of which some were made longer or shorter on their way, and others not, or from another length.

    Such a run keeps its switch and its warm-up, and a new one of as many steps has others. Where all were started with
    the same number of steps they can be compared, and the report tells what was trained. Where neither is a share of
    the steps, it makes no difference.
    """
    trained = [trained_steps(*run) for run in runs]
    kept = [run for run, steps in zip(runs, trained, strict=True) if steps != _started_with(run[1])]
    if not kept:
        return
    odd, config = kept[0]
    record, total = odd.read_record(), config.train.total_steps
    first = total if record is None else record.first_total_steps
    for (other, asked), steps in zip(runs, trained, strict=True):
        if steps != _started_with(asked, first):
            both = ",".join(map(str, sorted({first, total})))
            raise UserError(
                f"train.total_steps: {odd.path} was started with {first} steps and keeps the switch and the warm-up "
                f"that it had then, unlike {other.path}, so the two cannot be compared; give {first}, train both "
                f"lengths (--budgets {both}), or name another folder (--out)"
            )


def check_machines(runs: Sequence[Asked]) -> None:
    """Refuse runs of which `auto` made some compute on one kind of device, or in one precision, and some in another.

    Arms that ask for another one each are not meant: the report lists what they change.
    """
    stored = [StoredRun.read(folder) for folder, _ in runs]
    first: dict[tuple[str, str], tuple[RunFolder, str, str]] = {}
    # Those that have begun come first: what is new can still be made like them.
    for (folder, config), begun in sorted(zip(runs, stored, strict=True), key=lambda pair: pair[1] is None):
        device, dtype = resolve_device_keys(config, None if begun is None else begun.config).values()
        asked = (config.train.device, config.train.dtype)
        other, its_device, its_dtype = first.setdefault(asked, (folder, device, dtype))
        if (device.partition(":")[0], dtype) != (its_device.partition(":")[0], its_dtype):
            raise UserError(
                f"{folder.path}: computes on {device} in {dtype}, and {other.path} on {its_device} in {its_dtype}, so "
                f"the two cannot be compared; give --train.device {its_device} --train.dtype {its_dtype}, and remove "
                "the folders of runs that have begun otherwise"
            )


def trained_steps(folder: RunFolder, config: RunConfig) -> _Steps:
    """The stages, whole, and the learning rate that a run comes to in the end."""
    stored = StoredRun.read(folder)
    if stored is None:
        return config.schedule().merged(), build_learning_rate(config.train)
    schedule = stored.record.schedule.with_total_steps(config.train.total_steps)
    warmup_steps = stored.learning_rate.warmup_steps
    return schedule.merged(), replace(build_learning_rate(config.train), warmup_steps=warmup_steps)


def _started_with(config: RunConfig, first_total: int | None = None) -> _Steps | None:
    """The same of a run that was started with so many steps; None where it could not have been."""
    train = config.train.model_copy(update={"total_steps": first_total or config.train.total_steps})
    try:
        schedule = config.model_copy(update={"train": train}).schedule().with_total_steps(config.train.total_steps)
    except ValueError:
        return None
    return schedule.merged(), replace(build_learning_rate(config.train), warmup_steps=train.num_warmup_steps)
