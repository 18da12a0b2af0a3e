"""The trained model of a run, from its newest intact checkpoint.

A run is opened without its lock, because it may still be training. Only the model tensors of the checkpoint are read.
All other information is in the run folder, so the data and the model of `model.init_from` are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from token_superposition.data.tokenizers import TOKENIZER_FILE, Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.models.spec import ModelSpec
from token_superposition.models.superposed import SuperposedLM
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import load_checkpoint, newest_checkpoint, no_whole_checkpoint, read_state
from token_superposition.training.provenance import Origin
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun


@dataclass(frozen=True)
class TrainedRun:
    """The model of a run; its weights are not loaded yet.

    Attributes:
        run: the run, as its folder records it.
        checkpoint: the newest intact checkpoint.
        tokenizer: the tokenizer of the data.
        origin: how the model was trained.
        warnings: messages about damaged newer checkpoints.
    """

    run: StoredRun
    checkpoint: Path
    tokenizer: Tokenizer
    origin: Origin
    warnings: list[str]

    def build(self) -> nn.Module:
        """Build the model with its weights, in float32 on the CPU."""
        part = self.run.config.model
        model = ModelSpec.for_tokenizer(part.architecture, part.config, self.tokenizer).build(seed=0)
        self.fill(model)
        return model

    def fill(self, model: nn.Module) -> None:
        """Load the weights of the run into a model with the configuration of the run."""
        wrapped = SuperposedLM(model, verify=False)  # the trainer saved this wrapper
        tensors = {"model": get_model_state_dict(wrapped)}
        load_checkpoint(self.checkpoint, tensors)
        set_model_state_dict(wrapped, tensors["model"])


def open_trained(path: Path) -> TrainedRun:
    """Open the trained model of the run in a folder.

    Raises:
        UserError: if the folder is not a run, was edited, or has no intact checkpoint.
    """
    folder = RunFolder(path)
    run = StoredRun.read(folder)
    if run is None:
        raise UserError(f"{path}: is not a run folder (no config.yaml)")
    checkpoint, complaints = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if complaints:
            raise no_whole_checkpoint(folder.checkpoints, complaints)
        raise UserError(f"{path}: this run has no checkpoint yet; train it further")
    if not (path / TOKENIZER_FILE).exists():
        raise UserError(f"{path}: has no {TOKENIZER_FILE}; copy this file from the dataset that the run was trained on")
    tokenizer, state = load_tokenizer(path), read_state(checkpoint)
    run.check_trained_with(checkpoint)
    schedule = Schedule.from_dicts(state["stages"])
    origin = Origin(
        step=state["step"],
        total_steps=schedule.total_steps,
        phase=schedule.lookup(max(state["step"] - 1, 0)).phase,
        stages=schedule.as_dicts(),
        sequence_length=run.config.train.sequence_length,
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        init_from=state.get("init_from"),
    )
    warnings = [f"{complaint}; using the previous checkpoint" for complaint in complaints]
    return TrainedRun(run, checkpoint, tokenizer, origin, warnings)
