"""`tst compare`: the same run with and without superposition, over seeds, and a report.

Arms share initialisation, validation set, latent batch and every setting that their own keys do not
change. They cannot share the order of the data: superposition reads s times more text a step. At the same
number of steps they cost the same FLOPs.

A study's file is a run's file, with an optional `arms`: a name and the keys that the arm changes.

    arms:
      baseline: {superposition.bag_size: 1}
      superposition: {superposition.bag_size: 2, superposition.ratio: 0.3}

Without it the arms are the run as it stands and the same run without its `superposition` section. With a sweep
each arm is compared at its own best values (`sweep`, `tune`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from token_superposition.errors import UserError
from token_superposition.plan.stages import Schedule
from token_superposition.run.folder import RunFolder
from token_superposition.run.metrics import read_metrics
from token_superposition.study.report import write_report
from token_superposition.study.statistics import paired_difference
from token_superposition.study.sweep import Sweep
from token_superposition.study.tune import tune
from token_superposition.study.workers import run_jobs, share_cores, write_job
from token_superposition.train.config import RunConfig, parse_config, read_yaml, with_keys
from token_superposition.train.corpora import Corpora
from token_superposition.train.preflight import check_run
from token_superposition.train.progress import say, warn
from token_superposition.train.resume import what_is_odd
from token_superposition.yaml_keys import child

_MOST_SEEDS = 1000
_NOT_YET = {
    "equal_data": "this version trains no arm that is given the raw tokens superposition read",
    "iso_loss": "this version trains one budget; a speed-up at equal loss needs several",
}


@dataclass(frozen=True)
class Study:
    """The arms of a comparison, the baseline first.

    Attributes:
        arms: each arm's configuration, by its name.
        given: keys that an arm or the command line sets itself, and where: a sweep may not set them too.
    """

    arms: Mapping[str, RunConfig]
    given: Mapping[str, str] = field(default_factory=dict)


def load_study(path: Path, overrides: Mapping[str, Any]) -> Study:
    """Read a study's file; keys of `overrides` hold for every arm.

    Raises:
        UserError: for what a run's file would be refused for, or arms that make no comparison.
    """
    values, lines = read_yaml(path)
    return make_study(values, overrides, source=str(path), lines=lines)


def make_study(
    values: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    source: str = "configuration",
    lines: yaml.Node | None = None,
) -> Study:
    """The study that nested dictionaries describe; see `load_study`."""
    values = dict(values)
    arms = values.pop("arms", None)
    given = {key: f"--{key}" for key in overrides or {}}
    shared = parse_config(values, overrides, source=source, lines=lines)
    if arms is None:
        if shared.schedule().switch_step == 0:
            raise UserError(
                f"{source}: nothing to compare: the run has no superposition (set superposition.bag_size, or name arms)"
            )
        plain = parse_config(values, {**(overrides or {}), "superposition": {}}, source=source)
        return Study({"baseline": plain, "superposition": shared}, given)
    if not isinstance(arms, dict) or len(arms) < 2 or not all(isinstance(a, dict) for a in arms.values()):
        raise UserError(f"{source}: arms: is a list of at least two names, each with the keys it changes")
    for name in arms:  # it will be a folder's
        if not isinstance(name, str) or not re.fullmatch(r"[\w=,+-][\w.=,+ -]{0,99}", name):
            raise UserError(
                f"{source}: arms.{name!r}: a name has at most 100 letters, digits and . = , + - _, and no point first"
            )
    for name, keys in arms.items():
        changed = with_keys({}, keys, f"{source}: arms.{name}: ")
        for key in ("data", "train.seed", "model.init_from"):
            section, _, part = key.partition(".")
            place = changed.get(section)
            if section in changed and (not part or (isinstance(place, dict) and part in place)):
                raise UserError(
                    f"{source}: arms.{name}: {key}: arms share their seeds, their data and what they go on from, or "
                    "they cannot be compared seed by seed; give it outside of arms"
                )
    configs = {
        name: parse_config(
            with_keys(values, keys, f"{source}: arms.{name}: "),
            overrides,
            source=source,
            prefix=f"arms.{name}: ",
            lines=child(child(lines, "arms"), name),
        )
        for name, keys in arms.items()
    }
    baseline = [name for name, config in configs.items() if config.schedule().switch_step == 0]
    if len(baseline) != 1:
        raise UserError(f"{source}: arms: exactly one has no superposition (bag_size 1); {len(baseline)} have none")
    given = {str(key): f"{source}: arms.{name}" for name, keys in arms.items() for key in keys} | given
    return Study({baseline[0]: configs[baseline[0]], **configs}, given)


def compare(
    study: Study,
    folder: Path,
    *,
    num_seeds: int = 1,
    sweep: Sweep | None = None,
    jobs: int | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Train every arm with every seed, and write `report.json` and `report.html`.

    Args:
        study: the arms.
        folder: where runs and report go; started again there, the study goes on.
        num_seeds: seeds of each arm: the configuration's and those after it.
        sweep: values to try first, so that each arm is compared at its own best.
        jobs: runs at once; as the cores bear, without it.
        quiet: no progress on standard error.
        command: what to type for the same again, for the report.

    Returns:
        The report, as in `report.json`.
    """
    check_request(folder, num_seeds, jobs)
    talk = None if quiet else say
    odd = _check_arms(study, talk)
    places = {name: folder / "runs" / name for name in study.arms}
    tuned = None
    if sweep is None:
        runs = [
            write_job(places[name], name, config, config.train.seed + offset)
            for offset in range(num_seeds)  # a seed's arms side by side, so that they meet the same machine
            for name, config in study.arms.items()
        ]
        _warn_all(odd)
        at_once, threads = share_cores(next(iter(study.arms.values())), len(runs), jobs)
        run_jobs(runs, at_once=at_once, threads=threads, quiet=quiet)
    else:
        _warn_all(odd)
        tuned = tune(study.arms, sweep, folder, num_seeds=num_seeds, jobs=jobs, quiet=quiet)
        study, places = Study(tuned.arms, study.given), tuned.places
        _warn_all([text for text in _check_arms(study, talk) if text not in odd])  # what a value of the sweep brought
    report = build_report(study, places, num_seeds)
    if tuned is not None:
        report["sweep"] = tuned.report
    if command is not None:
        report["command"] = command
    write_report(report, folder)
    return report


