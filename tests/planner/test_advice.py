"""Which setting is advised, and when none is."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.planner.workloads import need_of, subject_of
from token_superposition.planner.advice import advise
from token_superposition.planner.estimate import gain_range
from token_superposition.planner.measured_runs import comparisons
from token_superposition.planner.settings import Setting, choose
from token_superposition.planner.workload import PlannedCorpus, PlannedSource


def test_enough_text_gives_the_flat_optimum() -> None:
    for steps in (20_000, 100_000):
        setting, _ = choose(need_of(subject_of(), steps))
        assert 5 <= setting.bag_size <= 8
        assert 0.2 <= setting.ratio <= 0.3
        assert (setting.mode, setting.slot_weights) == ("full", "uniform")


def test_less_text_gives_less_of_it_then_plain_inputs_then_none() -> None:
    positions = 20_000 * 2**21
    reads, modes = [], []
    for share in (3.0, 2.0, 1.6, 1.4, 1.2, 1.1, 1.05, 1.0, 0.99):
        need = need_of(subject_of(), 20_000, corpus=PlannedCorpus.of_tokens(int(positions * share)))
        advice = advise(need)
        raw = advice.setting.schedule(20_000).raw_tokens(2**21)
        assert advice.verdict == "none" or raw <= positions * share
        reads.append(raw)
        modes.append("none" if advice.setting.bag_size == 1 else advice.setting.mode)
        assert share >= 2.0 or any("corpus" in reason for reason in advice.reasons)
    assert modes == ["full"] * 6 + ["output_only"] * 2 + ["none"]
    assert all(more >= less for more, less in pairwise(reads))


def test_the_cheaper_run_needs_less_text() -> None:
    positions = 20_000 * 2**21
    need = need_of(subject_of(), 20_000, corpus=PlannedCorpus.of_tokens(int(1.05 * positions)))
    assert choose(need)[0].mode == "output_only"
    cheaper = need_of(subject_of(), 20_000, corpus=PlannedCorpus.of_tokens(int(1.05 * positions)), less_cost=True)
    assert choose(cheaper)[0].mode == "full"


def test_when_not_to() -> None:
    short = advise(need_of(subject_of(parameters=5e6, active_parameters=5e6, positions_per_step=2**14), 1_200))
    assert short.verdict == "none"
    assert "leave too few for recovery" in short.reasons[0]
    assert short.gain is None
    trained = advise(need_of(subject_of(start="trained", unit="bytes"), 20_000))
    assert trained.verdict == "none"
    assert "no measured run on bytes, going on from trained weights gained: Shakespeare" in trained.reasons[0]
    unknown = advise(need_of(subject_of(start="trained"), 20_000))
    assert unknown.verdict == "none"
    assert unknown.reasons[0].endswith("gained: there is none")
    bytes_at_scale = advise(need_of(subject_of(unit="bytes"), 20_000))
    assert bytes_at_scale.verdict == "try"
    assert any("no evidence" in reason for reason in bytes_at_scale.reasons)
    assert any("four are about one subword" in reason for reason in bytes_at_scale.reasons)
    huge = advise(need_of(subject_of(active_parameters=10**12), 20_000))
    assert (huge.verdict, huge.gain) == ("try", None)
    assert "more than ten times apart" in str(huge.gain_reason)
    far = gain_range(huge.nearest[0].scale, (6, 0.3), "bytes", "fresh")
    assert far is None  # bytes say nothing of subwords, nor the other way round
    few = advise(need_of(subject_of(), 5_000))
    assert few.verdict == "try"
    assert any("no near run of fewer than 20,000 steps" in reason for reason in few.reasons)


def test_a_setting_of_the_users_is_judged_and_kept() -> None:
    need = need_of(subject_of(), 20_000, corpus=PlannedCorpus.of_tokens(20_000 * 2**21 * 2))
    advice = advise(need, Setting(8, 0.3))
    assert advice.setting == Setting(8, 0.3)
    assert advice.verdict == "try"
    assert any("reads the corpus of 83.9 billion tokens 1.55 times" in reason for reason in advice.reasons)
    loses = advise(need_of(subject_of(active_parameters=254e6), 20_000), Setting(16, 0.9))
    assert loses.verdict == "none"
    assert loses.setting == Setting(16, 0.9)
    assert loses.gain is not None
    assert loses.gain.high < 0
    assert "what was measured near it loses" in loses.reasons[0]
    plain = advise(need, Setting())
    assert (plain.verdict, plain.reasons) == (
        "none",
        ["a bag_size of 1, or superposition for no step, is ordinary training"],
    )


def test_a_shorter_run_is_judged_by_its_own_steps() -> None:
    subject = subject_of(active_parameters=254e6, positions_per_step=2**20)
    same_cost = advise(need_of(subject, 40_000))
    assert same_cost.speedup is not None
    cheaper = advise(need_of(subject, 40_000, less_cost=True))
    assert (same_cost.verdict, cheaper.verdict) == ("use", "use")
    short = advise(need_of(subject, 24_000, less_cost=True))
    assert "never measured at so few steps" in short.caveats
    assert advise(need_of(subject, 24_000)).verdict == "use"
    assert short.verdict == "try"
    assert any("no near run of fewer than 20,000 steps" in reason for reason in short.reasons)


def test_a_setting_that_lost_near_in_size_is_not_advised() -> None:
    lost = next(run for run in comparisons() if run.name == "Wikipedia on a GPU" and run.lost)
    subject = subject_of(active_parameters=lost.scale.parameters, positions_per_step=2**17)
    setting, reasons = choose(need_of(subject, 4_000))
    assert "of runs of other sizes" in reasons[0]
    # Bags of 4 and of 6 lost there at the only ratio that was tried: neither they nor others as large are.
    assert setting.bag_size < 4
    advice = advise(need_of(subject, 4_000))
    assert advice.verdict == "try"
    assert any("no run near this one is known to have gained: Wikipedia on a GPU" in each for each in advice.reasons)


def test_one_seed_of_a_noisy_model_is_no_reason_to_use_it() -> None:
    single = next(run for run in comparisons() if run.unit == "subwords" and run.total_steps == 12_000)
    several = next(run for run in comparisons() if run.name == single.name and run.seeds > 1)
    assert several.half_width is not None
    # Three seeds: t is 4.303 of two degrees of freedom, and one seed may be off by twice their deviation.
    assert single.noise == pytest.approx(2 * several.half_width * 3**0.5 / 4.3027, rel=1e-3)
    need = need_of(subject_of(active_parameters=single.scale.parameters, positions_per_step=2048), 12_000)
    advice = advise(need)
    assert (advice.verdict, advice.setting.cell) == ("try", (single.bag_size, single.ratio))
    assert advice.gain is not None
    assert advice.gain.low < 0 < advice.gain.high
    assert advice.speedup_reason == "it may not gain at all"


def test_the_figures_are_of_uniform_slot_weights() -> None:
    subject = subject_of(active_parameters=254e6, positions_per_step=2**20)
    for weights in ("power_law", "first_token", "mutual_information"):
        advice = advise(need_of(subject, 40_000), Setting(6, 0.3, slot_weights=weights))
        assert (advice.verdict, advice.gain, advice.speedup) == ("try", None, None)
        assert any(f"uniform slot weights, and this has {weights}" in reason for reason in advice.reasons)


def test_a_mixture_is_as_large_as_its_scarcest_source() -> None:
    positions = 20_000 * 2**21
    large = PlannedSource(10 * positions, 0.75, "web")
    scarce = PlannedCorpus((large, PlannedSource(positions // 8, 0.25, "code")))
    advice = advise(need_of(subject_of(), 20_000, corpus=scarce))
    assert advice.verdict == "none"
    assert "already reads source code (5.24 billion tokens, 25% of what is read) more than once" in advice.reasons[0]
    enough = PlannedCorpus((large, PlannedSource(positions // 2, 0.25, "code")))
    assert advise(need_of(subject_of(), 20_000, corpus=enough)).setting == advise(need_of(subject_of(), 20_000)).setting


def test_what_gained_near_in_size_comes_before_sweeps_that_are_far() -> None:
    ours = next(run for run in comparisons() if run.unit == "subwords" and run.speedup is not None)
    assert ours.bag_size is not None
    assert ours.ratio is not None
    subject = subject_of(active_parameters=ours.scale.parameters, positions_per_step=2048)
    need = need_of(subject, ours.total_steps)
    assert choose(need)[0] == Setting(ours.bag_size, ours.ratio)  # and not the paper's bags of 6
    positions = need.scale.positions
    little, reasons = choose(need_of(subject, ours.total_steps, corpus=PlannedCorpus.of_tokens(int(1.15 * positions))))
    assert little == Setting(2, 0.1)  # of the paper's sweeps, which have settings that read less
    assert "too small to read bags of 2" in reasons[0]
    level, _ = choose(need_of(subject, ours.total_steps, corpus=PlannedCorpus.of_tokens(int(positions))))
    assert level.mode == "output_only"
