"""Whether the folders that a configuration names are there; asked before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from token_superposition.data.manifest import read_description
from token_superposition.errors import UserError
from token_superposition.training.config import RunConfig


def check_folders(config: RunConfig) -> None:
    """Raise `UserError` where a folder of data is missing or was not prepared, or a model to go on from is missing."""
    for folder in config.data.folders:
        read_description(Path(folder))
    given = config.model.init_from
    # Other names may be those of models on the hub.
    if given is not None and (given.startswith(".") or Path(given).is_absolute()) and not Path(given).exists():
        raise UserError(f"model.init_from: {given}: no such folder; name a run, an export or a Hugging Face folder")
