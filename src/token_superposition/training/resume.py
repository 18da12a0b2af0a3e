"""Resolving the configuration of a run that starts, and checking the configuration of a run that resumes.

The settings of a run are fixed when it starts: `config.yaml` holds the configuration with every `auto` resolved.
`run.json` holds the stages and the fingerprint of the data. To resume with another configuration would give a result
that belongs to neither configuration, so a changed key is refused by name. These keys may change:

    logging                     except the numbers of validation tokens
    data.validation_sets
    data.verify
    train.max_skipped_steps
    paths of the data           the fingerprint shows that the data is the same
    threads, micro-batch size   a warning says that the last bits may differ
    train.device                only to a device of the same kind; with the same warning
    train.total_steps           only before the decay of the learning rate, and only after a warm-up that is a share of
                                the steps; the recovery gets longer or shorter, the switch and the warm-up do not change

`run.json` also holds the number of steps at the start of the run, because a warm-up that is a share of the steps is
computed from this number.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from token_superposition.data.mixture import rounded_shares
from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError
from token_superposition.models.device import resolve_device, resolve_dtype
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import checkpoint_steps, read_state
from token_superposition.training.config import RunConfig, changed_keys, parse_config
from token_superposition.training.config_changes import may_change, value_at
from token_superposition.training.datasets import Corpora, take_measured
from token_superposition.training.init_from import NO_EVIDENCE, InitialModel, settle_model
from token_superposition.training.optim import WarmupStableDecay, build_learning_rate
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.threads import choose_threads

# Keys that change the order of additions, and an addition to the warning.
_ROUNDING = {
    "train.micro_batch_size": "; router losses of experts are averages over a micro-batch, so they differ more",
    "train.num_threads": "",
    "train.device": "",
}
_RESULT = ("logging.validation_tokens", "logging.interim_validation_tokens")  # the tokens on which results are measured


def settle_config(config: RunConfig, folder: RunFolder, source: InitialModel | None = None) -> RunConfig:
    """The configuration with every `auto` resolved: to the value of the run in the folder, or for this machine.

    Args:
        config: the user's configuration.
        folder: the run folder.
        source: model from which a run without a checkpoint starts; the run gets its architecture and configuration.

    Raises:
        UserError: if the run in the folder was started with another configuration, or if keys contradict the source;
            names the key.
    """
    run = stored_config(folder)
    stored = None if run is None else run.model_dump(mode="json")
    settled = config.model_dump(mode="json")
    settled["train"] |= settle_machine(config, run)
    data = settled["data"]
    for place in (data, *data["sources"].values()):
        if place["path"] is not None:
            place["path"] = str(Path(place["path"]).resolve())
    data["validation_sets"] = {name: str(Path(path).resolve()) for name, path in data["validation_sets"].items()}
    model = stored["model"] if stored else None
    if source is not None:
        model = {"init_from": source.given, "architecture": source.architecture, "config": source.keys}
    if config.model.init_from is not None and model and model["init_from"] == config.model.init_from:
        tokenizer = Corpora.open(config.data).tokenizer
        settled["model"] = settle_model(config.model, model["architecture"], model["config"], tokenizer)
    if stored is not None and run is not None:
        take_measured(settled["superposition"], stored["superposition"])
        _keep_spelling(settled, config, stored, run)
        for key in changed_keys(stored, settled):
            old, new = (value_at(values, key) for values in (stored, settled))
            if not may_change(key, old, new):
                raise UserError(
                    f"{folder.path}: this run was started with {key} {old!r}, but the value is now {new!r}; "
                    "use the old value to continue, or use another folder for a new run"
                )
    return parse_config(settled)


def settle_device(config: RunConfig, stored: RunConfig | None) -> dict[str, Any]:
    """The resolved values of `train.device` and `train.dtype`.

    Args:
        config: the user's configuration.
        stored: configuration of a run that has started; its values are not resolved again.
    """
    settled = {key: _given(config, stored, key) for key in ("device", "dtype")}
    if settled["device"] == "auto":
        settled["device"] = str(resolve_device("auto"))
    if settled["dtype"] == "auto":
        settled["dtype"] = str(resolve_dtype("auto", resolve_device(settled["device"]))).removeprefix("torch.")
    return settled


def settle_machine(config: RunConfig, stored: RunConfig | None) -> dict[str, Any]:
    """The same as `settle_device`, and the number of CPU threads, which may need a short measurement."""
    settled = settle_device(config, stored)
    threads = _given(config, stored, "num_threads")
    if threads == "auto":
        threads = choose_threads().num_threads if settled["device"] == "cpu" else torch.get_num_threads()
    return {**settled, "num_threads": threads}


def _given(config: RunConfig, stored: RunConfig | None, key: str) -> Any:
    value = getattr(config.train, key)
    return getattr(stored.train, key) if value == "auto" and stored is not None else value


def rounding_changes(config: RunConfig, stored: RunConfig | None) -> list[str]:
    """Warnings for a resumed run with changed keys that change the order of additions.

    Args:
        config: the resolved configuration.
        stored: the configuration of the run until now; None for a new run.
    """
    if stored is None:
        return []
    old, new = stored.model_dump(mode="json"), config.model_dump(mode="json")
    return [
        f"{key} changes from {_word(value_at(old, key))} to {_word(value_at(new, key))}: results differ in rounding "
        f"from those of an unchanged run{_ROUNDING[key]}"
        for key in changed_keys(old, new)
        if key in _ROUNDING
    ]


def _word(value: Any) -> Any:
    return "null" if value is None else value


def check_stages(checkpoint: Path, schedule: Schedule, folder: RunFolder) -> None:
    """Raise UserError if the superposition stages in `run.json` differ from those of a checkpoint."""
    if Schedule.from_dicts(read_state(checkpoint)["stages"]).stages[:-1] != schedule.stages[:-1]:
        raise UserError(
            f"{folder.run_file}: the stages differ from those that {checkpoint.name} was trained with; restore the file"
        )


def branch_config(config: RunConfig, parent: RunFolder) -> RunConfig:
    """The configuration of a run whose first steps equal those of another run, with that run's resolved values.

    Args:
        config: the given configuration; it differs from the other run's only in settings of later steps.
        parent: the other run.
    """
    settled, run = config.model_dump(mode="json"), stored_config(parent)
    if run is not None:
        stored = run.model_dump(mode="json")
        settled |= {"data": stored["data"], "model": stored["model"]}
        settled["train"] |= {key: stored["train"][key] for key in ("device", "dtype", "num_threads")}
    return parse_config(settled)


def settle_schedule(config: RunConfig, fixed: dict[str, Any] | None, steps_done: int) -> Schedule:
    """The run's stages: those fixed at its start, adjusted to a new `train.total_steps`.

    Args:
        config: the resolved configuration.
        fixed: the content of `run.json`; None for a new run.
        steps_done: completed steps.

    Raises:
        UserError: if the total can no longer change, or `run.json` is damaged.
    """
    if fixed is None:
        return config.schedule()
    schedule = Schedule.from_dicts(fixed["stages"])
    part = config.superposition
    kinds = {(each.bag_size, each.mode, each.slot_weights) for each in (part, *(part.stages or ()))}
    for stage in schedule.stages:
        if stage.bag_size > 1 and (stage.bag_size, stage.mode, stage.slot_weights) not in kinds:
            raise UserError(
                f"the run's run.json and config.yaml disagree (no {stage} in config.yaml): one of them was edited or "
                "damaged; put it back as it was"
            )
    old, new = schedule.total_steps, config.train.total_steps
    if old == new:
        return schedule
    before, after = (build_learning_rate(config.train.model_copy(update={"total_steps": it})) for it in (old, new))
    # The length of a warm-up that is a share of the steps changes, so the total may change only after the warm-up.
    earliest = 0 if before.warmup_steps == after.warmup_steps else max(before.warmup_steps, after.warmup_steps)
    latest = min(before.steps_before_decay, after.steps_before_decay)
    if not earliest <= steps_done <= latest:
        when = (
            f"the two schedules agree only from step {earliest} to step {latest}"
            if earliest <= latest
            else "the two schedules agree at no step"
        )
        raise UserError(
            f"train.total_steps: this run was started with {old} steps, and {steps_done} are done; with {new} steps, "
            f"the learning rate of the completed steps would have differed ({when}); use {old}, or use another "
            "folder (--out) for a new run"
        )
    try:
        return schedule.with_total_steps(new)
    except ValueError as error:
        raise UserError(f"train.total_steps: {error}") from None


def first_total_steps(fixed: dict[str, Any]) -> int:
    """The `train.total_steps` at the start of a run, from its `run.json`, even if the total has changed since."""
    return int(fixed.get("first_total_steps", Schedule.from_dicts(fixed["stages"]).total_steps))


def trained_learning_rate(stored: RunConfig, fixed: dict[str, Any]) -> WarmupStableDecay:
    """The learning rate schedule of a run that has started; its warm-up depends on the total at its start.

    Args:
        stored: the configuration in the run folder.
        fixed: the content of its `run.json`.
    """
    first = stored.train.model_copy(update={"total_steps": first_total_steps(fixed)})
    return replace(build_learning_rate(stored.train), warmup_steps=first.num_warmup_steps)


def check_unchanged(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a configuration that would change the result of the run in the folder, if there is a run.

    Raises:
        UserError: if a key, the data, or a total that can no longer change, differs.
    """
    fixed, summary = folder.read_fixed(), folder.read_summary()
    if folder.read_config() is None or fixed is None:
        return
    settled = settle_config(config, folder)
    there, asked = checkpoint_steps(folder.checkpoints), settled.train.total_steps
    steps_done = max(there, default=0) if summary is None else summary["steps"]
    settle_schedule(settled, fixed, steps_done)
    if summary is not None and steps_done != asked and steps_done not in there:
        raise UserError(
            f"train.total_steps: the run in {folder.path} ended after {steps_done} steps, and the checkpoint that it "
            f"would continue from to {asked} is missing; use {steps_done}, or use another folder (--out) for a new run"
        )
    corpora = Corpora.open(settled.data)
    if corpora.fingerprint != fixed["data_fingerprint"]:
        key = "data.path" if settled.data.path is not None else "data.sources"
        raise UserError(
            f"{key}: {corpora.place} is not the data that the run in {folder.path} started with; use that data"
        )


