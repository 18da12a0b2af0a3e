"""A run, opened: everything that is fixed before its next step.

`Run.open` reads the run folder once, resolves every `auto` of the configuration, and checks that the configuration may
continue the run in the folder. The training loop, the dry run and the guard take the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from token_superposition.data.mixture import rounded_shares
from token_superposition.data.stream import TokenStream
from token_superposition.errors import UserError
from token_superposition.models.device import device_type, resolve_device, resolve_dtype
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import (
    checkpoint_steps,
    newest_checkpoint,
    no_whole_checkpoint,
    read_state,
)
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.config_changes import may_change, rounding_changes, value_at
from token_superposition.training.datasets import Corpora, measure_slot_weights, take_measured
from token_superposition.training.init_from import NO_EVIDENCE, InitialModel, open_source, settle_model
from token_superposition.training.optim import build_learning_rate
from token_superposition.training.run_folder import RunFolder, RunRecord
from token_superposition.training.stored_run import StoredRun
from token_superposition.training.threads import choose_threads
from token_superposition.yaml_files import changed_keys


@dataclass(frozen=True, eq=False)
class Run:
    """A run that can start or continue.

    Attributes:
        folder: the run folder.
        stored: the run that has started in the folder; None for a new run.
        config: the resolved configuration, without any value `auto`.
        record: the settings that are fixed at the start; its schedule has the wanted number of steps.
        corpora: the training data.
        checkpoint: the newest intact checkpoint; None if the training starts at step 0.
        damage: messages about newer checkpoints that are damaged.
        source: the trained model with the initial weights; None for new weights, or if there is a checkpoint.
    """

    folder: RunFolder
    stored: StoredRun | None
    config: RunConfig
    record: RunRecord
    corpora: Corpora
    checkpoint: Path | None
    damage: list[str]
    source: InitialModel | None

    @classmethod
    def open(cls, folder: RunFolder, config: RunConfig) -> Run:
        """Open the run of a configuration in a folder; nothing is written.

        Args:
            folder: the run folder, which the caller has locked, or which must not change meanwhile.
            config: the user's configuration.

        Raises:
            UserError: if the folder has files that are not of a run; if its run was started with another configuration
                or other data; if no checkpoint is intact; or if keys contradict `model.init_from`.
        """
        folder.check_place()
        stored, corpora = StoredRun.read(folder), Corpora.open(config.data)
        resolved = resolve_config(config, corpora, stored)
        if stored is not None:
            _check_unchanged(resolved, corpora, stored)
        checkpoint, damage = newest_checkpoint(folder.checkpoints)
        if checkpoint is None and damage:
            raise no_whole_checkpoint(folder.checkpoints, damage)
        source = None
        if checkpoint is None and (stored is None or stored.summary is None):
            source = open_source(config, corpora.tokenizer)
            if source is not None:
                resolved = resolve_config(config, corpora, stored, source)
        if stored is None:
            record = RunRecord.new(resolved.schedule(), corpora.fingerprint)
        else:
            steps_done = 0 if checkpoint is None else read_state(checkpoint)["step"]
            record = replace(stored.record, schedule=continued_schedule(resolved, stored.record.schedule, steps_done))
        if stored is not None and checkpoint is not None:
            stored.check_trained_with(checkpoint, resolved)
            if Schedule.from_dicts(read_state(checkpoint)["stages"]).stages[:-1] != record.schedule.stages[:-1]:
                raise UserError(
                    f"{folder.run_file}: the stages differ from those that {checkpoint.name} was trained with; restore "
                    "the file"
                )
        return cls(folder, stored, resolved, record, corpora, checkpoint, damage, source)

    @property
    def schedule(self) -> Schedule:
        """The stages of the run."""
        return self.record.schedule

    @property
    def steps_done(self) -> int:
        """Completed steps of the newest intact checkpoint; 0 without a checkpoint."""
        return 0 if self.checkpoint is None else int(read_state(self.checkpoint)["step"])

    @property
    def result(self) -> dict[str, Any] | None:
        """The summary of a finished run that needs no further step, otherwise None.

        If the last checkpoint is damaged, the final weights are lost, so the last steps are trained again.
        """
        summary = None if self.stored is None else self.stored.summary
        finished = summary is not None and summary["steps"] == self.schedule.total_steps and not self.damage
        return summary if finished else None

    def measure_slot_weights(self, tell: Callable[[str], None] = lambda _: None) -> Run:
        """The run with measured slot weights, if a stage of a new run needs the measurement, which takes seconds."""
        if self.stored is not None:
            return self
        config, found = measure_slot_weights(self.config, self.corpora)
        if found is None:
            return self
        schedule = config.schedule()
        tell(f"slot weights from the corpus: {found.describe(schedule.bag_size)}")
        record = replace(self.record, schedule=schedule, mutual_information=found.as_dict())
        return replace(self, config=config, record=record)

    @classmethod
    def shared(cls, folder: RunFolder, config: RunConfig, record: RunRecord, checkpoint: Path | None) -> Run:
        """The run as a rank that does not own the folder sees it: rank 0 has opened the run and decided everything.

        Args:
            folder: the run folder.
            config: the resolved configuration of rank 0.
            record, checkpoint: as rank 0 has them.

        Raises:
            UserError: if this machine does not have the data, or has other data.
        """
        corpora = Corpora.open(config.data)
        if corpora.fingerprint != record.data_fingerprint:
            raise UserError(
                f"data.path: {corpora.place} on this machine is not the data that rank 0 has; copy that data"
            )
        return cls(folder, None, config, record, corpora, checkpoint, [], None)

    def warnings(self, stream: TokenStream) -> list[str]:
        """Warnings before the next step: those of `run_warnings`, and about changed keys that change rounding."""
        changes = [] if self.stored is None else rounding_changes(self.stored.config, self.config)
        return [*run_warnings(self.config, stream, self.source), *changes]


def check_unchanged(config: RunConfig, folder: RunFolder) -> None:
    """Check that a configuration may continue the run in a folder, if there is a run; reads no checkpoint.

    Raises:
        UserError: if a key, the data, or a total that can no longer change, differs.
    """
    stored = StoredRun.read(folder)
    if stored is None:
        return
    corpora = Corpora.open(config.data)
    resolved = resolve_config(config, corpora, stored)
    _check_unchanged(resolved, corpora, stored)
    steps_done = max(checkpoint_steps(folder.checkpoints), default=0)
    continued_schedule(resolved, stored.record.schedule, steps_done)


def resolve_config(
    config: RunConfig, corpora: Corpora, stored: StoredRun | None = None, source: InitialModel | None = None
) -> RunConfig:
    """The configuration with every `auto` resolved: to the value of the stored run, or for this machine.

    Args:
        config: the user's configuration.
        corpora: its data.
        stored: the run that continues; None for a new run.
        source: the model from which a run starts; the run gets its architecture and configuration.

    Raises:
        UserError: if the stored run was started with another configuration, or if keys contradict the source; names
            the key.
    """
    resolved = resolve_machine(config, None if stored is None else stored.config).model_dump(mode="json")
    data = resolved["data"]
    for place in (data, *data["sources"].values()):
        if place["path"] is not None:
            place["path"] = str(Path(place["path"]).resolve())
    data["validation_sets"] = {name: str(Path(path).resolve()) for name, path in data["validation_sets"].items()}
    run = None if stored is None else stored.config.model_dump(mode="json")
    model = None if run is None else run["model"]
    if source is not None:
        model = {"init_from": source.given, "architecture": source.architecture, "config": source.keys}
    if config.model.init_from is not None and model and model["init_from"] == config.model.init_from:
        resolved["model"] = settle_model(config.model, model["architecture"], model["config"], corpora.tokenizer)
    if stored is not None and run is not None:
        take_measured(resolved["superposition"], run["superposition"])
        _keep_notation(resolved, config, stored.config)
        for key in changed_keys(run, resolved):
            old, new = (value_at(values, key) for values in (run, resolved))
            if not may_change(key, old, new):
                raise UserError(
                    f"{stored.folder.path}: this run was started with {key} {old!r}, but the value is now {new!r}; "
                    "use the old value to continue, or use another folder for a new run"
                )
    return parse_config(resolved)


def resolve_device_keys(config: RunConfig, stored: RunConfig | None) -> dict[str, str]:
    """The resolved values of `train.device` and `train.dtype`.

    Args:
        config: the user's configuration.
        stored: the configuration of a run that has started; its values are not resolved again.
    """
    given = {key: _given(config, stored, key) for key in ("device", "dtype")}
    # The number of a GPU is not stored: under torchrun each process has its own, and a resume may get another.
    device = device_type("auto") if given["device"] == "auto" else given["device"]
    dtype = given["dtype"]
    if dtype == "auto":
        dtype = str(resolve_dtype("auto", resolve_device(device))).removeprefix("torch.")
    return {"device": device, "dtype": dtype}


def resolve_machine(config: RunConfig, stored: RunConfig | None = None) -> RunConfig:
    """The configuration with resolved device, dtype and CPU threads; the threads may need a short measurement."""
    train = resolve_device_keys(config, stored)
    threads = _given(config, stored, "num_threads")
    if threads == "auto":
        threads = choose_threads().num_threads if train["device"] == "cpu" else torch.get_num_threads()
    values = config.model_dump(mode="json", exclude_unset=True)
    values["train"] = {**values.get("train", {}), **train, "num_threads": threads}
    return parse_config(values)


def _given(config: RunConfig, stored: RunConfig | None, key: str) -> Any:
    value = getattr(config.train, key)
    return getattr(stored.train, key) if value == "auto" and stored is not None else value


def branch_config(config: RunConfig, parent: StoredRun | None) -> RunConfig:
    """The configuration of a run whose first steps equal those of another run, with that run's resolved values.

    Args:
        config: the given configuration; it differs from the other run's only in settings of later steps.
        parent: the other run; None if it has not started.
    """
    values = config.model_dump(mode="json")
    if parent is not None:
        stored = parent.config.model_dump(mode="json")
        values |= {"data": stored["data"], "model": stored["model"]}
        values["train"] |= {key: stored["train"][key] for key in ("device", "dtype", "num_threads")}
    return parse_config(values)


def continued_schedule(config: RunConfig, schedule: Schedule, steps_done: int) -> Schedule:
    """The stages that were fixed at the start of a run, adjusted to a new `train.total_steps`.

    Args:
        config: the resolved configuration.
        schedule: the stages in the run's record.
        steps_done: completed steps.

    Raises:
        UserError: if the total can no longer change, or the stages contradict the configuration.
    """
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


def _check_unchanged(resolved: RunConfig, corpora: Corpora, stored: StoredRun) -> None:
    """Refuse other data, and a new total for a finished run without its last checkpoint."""
    if corpora.fingerprint != stored.record.data_fingerprint:
        key = "data.path" if resolved.data.path is not None else "data.sources"
        raise UserError(
            f"{key}: {corpora.place} is not the data that the run in {stored.folder.path} started with; use that data"
        )
    wanted, done = resolved.train.total_steps, None if stored.summary is None else stored.summary["steps"]
    if done is not None and done != wanted and done not in checkpoint_steps(stored.folder.checkpoints):
        raise UserError(
            f"train.total_steps: the run in {stored.folder.path} ended after {done} steps, and the checkpoint that it "
            f"would continue from to {wanted} is missing; use {done}, or use another folder (--out) for a new run"
        )


def _keep_notation(resolved: dict[str, Any], config: RunConfig, run: RunConfig) -> None:
    """Keep the run's own notation for stages and warm-up if the given notation differs but means the same."""
    if config.schedule().merged() == run.schedule().merged():
        resolved["superposition"] = run.superposition.model_dump(mode="json")
    totals = (config.train.total_steps, run.train.total_steps)
    ours, theirs = (
        [part.model_copy(update={"total_steps": total}).num_warmup_steps for total in totals]
        for part in (config.train, run.train)
    )
    if ours == theirs:
        resolved["train"] |= {key: getattr(run.train, key) for key in ("warmup_ratio", "warmup_steps")}


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
