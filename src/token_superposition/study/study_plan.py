"""`tst compare --dry-run`: what a study would train, without training it or writing anything.

Everything is checked as the study itself would check it. Steps that runs share are counted once, and what the folder
has already is taken off, so the number at the end is the bill. What a sweep will choose is not known before, and the
seeds that are compared are counted at one of its settings; they cost the same at each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from token_superposition.formatting import count_in_words, wrapped
from token_superposition.study.compare import make_ready, what_is_odd_in
from token_superposition.study.runner import plan_runs
from token_superposition.study.study_config import Study
from token_superposition.study.sweep import Sweep
from token_superposition.study.trials import Trial
from token_superposition.study.tuning import sweep_runs
from token_superposition.training.datasets import Corpora
from token_superposition.training.run import Run


def dry_run(study: Study, folder: Path, *, num_seeds: int, sweep: Sweep | None = None) -> dict[str, Any]:
    """What `compare` would train.

    Returns:
        `arms` (each with `name` and `budgets`: total_steps, kind, stages, raw_tokens, epochs of one run), `num_seeds`,
        `runs`, `runs_done`, `steps` (of all runs), `steps_shared` (with other runs, and so not trained again),
        `steps_done`, `steps_to_train`, `positions_to_train`, `flops_to_train`, `warnings`.

    Raises:
        UserError: for what the study itself would be refused for.
    """
    ready = make_ready(study, folder, num_seeds=num_seeds, jobs=None, quiet=True)
    study, trials, odd = ready.study, ready.trials, ready.odd
    runs = []
    if sweep is not None:
        tried, sweep_seeds, trials = sweep_runs(study, sweep, folder, num_seeds=num_seeds)
        runs += plan_runs(tried, sweep_seeds, branches=study.branches)
        odd = odd + [text for text in what_is_odd_in(trials, ready.sources) if text not in odd]
    runs += plan_runs(trials, range(num_seeds), branches=study.branches)
    jobs = [planned.job for planned in runs]
    left = [0 if job.done or job.diverged else job.total_steps - job.last_step()[0] for job in jobs]
    steps, shared = sum(job.total_steps for job in jobs), sum(job.branch_step for job in jobs)
    first = next(iter(study.arms.values()))
    positions = sum(left) * first.train.positions_per_step
    return {
        "arms": [{"name": name, "budgets": _budgets(trials, name)} for name in study.arms],
        "num_seeds": num_seeds,
        "runs": len(jobs),
        "runs_done": sum(job.done or job.diverged for job in jobs),
        "steps": steps,
        "steps_shared": shared,
        "steps_done": steps - shared - sum(left),
        "steps_to_train": sum(left),
        "positions_to_train": positions,
        "flops_to_train": positions * _flops_per_position(trials[0]),
        "warnings": odd,
    }


def _budgets(trials: list[Trial], arm: str) -> list[dict[str, Any]]:
    found = []
    for trial in trials:
        if trial.arm == arm:
            schedule = trial.config.schedule()
            read = Corpora.open(trial.config.data).stream(trial.config, schedule).coverage().counters()
            found.append(
                {
                    "total_steps": trial.total_steps,
                    "kind": trial.kind,
                    "stages": schedule.as_dicts(),
                    "raw_tokens": read["raw_tokens"],
                    "epochs": read["epochs"],
                }
            )
    return found


def _flops_per_position(trial: Trial) -> int:
    """Of a latent position, forward and backward: the same in every arm."""
    run = Run.open(trial.run(0), trial.seeded(0))
    config, spec = run.config, run.corpora.model_spec(run.config.model)
    return spec.flops_per_position(config.train.sequence_length)


def describe(result: dict[str, Any]) -> str:
    """The result of `dry_run` in words."""
    width = max(5, *(len(arm["name"]) for arm in result["arms"]))
    lines = []
    for arm in result["arms"]:
        steps = ", ".join(
            f"{each['total_steps']:,}{' (equal data)' if each['kind'] == 'equal_data' else ''}"
            for each in arm["budgets"]
        )
        longest = max(arm["budgets"], key=lambda each: each["total_steps"])
        bags = " then ".join(str(stage["bag_size"]) for stage in longest["stages"])
        line = (
            f"{arm['name']:{width}}  bags of {bags}; {steps} steps; the longest run reads "
            f"{count_in_words(longest['raw_tokens'])} raw tokens, {longest['epochs']:.2f} epochs"
        )
        lines.append(wrapped(line, " " * (width + 2)))
    seeds = "1 seed" if result["num_seeds"] == 1 else f"{result['num_seeds']} seeds"
    return "\n".join(
        [
            *lines,
            f"{'runs':{width}}  {result['runs']:,} for {seeds}, {result['runs_done']:,} of them done",
            f"{'steps':{width}}  {result['steps_to_train']:,} to train: {result['steps']:,} in all, less "
            f"{result['steps_shared']:,} that runs share and {result['steps_done']:,} that are done",
            f"{'FLOPs':{width}}  {result['flops_to_train']:.3g}",
            *(wrapped(f"warning: {text}", "  ") for text in result["warnings"]),
            "nothing was trained or written",
        ]
    )