def run_warnings(config: RunConfig, stream: TokenStream, source: InitialModel | None = None) -> list[str]:
    """Warnings before a run starts: about the initial model, repeated data and the superposition phase."""
    schedule = stream.schedule
    said = [] if source is None else list(source.warnings)
    if config.model.init_from is not None and schedule.switch_step > 0:
        said.append(NO_EVIDENCE)
    shares = rounded_shares([source.weight for source in config.data.mixture.values()])
    if shares is not None:
        listed = ", ".join(f"{name} {share:.2%}" for name, share in zip(config.data.mixture, shares, strict=True))
        said.append(f"data.sources: the shares of the rows are rounded to a ten-thousandth: {listed}")
    plain = schedule.positions(1) / schedule.raw_tokens(1)
    for name, coverage in stream.coverages().items():
        if coverage.epochs <= 1:
            continue
        advice = "use more text or fewer steps to avoid this"
        if plain < 1:
            advice = (
                f"superposition reads more tokens per step: mode output_only would need {plain * coverage.epochs:.2f} "
                "epochs, and a smaller bag_size or ratio also needs fewer epochs; or use more text"
            )
        said.append(
            f"the run reads {coverage.raw_tokens:,} raw tokens{f' of source {name}' if name else ''}, "
            f"{coverage.epochs:.2f} epochs of the {coverage.corpus_tokens:,} in {config.data.mixture[name].path}: "
            f"the text repeats; {advice}"
        )
    if schedule.switch_step == 0 and (config.superposition.bag_size > 1 or config.superposition.stages):
        said.append(
            "superposition has no step, because its ratio is under half a step; use a higher ratio, or bag_size 1"
        )
    decay = schedule.total_steps - config.train.decay_steps
    if schedule.switch_step > decay:
        said.append(
            f"superposition lasts until step {schedule.switch_step}, but the learning rate decays from step {decay}: "
            "the learning rate will be low during recovery; use a lower ratio"
        )
    return said


def _keep_spelling(settled: dict[str, Any], config: RunConfig, stored: dict[str, Any], run: RunConfig) -> None:
    """Keep the run's own notation for stages and warm-up if the given notation differs but means the same."""
    if config.schedule().merged() == run.schedule().merged():
        settled["superposition"] = stored["superposition"]
    totals = (config.train.total_steps, run.train.total_steps)
    ours, theirs = (
        [part.model_copy(update={"total_steps": total}).num_warmup_steps for total in totals]
        for part in (config.train, run.train)
    )
    if ours == theirs:
        settled["train"] |= {key: stored["train"][key] for key in ("warmup_ratio", "warmup_steps")}


def stored_config(folder: RunFolder) -> RunConfig | None:
    """The configuration that the run was started with; None for a new run, UserError if it is damaged."""
    values = folder.read_config()
    if values is None:
        return None
    try:
        return parse_config(values, source=str(folder.config_file))
    except UserError as error:
        raise UserError(f"{error}; the file was edited or damaged: fix it, or use another folder") from None
