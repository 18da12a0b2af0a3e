"""What came of a study's runs, as `report.json` holds it; see `token_superposition.study.report` for its keys."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from token_superposition.errors import UserError
from token_superposition.schedule import Schedule
from token_superposition.study.arms import num_threads, why_seconds_differ
from token_superposition.study.comparability import check_lengths, check_machines, trained_steps
from token_superposition.study.loss_spike import switch_facts
from token_superposition.study.prices import cost_of
from token_superposition.study.significance import headline_of, paired_difference
from token_superposition.study.speedup import choose_headline, iso_loss_all
from token_superposition.study.study_config import Study
from token_superposition.study.trials import Trial
from token_superposition.training.config import RunConfig, changed_keys
from token_superposition.training.datasets import Corpora
from token_superposition.training.metrics import read_metrics
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

_NO_EQUAL_DATA = "no arm was given the raw tokens superposition read; --equal-data trains one"


def build_report(
    study: Study, trials: Sequence[Trial], num_seeds: int, equal_data_steps: Mapping[str, int]
) -> dict[str, Any]:
    """The report of runs that are done.

    Args:
        study: what was asked for.
        trials: the runs, each arm's in rising order of their budgets, the baseline's first.
        num_seeds: of each.
        equal_data_steps: by arm, the baseline's steps on the arm's raw tokens.

    Raises:
        UserError: where runs are not what they would be compared as.
    """
    runs = [(trial.run(seed), trial.seeded(seed)) for trial in trials for seed in range(num_seeds)]
    check_lengths(runs)
    check_machines(runs)
    first, *_ = study.arms.values()
    by_arm = {name: [trial for trial in trials if trial.arm == name] for name in study.arms}
    reference = {name: [t for t in its if t.kind == "budget"][-1] for name, its in by_arm.items()}
    arms = []
    for name, its in by_arm.items():
        figures = [_figures(trial, num_seeds) for trial in its]
        budgets = [_budget(trial, each) for trial, each in zip(its, figures, strict=True)]
        changed = _changed(first, study.arms[name])
        arms.append({"name": name, **figures[its.index(reference[name])], "changed": changed, "budgets": budgets})
    baseline = reference[arms[0]["name"]]
    train = baseline.config.train
    _, learning_rate = trained_steps(baseline.run(0), baseline.config)
    stored = baseline.run(0).read_config() or {}
    model = stored.get("model", {})  # whose architecture and configuration may be those of what it goes on from
    corpora = Corpora.open(baseline.config.data)
    differences = [_difference(arms[0], arm) for arm in arms[1:]]
    longer = [_equal_data(arms[0], arm, equal_data_steps[arm["name"]]) for arm in arms[1:] if equal_data_steps]
    best = headline_of(differences)
    threads = num_threads(arms)
    # Seconds of runs with other numbers of threads, or on other machines, say nothing of their arms.
    comparable = why_seconds_differ(arms) is None
    speedups = [each for each in iso_loss_all(arms) if each["unit"] == "flops" or comparable]
    iso_loss, no_iso_loss = choose_headline(speedups, best["arm"])
    reasons = {"iso_loss": no_iso_loss, "equal_data": None if longer else _NO_EQUAL_DATA}
    return {
        "schema_version": 2,
        "title": f"Token superposition or not: {model.get('architecture')}, {train.total_steps:,} steps",
        "created": datetime.date.today().isoformat(),
        "model": {
            "architecture": model.get("architecture"),
            "parameters": arms[0]["parameters"],
            "config": model.get("config"),
            "init_from": _same_start(trials, num_seeds),
        },
        "data": {
            "path": corpora.place,
            "tokenizer": corpora.tokenizer.name,
            "train_tokens": corpora.num_tokens,
            "train_bytes": corpora.num_bytes,
            "validation_tokens_used": arms[0]["validation_tokens"],
            "text_lost": max(dataset.text_lost or 0.0 for dataset in corpora.datasets.values()),
        },
        "settings": {
            "total_steps": train.total_steps,
            "batch_size": train.batch_size,
            "sequence_length": train.sequence_length,
            "optimizer": train.optimizer,
            "learning_rate": train.learning_rate,
            "warmup_steps": learning_rate.warmup_steps,
            "decay_steps": learning_rate.decay_steps,
            "decay_ratio": train.decay_ratio,
            "final_learning_rate_ratio": train.final_learning_rate_ratio,
            "weight_decay": train.weight_decay,
            "device": stored.get("train", {}).get("device"),
            "dtype": stored.get("train", {}).get("dtype"),
            "num_threads": threads[0] if len(threads) == 1 else None,
        },
        "arms": arms,
        "equal_flops": best,
        "equal_flops_all": differences,
        "equal_data": next((each for each in longer if each["arm"] == best["arm"]), None),
        "equal_data_all": longer,
        "iso_loss": iso_loss,
        "iso_loss_all": speedups,
        "switch": switch_facts(arms),
        "cost": cost_of(arms, speedups, best["arm"], stored.get("train", {}).get("device"), study.price_per_hour),
        "reasons": {key: reason for key, reason in reasons.items() if reason is not None},
    }


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


def _figures(trial: Trial, num_seeds: int) -> dict[str, Any]:
    """What came of a trial, seed by seed, and what was trained."""
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
        keys = ("final_validation_loss", "bits_per_byte", "steps", "positions", "raw_tokens")
        more = ("unique_raw_tokens", "flops", "wall_seconds", "peak_memory_bytes")
        seeds.append(
            {
                "seed": trial.config.train.seed + seed,
                **{key: summary[key] for key in keys + more},
                "skipped_steps": summary.get("skipped_steps"),
                "machine": summary.get("machine"),
                "shared_steps": stored.record.shared_steps,
                "num_threads": stored.config.train.num_threads,
                "first_total_steps": stored.record.first_total_steps,
                "curve": _curve(run),
            }
        )
    # As fixed when the run started, whatever was asked since; its cuts are of no interest here.
    schedule = Schedule.from_dicts(summary["stages"]).merged()
    first = schedule.stages[0]
    return {
        "stages": schedule.as_dicts(),
        "mode": first.mode,
        "slot_weights": first.slot_weights,
        "bag_size": schedule.bag_size,
        "ratio": schedule.switch_step / schedule.total_steps,
        "switch_step": schedule.switch_step,
        "learning_rate": trial.config.train.learning_rate,
        "parameters": summary["parameters"],
        "validation_tokens": summary["validation_tokens"],
        "seeds": seeds,
    }


def _curve(run: RunFolder) -> list[dict[str, Any]]:
    keys = ("step", "phase", "bag_size", "flops", "raw_tokens", "validation_loss")
    return [
        {key: line[key] for key in keys}
        for line in read_metrics(run.metrics_file)
        if "validation_loss" in line and not line["final"]  # that one is on more tokens
    ]


def _budget(trial: Trial, figures: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("stages", "switch_step", "ratio", "learning_rate", "seeds")
    return {"total_steps": trial.total_steps, "kind": trial.kind, **{key: figures[key] for key in keys}}


def _difference(baseline: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Superposition's final loss less the baseline's, seed by seed."""
    return {
        "baseline": baseline["name"],
        "arm": arm["name"],
        **_paired(baseline["seeds"], arm["seeds"]),
    }


def _equal_data(baseline: Mapping[str, Any], arm: Mapping[str, Any], total_steps: int) -> dict[str, Any]:
    """The same where the baseline was trained longer, on as many raw tokens as the arm read."""
    (longer,) = (budget for budget in baseline["budgets"] if budget["total_steps"] == total_steps)
    return {
        "baseline": baseline["name"],
        "arm": arm["name"],
        "total_steps": total_steps,
        "raw_tokens": longer["seeds"][0]["raw_tokens"],
        **_paired(longer["seeds"], arm["seeds"]),
    }


def _paired(baseline: Sequence[Mapping[str, Any]], arm: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ours, theirs = ([seed["final_validation_loss"] for seed in side] for side in (arm, baseline))
    difference = paired_difference(ours, theirs)
    return {
        "delta_nats": difference.mean,
        "confidence_interval": None if difference.interval is None else list(difference.interval),
        "confidence_level": 0.95,
        "deltas": list(difference.differences),
        "reason": difference.reason,
    }