def build_report(study: Study, places: Mapping[str, Path], num_seeds: int) -> dict[str, Any]:
    """The report of runs that are done, each arm's in its place; see `token_superposition.study.report`."""
    arms = [_arm(places[name], name, config, num_seeds) for name, config in study.arms.items()]
    baseline = study.arms[arms[0]["name"]]
    train = baseline.train
    stored = RunFolder(places[arms[0]["name"]] / f"seed-{train.seed}").read_config() or {}
    model = stored.get("model", {})  # whose architecture and configuration may be those of what it goes on from
    corpora = Corpora.open(baseline.data)
    differences = [_difference(arms[0], arm) for arm in arms[1:]]
    return {
        "schema_version": 1,
        "title": f"Token superposition or not: {model.get('architecture')}, {train.total_steps:,} steps",
        "created": datetime.date.today().isoformat(),
        "model": {
            "architecture": model.get("architecture"),
            "parameters": arms[0]["parameters"],
            "config": model.get("config"),
            "init_from": _same_start(study, places, num_seeds),
        },
        "data": {
            "path": corpora.place,
            "tokenizer": corpora.tokenizer.name,
            "train_tokens": corpora.num_tokens,
            "train_bytes": corpora.num_bytes,
            "validation_tokens_used": arms[0]["validation_tokens"],
        },
        "settings": {
            "total_steps": train.total_steps,
            "batch_size": train.batch_size,
            "sequence_length": train.sequence_length,
            "learning_rate": train.learning_rate,
            "warmup_steps": train.num_warmup_steps,
            "decay_steps": train.decay_steps,
            "weight_decay": train.weight_decay,
            "device": stored.get("train", {}).get("device"),
            "dtype": stored.get("train", {}).get("dtype"),
            "num_threads": stored.get("train", {}).get("num_threads"),
        },
        "arms": arms,
        "equal_flops": min(differences, key=lambda difference: difference["delta_nats"]),
        "equal_flops_all": differences,
        "equal_data": None,
        "iso_loss": None,
        "reasons": _NOT_YET,
    }


def _warn_all(texts: Sequence[str]) -> None:
    for text in texts:
        warn(text)


