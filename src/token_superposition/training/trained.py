"""What a run has trained so far: the model of its newest whole checkpoint, and how it came to be.

A run is opened without its lock: it may be training. Of its checkpoint only the model's tensors are read. What the
checkpoint does not say stands beside it in the run's folder, so neither the data nor the model that the run went
on from is needed any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from token_superposition.data.tokenizers import TOKENIZER_FILE, Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.models.device import DTYPES
from token_superposition.models.spec import ModelSpec
from token_superposition.models.superposed import SuperposedLM
from token_superposition.schedule import Schedule
from token_superposition.training.checkpoint import load_checkpoint, newest_checkpoint, no_whole_checkpoint, read_state
from token_superposition.training.config_changes import check_trained_with
from token_superposition.training.provenance import Origin
from token_superposition.training.run_folder import RunFolder


@dataclass(frozen=True)
class TrainedRun:
    """A run's model, its weights still on the disk.

    Attributes:
        path: the run's folder.
        config: its resolved configuration.
        architecture, keys: of the model, from it.
        dtype: that it computes in; its weights are float32.
        checkpoint: its newest whole checkpoint.
        tokenizer: of its data.
        origin: how the model was trained.
        warnings: damaged checkpoints that are newer.
    """

    path: Path
    config: dict[str, Any]
    architecture: str
    keys: dict[str, Any]
    dtype: torch.dtype
    checkpoint: Path
    tokenizer: Tokenizer
    origin: Origin
    warnings: list[str]

    def build(self) -> nn.Module:
        """The model with its weights, in float32 on the CPU."""
        model = ModelSpec.for_tokenizer(self.architecture, self.keys, self.tokenizer).build(seed=0)
        self.fill(model)
        return model

    def fill(self, model: nn.Module) -> None:
        """Give a model of this run's configuration the run's weights."""
        wrapped = SuperposedLM(model, verify=False)  # as the trainer saved it
        tensors = {"model": get_model_state_dict(wrapped)}
        load_checkpoint(self.checkpoint, tensors)
        set_model_state_dict(wrapped, tensors["model"])


def open_trained(path: Path) -> TrainedRun:
    """What the run in a folder has trained.

    Raises:
        UserError: where the folder is no run or has been edited, or has no whole checkpoint.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    if config is None:
        raise UserError(f"{path}: is not a run folder (no config.yaml)")
    checkpoint, complaints = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if complaints:
            raise no_whole_checkpoint(folder.checkpoints, complaints)
        raise UserError(f"{path}: this run has no checkpoint yet; train it further")
    if not (path / TOKENIZER_FILE).exists():
        raise UserError(f"{path}: has no {TOKENIZER_FILE}; copy it here from the data the run was trained on")
    tokenizer, state = load_tokenizer(path), read_state(checkpoint)
    check_trained_with(folder, checkpoint, config)
    warnings = [f"{complaint}; using the checkpoint before it" for complaint in complaints]
    try:
        return TrainedRun(
            path=path,
            config=config,
            architecture=config["model"]["architecture"],
            keys=dict(config["model"]["config"]),
            dtype=DTYPES[config["train"]["dtype"]],
            checkpoint=checkpoint,
            tokenizer=tokenizer,
            origin=_origin(config, state, tokenizer),
            warnings=warnings,
        )
    except (LookupError, TypeError, ValueError):
        raise UserError(f"{folder.config_file}: is not a run's configuration; was it edited?") from None


def _origin(config: dict[str, Any], state: dict[str, Any], tokenizer: Tokenizer) -> Origin:
    schedule = Schedule.from_dicts(state["stages"])
    return Origin(
        step=state["step"],
        total_steps=schedule.total_steps,
        phase=schedule.lookup(max(state["step"] - 1, 0)).phase,
        stages=schedule.as_dicts(),
        sequence_length=config["train"]["sequence_length"],
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
        init_from=state.get("init_from"),
    )
