"""Studies whose truth is known: final losses on a power law of compute, a seed's noise, and the speed-up put in.

The baseline ends at `E + A * C**-p` after a compute of C steps, superposition where the baseline would with `speedup`
times the compute. A seed shifts both arms of a budget together (`shared`), and each run by itself (`noise`), as real
seeds do; runs of a seed at neighbouring budgets are as independent as they can be.

`python -m tests.study.synthetic FOLDER` writes the reports of these studies to look at.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.study.one_budget import LENGTH, ROWS, compare_fakes, fake_arm, fake_report
from tests.study.reports import difference_of, headline_dict, switch_dicts, with_readings, write_report

BUDGETS = (1000, 2000, 4000)
Speedup = float | Callable[[int], float]


def power_law(steps: float, *, floor: float = 1.0, scale: float = 30.0, power: float = 0.56) -> float:
    """The baseline's true final loss: 1.62 at 1,000 steps, 1.29 at 4,000."""
    return floor + scale * steps**-power


def make_arms(
    arms: Sequence[tuple[str, int, float, Speedup]] = (("superposition", 4, 0.3, 1.43),),
    *,
    budgets: Sequence[int] = BUDGETS,
    num_seeds: int = 5,
    noise: float = 0.004,
    shared: float = 0.01,
    equal_data: bool = True,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Arms of a report, the baseline first.

    Args:
        arms: name, bag size, ratio and true speed-up (a number, or by the budget's steps) of each but the baseline.
        budgets: optimizer steps.
        num_seeds, noise, shared: how many seeds, and what they do to a loss (standard deviations in nats).
        equal_data: whether the baseline is also trained at the raw tokens that each arm's longest run reads.
        seed: of the noise.
    """
    dice = random.Random(seed)
    positions = ROWS * LENGTH
    same = {steps: [dice.gauss(0, shared) for _ in range(num_seeds)] for steps in budgets}

    def trained(name: str, bag_size: int, ratio: float, steps: int, speedup: Speedup, kind: str) -> dict[str, Any]:
        gain = speedup(steps) if callable(speedup) else speedup
        shift = same.get(steps) or [dice.gauss(0, shared) for _ in range(num_seeds)]
        finals = [power_law(steps * gain) + each + dice.gauss(0, noise) for each in shift]
        return {"total_steps": steps, "kind": kind, **fake_arm(name, bag_size, ratio, finals, steps)}

    made = []
    for name, bag_size, ratio, speedup in (("baseline", 1, 0.0, 1.0), *arms):
        runs = [trained(name, bag_size, ratio, steps, speedup, "budget") for steps in budgets]
        made.append({**fake_arm(name, bag_size, ratio, [], max(budgets)), "seeds": runs[-1]["seeds"], "budgets": runs})
    if equal_data:
        raw = [arm["seeds"][0]["raw_tokens"] for arm in made[1:]]
        for steps in sorted({round(tokens / positions) for tokens in raw} - set(budgets)):
            made[0]["budgets"].append(trained("baseline", 1, 0.0, steps, 1.0, "equal_data"))
    return made


def make_study(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """A whole report of the arms that `make_arms` makes."""
    arms = make_arms(*args, **kwargs)
    report = fake_report(arms)
    total = max(budget["total_steps"] for budget in arms[0]["budgets"] if budget["kind"] == "budget")
    report["schema_version"] = 2
    report["title"] = f"Token superposition or not: llama, {total:,} steps"
    report["settings"] |= {"total_steps": total, "decay_steps": total // 5}
    return finish(report)


def finish(report: dict[str, Any]) -> dict[str, Any]:
    """What follows from a report's arms, computed as a study would."""
    arms = report["arms"]
    results = compare_fakes(arms)
    report["equal_flops"] = headline_dict(results)
    report["equal_flops_all"] = results
    report["equal_data_all"] = [found for arm in arms[1:] if (found := _equal_data(arms[0], arm))]
    best = report["equal_flops"]["arm"]
    report["equal_data"] = next((found for found in report["equal_data_all"] if found["arm"] == best), None)
    reason = with_readings(report)
    report["switch"] = switch_dicts(arms)
    report["reasons"] = {
        "equal_data": None if report["equal_data"] else "it was not asked for (--equal-data)",
        "iso_loss": reason,
    }
    report["reasons"] = {key: reason for key, reason in report["reasons"].items() if reason}
    return report


def _equal_data(baseline: dict[str, Any], arm: dict[str, Any]) -> dict[str, Any] | None:
    raw = arm["seeds"][0]["raw_tokens"]
    steps = round(raw / (ROWS * LENGTH))
    longer = [budget for budget in baseline["budgets"] if budget["total_steps"] == steps]
    if not longer:
        return None
    ours, theirs = ([run["final_validation_loss"] for run in side["seeds"]] for side in (arm, longer[0]))
    return {
        **difference_of(baseline["name"], theirs, arm["name"], ours),
        "total_steps": steps,
        "raw_tokens": raw,
    }


def tuned(report: dict[str, Any], rates: Sequence[float] = (0.001, 0.002, 0.004)) -> dict[str, Any]:
    """The report, its arms tuned at every budget: the shorter a run, the higher its best rate."""
    sweeps = []
    compared = [budget["total_steps"] for budget in report["arms"][1]["budgets"]]
    for place, steps in enumerate(compared):
        arms = []
        for number, arm in enumerate(report["arms"]):
            budget = next(budget for budget in arm["budgets"] if budget["total_steps"] == steps)
            best = max(0, len(rates) - 1 - place - number)
            losses = [1.5 + 0.02 * abs(each - best) for each in range(len(rates))]
            budget["learning_rate"] = rates[best]
            arms.append(
                {
                    "name": arm["name"],
                    "settings": [
                        {
                            "values": {"train.learning_rate": rate},
                            "seeds": [{"seed": 1000, "final_validation_loss": loss, "diverged": False}],
                            "mean_validation_loss": loss,
                            "diverged_when_compared": [],
                        }
                        for rate, loss in zip(rates, losses, strict=True)
                    ],
                    "best": {"train.learning_rate": rates[best]},
                    "at_edge": {"train.learning_rate": "highest" if best else "lowest"} if best != 1 else {},
                }
            )
            arm["learning_rate"] = rates[best]
        sweeps.append({"total_steps": steps, "arms": arms})
    values = {"train.learning_rate": list(rates)}
    whole = {"keys": list(values), "values": values, "num_seeds": 1}
    report["sweep"] = {**whole, "arms": sweeps[-1]["arms"], "budgets": sweeps}
    return report


def starts_to_win(steps: int) -> float:
    """A speed-up that comes with the length of a run: 0.70 at 1,000 steps, 0.95 at 2,000, 1.29 at 4,000."""
    return 0.70 * (steps / 1000) ** 0.44


FOUR: tuple[tuple[str, int, float, Speedup], ...] = (
    ("s=2, r=0.3", 2, 0.3, 1.25),
    ("s=4, r=0.2", 4, 0.2, 1.5),
    ("s=8, r=0.3", 8, 0.3, starts_to_win),
)
LONG: tuple[tuple[str, int, float, Speedup], ...] = (
    ("superposition with bags of four and a long name", 4, 0.3, 1.43),
    ("superposition with bags of two and uniform weights", 2, 0.3, 1.2),
)
LATE: tuple[tuple[str, int, float, Speedup], ...] = (("superposition", 4, 0.3, starts_to_win),)
NEVER: tuple[tuple[str, int, float, Speedup], ...] = (("superposition", 8, 0.3, 0.75),)
FAR: tuple[tuple[str, int, float, Speedup], ...] = (("superposition", 2, 0.1, 5.0),)

STUDIES: dict[str, Callable[[], dict[str, Any]]] = {
    "helps": make_study,
    "helps-late": lambda: make_study(LATE),
    "does-not-help": lambda: make_study(NEVER),
    "noise": lambda: make_study((("superposition", 4, 0.3, 1.05),), noise=0.02),
    "one-seed": lambda: make_study(num_seeds=1),
    "two-seeds": lambda: make_study(num_seeds=2),
    "one-budget": lambda: make_study(budgets=[4000], equal_data=False),
    "one-budget-equal-data": lambda: make_study(budgets=[4000]),
    "no-equal-data": lambda: make_study(equal_data=False),
    "four-arms": lambda: make_study(FOUR),
    "out-of-range": lambda: make_study(FAR),
    "long-names": lambda: make_study(LONG),
    "six-budgets": lambda: make_study(LATE, budgets=[250, 500, 1000, 2000, 4000, 8000]),
    "tuned": lambda: tuned(make_study(LATE)),
    "close-budgets": lambda: make_study(budgets=[3000, 3300, 3600, 4000]),
}


if __name__ == "__main__":
    for study_name, make in STUDIES.items():
        write_report(make(), Path(sys.argv[1]) / study_name)
