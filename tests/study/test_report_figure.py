"""The parts of the report's figure, and how numbers are written."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.reports import FLOPS, POSITIONS, SWITCH, WON, Page, make_report, parse, render_html
from token_superposition.formatting import count_in_words, duration, power_of_ten, signed
from token_superposition.study.report.curves import all_series
from token_superposition.study.report.panel import Scale, spread, tick_labels, ticks


def test_the_mean_is_over_the_steps_all_seeds_have() -> None:
    report = make_report(WON[:2])
    del report["arms"][0]["seeds"][1]["curve"][3:]
    del report["arms"][0]["seeds"][0]["curve"][0]
    baseline = all_series(parse(report), "flops")[0]
    assert [point.step for point in baseline.mean] == [40, 80]
    for point in baseline.mean:
        losses = [p.loss for line in baseline.seeds for p in line if p.step == point.step]
        assert point.loss == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize(
    ("num_seeds", "words"), [(1, None), (2, "range of the seeds"), (3, "95% interval of the mean")]
)
def test_curves_have_a_band_over_their_seeds(num_seeds: int, words: str | None) -> None:
    report = make_report(WON[:num_seeds])
    series = all_series(parse(report), "flops")[0]
    assert len(series.bands) == (0 if words is None else len(series.mean))
    for point, (low, high) in zip(series.mean, series.bands, strict=False):
        assert low < point.loss < high
    page = Page(render_html(report))
    assert (("class", "band arm-0") in page.attributes) == (words is not None)
    assert words is None or f"shaded: {words}" in page.text


def test_the_switch_is_placed_on_each_axis() -> None:
    by_flops, by_raw = (all_series(parse(make_report()), key) for key in ("flops", "raw_tokens"))
    assert by_flops[0].switch is None
    assert by_flops[1].switch == SWITCH * POSITIONS * FLOPS
    assert by_raw[1].switch == 2 * SWITCH * POSITIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (power_of_ten(2.466e14), "2.47 × 10¹⁴"),
        (power_of_ten(9.999e14), "1.00 × 10¹⁵"),
        (power_of_ten(512), "512"),
        (count_in_words(8_192_000), "8.19 million"),
        (count_in_words(999_999), "1.00 million"),
        (count_in_words(2_048), "2,048"),
        (count_in_words(1e12), "1.00 trillion"),
        (signed(-0.0874), "−0.087"),
        (signed(0.05), "+0.050"),
        (signed(-0.0001), "0.000"),
        (duration(252), "4 min 12 s"),
        (duration(3599.7), "1 h 00 min"),
        (duration(7500), "2 h 05 min"),
    ],
)
def test_numbers_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(1e-2, 1e22))
def test_a_power_of_ten_reads_back(value: float) -> None:
    mantissa, _, power = power_of_ten(value).partition(" × 10")
    digits = power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) or "0"
    assert float(mantissa.replace(",", "")) * 10 ** int(digits) == pytest.approx(value, rel=0.0051)


def test_a_scale_maps_its_ends() -> None:
    scale = Scale(2, 4, start=100, end=20)
    assert (scale(2), scale(3), scale(4)) == (100, 60, 20)
    assert ticks(2, 4, 4) == [2, 2.5, 3, 3.5, 4]


@given(low=st.floats(-100, 100), width=st.floats(1e-3, 1e18), about=st.integers(2, 12))
def test_ticks_are_round_and_inside(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    assert math.floor(about / 1.6) <= len(found) <= about * 1.6 + 1
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    for before, after in itertools.pairwise(found):
        step = after - before
        share = step / 10 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert any(share == pytest.approx(round_one, rel=1e-5) for round_one in (1, 2, 5)), step
        assert before / step == pytest.approx(round(before / step), abs=1e-3)  # a multiple of it


@given(low=st.floats(0, 10), width=st.floats(1e-3, 1e6))
def test_the_labels_of_ticks_are_their_values(low: float, width: float) -> None:
    found = ticks(low, low + width)
    labels = tick_labels(found)
    assert len(set(labels)) == len(found) >= 2
    assert [float(label) for label in labels] == pytest.approx(found, abs=1e-6 * width)


@given(st.lists(st.floats(0, 250), min_size=1, max_size=12))
def test_names_do_not_run_into_one_another(wanted: list[float]) -> None:
    placed = spread(wanted, 250, 15)
    ordered = sorted(placed)
    assert all(after - before >= 15 - 1e-6 for before, after in itertools.pairwise(ordered))
    assert ordered[-1] <= 250 + 1e-6
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert all(placed[i] <= placed[j] for i, j in itertools.pairwise(order))
