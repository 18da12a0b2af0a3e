"""The evidence that is used for a run, the setting, the ranges and the verdict."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.planner.workloads import workload_of
from token_superposition.planner import measured_runs
from token_superposition.planner.advice import LARGEST_BAG, Advice, Setting, advise
from token_superposition.planner.measured_runs import (
    Comparison,
    RunSize,
    comparisons,
    paper_runs,
    read_curve,
    read_table,
    speedups,
)
from token_superposition.planner.workload import PlannedCorpus, PlannedSource


def own(name: str, steps: int) -> Comparison:
    """The comparison of a study of ours with the largest gain."""
    return max((run for run in comparisons() if (run.name, run.total_steps) == (name, steps)), key=lambda run: run.gain)


def advice_at(run: Comparison, given: Setting | None = None, **changed: Any) -> Advice:
    """Advice for a run of a measured run's size."""
    batch = round(run.scale.positions / run.total_steps)
    sized = {"active_parameters": run.scale.parameters, "positions_per_step": batch, "unit": run.unit, **changed}
    return advise(workload_of(**sized), run.total_steps, given)


def test_at_a_measured_run_the_range_is_that_run() -> None:
    run = own("Python source", 8_000)
    advice = advice_at(run)
    assert (advice.verdict, advice.setting.cell) == ("use", run.cell)
    assert (advice.gain.low, advice.gain.high) == pytest.approx((run.gain - run.noise, run.gain + run.noise))
    assert (advice.speedup.low, advice.speedup.high) == (1.56, 1.56)
    assert advice.nearest[0] == run
    lost = advice_at(own("Python source", 1_000), Setting(2, 0.3))
    assert (lost.verdict, lost.speedup.low) == ("none", None)


def test_the_range_is_of_runs_within_ten_times_in_both_sizes() -> None:
    # The example: 135M parameters on 10B tokens. Of the paper's four comparisons, two are near.
    advice = advise(workload_of(active_parameters=135e6, positions_per_step=2**19), 19_073)
    assert advice.verdict == "use"
    assert advice.gain.basis == "270M at 20,000 steps, 600M at 20,000 steps"
    assert advice.gain.low is not None
    assert advice.gain.high is not None
    assert 0.06 < advice.gain.low < advice.gain.high < 0.08
    size = RunSize(1e9, 1e11)
    assert size.near(RunSize(9e9, 9e11))
    assert not size.near(RunSize(11e9, 11e11))  # too many parameters
    assert not size.near(RunSize(1e9, 11e11))  # too many tokens per parameter
    assert not size.near(RunSize(9e9, 0.8e11))  # the same, though parameters and tokens are each within ten times


@pytest.mark.parametrize(("parameters", "steps"), [(10**12, 20_000), (10**9, 5_000_000)])
def test_without_a_near_run_there_is_no_range(parameters: int, steps: int) -> None:
    advice = advise(workload_of(active_parameters=parameters), steps)
    assert (advice.verdict, advice.gain.low, advice.speedup.low) == ("try", None, None)
    assert "no measured run near" in advice.gain.basis
    assert len(advice.nearest) == 4


def test_enough_text_gives_the_flat_optimum() -> None:
    for steps in (20_000, 100_000):
        setting = advise(workload_of(), steps).setting
        assert 5 <= setting.bag_size <= 8
        assert 0.2 <= setting.ratio <= 0.3
        assert (setting.mode, setting.slot_weights) == ("full", "uniform")


def test_less_text_gives_less_superposition_then_none() -> None:
    positions = 20_000 * 2**21
    reads, sizes = [], []
    for share in (3.0, 2.0, 1.6, 1.4, 1.2, 1.05, 1.0, 0.99):
        advice = advise(workload_of(corpus=PlannedCorpus.of_tokens(int(positions * share))), 20_000)
        reads.append(advice.setting.schedule(20_000).raw_tokens(2**21))
        sizes.append(advice.setting.bag_size)
        assert advice.setting.bag_size == 1 or reads[-1] <= positions * share
        assert (advice.verdict == "none") == (advice.setting.bag_size == 1)
        assert share >= 3.0 or any("corpus" in reason for reason in advice.reasons)
    assert sizes[0] > 1
    assert sizes[-3:] == [1, 1, 1]
    assert all(more >= less for more, less in pairwise(reads))


