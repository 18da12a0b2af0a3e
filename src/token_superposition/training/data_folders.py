"""A check that the folders in a configuration exist, before the slow import of torch."""

from __future__ import annotations

from pathlib import Path

from token_superposition.data.manifest import read_description
from token_superposition.errors import UserError
from token_superposition.training.config import RunConfig


def check_folders(config: RunConfig) -> None:
    """Raise `UserError` if a dataset folder is missing or not prepared, or `model.init_from` is a missing folder."""
    for folder in config.data.folders:
        read_description(Path(folder))
    given = config.model.init_from
    # Any other text may be the name of a model on the Hugging Face Hub.
    if given is not None and (given.startswith(".") or Path(given).is_absolute()) and not Path(given).exists():
        raise UserError(f"model.init_from: {given}: no such folder; give a run, an export or a Hugging Face folder")
