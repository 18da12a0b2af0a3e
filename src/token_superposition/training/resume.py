"""Starting a run in its folder, or going on with it there.

A run is fixed when it starts: `config.yaml` keeps the configuration with every `auto` decided, `run.json`
keeps the stages and the fingerprint of the data. Going on with another configuration would give a result
that neither configuration stands for, so a changed key is refused by name. These may change: how a
run is logged and validated besides, how many skipped steps it bears, where its data lies (the fingerprint
says that it is the same), how it uses the machine (threads, rows at once, which device of a kind; a warning says that
the last bits may differ), and `train.total_steps` before the decay, and after a warm-up that is a share of it: the
recovery gets longer or shorter, and switch and warm-up stay what they were. `run.json` keeps the steps that the run was
started with, or nobody could tell its warm-up later.
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

# What changes the order of additions, and what to say besides.
_ROUNDING = {
    "train.micro_batch_size": "; router losses of experts are averages over a micro-batch, so they differ more",
    "train.num_threads": "",
    "train.device": "",
}
_RESULT = ("logging.validation_tokens", "logging.interim_validation_tokens")  # what figures are taken on


def settle_config(config: RunConfig, folder: RunFolder, source: InitialModel | None = None) -> RunConfig:
    """The configuration with every `auto` decided: as the folder's run has it, else for this machine.

    Args:
        config: what the user gave.
        folder: the run's.
        source: what a run without a checkpoint goes on from; its architecture and configuration become the run's.

    Raises:
        UserError: where the folder's run was started with another configuration, or keys contradict the source; names
            the key.
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
                    f"{folder.path}: this run was started with {key} {old!r}, and is now given {new!r}; "
                    "give the old value to go on, or name another folder for a new run"
                )
    return parse_config(settled)


def settle_device(config: RunConfig, stored: RunConfig | None) -> dict[str, Any]:
    """The keys of `train` that say where and in what precision a run computes, decided.

    Args:
        config: what the user gave.
        stored: what a run that has begun was started with; what it has is not decided again.
    """
    settled = {key: _given(config, stored, key) for key in ("device", "dtype")}
    if settled["device"] == "auto":
        settled["device"] = str(resolve_device("auto"))
    if settled["dtype"] == "auto":
        settled["dtype"] = str(resolve_dtype("auto", resolve_device(settled["device"]))).removeprefix("torch.")
    return settled


def settle_machine(config: RunConfig, stored: RunConfig | None) -> dict[str, Any]:
    """The same, and the number of CPU threads, for which the machine may be tried out for a moment."""
    settled = settle_device(config, stored)
    threads = _given(config, stored, "num_threads")
    if threads == "auto":
        threads = choose_threads().num_threads if settled["device"] == "cpu" else torch.get_num_threads()
    return {**settled, "num_threads": threads}


def _given(config: RunConfig, stored: RunConfig | None, key: str) -> Any:
    value = getattr(config.train, key)
    return getattr(stored.train, key) if value == "auto" and stored is not None else value


def rounding_changes(config: RunConfig, stored: RunConfig | None) -> list[str]:
    """What to say where a run that has begun continues with keys that change the order of additions.

    Args:
        config: the settled configuration.
        stored: what the run had until here; None for a new run.
    """
    if stored is None:
        return []
    old, new = stored.model_dump(mode="json"), config.model_dump(mode="json")
    return [
        f"{key} is {_word(value_at(new, key))} from here on and was {_word(value_at(old, key))}: results differ in "
        f"rounding from those of a run that was not changed{_ROUNDING[key]}"
        for key in changed_keys(old, new)
        if key in _ROUNDING
    ]


def _word(value: Any) -> Any:
    return "null" if value is None else value


def check_stages(checkpoint: Path, schedule: Schedule, folder: RunFolder) -> None:
    """Refuse a `run.json` with other superposition stages than a checkpoint was trained with; UserError says so."""
    if Schedule.from_dicts(read_state(checkpoint)["stages"]).stages[:-1] != schedule.stages[:-1]:
        raise UserError(
            f"{folder.run_file}: its stages are not those that {checkpoint.name} was trained with; put the file back "
            "as it was"
        )


