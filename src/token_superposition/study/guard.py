"""`tst train --guard STUDY`: forecast early in the recovery whether superposition will pay off.

The run trains up to a guard. A branch starts there and decays at once, because a run at full learning rate has a much
higher loss than at its end. The branch's final loss is compared with the study's baseline after as many steps. Then the
run continues, with the same bits as without guards. Run and branches are trained in one process, one after the other.
Branches are ordinary run folders, `RUN/guard/step-NNNNNNN/`, so a restart repeats no guard.
"""

from __future__ import annotations

import gc
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from token_superposition.errors import TrainingDivergedError, UserError
from token_superposition.files import write_json
from token_superposition.formatting import better_or_worse, better_or_worse_range
from token_superposition.models.step_memory import abstract
from token_superposition.progress import say, warn
from token_superposition.schedule import Schedule
from token_superposition.study.guard_forecast import Curve, Forecast, GuardReading, baseline_loss, forecast
from token_superposition.study.report.files import read_report
from token_superposition.study.report.model import Report
from token_superposition.training.branch import make_branch
from token_superposition.training.checkpoint import checkpoint_path, checkpoint_steps
from token_superposition.training.config import RunConfig, TrainConfig, parse_config
from token_superposition.training.datasets import Corpora, Validators
from token_superposition.training.loop import train
from token_superposition.training.optim import build_learning_rate
from token_superposition.training.run import Run, branch_config
from token_superposition.training.run_folder import RunFolder

_LEAST_DECAY = 10
_SAME_TRAINING = ("optimizer", "decay_ratio", "final_learning_rate_ratio", "dtype")


@dataclass(frozen=True)
class Guard:
    """A branch: the steps it shares with the run, and its own."""

    step: int
    branch_steps: int

    @property
    def total_steps(self) -> int:
        """From the start of the run to the end of the branch."""
        return self.step + self.branch_steps


@dataclass(frozen=True)
class GuardResult:
    """Losses in nats; None before the branch is done, or if it diverged. A gap below zero is better."""

    step: int
    branch_steps: int
    baseline_loss: float
    loss: float | None
    gap: float | None


@dataclass(frozen=True)
class GuardReport:
    """The content of `guard.json`."""

    baseline: str
    guards: tuple[GuardResult, ...]
    forecast: Forecast | None


def prepare_guard(config: RunConfig, path: Path, study: Path, shares: str) -> GuardedRun:
    """Check everything before anything is trained or written.

    Args:
        config: the run's configuration.
        path: the run's folder.
        study: the folder or `report.json` of a study whose first arm is the baseline.
        shares: where in the recovery the guards are, such as `0.1,0.25`.

    Raises:
        UserError: if the run cannot start or have these guards, or if the baseline is missing, different or too short.
    """
    fractions = parse_shares(shares)
    file = study / "report.json" if study.is_dir() else study
    report = _read_report(file)
    run = Run.open(RunFolder(path), config)
    _check_comparable(file, report, run.config)
    guards = place_guards(run.config.train, run.schedule, fractions)
    losses = {budget.total_steps: [each.loss for each in budget.seeds] for budget in report.arms[0].all_budgets}
    curve = {steps: each for steps, each in losses.items() if each and all(map(math.isfinite, each))}
    first, last = guards[0].total_steps, guards[-1].total_steps
    if len(curve) < 2 or not min(curve) <= first <= last <= max(curve):
        lengths = ", ".join(f"{steps:,}" for steps in sorted(curve)) or "no"
        raise UserError(
            f"--guard {file}: its baseline has runs of {lengths} steps with finite losses, and the guards' branches "
            f"end at {first:,} to {last:,}: one length at or before and one at or after these is needed "
            "(tst compare --budgets), or other guards (--guard-at)"
        )
    guarded = GuardedRun(config, RunFolder(path), run.schedule, guards, str(study), curve)
    guarded.check_begun()
    return guarded


