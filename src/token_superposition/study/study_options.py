"""What is asked of a study, checked before torch is imported: importing takes seconds."""

from __future__ import annotations

from pathlib import Path

from token_superposition.errors import UserError
from token_superposition.study.study_config import MOST_SEEDS, Study
from token_superposition.study.sweep import FIRST_SWEEP_SEED, Sweep


def check_request(folder: Path, num_seeds: int, jobs: int | None) -> None:
    """Refuse numbers out of range, and a folder that holds something else than a study.

    A study's folder has `runs`, and before the first of them at most the demo's `data`.

    Raises:
        UserError: naming the option, or what the folder holds.
    """
    if not 1 <= num_seeds <= MOST_SEEDS:
        raise UserError(f"--seeds is at least 1 and at most {MOST_SEEDS}, not {num_seeds}")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs is at least 1, not {jobs}")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: cannot be a study's folder ({there} is a file); name another")
    names = sorted(entry.name for entry in folder.iterdir()) if there == folder else []
    strangers = [name for name in names if name != "data"]
    if strangers and "runs" not in names:
        raise UserError(f"{folder}: is not a study's folder (it holds {strangers[0]!r}); name an empty one")


def check_last_seed(study: Study, num_seeds: int, sweep: Sweep | None) -> None:
    """Raise `UserError` where a study's seeds, which are counted on from `train.seed`, leave the range of seeds."""
    last = num_seeds if sweep is None else FIRST_SWEEP_SEED + sweep.num_seeds
    for config in study.arms.values():
        if config.train.seed + last > 2**63:
            raise UserError(
                f"train.seed: a study counts {last:,} seeds on from {config.train.seed}, and a seed is under 2**63; "
                "lower it"
            )