def test_a_mixture_is_as_large_as_its_scarcest_source() -> None:
    positions = 20_000 * 2**21
    large = PlannedSource(10 * positions, 0.75, "web")
    scarce = PlannedCorpus((large, PlannedSource(positions // 8, 0.25, "code")))
    advice = advise(workload_of(corpus=scarce), 20_000)
    assert advice.verdict == "none"
    assert "already reads source code (5.24 billion tokens, 25% of what is read) more than once" in advice.reasons[0]
    enough = PlannedCorpus((large, PlannedSource(positions, 0.25, "code")))
    assert advise(workload_of(corpus=enough), 20_000).setting == advise(workload_of(), 20_000).setting


def test_when_not_to() -> None:
    trained = advise(workload_of(start="trained", unit="bytes"), 20_000)
    assert trained.verdict == "none"
    assert "gained: Shakespeare" in trained.reasons[0]
    unknown = advise(workload_of(start="trained"), 20_000)
    assert unknown.verdict == "none"
    assert unknown.reasons[0].endswith("gained: there is none")
    gpu = advice_at(own("Wikipedia on a GPU", 2_000))
    assert (gpu.verdict, gpu.setting.bag_size) == ("none", 1)
    assert "no measured run near it gained: Wikipedia on a GPU" in gpu.reasons[0]
    short = advise(workload_of(unit="bytes", active_parameters=390_816, positions_per_step=2048), 1_500)
    assert short.verdict == "none"
    assert "no measured run on bytes of fewer than 4,000 steps gained" in short.reasons[0]
    few = advise(workload_of(), 8_000)
    assert few.verdict == "try"
    assert "never measured at so few steps" in few.caveats


def test_a_setting_of_the_users_is_judged_and_kept() -> None:
    loses = advise(workload_of(active_parameters=254e6), 20_000, Setting(16, 0.9))
    assert (loses.verdict, loses.setting) == ("none", Setting(16, 0.9))
    assert loses.gain.high is not None
    assert loses.gain.high < 0
    between = advise(workload_of(active_parameters=254e6), 20_000, Setting(6, 0.25))  # between two measured ratios
    assert between.gain.low is not None
    beyond = advise(workload_of(active_parameters=254e6), 20_000, Setting(6, 0.95))
    assert (beyond.gain.low, beyond.verdict) == (None, "try")
    corpus = PlannedCorpus.of_tokens(20_000 * 2**21 * 2)
    repeats = advise(workload_of(corpus=corpus), 20_000, Setting(8, 0.3))
    assert repeats.verdict == "try"
    assert any("reads the corpus of 83.9 billion tokens 1.55 times" in reason for reason in repeats.reasons)
    assert advise(workload_of(), 20_000, Setting()).verdict == "none"
    for setting in (Setting(6, 0.3, slot_weights="power_law"), Setting(6, 0.3, mode="output_only")):
        advice = advise(workload_of(active_parameters=254e6), 20_000, setting)
        assert (advice.verdict, advice.gain.low, advice.speedup.low) == ("try", None, None)


def test_one_seed_of_a_noisy_model_is_no_reason_to_use_it() -> None:
    single, several = own("Wikipedia, BPE of 4,096", 12_000), own("Wikipedia, BPE of 4,096", 6_000)
    assert several.half_width is not None
    # Three seeds: t is 4.303 with two degrees of freedom, and one seed may be off by twice the deviation.
    assert single.noise == pytest.approx(2 * several.half_width * 3**0.5 / 4.3027, rel=1e-3)
    advice = advice_at(single)
    assert (advice.verdict, advice.setting.cell) == ("try", single.cell)
    assert advice.gain.low is not None
    assert advice.gain.high is not None
    assert advice.gain.low < 0 < advice.gain.high
    assert advice.speedup.basis == "it may not gain at all"


def test_the_speed_ups_of_the_paper() -> None:
    found = {each.name: each for each in speedups() if each.unit == "subwords"}
    assert found["3B"].speedup == pytest.approx(1.8, abs=0.05)
    assert (found["3B"].bound, found["270M"].bound, found["10B-A1B"].bound) == ("exact", "at most", "at least")
    assert found["10B-A1B"].speedup == pytest.approx(2.5, abs=0.01)
    only_a_bound = advise(workload_of(active_parameters=135e6, positions_per_step=2**19), 19_073)
    assert only_a_bound.speedup.low is None
    assert "upper bound" in only_a_bound.speedup.basis
    both = advise(workload_of(), 30_000).speedup
    assert (both.low, both.high) == pytest.approx((found["3B"].speedup, found["270M"].speedup))


def test_a_curve_is_read_between_its_points_and_never_beyond() -> None:
    curve = [(100, 3.0), (400, 2.0)]
    assert read_curve(curve, 2.5) == (pytest.approx(200), "at most")
    assert read_curve(curve, 2.001) == (pytest.approx(400, rel=0.01), "exact")
    assert read_curve(curve, 1.9) == (400, "at least")
    assert read_curve(curve, 3.1) == (0.0, "exact")


def test_a_new_row_changes_the_plans_near_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_table("evidence/own_runs.csv")
    far = {"name": "new", "unit": "subwords", "start": "fresh", "parameters": "1000000000000", "ratio": "0.3"}
    far |= {"positions_per_step": "2097152", "total_steps": "20000000", "bag_size": "6", "seeds": "5"}
    far |= {"baseline_loss": "2.0", "loss": "1.9", "half_width": "0.01", "speedup": "1.5", "source": "here"}

    def table(name: str) -> list[dict[str, str]]:
        return [*rows, far] if name == "evidence/own_runs.csv" else read_table(name)

    monkeypatch.setattr(measured_runs, "read_table", table)
    for cached in (comparisons, speedups):
        cached.cache_clear()
    try:
        advice = advise(workload_of(active_parameters=10**12), 20_000_000)
    finally:
        monkeypatch.undo()
        for cached in (comparisons, speedups):
            cached.cache_clear()
    assert advice.verdict == "use"
    assert (advice.gain.low, advice.gain.high) == pytest.approx((0.09, 0.11))
    assert (advice.speedup.low, advice.speedup.high) == (1.5, 1.5)


def test_power_law_weights_are_better_only_above_the_largest_bag() -> None:
    def mean(weights: str, bag_size: int) -> float:
        (row,) = [
            row
            for row in read_table("evidence/paper_grid.csv")
            if (row["model"], row["slot_weights"], row["bag_size"]) == ("600M", weights, str(bag_size))
        ]
        return sum(float(row[f"r0.{tenth}"]) for tenth in range(1, 6)) / 5

    for bag_size in range(2, 14):
        better = mean("power_law", bag_size) < mean("uniform", bag_size) - 0.0005
        assert better == (bag_size > LARGEST_BAG)


def test_the_papers_runs_are_compared_with_their_baselines() -> None:
    for run in (run for run in paper_runs() if run.arm == "tst" and run.model != "10B-A1B"):
        (baseline,) = [
            each
            for each in paper_runs()
            if (each.model, each.total_steps, each.arm) == (run.model, run.total_steps, "baseline")
        ]
        gains = [
            each.gain
            for each in comparisons()
            if (each.name, each.scale, each.cell) == (run.model, run.scale, run.cell)
        ]
        assert gains == pytest.approx([baseline.final_loss - run.final_loss], abs=0.0015)