def branch_config(config: RunConfig, parent: RunFolder) -> RunConfig:
    """The configuration of a run that begins as another one did: what is decided for that holds for this one.

    Args:
        config: what was asked for; it differs from the other run's in what it will do later, and in nothing else.
        parent: the other run.
    """
    settled, run = config.model_dump(mode="json"), stored_config(parent)
    if run is not None:
        stored = run.model_dump(mode="json")
        settled |= {"data": stored["data"], "model": stored["model"]}
        settled["train"] |= {key: stored["train"][key] for key in ("device", "dtype", "num_threads")}
    return parse_config(settled)


def settle_schedule(config: RunConfig, fixed: dict[str, Any] | None, steps_done: int) -> Schedule:
    """The run's stages: as they were fixed at its start, but for a new `train.total_steps`.

    Args:
        config: the settled configuration.
        fixed: what `run.json` holds; None for a new run.
        steps_done: completed steps.

    Raises:
        UserError: where the total may no longer change.
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
    # A warm-up that is a share of the steps has another length now; what it has done is let be.
    earliest = 0 if before.warmup_steps == after.warmup_steps else max(before.warmup_steps, after.warmup_steps)
    latest = min(before.steps_before_decay, after.steps_before_decay)
    if not earliest <= steps_done <= latest:
        when = f"they agree from step {earliest} to step {latest} only" if earliest <= latest else "they agree nowhere"
        raise UserError(
            f"train.total_steps: this run was started with {old}, and {steps_done} of them are done: with {new} the "
            f"learning rate would have been another until here ({when}); give {old}, or name another folder (--out) "
            "for a new run"
        )
    try:
        return schedule.with_total_steps(new)
    except ValueError as error:
        raise UserError(f"train.total_steps: {error}") from None


def first_total_steps(fixed: dict[str, Any]) -> int:
    """The steps that a run was started with, by its `run.json`, whatever it was given since."""
    return int(fixed.get("first_total_steps", Schedule.from_dicts(fixed["stages"]).total_steps))


def trained_learning_rate(stored: RunConfig, fixed: dict[str, Any]) -> WarmupStableDecay:
    """The learning rate of a run that has begun: a warm-up that is a share of the steps is one of its first total.

    Args:
        stored: the configuration in the run's folder.
        fixed: what its `run.json` holds.
    """
    first = stored.train.model_copy(update={"total_steps": first_total_steps(fixed)})
    return replace(build_learning_rate(stored.train), warmup_steps=first.num_warmup_steps)


def check_unchanged(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a configuration under which a folder's run, if there is one, would have another result.

    Raises:
        UserError: where a key, a total that can no longer change, or the data is not what it was.
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
            f"would go on from to {asked} is gone; give {steps_done}, or name another folder (--out) for a new run"
        )
    corpora = Corpora.open(settled.data)
    if corpora.fingerprint != fixed["data_fingerprint"]:
        key = "data.path" if settled.data.path is not None else "data.sources"
        raise UserError(f"{key}: {corpora.place} is not the data that the run in {folder.path} started with")


def what_is_odd(config: RunConfig, stream: TokenStream, source: InitialModel | None = None) -> list[str]:
    """What to say before a run starts: of what it goes on from, of data that repeats, of superposition at odd times."""
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
        advice = "more text or fewer steps would avoid that"
        if plain < 1:
            advice = (
                f"superposition reads more: mode output_only would come to {plain * coverage.epochs:.2f} epochs, "
                "and a smaller bag_size or ratio to fewer than now; or take more text"
            )
        said.append(
            f"the run reads {coverage.raw_tokens:,} raw tokens{f' of source {name}' if name else ''}, "
            f"{coverage.epochs:.2f} epochs of the {coverage.corpus_tokens:,} in {config.data.mixture[name].path}: "
            f"text repeats; {advice}"
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


def _keep_spelling(settled: dict[str, Any], config: RunConfig, stored: dict[str, Any], run: RunConfig) -> None:
    """Leave as the run has it what is given in other words now and means the same: stages, cuts or not; warm-up."""
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
    """The configuration that the folder's run was started with; None for a new one, UserError where it is damaged."""
    values = folder.read_config()
    if values is None:
        return None
    try:
        return parse_config(values, source=str(folder.config_file))
    except UserError as error:
        raise UserError(f"{error}; it was edited or damaged: put it right, or name another folder") from None
