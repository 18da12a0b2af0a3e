"""What runs cost: hours, and money where a price is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.study.reports import compare, make_report, parse, render_html, said, to_arms, with_readings
from tests.study.synthetic import make_study
from token_superposition.cli import main
from token_superposition.errors import UserError
from token_superposition.study.compare import make_study as read_study
from token_superposition.study.prices import cost_of, parse_price


def timed(*, hours: float = 2.0, speedup: float = 1.0) -> dict[str, Any]:
    """A study whose longest runs take so many hours, superposition's `speedup` times less a step."""
    report = make_study()
    for arm in report["arms"]:
        for budget in arm["budgets"]:
            for run in budget["seeds"]:
                run["wall_seconds"] = 3600 * hours * run["steps"] / 4000
                if arm["name"] == "superposition":
                    run["wall_seconds"] /= speedup
    return report


def costed(report: dict[str, Any], price: float | None, device: str = "cuda:0") -> dict[str, Any]:
    with_readings(report)
    arms, best = to_arms(report["arms"]), report["equal_flops"]["arm"]
    report["cost"] = cost_of(arms, parse(report).iso_loss_all, best, device, price).model_dump()
    return report


def test_hours_and_money_of_every_arm_and_of_the_saving() -> None:
    report = costed(timed(), 2.5)
    cost, seconds = report["cost"], next(each for each in report["iso_loss_all"] if each["unit"] == "seconds")
    assert cost["unit"] == "GPU-hours"
    assert [(arm["name"], arm["hours"], arm["money"]) for arm in cost["arms"]] == [
        ("baseline", pytest.approx(2), pytest.approx(5)),
        ("superposition", pytest.approx(2), pytest.approx(5)),
    ]
    saving = cost["saving"]
    assert saving["hours"] == pytest.approx(2 * (1 - 1 / seconds["speedup"]))
    assert saving["money"] == pytest.approx(2.5 * saving["hours"])
    assert saving["money_interval"][0] < saving["money"] < saving["money_interval"][1]
    for text in (said(report), render_html(report)):
        assert "2.00 GPU-hours ($5.00)" in text
        assert f"(${saving['money']:.2f})" in text


def test_without_a_price_there_are_hours_only() -> None:
    report = costed(timed(), None, "cpu")
    assert report["cost"]["unit"] == "machine-hours"
    assert [arm["money"] for arm in report["cost"]["arms"]] == [None, None]
    assert report["cost"]["saving"]["hours"] > 0
    assert report["cost"]["saving"]["money"] is None
    assert "2.00 machine-hours" in said(report)
    assert "$" not in said(report)


@pytest.mark.parametrize(("key", "values"), [("num_threads", (1, 4)), ("machine", ("H100", "A100"))])
def test_seconds_that_cannot_be_compared_give_no_money(key: str, values: tuple[Any, Any]) -> None:
    report = timed()
    for arm, value in zip(report["arms"], values, strict=True):
        for budget in arm["budgets"]:
            for run in budget["seeds"]:
                run[key] = value
    cost = costed(report, 2.5)["cost"]
    assert cost["saving"] is None
    assert [arm["money"] for arm in cost["arms"]] == [None, None]
    assert all(str(value) in cost["reason"] for value in values)
    assert "$" not in said(report)
    assert "not known" in said(report)


def test_a_machine_that_was_busier_with_the_baseline_saves_nothing() -> None:
    cost = costed(timed(speedup=1.5), 2.5)["cost"]
    assert cost["saving"] is None
    assert "busier" in cost["reason"]


def test_a_study_of_one_budget_has_no_saving_and_says_why() -> None:
    report = make_report()
    report["cost"] = cost_of(to_arms(report["arms"]), [], "superposition", "cpu", 2.5).model_dump()
    assert report["cost"]["saving"] is None
    assert report["cost"]["reason"]
    assert report["cost"]["arms"][0]["money"] == pytest.approx(75.25 / 3600 * 2.5)


@pytest.mark.parametrize("price", ["-1", "0", "nan", "inf", "1e400", "two", "", "2,5", "$2", True, [2], None])
def test_a_bad_price_is_refused_in_one_line(price: Any) -> None:
    with pytest.raises(UserError, match=r"^here: .*above 0 such as 2\.5") as caught:
        parse_price(price, "here")
    assert "\n" not in str(caught.value)


def test_the_price_of_the_option_and_of_the_file(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**small_run, "price_per_hour": 3}))
    assert read_study({**small_run, "price_per_hour": 3}).price_per_hour == 3
    out = tmp_path / "out"
    for words in (["--price-per-hour", "-2"], ["--price-per-hour=none"], ["--price-per-hour", "nan"]):
        assert main(["compare", str(file), "--out", str(out), *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "--price-per-hour" in said
    assert not out.exists()


@pytest.mark.usefixtures("in_process")
def test_the_report_of_a_study_has_the_cost(small_run: dict[str, Any], tmp_path: Path) -> None:
    report = compare(read_study({**small_run, "price_per_hour": 3600}), tmp_path, jobs=1, quiet=True)
    (run,) = report["arms"][0]["seeds"]
    assert report["cost"]["price_per_hour"] == 3600
    assert report["cost"]["arms"][0]["money"] == pytest.approx(run["wall_seconds"])
    assert run["machine"]
    assert run["shared_steps"] == 0
    assert report["runs_at_once"] == 1
    assert json.loads((tmp_path / "report.json").read_text())["cost"] == report["cost"]
