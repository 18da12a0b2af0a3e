"""Makes the report of a study from its finished runs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from token_superposition.errors import UserError
from token_superposition.schedule import Schedule
from token_superposition.study.comparability import check_lengths, check_machines, trained_steps
from token_superposition.study.loss_spike import switch_facts
from token_superposition.study.prices import cost_of
from token_superposition.study.report.facts import num_threads, why_seconds_differ
from token_superposition.study.report.model import SCHEMA_VERSION, Report
from token_superposition.study.report.parts import (
    Arm,
    Budget,
    Data,
    Difference,
    Model,
    SeedRun,
    Settings,
    Stage,
    Trained,
    Validation,
)
from token_superposition.study.significance import headline_of
from token_superposition.study.speedup import choose_headline, iso_loss_all
from token_superposition.study.study_config import Study
from token_superposition.study.trials import Trial
from token_superposition.training.config import RunConfig, changed_keys
from token_superposition.training.datasets import Corpora
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

_NO_EQUAL_DATA = "no arm was given the raw tokens superposition read; --equal-data trains one"


def build_report(study: Study, trials: Sequence[Trial], num_seeds: int, equal_data_steps: Mapping[str, int]) -> Report:
    """The report of runs that are done.

    Args:
        study: what was asked for.
        trials: the runs, each arm's in rising order of their budgets, the baseline's first.
        num_seeds: of each.
        equal_data_steps: by arm, the baseline's steps on the arm's raw tokens.

    Raises:
        UserError: if runs are not what they would be compared as.
    """
    runs = [(trial.run(seed), trial.seeded(seed)) for trial in trials for seed in range(num_seeds)]
    check_lengths(runs)
    check_machines(runs)
    arms = [_arm(study, name, [t for t in trials if t.arm == name], num_seeds) for name in study.arms]
    baseline = [trial for trial in trials if trial.arm == arms[0].name and trial.kind == "budget"][-1]
    stored = baseline.run(0).read_config() or {}
    device = stored.get("train", {}).get("device")
    corpora = Corpora.open(baseline.config.data)
    differences = [_difference(arms[0].seeds, arms[0].name, arm) for arm in arms[1:]]
    longer = [_equal_data(arms[0], arm, equal_data_steps[arm.name]) for arm in arms[1:] if equal_data_steps]
    best = headline_of(differences)
    # Seconds of runs with other numbers of threads, or on other machines, say nothing of their arms.
    comparable = why_seconds_differ(arms) is None
    speedups = [each for each in iso_loss_all(arms) if each.unit == "flops" or comparable]
    iso_loss, no_iso_loss = choose_headline(speedups, best.arm)
    reasons = {"iso_loss": no_iso_loss, "equal_data": None if longer else _NO_EQUAL_DATA}
    model = stored.get("model", {})  # whose architecture and configuration may be those of what it goes on from
    return Report(
        schema_version=SCHEMA_VERSION,
        title=f"Token superposition or not: {model.get('architecture')}, {baseline.config.train.total_steps:,} steps",
        created=datetime.date.today().isoformat(),
        model=Model(
            architecture=model.get("architecture"),
            parameters=arms[0].parameters,
            config=model.get("config"),
            init_from=_same_start(trials, num_seeds),
        ),
        data=Data(
            path=corpora.place,
            tokenizer=corpora.tokenizer.name,
            train_tokens=corpora.num_tokens,
            train_bytes=corpora.num_bytes,
            validation_tokens_used=arms[0].validation_tokens,
            text_lost=max(dataset.text_lost or 0.0 for dataset in corpora.datasets.values()),
        ),
        settings=_settings(baseline, stored, num_threads(arms)),
        arms=tuple(arms),
        equal_flops=best,
        equal_flops_all=tuple(differences),
        equal_data=next((each for each in longer if each.arm == best.arm), None),
        equal_data_all=tuple(longer),
        iso_loss=iso_loss,
        iso_loss_all=tuple(speedups),
        switch=tuple(switch_facts(arms)),
        cost=cost_of(arms, speedups, best.arm, device, study.price_per_hour),
        reasons={key: reason for key, reason in reasons.items() if reason is not None},
    )


def _settings(baseline: Trial, stored: Mapping[str, Any], threads: Sequence[int]) -> Settings:
    train = baseline.config.train
    _, learning_rate = trained_steps(baseline.run(0), baseline.config)
    return Settings(
        total_steps=train.total_steps,
        batch_size=train.batch_size,
        sequence_length=train.sequence_length,
        optimizer=train.optimizer,
        learning_rate=train.learning_rate,
        warmup_steps=learning_rate.warmup_steps,
        decay_steps=learning_rate.decay_steps,
        decay_ratio=train.decay_ratio,
        final_learning_rate_ratio=train.final_learning_rate_ratio,
        weight_decay=train.weight_decay,
        device=stored.get("train", {}).get("device"),
        dtype=stored.get("train", {}).get("dtype"),
        num_threads=threads[0] if len(threads) == 1 else None,
    )


def _changed(baseline: RunConfig, arm: RunConfig) -> dict[str, Any]:
    """The keys that an arm has otherwise than the baseline, besides those of superposition, and what it has there."""
    theirs, ours = baseline.model_dump(mode="json"), arm.model_dump(mode="json")
    keys = [key for key in changed_keys(theirs, ours) if not key.startswith("superposition.")]
    return {key: reduce(lambda part, name: part[name], key.split("."), ours) for key in keys}


def _same_start(trials: Sequence[Trial], num_seeds: int) -> dict[str, Any] | None:
    """The trained model that every run went on from, None for fresh weights; UserError where they are not the same."""
    runs = [trial.run(seed) for trial in trials for seed in range(num_seeds)]
    starts: list[dict[str, Any] | None] = [(run.read_summary() or {}).get("init_from") for run in runs]
    for run, start in zip(runs, starts, strict=True):
        if start != starts[0]:
            raise UserError(
                f"{run.path}: went on from other weights than {runs[0].path}, though they lay in the same place, so "
                "the two cannot be compared; put the first weights back and remove this run's folder"
            )
    return starts[0]


def _arm(study: Study, name: str, trials: Sequence[Trial], num_seeds: int) -> Arm:
    """An arm, with everything it was trained at."""
    first, *_ = study.arms.values()
    trained = [_budget(trial, num_seeds) for trial in trials]
    budget, summary = [found for found in trained if found[0].kind == "budget"][-1]
    schedule = Schedule.from_dicts(summary["stages"]).merged()
    return Arm(
        name=name,
        mode=schedule.stages[0].mode,
        slot_weights=schedule.stages[0].slot_weights,
        bag_size=schedule.bag_size,
        parameters=summary["parameters"],
        validation_tokens=summary["validation_tokens"],
        changed=_changed(first, study.arms[name]),
        budgets=tuple(each for each, _ in trained),
        **{key: getattr(budget, key) for key in Trained.model_fields},
    )


def _budget(trial: Trial, num_seeds: int) -> tuple[Budget, Mapping[str, Any]]:
    """What came of a trial, seed by seed, and the last seed's summary."""
    seeds, summary = [], {}
    for seed in range(num_seeds):
        run = trial.run(seed)
        stored = StoredRun.read(run)
        if stored is None or stored.summary is None:
            raise UserError(
                f"{run.path}: this run is finished, but config.yaml, run.json or summary.json is missing; restore the "
                "file, or delete the folder to train the run again"
            )
        summary = stored.summary
        keys = ("final_validation_loss", "bits_per_byte", "steps", "positions", "raw_tokens", "unique_raw_tokens")
        more = ("flops", "wall_seconds", "peak_memory_bytes")
        seeds.append(
            SeedRun(
                seed=trial.config.train.seed + seed,
                **{key: summary[key] for key in keys + more},
                skipped_steps=summary.get("skipped_steps"),
                machine=summary.get("machine"),
                shared_steps=stored.record.shared_steps,
                num_threads=threads if isinstance(threads := stored.config.train.num_threads, int) else None,
                first_total_steps=stored.record.first_total_steps,
                curve=_curve(run),
            )
        )
    # As fixed when the run started, whatever was asked since; its cuts are of no interest here.
    schedule = Schedule.from_dicts(summary["stages"]).merged()
    budget = Budget(
        total_steps=trial.total_steps,
        kind=trial.kind,
        stages=tuple(Stage(**stage) for stage in schedule.as_dicts()),
        switch_step=schedule.switch_step,
        ratio=schedule.switch_step / schedule.total_steps,
        learning_rate=trial.config.train.learning_rate,
        seeds=tuple(seeds),
    )
    return budget, summary


def _curve(run: RunFolder) -> tuple[Validation, ...]:
    return tuple(
        Validation(**{key: line[key] for key in Validation.model_fields})
        for line in read_metrics(run.metrics_file)
        if "validation_loss" in line and not line["final"]  # that one is on more tokens
    )


def _difference(baseline: Sequence[SeedRun], name: str, arm: Arm) -> Difference:
    """Superposition's final loss less the baseline's, seed by seed."""
    ours, theirs = ([run.loss for run in side] for side in (arm.seeds, baseline))
    return Difference.of(name, theirs, arm.name, ours)


def _equal_data(baseline: Arm, arm: Arm, total_steps: int) -> Difference:
    """The same if the baseline was trained longer, on as many raw tokens as the arm read."""
    (longer,) = (budget for budget in baseline.budgets if budget.total_steps == total_steps)
    found = _difference(longer.seeds, baseline.name, arm)
    return found.model_copy(update={"total_steps": total_steps, "raw_tokens": longer.seeds[0].raw_tokens})
