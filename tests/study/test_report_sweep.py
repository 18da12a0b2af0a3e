"""What the report says and shows of a sweep."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest

from tests.study.reports import Page, make_arm, make_report, render_html, said

RATE, DECAY = "train.learning_rate", "train.weight_decay"
RATES = [0.001, 0.002, 0.004]
Losses = Sequence[Sequence[float | None]]  # an arm each, a setting each; None: it diverged
INSIDE: Losses = [[1.6, 1.5, 1.55], [1.6, 1.45, 1.5]]


def with_sweep(
    losses: Losses = INSIDE,
    values: dict[str, list[Any]] | None = None,
    *,
    num_seeds: int = 1,
    report: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A report whose arms were tuned, with these losses at every setting."""
    report = report or make_report()
    values = values or {RATE: RATES}
    settings = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    arms = []
    for arm, found in zip(report["arms"], losses, strict=True):
        tried = [
            {
                "values": setting,
                "seeds": [
                    {"seed": 1000 + number, "final_validation_loss": loss, "diverged": loss is None}
                    for number in range(num_seeds)
                ],
                "mean_validation_loss": loss,
                "diverged_when_compared": [],
            }
            for setting, loss in zip(settings, found, strict=True)
        ]
        best = min(zip(found, settings, strict=True), key=lambda pair: math.inf if pair[0] is None else pair[0])[1]
        edges = {key: "highest" for key in values if best[key] == max(values[key], key=str)}
        arms.append({"name": arm["name"], "settings": tried, "best": best, "at_edge": edges})
        arm["learning_rate"] = best.get(RATE, arm["learning_rate"])
    report["sweep"] = {"keys": list(values), "values": values, "num_seeds": num_seeds, "arms": arms}
    return report


def text_of(report: dict[str, Any]) -> str:
    return re.sub(r" +(?=[,.:;])", "", Page(render_html(report)).text)


def test_the_verdict_says_what_each_arm_was_given_and_on_which_seeds_it_was_chosen() -> None:
    words = said(with_sweep([[1.6, 1.5, 1.55], [1.6, 1.5, 1.45]]))
    assert "best learning rate of 3 tried: 0.002 for baseline, 0.004 for superposition." in words
    assert "on seed 1000, which is not one of the seeds compared" in words
    same = said(with_sweep(num_seeds=2))
    assert "0.002 for both" in same
    assert "on seeds 1000 to 1001, which are not among the seeds compared" in same
    assert "tried" not in said(make_report())


def test_the_best_at_the_edge_asks_for_a_wider_sweep() -> None:
    words = said(with_sweep([[1.6, 1.5, 1.55], [1.6, 1.5, 1.45]]))
    assert "of superposition is at the edge of the range (0.004, the highest tried)" in words
    assert "widen the sweep" in words
    both = said(with_sweep([[1.6, 1.55, 1.5], [1.6, 1.5, 1.45]]))
    assert both.count("of baseline and superposition is at the edge") == 1
    assert "widen" not in said(with_sweep())


def test_the_caveats_say_what_was_tuned_and_what_was_not() -> None:
    tuned = text_of(with_sweep())
    assert "Tuned for every arm, with as many tries each: learning rate over 0.001, 0.002, 0.004." in tuned
    assert "same learning rate" not in tuned
    other = text_of(with_sweep(values={DECAY: [0.0, 0.1, 0.2]}))
    assert "weight decay over 0, 0.1, 0.2." in other
    assert "Every arm used the same learning rate, and it was not tuned" in other
    assert "Every arm used the same learning rate, and it was not tuned" in text_of(make_report())
    assert "Tuning each arm" not in text_of(make_report())


