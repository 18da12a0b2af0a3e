"""`tst compare`: the same run with and without superposition, over seeds, and a report.

Arms share initialisation, validation set, latent batch and every setting that their own keys do not
change. They cannot share the order of the data: superposition reads s times more text a step. At the same
number of steps they cost the same FLOPs.

A study's file is a run's file, with an optional `arms`: a name and the keys that the arm changes.

    arms:
      baseline: {superposition.bag_size: 1}
      superposition: {superposition.bag_size: 2, superposition.ratio: 0.3}

Without it the arms are the run as it stands and the same run without its `superposition` section.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from token_superposition.data.shards import TokenDataset
from token_superposition.errors import UserError
from token_superposition.files import make_folder, remove_empty, write_text
from token_superposition.run.folder import RunFolder, read_metrics
from token_superposition.study.report import write_report
from token_superposition.study.statistics import paired_difference
from token_superposition.study.workers import Job, run_jobs
from token_superposition.train.config import RunConfig, parse_config, read_yaml, with_keys
from token_superposition.train.device import resolve_device
from token_superposition.train.loop import what_is_odd
from token_superposition.train.preflight import check_run
from token_superposition.train.progress import say, warn
from token_superposition.train.resume import check_unchanged
from token_superposition.yaml_keys import child

_MOST_SEEDS = 1000
_NOT_YET = {
    "equal_data": "this version trains no arm that is given the raw tokens superposition read",
    "iso_loss": "this version trains one budget; a speed-up at equal loss needs several",
}


@dataclass(frozen=True)
class Study:
    """The arms of a comparison, the baseline first."""

    arms: Mapping[str, RunConfig]


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
    shared = parse_config(values, overrides, source=source, lines=lines)
    if arms is None:
        if shared.schedule().switch_step == 0:
            raise UserError(
                f"{source}: nothing to compare: the run has no superposition (set superposition.bag_size, or name arms)"
            )
        plain = parse_config(values, {**(overrides or {}), "superposition": {}}, source=source)
        return Study({"baseline": plain, "superposition": shared})
    if not isinstance(arms, dict) or len(arms) < 2 or not all(isinstance(a, dict) for a in arms.values()):
        raise UserError(f"{source}: arms: is a list of at least two names, each with the keys it changes")
    for name in arms:  # it will be a folder's
        if not isinstance(name, str) or not re.fullmatch(r"[\w=,+-][\w.=,+ -]{0,99}", name):
            raise UserError(
                f"{source}: arms.{name!r}: a name has at most 100 letters, digits and . = , + - _, and no point first"
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
    return Study({baseline[0]: configs[baseline[0]], **configs})


def compare(
    study: Study,
    folder: Path,
    *,
    num_seeds: int = 1,
    jobs: int | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Train every arm with every seed, and write `report.json` and `report.html`.

    Args:
        study: the arms.
        folder: where runs and report go; started again there, the study goes on.
        num_seeds: seeds of each arm: the configuration's and those after it.
        jobs: runs at once; as the cores bear, without it.
        quiet: no progress on standard error.
        command: what to type for the same again, for the report.

    Returns:
        The report, as in `report.json`.
    """
    check_request(folder, num_seeds, jobs)
    said = _check_arms(study, None if quiet else say)
    runs = [
        _write_run(folder, name, config, config.train.seed + offset)
        for offset in range(num_seeds)  # a seed's arms side by side, so that they meet the same machine
        for name, config in study.arms.items()
    ]
    for text in said:
        warn(text)
    at_once, threads = _share(next(iter(study.arms.values())), len(runs), jobs)
    run_jobs(runs, at_once=at_once, threads=threads, quiet=quiet)
    report = build_report(study, folder, num_seeds)
    if command is not None:
        report["command"] = command
    write_report(report, folder)
    return report


def build_report(study: Study, folder: Path, num_seeds: int) -> dict[str, Any]:
    """The report of runs that are done; see `token_superposition.study.report` for its keys."""
    arms = [_arm(folder, name, config, num_seeds) for name, config in study.arms.items()]
    baseline = study.arms[arms[0]["name"]]
    train = baseline.train
    stored = RunFolder(folder / "runs" / arms[0]["name"] / f"seed-{train.seed}").read_config() or {}
    dataset = TokenDataset.open(Path(baseline.data.path), "train")
    differences = [_difference(arms[0], arm) for arm in arms[1:]]
    return {
        "schema_version": 1,
        "title": f"Token superposition or not: {baseline.model.architecture}, {train.total_steps:,} steps",
        "created": datetime.date.today().isoformat(),
        "model": {
            "architecture": baseline.model.architecture,
            "parameters": arms[0]["parameters"],
            "config": baseline.model.config,
        },
        "data": {
            "path": baseline.data.path,
            "tokenizer": dataset.tokenizer.name,
            "train_tokens": dataset.num_tokens,
            "train_bytes": dataset.num_bytes,
            "validation_tokens_used": arms[0]["validation_tokens"],
        },
        "settings": {
            "total_steps": train.total_steps,
            "batch_size": train.batch_size,
            "sequence_length": train.sequence_length,
            "learning_rate": train.learning_rate,
            "warmup_steps": train.warmup_steps,
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


def _write_run(folder: Path, name: str, config: RunConfig, seed: int) -> Job:
    """One run's configuration file, and its job."""
    place = folder / "runs" / name
    values = config.model_dump(mode="json", exclude_unset=True)
    values.setdefault("train", {})["seed"] = seed
    run = place / f"seed-{seed}"
    check_unchanged(parse_config(values), RunFolder(run))  # before what is there is taken for what is asked
    try:
        made = make_folder(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be made ({error.strerror}); name another folder") from None
    file = place / f"seed-{seed}.yaml"
    try:
        write_text(file, yaml.safe_dump(values, sort_keys=False))
    except OSError:
        remove_empty(made)
        raise
    return Job(f"{name}, seed {seed}", file, run, config.train.total_steps)


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
    verified, said = set(), []
    for name, config in study.arms.items():
        data = config.data
        if data.path in verified:  # once is enough
            config = config.model_copy(update={"data": data.model_copy(update={"verify": False})})
        try:
            stream = check_run(config, say)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        verified.add(data.path)
        said += [f"{name}: {text}" for text in what_is_odd(config, stream)]
    return said


def _share(config: RunConfig, num_runs: int, jobs: int | None) -> tuple[int, int]:
    """How many runs at once, with how many threads each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if resolve_device(config.train.device).type != "cpu":
        return jobs or 1, cores
    if isinstance(config.train.num_threads, int):
        return jobs or max(1, cores // config.train.num_threads), config.train.num_threads
    at_once = jobs or min(cores, num_runs)
    return at_once, max(1, cores // at_once)


def _arm(folder: Path, name: str, config: RunConfig, num_seeds: int) -> dict[str, Any]:
    schedule = config.schedule()
    first = schedule.stages[0]
    seeds, summary = [], {}
    for seed in range(config.train.seed, config.train.seed + num_seeds):
        run = RunFolder(folder / "runs" / name / f"seed-{seed}")
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
