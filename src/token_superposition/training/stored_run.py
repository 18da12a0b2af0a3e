"""What a run folder has recorded about its run, read once and typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.training.checkpoint import read_state
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.config_changes import ABSENT, may_change, value_at
from token_superposition.training.optim import WarmupStableDecay, build_learning_rate
from token_superposition.training.run_folder import RunFolder, RunRecord
from token_superposition.yaml_files import changed_keys


@dataclass(frozen=True)
class StoredRun:
    """A run that has started.

    Attributes:
        folder: the run folder.
        config: the resolved configuration (`config.yaml`).
        record: the settings that were fixed at the start (`run.json`).
        summary: the result (`summary.json`); None if the run is not finished.
    """

    folder: RunFolder
    config: RunConfig
    record: RunRecord
    summary: dict[str, Any] | None

    @classmethod
    def read(cls, folder: RunFolder) -> StoredRun | None:
        """Read a run folder; None if no run has started there.

        Raises:
            UserError: if a file is missing, edited or damaged; names the file.
        """
        values, record = folder.read_config(), folder.read_record()
        if values is None or record is None:
            return None
        try:
            config = parse_config(values, source=str(folder.config_file))
        except UserError as error:
            raise UserError(f"{error}; the file was edited or damaged: fix it, or use another folder") from None
        return cls(folder, config, record, folder.read_summary())

    @property
    def learning_rate(self) -> WarmupStableDecay:
        """The learning rate schedule; its warm-up depends on the total number of steps at the start of the run."""
        first = self.config.train.model_copy(update={"total_steps": self.record.first_total_steps})
        return replace(build_learning_rate(self.config.train), warmup_steps=first.num_warmup_steps)

    def check_trained_with(self, checkpoint: Path, config: RunConfig | None = None) -> None:
        """Check that a configuration is the configuration that a checkpoint was trained with.

        The state of a checkpoint includes the configuration, and checksums protect the checkpoint. `config.yaml` has no
        checksum: a single changed digit could make a different model from the same weights.

        Args:
            checkpoint: an intact checkpoint of the run.
            config: the configuration; None for that of the folder.

        Raises:
            UserError: if a key differs that may not change; names the first such key.
        """
        trained = read_state(checkpoint).get("config")
        if not isinstance(trained, Mapping):
            return
        now = (config or self.config).model_dump(mode="json")
        for key in changed_keys(trained, now):
            old, new = (value_at(values, key, ABSENT) for values in (trained, now))
            # Another version of the package may lack a key. Keys under model.config are the user's and always count.
            lacks_key = ABSENT in (old, new) and not key.startswith("model.config.")
            if lacks_key or may_change(key, old, new):
                continue
            found, before = ("absent" if value is ABSENT else repr(value) for value in (new, old))
            raise UserError(
                f"{self.folder.config_file}: {key} is {found}, but {checkpoint.name} was trained with {before}; "
                "restore the old value"
            )