def test_every_setting_is_in_the_table_and_the_chosen_is_marked() -> None:
    report = with_sweep([[1.6, 1.5, None], [1.6, 1.45, 1.4]])
    page = render_html(report)
    table = page[page.index("<b>Table 3.</b>") :]
    table = table[: table.index("</table>")]
    rows = re.findall(r"<tr><th.*?</tr>", table, re.S)
    cells = [re.sub(r"<[^>]*>", " ", row).split() for row in rows]
    assert cells == [
        ["0.001", "1.6000", "1.6000"],
        ["0.002", "1.5000", "chosen", "1.4500"],
        ["0.004", "diverged", "1.4000", "chosen,", "at", "the", "edge"],
    ]
    assert "Crosses: the run diverged, which counts as worst." in text_of(report)
    assert "Crosses" not in text_of(with_sweep())


def test_the_runs_of_the_sweep_are_counted_and_found() -> None:
    text = text_of(with_sweep(num_seeds=2))
    assert "Trained 10 times (2 arms × 5 seeds), and 12 times more for the sweep" in text
    assert "(2 arms × 3 settings × 2 seeds)" in text
    assert "runs/ARM/SETTING/seed-N/config.yaml" in text
    assert "runs/ARM/seed-N/config.yaml" in text_of(make_report())


def test_settings_that_differ_between_arms_are_not_said_to_be_one() -> None:
    text = text_of(with_sweep([[1.6, 1.5, 1.55], [1.6, 1.5, 1.45]]))
    assert "peak learning rate as in the tables" in text
    assert "peak learning rate 0.003" in text_of(make_report())
    assert "weight decay as swept" in text_of(with_sweep(values={DECAY: [0.0, 0.1, 0.2]}))


def test_a_choice_that_diverged_later_is_told() -> None:
    report = with_sweep()
    report["sweep"]["arms"][1]["settings"][2]["diverged_when_compared"] = [3]
    text = text_of(report)
    assert "Learning rate 0.004 was not kept for superposition: it diverged with seed 3" in text


def test_a_loss_far_above_the_rest_does_not_flatten_the_figure() -> None:
    page = render_html(with_sweep([[1.6, 1.5, 97.5], [1.6, 1.45, 1.5]]))
    figure = page[page.index("sweep0-t") :]
    figure = figure[: figure.index("</svg>")]
    assert "↑ 97.50" in figure
    ticks = [float(label) for label in re.findall(r'text-anchor="end">([\d.]+)</text>', figure)]
    assert max(ticks) < 3
    assert "losses above the figure’s top" in page


@pytest.mark.parametrize(
    ("losses", "values", "panels"),
    [
        (INSIDE, None, 1),
        ([[None, 1.5, None], [None, None, 1.4]], None, 1),
        ([[1.5, 1.5, 1.5], [1.5, 1.5, 1.5]], None, 1),
        ([[1.5, 1.4], [1.5, 1.4]], {"train.betas": [[0.9, 0.95], [0.9, 0.99]]}, 1),
        ([[1.5, 1.4], [1.5, 1.4]], {"train.max_grad_norm": [None, 1.0]}, 1),
        ([[1.5, 1.4, 1.45, None], [1.5, 1.4, None, 1.3]], {RATE: [0.001, 0.002], DECAY: [0.0, 0.1]}, 2),
    ],
)
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_page_is_whole_whatever_was_swept(
    losses: Losses, values: dict[str, list[Any]] | None, panels: int, num_seeds: int
) -> None:
    text = render_html(with_sweep(losses, values, num_seeds=num_seeds))
    page = Page(text)
    assert page.panels == 4 + panels
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|not finite|not recorded", page.text)
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_the_sweep_of_many_arms_with_nasty_names() -> None:
    report = make_report(arm="<b>&")
    for number in range(3):
        name = f"a name that is rather long, {number}"
        report["arms"].append(make_arm(name, [1.6] * 5, bag_size=4))
        report["equal_flops_all"].append({**report["equal_flops"], "arm": name})
    text = render_html(with_sweep([[1.6, 1.5, None]] * 5, report=report))
    assert "<b>&<" not in text
    assert Page(text).panels == 5
    assert "0.002 for all" in Page(text).text