@dataclass(frozen=True)
class GuardedRun:
    """A run with its guards, ready to start; `prepare_guard` makes it."""

    config: RunConfig
    folder: RunFolder
    schedule: Schedule
    guards: tuple[Guard, ...]
    baseline: str
    curve: Curve

    def describe(self) -> str:
        """The guards and what they cost."""
        steps, lengths = (
            " and ".join(f"{number:,}" for number in numbers)
            for numbers in zip(*((guard.step, guard.branch_steps) for guard in self.guards), strict=True)
        )
        total = self.schedule.total_steps
        more = sum(guard.branch_steps for guard in self.guards) / total
        return (
            f"guards after steps {steps} of {total:,}: branches of {lengths} steps, {more:.0%} more steps than the "
            f"run; baseline: {self.baseline}"
        )

    def train(self, *, quiet: bool = False) -> dict[str, Any]:
        """Train the run to its end, or continue it.

        Returns:
            The run's summary, with what `guard.json` has as `guard`.
        """
        if not quiet:
            say(self.describe())
        for guard in self.guards:
            if not self._done(guard):
                self._train_branch(guard, quiet=quiet)
                if not quiet:
                    say(self._in_words(guard))
        gc.collect()  # models are in reference cycles: without this the last branch's is still in memory
        summary = train(self.config, self.folder.path, quiet=quiet)
        write_json(self.folder.path / "guard.json", asdict(self.report()))
        return {**summary, "guard": asdict(self.report())}

    def check_begun(self) -> None:
        """Refuse a run that is past a guard whose checkpoint no longer exists."""
        done = max(checkpoint_steps(self.folder.checkpoints), default=0)
        for guard in self.guards:
            begun = self._branch(guard).config_file.exists()
            if not begun and done >= guard.step and not checkpoint_path(self.folder.checkpoints, guard.step).exists():
                raise UserError(
                    f"{self.folder.path}: this run is at step {done:,} and no longer has the checkpoint of step "
                    f"{guard.step:,}, which a guard needs; continue without --guard, or name another folder"
                )

    def report(self) -> GuardReport:
        """What the guards found so far."""
        guards, readings = [], []
        for guard in self.guards:
            summary = self._branch(guard).read_summary()
            loss = None if summary is None else float(summary["final_validation_loss"])
            reference = baseline_loss(self.curve, guard.total_steps)
            gap = None if loss is None else loss - reference
            guards.append(GuardResult(guard.step, guard.branch_steps, reference, loss, gap))
            if loss is not None:
                readings.append(GuardReading(guard.total_steps, guard.total_steps - self.schedule.switch_step, loss))
        recovery = self.schedule.total_steps - self.schedule.switch_step
        return GuardReport(self.baseline, tuple(guards), forecast(readings, self.curve, recovery))

    def _train_branch(self, guard: Guard, *, quiet: bool) -> None:
        """Train the run up to the guard, and the branch to its end."""
        gc.collect()
        train(self.config, self.folder.path, quiet=quiet, stop_after=guard.step)
        gc.collect()
        branch, run = self._branch(guard), Run.open(self.folder, self.config)
        config = branch_config(branch_settings(run.config, run.schedule, guard), run.stored)
        data = config.data.model_copy(update={"verify": False})  # the run itself just did
        config = config.model_copy(update={"data": data})
        if not branch.config_file.exists():
            branch.path.parent.mkdir(exist_ok=True)
            make_branch(self.folder, branch.path, guard.step, config)
        try:
            train(config, branch.path, quiet=quiet)
        except TrainingDivergedError as error:
            warn(f"{error}; the run goes on without this guard")
        write_json(self.folder.path / "guard.json", asdict(self.report()))

    def _branch(self, guard: Guard) -> RunFolder:
        return RunFolder(self.folder.path / "guard" / f"step-{guard.step:07d}")

    def _done(self, guard: Guard) -> bool:
        branch = self._branch(guard)
        return branch.summary_file.exists() or branch.diverged_file.exists()

    def _in_words(self, guard: Guard) -> str:
        """A line about a guard, and the forecast."""
        report = self.report()
        found = next(each for each in report.guards if each.step == guard.step)
        if found.gap is None:
            return f"guard after step {guard.step:,}: its branch diverged, so it gives no result"
        text = (
            f"guard after step {guard.step:,}, against the baseline after as many steps: {better_or_worse(found.gap)}"
        )
        if report.forecast is None:
            return f"{text}; a forecast needs two guards"
        text += f"; forecast for the end: {better_or_worse(report.forecast.gap_at_end)}"
        if report.forecast.interval is None:
            return f"{text} (no interval: the baseline has one seed per length)"
        return f"{text} (95% interval: {better_or_worse_range(*report.forecast.interval)})"


def parse_shares(text: str) -> tuple[float, ...]:
    """`0.1,0.25` as shares of the recovery in rising order."""
    try:
        shares = sorted(float(part) for part in text.split(","))
    except ValueError:
        shares = []
    if not shares or len(set(shares)) < len(shares) or not all(0 < share < 1 for share in shares):
        raise UserError(
            f"--guard-at {text}: different shares of the recovery are needed, above 0 and under 1, such as 0.1,0.25"
        )
    return tuple(shares)


