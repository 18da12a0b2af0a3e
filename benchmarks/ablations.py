"""What a run loses where something is made new at the switch: the optimizer's state, or the embedding and the head.

    python benchmarks/ablations.py STUDY_FOLDER ARM --new optimizer
    python benchmarks/ablations.py STUDY_FOLDER ARM --new embedding

STUDY_FOLDER is what `tst compare --out` wrote for a study of one budget, with `logging.keep_checkpoint_steps` naming
the switch of ARM. Each seed of ARM is branched there, its checkpoint changed, and trained to its end as `tst train`
does, in `runs/ARM-new-optimizer/seed-N`. Interrupted and started again it goes on. Prints one JSON object: final losses
by seed.

`optimizer`: moments are zero and their steps start from 0, as at the start of a run. `embedding`: the embedding and the
head (one matrix, where they are tied) are drawn again, with another seed; the optimizer's state of them stays. The
schedule of the learning rate is that of the run. Both are known to lose, so they are a script's business and no key of
a configuration.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from token_superposition.errors import UserError
from token_superposition.training.branch import make_branch
from token_superposition.training.checkpoint import checkpoint_path, checkpoint_steps, save_checkpoint
from token_superposition.training.loop import train
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun
from token_superposition.training.trainer import Trainer

KINDS = ("optimizer", "embedding")


def main() -> None:
    """Train, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arm")
    parser.add_argument("--new", choices=KINDS, required=True)
    options = parser.parse_args()
    runs = sorted((options.folder / "runs" / options.arm).glob("seed-*/"))
    if not runs:
        parser.error(f"{options.folder}/runs/{options.arm}: no runs there")
    losses = {}
    for run in runs:
        out = options.folder / "runs" / f"{options.arm}-new-{options.new}" / run.name
        try:
            losses[run.name] = altered(RunFolder(run), out, options.new)["final_validation_loss"]
        except UserError as error:
            parser.error(str(error))
    print(json.dumps({"arm": options.arm, "new": options.new, "final_validation_loss": losses}, indent=2))


def altered(run: RunFolder, out: Path, kind: str) -> dict[str, Any]:
    """Train a run from its switch on with something new there; returns its summary.

    Raises:
        UserError: where the run has no checkpoint of its switch.
    """
    stored = StoredRun.read(run)
    if stored is None:
        raise UserError(f"{run.path}: has no run")
    config = stored.config
    if not RunFolder(out).config_file.exists():
        schedule = stored.record.schedule
        switch = schedule.switch_step
        if switch not in checkpoint_steps(run.checkpoints):
            raise UserError(f"{run.path}: has no checkpoint of its switch; name step {switch} in keep_checkpoint_steps")
        beside = out.with_name(f".{out.name}.{kind}")
        shutil.rmtree(beside, ignore_errors=True)
        make_branch(run, beside, switch, config)
        other_seed = config.train.model_copy(update={"seed": config.train.seed + 10_000})  # that no run of a study has
        fresh = Trainer(config.model_copy(update={"train": other_seed}), schedule)
        trainer = Trainer(config, schedule)
        state = trainer.load(checkpoint_path(beside / "checkpoints", switch))
        renew(trainer, fresh, kind)
        save_checkpoint(beside / "checkpoints", switch, trainer.tensors(), state, keep=1)
        beside.rename(out)
    return train(config, out)


def renew(trainer: Trainer, fresh: Trainer, kind: str) -> None:
    """Make it new in place."""
    if kind == "optimizer":
        values = [
            value for part in trainer.optimizers.parts for state in part.state.values() for value in state.values()
        ]
        for value in values:
            value.zero_()
        return
    with torch.no_grad():
        for name in ("get_input_embeddings", "get_output_embeddings"):
            getattr(trainer.model, name)().weight.copy_(getattr(fresh.model, name)().weight)


if __name__ == "__main__":
    main()
