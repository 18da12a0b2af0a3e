"""The configuration that is measured, checked before torch is imported: importing takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from token_superposition.errors import UserError
from token_superposition.study.demo import demo_config
from token_superposition.training.config import RunConfig, load_config, parse_config


def config_of(path: Path | None, overrides: Mapping[str, Any], no_data: Path = Path("none")) -> RunConfig:
    """A run's configuration, or the demo's, with keys laid over it.

    Args:
        path: a run's file; the demo's without it.
        overrides: values by dotted path.
        no_data: a path where nothing is, for the demo's data.

    Raises:
        UserError: for a configuration that a run would be refused for, or an option that names data that is not there.
    """
    if path is None:
        config = parse_config({"data": {"path": str(no_data)}, **demo_config()}, overrides, source="demo.yaml")
    else:
        config = load_config(path, overrides)
    missing = [folder for folder in config.data.folders if not Path(folder).exists()]
    if missing and "data.path" in overrides:
        raise UserError(
            f"--data.path: {missing[0]}: no such folder; make it with: tst prepare SOURCE --out {missing[0]}, "
            "or leave the option out to read random tokens"
        )
    return config
