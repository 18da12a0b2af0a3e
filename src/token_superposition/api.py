"""The commands as functions: what `tst train`, `tst compare` and `tst plan` do, for a program.

Each raises `UserError` with the line that the command would print.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from token_superposition.errors import UserError

if TYPE_CHECKING:
    from token_superposition.planner.plan import Plan
    from token_superposition.study.report.model import Report
    from token_superposition.study.study_config import Study
    from token_superposition.training.config import RunConfig

_BUDGETS = ("tokens", "flops", "hours", "money")
_SECTION = "superposition."


def train(
    config: str | Path | RunConfig,
    out: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a run in its folder, or continue it there, as `tst train` does.

    Args:
        config: the run's YAML file, or a `RunConfig`.
        out: the run's folder; `runs/NAME` for a file NAME.yaml.
        overrides: values by dotted key, such as `{"train.learning_rate": 1e-3}`; with a file only.
        quiet: no progress on standard error.

    Returns:
        The run's summary, as in `summary.json`.

    Raises:
        UserError: if the configuration, the data or the folder cannot be used.
        TrainingDivergedError: if losses or weights become NaN or infinite.

    Example:
        >>> import token_superposition as ts
        >>> _ = ts.prepare("my-text", out="data/mine", quiet=True)
        >>> summary = train("small.yaml", "runs/small", overrides={"train.seed": 1}, quiet=True)
        >>> summary["final_validation_loss"] > 0, summary["bits_per_byte"] > 0
        (True, True)
    """
    from token_superposition.training.config import RunConfig, load_config
    from token_superposition.training.loop import train as train_in

    if isinstance(config, RunConfig):
        if overrides or out is None:
            raise TypeError("with a RunConfig give out=, the run's folder, and no overrides")
        return train_in(config, Path(out), quiet=quiet)
    path = Path(config)
    return train_in(load_config(path, overrides), Path("runs") / path.stem if out is None else Path(out), quiet=quiet)


def compare(
    config: str | Path | Study,
    out: str | Path | None = None,
    *,
    seeds: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Report:
    """Train a run with and without superposition and write a report, as `tst compare` does.

    Args:
        config: the YAML file of a run or of a study, or a `Study`.
        out: the study's folder; `runs/NAME-compare` for a file NAME.yaml.
        seeds: runs of each arm; the file's number without it, or 1.
        overrides: values by dotted key for every arm; with a file only.
        jobs: runs at a time; by the machine's size without it.
        quiet: no progress on standard error.

    Returns:
        The report: its fields are the keys of `report.json`, and `report.as_dict()` gives the values for JSON.

    Raises:
        UserError: if an arm cannot run, or another process uses the folder.

    Example:
        >>> import token_superposition as ts
        >>> _ = ts.prepare("my-text", out="data/mine", quiet=True)
        >>> report = compare("small.yaml", "runs/study", seeds=1, quiet=True)
        >>> [arm.name for arm in report.arms]
        ['baseline', 'superposition']
    """
    from token_superposition.study.compare import compare as compare_in
    from token_superposition.study.study_config import Study, load_study

    if isinstance(config, Study):
        if overrides or out is None:
            raise TypeError("with a Study give out=, its folder, and no overrides")
        study, folder = config, Path(out)
    else:
        study = load_study(Path(config), overrides or {})
        folder = Path("runs") / f"{Path(config).stem}-compare" if out is None else Path(out)
    if seeds is not None and seeds < 1:
        raise UserError(f"seeds is at least 1, not {seeds}")
    return compare_in(study, folder, num_seeds=seeds or study.num_seeds or 1, jobs=jobs, quiet=quiet)


def read_report(place: str | Path) -> Report:
    """Read the report of a study that `compare` or `tst compare` wrote.

    Args:
        place: the study's folder, or its `report.json`.

    Raises:
        UserError: if there is no report, or it cannot be read.

    Example:
        >>> import token_superposition as ts
        >>> _ = ts.prepare("my-text", out="data/mine", quiet=True)
        >>> _ = ts.compare("small.yaml", "runs/read", seeds=1, quiet=True)
        >>> ts.read_report("runs/read").equal_flops.arm
        'superposition'
    """
    from token_superposition.study.report.files import read_report as read_file

    file = Path(place) / "report.json" if Path(place).is_dir() else Path(place)
    try:
        return read_file(file)
    except FileNotFoundError:
        raise UserError(f"{file}: this file does not exist; give the folder of a study or its report.json") from None


def plan(
    config: str | Path | None = None,
    *,
    parameters: int | str | None = None,
    hardware: str | None = None,
    num_devices: int = 1,
    price: float | None = None,
    budget: tuple[Literal["tokens", "flops", "hours", "money"], float] | None = None,
    goal: Literal["loss", "cost"] = "loss",
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """Say what a run would cost with and without superposition and what to set, as `tst plan` does.

    Args:
        config: a run's YAML file; or give `parameters`.
        parameters: of a model of usual shape, such as `"135M"`.
        hardware: the name of a device, such as `"h100"`.
        num_devices: how many of them.
        price: of a device and hour; a list price without it.
        budget: of the ordinary run, a kind and an amount, such as `("tokens", 10e9)`; the configuration's steps
            without it.
        goal: a lower `loss` at equal cost, or the same loss at a lower `cost`.
        overrides: values by dotted key. Those of `superposition.` are judged, in place of a recommendation.

    Returns:
        The plan; `dataclasses.asdict` turns it into a dictionary.

    Raises:
        UserError: if an argument cannot be used.

    Example:
        >>> advice = plan(parameters="135M", hardware="h100", num_devices=8, budget=("tokens", 10e9))
        >>> advice.verdict, advice.without.total_steps
        ('use', 19073)
    """
    from token_superposition.planner.amounts import whole_amount
    from token_superposition.planner.hardware import find_hardware
    from token_superposition.planner.plan import PlanRequest, make_plan
    from token_superposition.planner.workload import workload_of_config, workload_of_size

    if (config is None) == (parameters is None):
        raise UserError('give one of config and parameters, such as parameters="135M"')
    if budget is not None and (budget[0] not in _BUDGETS or not budget[1] > 0):
        raise UserError(f"budget is one of {', '.join(_BUDGETS)} and an amount above 0, not {budget!r}")
    if goal not in ("loss", "cost"):
        raise UserError(f"goal is loss or cost, not {goal!r}")
    values = dict(overrides or {})
    given = {name.removeprefix(_SECTION): value for name, value in values.items() if name.startswith(_SECTION)}
    keys = {name: value for name, value in values.items() if not name.startswith(_SECTION)}
    if config is not None:
        workload = workload_of_config(Path(config), keys, None)
    else:
        try:
            count = whole_amount(str(parameters))
        except argparse.ArgumentTypeError as error:
            raise UserError(f"parameters: {error}") from error
        workload = workload_of_size(count, None, keys, None)
    devices = find_hardware(hardware, num_devices=num_devices, price=price)
    return make_plan(PlanRequest(workload, devices, budget, goal, given=given))
