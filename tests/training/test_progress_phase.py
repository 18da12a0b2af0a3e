"""The phase that a run shows while it trains."""

from __future__ import annotations

import pytest

from token_superposition.progress import ProgressSink


@pytest.mark.parametrize(
    ("superposed", "phase", "bag_size", "word"),
    [(False, "recovery", 1, "next-token"), (True, "recovery", 1, "recovery"), (True, "superposition", 4, "s=4")],
)
def test_only_a_run_with_superposition_has_a_recovery(
    superposed: bool, phase: str, bag_size: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = ProgressSink(8, 0, quiet=False, superposed=superposed)
    line = {"step": 4, "phase": phase, "bag_size": bag_size, "loss": 2.5}
    sink.write(line | {"positions_per_second": 10.0, "seconds_per_step": 1.0})
    sink.close()
    said = capsys.readouterr().err
    assert word in said
    assert ("recovery" in said) == (word == "recovery")
