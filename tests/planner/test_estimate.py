"""What is expected of a run: at measured runs what was measured, and the less is known the wider the range."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from tests.planner.workloads import need_of, subject_of
from token_superposition.planner import measured_runs as measured
from token_superposition.planner.advice import advise
from token_superposition.planner.estimate import gain_range, read_curve, readings, speedup_range
from token_superposition.planner.measured_runs import OWN_NOISE, PAPER, RunSize, comparisons, of_kind, read_table
from token_superposition.planner.settings import Setting
from token_superposition.study.significance import NOISE


def test_at_a_measured_run_the_range_is_that_run() -> None:
    for run in comparisons():
        if run.source.startswith("the paper") and run.bag_size is not None and run.ratio is not None:
            found = gain_range(run.scale, (run.bag_size, run.ratio), "subwords", "fresh")
            assert found is not None
            assert found.low == pytest.approx(run.gain - NOISE)
            assert found.high == pytest.approx(run.gain + NOISE)
            assert not found.extrapolated


def test_between_runs_it_spans_them_and_outside_it_opens() -> None:
    cell = (6, 0.3)
    between = gain_range(RunSize(1e9, 42e9), cell, "subwords", "fresh")
    assert between is not None
    assert between.low == pytest.approx(0.0701 - NOISE)
    assert between.high == pytest.approx(0.132 + NOISE)
    widths = []
    for parameters in (254e6, 200e6, 100e6, 50e6):
        found = gain_range(RunSize(parameters, 42e9), cell, "subwords", "fresh")
        assert found is not None
        assert found.extrapolated == (parameters < 254e6)
        widths.append(found.high - found.low)
    assert widths == sorted(widths)
    assert gain_range(RunSize(20e6, 42e9), cell, "subwords", "fresh") is None


def test_a_sweep_is_read_between_its_ratios_and_not_beyond() -> None:
    sweep = next(study for study in of_kind("subwords", "fresh") if (study.name, study.total_steps) == ("270M", 20_000))
    at = {ratio: sweep.gain_at(6, ratio) or 0.0 for ratio in (0.05, 0.1, 0.2, 0.25, 0.3)}
    assert at[0.05] == pytest.approx(at[0.1] / 2)  # none at a ratio of 0
    assert at[0.25] == pytest.approx((at[0.2] + at[0.3]) / 2)
    assert sweep.gain_at(6, 0.95) is None
    assert sweep.gain_at(17, 0.2) is None


def test_a_longer_run_is_not_promised_more() -> None:
    for cell in ((5, 0.2), (6, 0.3)):
        longest, longer = (
            gain_range(RunSize(254e6, positions), cell, "subwords", "fresh") for positions in (21e10, 1e12)
        )
        assert longest is not None
        assert longer is not None
        assert longer.extrapolated
        assert longer.high <= longest.high + 1e-9
        assert longer.low < longest.low


def test_of_another_regime_nothing_is_taken() -> None:
    small = next(run for run in comparisons() if run.unit == "subwords" and run.speedup is not None)
    assert small.bag_size is not None
    assert small.ratio is not None
    found = speedup_range(small.scale, (small.bag_size, small.ratio), "subwords", "fresh")
    assert found is not None
    ours = [run.speedup for run in comparisons() if run.name == small.name and run.speedup is not None]
    assert (found.low, found.high) == (min(ours), max(ours))  # not the paper's 2.5 at 10B
    large = speedup_range(RunSize(3e9, 42e9), (6, 0.3), "subwords", "fresh")
    assert large is not None
    assert small.name not in large.basis


def test_a_setting_is_carried_by_sweeps_of_its_regime_alone() -> None:
    small = next(run for run in comparisons() if run.unit == "subwords" and run.speedup is not None)
    assert (small.bag_size, small.ratio) != (6, 0.2)
    assert gain_range(small.scale, (6, 0.2), "subwords", "fresh") is None  # the paper's sweeps are of 270M and more
    assert speedup_range(small.scale, (6, 0.2), "subwords", "fresh") is None


def test_between_far_runs_the_range_opens_as_outside() -> None:
    tiny = next(run for run in comparisons() if run.name == "Wikipedia on a GPU" and run.bag_size == 6)
    there = gain_range(tiny.scale, (6, 0.2), "subwords", "fresh")
    assert there is not None
    assert not there.extrapolated
    assert there.low == pytest.approx(tiny.gain - OWN_NOISE)
    # Ten times the length lies between this run and the paper's, which are a hundred times off: nothing near says what
    # it gains. And since tiny runs gained more when they were longer, the range opens to both sides.
    between = gain_range(RunSize(tiny.scale.parameters, 9 * tiny.scale.positions), (6, 0.2), "subwords", "fresh")
    assert between is not None
    assert between.extrapolated
    assert between.low < there.low
    assert between.high > 0 > there.high


def test_further_from_what_was_measured_no_more_is_promised() -> None:
    smaller = [254e6 * 10 ** (-step / 20) for step in range(20)]
    gains = [gain_range(RunSize(parameters, 42e9), (6, 0.2), "subwords", "fresh") for parameters in smaller]
    lows = [gain.low for gain in gains if gain is not None]
    assert len(lows) == len(smaller)
    assert lows == sorted(lows, reverse=True)
    assert lows[-1] < 0
    larger = [3.34e9 * 10 ** (step / 20) for step in range(20)]
    for sizes in (smaller, larger):
        speedups = [speedup_range(RunSize(parameters, 75e9), (6, 0.3), "subwords", "fresh") for parameters in sizes]
        cautious = [speedup.low for speedup in speedups if speedup is not None]
        assert len(cautious) > 10
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(cautious[1:]))
        assert 1 <= cautious[-1] < cautious[0]


def test_what_is_carried_is_no_surer_than_what_was_measured() -> None:
    demo = next(run for run in comparisons() if (run.name, run.total_steps) == ("Python source", 8_000))
    measured_there = gain_range(demo.scale, (2, 0.3), "bytes", "fresh")
    carried = gain_range(demo.scale, (2, 0.2), "bytes", "fresh")
    assert measured_there is not None
    assert carried is not None
    assert demo.half_width is not None
    assert measured_there.high - measured_there.low == pytest.approx(2 * demo.half_width)
    assert carried.high - carried.low >= 2 * demo.half_width - 1e-9


def test_bytes_rest_on_our_own_runs() -> None:
    ours = [run for run in comparisons() if run.name == "Python source"]
    demo = next(run for run in ours if (run.total_steps, run.ratio) == (4_000, 0.3))
    assert demo.gain == pytest.approx(0.0269)
    found = gain_range(demo.scale, (2, 0.3), "bytes", "fresh")
    assert found is not None
    assert 0 < found.low <= demo.gain - (demo.half_width or 0) + 1e-9
    shorter = gain_range(RunSize(390_816, 6e6), (2, 0.3), "bytes", "fresh")
    assert shorter is not None
    assert shorter.low < 0  # runs of half the steps lost
    subject = subject_of(unit="bytes", active_parameters=390_816, positions_per_step=2048)
    assert advise(need_of(subject, 4_000)).verdict == "use"
    assert advise(need_of(subject, 3_000)).verdict == "try"
    assert advise(need_of(subject, 2_000)).verdict == "none"


def test_one_seed_of_ours_is_surer_of_nothing_than_five() -> None:
    ours = [run for run in comparisons() if run.source != PAPER]
    at_a_length = [run for run in ours if run.name == "Python source" and run.total_steps == 4_000]
    assert max(run.noise for run in at_a_length if run.seeds == 5) < min(run.noise for run in ours if run.seeds == 1)
    level = next(run for run in comparisons() if run.unit == "subwords" and run.total_steps == 3_000)
    assert level.gain > NOISE
    assert not level.won


def test_speed_ups_are_the_papers() -> None:
    found = {reading.name: reading for reading in readings("subwords", "fresh")}
    assert found["3B"].speedup == pytest.approx(1.8, abs=0.02)
    assert found["10B-A1B"].speedup == pytest.approx(2.5, abs=0.01)
    assert found["10B-A1B"].how.startswith("at least")
    assert found["270M"].how.startswith("at most")
    assert "600M" not in found
    here = speedup_range(found["3B"].scale, (6, 0.3), "subwords", "fresh")
    assert here is not None
    assert 1.7 < here.low < here.high < 2.6
    weaker = speedup_range(found["3B"].scale, (2, 0.1), "subwords", "fresh")
    assert weaker is not None
    assert 1 < weaker.low < here.low
    assert speedup_range(RunSize(1e6, 1e9), (6, 0.3), "subwords", "fresh") is None


def test_a_curve_is_read_between_its_points_and_never_beyond() -> None:
    curve = [(100, 3.0), (400, 2.0)]
    assert read_curve(curve, 3.1) is None
    steps, how = read_curve(curve, 2.5) or (0.0, "")
    assert steps == pytest.approx(200)
    assert how.startswith("at most")
    assert read_curve(curve, 2.001) == (pytest.approx(400, rel=0.01), "")
    assert read_curve(curve, 1.0) == (400, "at least ")


def test_every_row_of_ours_can_be_used() -> None:
    for row in read_table("evidence/own_runs.csv"):
        assert row["unit"] in ("bytes", "subwords")
        assert row["start"] in ("fresh", "trained")
        assert (row["bag_size"] == "") == (row["ratio"] == "")
        assert (row["half_width"] == "") or int(row["seeds"]) > 1
        assert all(math.isfinite(float(row[key])) for key in ("baseline_loss", "loss", "parameters", "total_steps"))
    assert of_kind("bytes", "fresh")


def test_a_line_more_is_a_measurement_more(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = list(read_table("evidence/own_runs.csv")[0])
    figures = ["50000000", "65536", "20000", "4", "0.2", "5", "0.9", "0.88", "0.004", "1.4"]
    line = ["new study", "bytes", "fresh", *figures, "here"]

    def with_it(name: str) -> list[dict[str, str]]:
        more = [dict(zip(columns, line, strict=True))] if name == "evidence/own_runs.csv" else []
        return read_table(name) + more

    caches = (measured.comparisons, measured.studies)
    scale = RunSize(50e6, 65_536 * 20_000)
    assert gain_range(scale, (4, 0.2), "bytes", "fresh") is None
    try:
        monkeypatch.setattr(measured, "read_table", with_it)
        for cached in caches:
            cached.cache_clear()
        gain = gain_range(scale, (4, 0.2), "bytes", "fresh")
        speedup = speedup_range(scale, (4, 0.2), "bytes", "fresh")
        advice = advise(need_of(subject_of(unit="bytes", active_parameters=50e6, positions_per_step=65_536), 20_000))
    finally:
        monkeypatch.undo()
        for cached in caches:
            cached.cache_clear()
    assert gain is not None
    assert (gain.low, gain.high) == (pytest.approx(0.016), pytest.approx(0.024))
    assert speedup is not None
    assert "new study at 20,000 steps: 1.4x (here)" in speedup.basis
    assert speedup.low <= 1.4 <= speedup.high
    assert (advice.verdict, advice.setting) == ("use", Setting(4, 0.2))