def place_guards(settings: TrainConfig, schedule: Schedule, shares: tuple[float, ...]) -> tuple[Guard, ...]:
    """The guards of a run. A branch decays over the same share of its steps as a run does.

    Raises:
        UserError: for a run without superposition, or for guards in the warm-up, in the decay, or at the same step.
    """
    if schedule.switch_step == 0:
        raise UserError("--guard: this run has no superposition (superposition.bag_size, superposition.ratio)")
    ratio = settings.decay_ratio
    last = build_learning_rate(settings).steps_before_decay
    guards: list[Guard] = []
    for share in shares:
        step = schedule.switch_step + max(1, round(share * (schedule.total_steps - schedule.switch_step)))
        guard = Guard(step, max(_LEAST_DECAY, round(step * ratio / (1 - ratio)) if ratio < 1 else 0))
        reason = None
        if step > last:
            reason = f"the learning rate decays from step {last:,} on"
        elif step < settings.num_warmup_steps:
            reason = f"the warm-up ends at step {settings.num_warmup_steps:,}"
        elif guards and guards[-1].step == step:
            reason = "another guard is at the same step"
        elif guard.total_steps >= schedule.total_steps:
            reason = f"its branch would end at step {guard.total_steps:,}, and the run ends at {schedule.total_steps:,}"
        if reason is not None:
            raise UserError(f"--guard-at {share:g}: no guard can be at step {step:,}: {reason}; move the guards")
        guards.append(guard)
    return tuple(guards)


def branch_settings(config: RunConfig, schedule: Schedule, guard: Guard) -> RunConfig:
    """The configuration of a branch: the run's, except for its end and what it writes."""
    values = config.model_dump(mode="json")
    values["superposition"] = {"stages": schedule.as_dicts()[:-1]}  # the last is the recovery, which gets the rest
    values["train"] |= {
        "total_steps": guard.total_steps,
        "warmup_ratio": None,
        "warmup_steps": config.train.num_warmup_steps,
        "decay_ratio": guard.branch_steps / guard.total_steps if config.train.decay_steps else 0.0,
    }
    values["logging"] |= {
        "validation_interval": guard.total_steps,
        "keep_checkpoints": 1,
        "keep_checkpoint_steps": [],
        "trackers": [],
    }
    return parse_config(values)


def _read_report(file: Path) -> Report:
    try:
        report = read_report(file)
    except FileNotFoundError:
        raise UserError(
            f"--guard {file}: does not exist; give the folder of a study with several budgets (tst compare --budgets)"
        ) from None
    except UserError as error:
        raise UserError(f"--guard {error}") from None
    if report.arms[0].switch_step > 0:
        raise UserError(f"--guard {file}: its first arm, {report.arms[0].name!r}, has superposition: no baseline")
    return report


def _check_comparable(file: Path, report: Report, config: RunConfig) -> None:
    """Refuse a baseline that differs in what changes a loss without being superposition.

    The learning rate, the warm-up and the weight decay may differ: each arm at its best is the fair comparison. A key
    of the model that only one of the two has may be its default, and is not compared.
    """
    corpora, settings, model = Corpora.open(config.data), config.train, report.model
    with abstract():
        built: Any = corpora.model_spec(config.model).build_unchecked()
    parameters = sum(parameter.numel() for parameter in built.parameters())
    tokens = Validators(config, corpora).num_tokens(config.logging.validation_tokens)
    theirs, ours = report.settings, settings.model_dump(mode="json")
    facts: dict[str, tuple[Any, Any]] = {
        "model.architecture": (model.architecture, config.model.architecture),
        "the number of parameters": (model.parameters, parameters),
        "model.init_from": (bool(model.init_from), bool(config.model.init_from)),
        "train.batch_size * train.sequence_length": (
            theirs.batch_size * theirs.sequence_length,
            settings.positions_per_step,
        ),
        "train.sequence_length": (theirs.sequence_length, settings.sequence_length),
        "the number of validation tokens": (report.data.validation_tokens_used, tokens),
        "the tokenizer": (report.data.tokenizer, corpora.tokenizer.name),
        "the number of training tokens": (report.data.train_tokens, corpora.num_tokens),
        "the number of training bytes": (report.data.train_bytes, corpora.num_bytes),
    }
    said = theirs.model_dump(mode="json")
    facts |= {f"train.{key}": (said[key], ours[key]) for key in _SAME_TRAINING if said.get(key) is not None}
    own = config.model.config
    facts |= {f"model.config.{key}": (value, own.get(key, value)) for key, value in (model.config or {}).items()}
    runs = sorted((file.parent / "runs" / report.arms[0].name).glob("**/seed-*/run.json"))
    record = RunFolder(runs[0].parent).read_record() if runs else None
    if record is not None:
        facts["the fingerprint of the data"] = (record.data_fingerprint, corpora.fingerprint)
    for name, (there, here) in facts.items():
        if there != here:
            raise UserError(
                f"--guard {file}: is no baseline for this run: {name} is {there!r} there and {here!r} here; take a "
                "study with the same model, batch, data and validation"
            )
