"""A run that was never stopped, for what is compared with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import go


@pytest.fixture
def whole(small_run: dict[str, Any], tmp_path: Path) -> Path:
    go(small_run, tmp_path / "whole")
    return tmp_path / "whole"