def check_request(folder: Path, num_seeds: int, jobs: int | None) -> None:
    """Refuse numbers out of range, and a folder that holds something else than a study.

    A study's folder has `runs`, and before the first of them at most the demo's `data`.

    Raises:
        UserError: naming the option, or what the folder holds.
    """
    if not 1 <= num_seeds <= _MOST_SEEDS:
        raise UserError(f"--seeds is at least 1 and at most {_MOST_SEEDS}, not {num_seeds}")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs is at least 1, not {jobs}")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: cannot be a study's folder ({there} is a file); name another")
    names = sorted(entry.name for entry in folder.iterdir()) if there == folder else []
    strangers = [name for name in names if name != "data"]
    if strangers and "runs" not in names:
        raise UserError(f"{folder}: is not a study's folder (it holds {strangers[0]!r}); name an empty one")


def _check_arms(study: Study, say: Callable[[str], None] | None) -> list[str]:
    """Refuse an arm that could not run, before any starts; returns what is odd about them."""
    verified: set[str] = set()
    said: list[str] = []
    for name, config in study.arms.items():
        data = config.data
        if verified >= set(data.folders):  # once is enough
            config = config.model_copy(update={"data": data.model_copy(update={"verify": False})})
        try:
            stream, source = check_run(config, say)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        verified.update(data.folders)
        said += [f"{name}: {text}" for text in what_is_odd(config, stream, source)]
    return said


def _same_start(study: Study, places: Mapping[str, Path], num_seeds: int) -> dict[str, Any] | None:
    """The trained model that every run went on from, None for fresh weights; UserError where they are not the same."""
    runs = [
        RunFolder(places[name] / f"seed-{config.train.seed + offset}")
        for name, config in study.arms.items()
        for offset in range(num_seeds)
    ]
    starts: list[dict[str, Any] | None] = [(run.read_summary() or {}).get("init_from") for run in runs]
    for run, start in zip(runs, starts, strict=True):
        if start != starts[0]:
            raise UserError(
                f"{run.path}: went on from other weights than {runs[0].path}, though they lay in the same place, so "
                "the two cannot be compared; put the first weights back and remove this run's folder"
            )
    return starts[0]


def _arm(place: Path, name: str, config: RunConfig, num_seeds: int) -> dict[str, Any]:
    seeds, summary = [], {}
    for seed in range(config.train.seed, config.train.seed + num_seeds):
        run = RunFolder(place / f"seed-{seed}")
        summary = run.read_summary() or {}
        keys = ("final_validation_loss", "bits_per_byte", "steps", "positions", "raw_tokens")
        more = ("unique_raw_tokens", "flops", "wall_seconds", "peak_memory_bytes")
        curve_keys = ("step", "phase", "bag_size", "flops", "raw_tokens", "validation_loss")
        seeds.append(
            {
                "seed": seed,
                **{key: summary[key] for key in keys + more},
                "curve": [
                    {key: line[key] for key in curve_keys}
                    for line in read_metrics(run.metrics_file)
                    if "validation_loss" in line and not line["final"]  # that one is on more tokens
                ],
            }
        )
    schedule = Schedule.from_dicts(summary["stages"])  # as fixed when the run started, whatever was asked since
    first = schedule.stages[0]
    return {
        "name": name,
        "stages": schedule.as_dicts(),
        "mode": first.mode,
        "slot_weights": first.slot_weights,
        "bag_size": schedule.bag_size,
        "ratio": schedule.switch_step / schedule.total_steps,
        "switch_step": schedule.switch_step,
        "learning_rate": config.train.learning_rate,
        "parameters": summary["parameters"],
        "validation_tokens": summary["validation_tokens"],
        "seeds": seeds,
    }


def _difference(baseline: Mapping[str, Any], arm: Mapping[str, Any]) -> dict[str, Any]:
    """Superposition's final loss less the baseline's, seed by seed."""
    ours, theirs = ([seed["final_validation_loss"] for seed in side["seeds"]] for side in (arm, baseline))
    difference = paired_difference(ours, theirs)
    return {
        "baseline": baseline["name"],
        "arm": arm["name"],
        "delta_nats": difference.mean,
        "confidence_interval": None if difference.interval is None else list(difference.interval),
        "confidence_level": 0.95,
        "deltas": list(difference.differences),
        "reason": difference.reason,
    }
