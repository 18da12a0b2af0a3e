"""The configuration to measure, checked before the import of torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.study.demo import demo_config
from token_superposition.training.config import RunConfig, load_config, parse_config


def config_of(path: Path | None, overrides: Mapping[str, Any], no_data: Path = Path("none")) -> RunConfig:
    """Read the configuration of a run, or of the demo, and apply overrides.

    Args:
        path: configuration file of a run; None for the demo.
        overrides: values by dotted path.
        no_data: a path that does not exist, for the data of the demo.

    Raises:
        UserError: if the configuration is invalid, or if --data.path names a missing folder.
    """
    if path is None:
        config = parse_config({"data": {"path": str(no_data)}, **demo_config()}, overrides, source="demo.yaml")
    else:
        config = load_config(path, overrides)
    missing = [folder for folder in config.data.folders if not Path(folder).exists()]
    if missing and "data.path" in overrides:
        raise UserError(
            f"--data.path: {missing[0]}: no such folder; make it with: tst prepare SOURCE --out {missing[0]}, "
            "or remove the option to use random tokens"
        )
    return config
