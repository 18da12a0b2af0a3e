"""A guarded run: it is trained up to each guard, a branch leaves there and decays, and then it goes on, or stops.

All of it happens in one process, one run after the other, so memory holds one model. The run itself stops at a guard as
an interrupted run does and is gone on with: it comes to the same bits as without guards. Branches are ordinary run
folders, `RUN/guard/step-NNNNNNN/`. What they came to is read from there at every start, and the forecast is made anew
from it: `guard.json` is written for people and never read back, and a start after a kill repeats no guard.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from token_superposition.errors import RunError, TrainingDivergedError, UserError
from token_superposition.files import write_json
from token_superposition.models.build import model_cost
from token_superposition.models.step_memory import abstract
from token_superposition.progress import say, warn
from token_superposition.study.guard.baseline import (
    Baseline,
    data_facts,
    fingerprint_fact,
    model_facts,
    read_baseline,
    size_facts,
    training_facts,
)
from token_superposition.study.guard.placement import (
    Guard,
    GuardPlan,
    branch_settings,
    parse_fractions,
    place_guards,
)
from token_superposition.study.guard.projection import GuardReading, baseline_loss, forecast, pooled_deviation
from token_superposition.training.branch import make_branch
from token_superposition.training.checkpoint import checkpoint_path, checkpoint_steps
from token_superposition.training.config import RunConfig
from token_superposition.training.datasets import Corpora, Validators
from token_superposition.training.loop import train
from token_superposition.training.run import Run, branch_config
from token_superposition.training.run_folder import RunFolder

IfBehind = Literal["stop", "go-on"]


@dataclass(frozen=True)
class GuardRequest:
    """What was asked for.

    Attributes:
        baseline: a study's folder or report, or finished runs.
        at: where in the recovery the guards are, such as `0.1,0.25`.
        if_behind: what to do where superposition is forecast to end behind.
        stop_below: the probability of being ahead under which that is.
    """

    baseline: Sequence[Path]
    at: str
    if_behind: IfBehind
    stop_below: float

    @property
    def stops(self) -> bool:
        """Whether a forecast can end the run."""
        return self.if_behind == "stop"


def prepare_guard(config: RunConfig, path: Path, request: GuardRequest) -> GuardedRun:
    """Everything that can be said, and refused, before anything is trained or written.

    Args:
        config: the run's configuration.
        path: the run's folder; what is there is gone on with.
        request: what was asked for.

    Raises:
        UserError: for what the run itself would be refused for; for a baseline that is not there, not comparable or
            too short; for guards where the run can have none; for a stop that no forecast could ask for.
    """
    fractions = parse_fractions(request.at)
    if not 0 < request.stop_below < 1:
        raise UserError(f"--stop-below is a probability above 0 and under 1, not {request.stop_below:g}")
    baseline, folder = read_baseline(request.baseline), RunFolder(path)
    if request.stops and len(fractions) < 2:
        raise UserError(f"--if-behind stop needs two guards for a forecast, and --guard-at {request.at} is one")
    if request.stops and pooled_deviation(baseline.curve) is None:
        raise UserError(
            f"--if-behind stop needs a probability, and every length of the baseline in {baseline.source} has one "
            "seed: give a baseline of two seeds or more, or leave it out"
        )
    run = Run.open(folder, config)
    settled, schedule = run.config, run.schedule
    facts, flops_per_step = _facts(settled)
    baseline.check_comparable(facts)
    guards = place_guards(settled.train, schedule, fractions)
    baseline.check_reach(guards[0].total_steps, guards[-1].total_steps)
    plan = GuardPlan(schedule, guards, flops_per_step)
    kept = sorted({*config.logging.keep_checkpoint_steps, schedule.switch_step})
    logging = config.logging.model_copy(update={"keep_checkpoint_steps": kept})
    guarded = GuardedRun(config.model_copy(update={"logging": logging}), folder, request, baseline, plan)
    guarded.check_begun(max(checkpoint_steps(folder.checkpoints), default=0))
    return guarded


@dataclass(frozen=True)
class GuardedRun:
    """A run and its guards, ready to start; `prepare_guard` makes it.

    Attributes:
        config: the run's, as given but that the checkpoint at the switch is kept.
        folder: the run's.
        request: what was asked for.
        baseline: what it is held against.
        plan: its guards.
    """

    config: RunConfig
    folder: RunFolder
    request: GuardRequest
    baseline: Baseline
    plan: GuardPlan

    def describe(self) -> list[str]:
        """What the guards will cost, in words."""
        seeds = sum(map(len, self.baseline.curve.values()))
        then = "goes on whatever is found"
        if self.request.stops:
            then = f"stops if the probability of being ahead is under {self.request.stop_below:g}"
        return [
            *self.plan.describe(),
            f"baseline: {self.baseline.source}, {seeds} runs of {min(self.baseline.curve):,} to "
            f"{max(self.baseline.curve):,} steps; the run {then}",
        ]

    def train(self, *, quiet: bool = False) -> dict[str, Any]:
        """Train it to its end, or until a forecast ends it; or go on with that.

        Returns:
            The run's summary, with what its guards found under `guard`.

        Raises:
            RunError: where it is forecast to end behind, and is to stop then. Started again it is raised at once.
            UserError, TrainingDivergedError, CheckpointError, KeyboardInterrupt: as `train` raises them.
        """
        if not quiet:
            for text in self.describe():
                say(text)
        for number, guard in enumerate(self.plan.guards):
            if not self._done(guard):
                self._train_branch(guard, quiet=quiet)
                found = self.result()
                write_json(self.folder.path / "guard.json", found)
                if not quiet:
                    say(_in_words(found, number))
            self._stop_if_behind()
        gc.collect()  # models are in cycles: without this the last branch's would still be in memory
        summary = train(self.config, self.folder.path, quiet=quiet)
        whole = {**summary, "guard": self.result()}
        if whole != summary:
            with self.folder as folder:
                folder.write_summary(whole)
        return whole

    def check_begun(self, steps_done: int) -> None:
        """Refuse a run that has passed a step whose checkpoint is needed and not there."""
        guards = [guard.step for guard in self.plan.guards if not self._branch(guard).config_file.exists()]
        for step in (self.plan.schedule.switch_step, *guards) if guards else ():
            if steps_done >= step and not checkpoint_path(self.folder.checkpoints, step).exists():
                raise UserError(
                    f"{self.folder.path}: this run is at step {steps_done:,} and has no checkpoint of step {step:,} "
                    "any more, which its guards need; go on without --guard, or name another folder for a new run"
                )

    def result(self) -> dict[str, Any]:
        """What the guards that are done found: what `guard.json` and the summary's `guard` hold.

        Returns:
            The plan's keys; each of `guards` besides with `loss`, `baseline_loss` and `gap` (nats, null where there is
            none yet, or the branch diverged); `baseline`; `forecast` (null before the first guard), as there.
        """
        switch, curve = self.plan.schedule.switch_step, self.baseline.curve
        guards: list[dict[str, Any]] = []
        readings = []
        for guard in self.plan.guards:
            loss = self._loss(guard)
            reference = baseline_loss(curve, guard.total_steps)
            gap = None if loss is None else loss - reference
            guards.append({"step": guard.step, "branch_steps": guard.branch_steps, "fraction": guard.fraction})
            guards[-1] |= {"loss": loss, "baseline_loss": reference, "gap": gap}
            if loss is not None:
                readings.append(GuardReading(guard.total_steps, guard.total_steps - switch, loss))
        recovery = self.plan.schedule.total_steps - switch
        return {
            **self.plan.as_dict(),
            "guards": guards,
            "baseline": self.baseline.as_dict(),
            "forecast": forecast(readings, curve, recovery) if readings else None,
        }

    def _train_branch(self, guard: Guard, *, quiet: bool) -> None:
        """The run up to the guard, and its branch to the end."""
        gc.collect()  # as in `train`; and once more before the branch
        path, branch = self.folder.path, self._branch(guard)
        train(self.config, path, quiet=quiet, stop_after=guard.step)
        gc.collect()
        run = Run.open(self.folder, self.config)
        config = branch_config(branch_settings(run.config, run.schedule, guard), run.stored)
        data = config.data.model_copy(update={"verify": False})  # the run itself has, a moment ago
        config = config.model_copy(update={"data": data})
        if not branch.config_file.exists():
            branch.path.parent.mkdir(exist_ok=True)
            make_branch(self.folder, branch.path, guard.step, config)
        if not quiet:
            say(f"guard after step {guard.step:,}: a branch of {guard.branch_steps:,} steps that decays from there")
        try:
            train(config, branch.path, quiet=quiet)
        except TrainingDivergedError as error:  # the guarded run has not
            warn(f"{error}; the run goes on without this guard")

    def _stop_if_behind(self) -> None:
        """End the run where the guards that are done say so, and it is to."""
        found = self.result()
        said = found["forecast"] or {}
        probability = said.get("probability_ahead")
        if not self.request.stops or probability is None or probability >= self.request.stop_below:
            return
        number = sum(map(self._done, self.plan.guards)) - 1
        spent = self.plan.spent(number)
        raise RunError(
            f"{self.folder.path}: stopped after step {self.plan.guards[number].step:,}: superposition is forecast to "
            f"end {_where(said['gap_at_end'])}, with a probability of {probability:.2f} of being ahead (--stop-below "
            f"{self.request.stop_below:g}); {spent:,} steps were spent, {self.plan.share(spent):.0%} of the run; the "
            f"checkpoint at the switch is kept in "
            f"{checkpoint_path(self.folder.checkpoints, self.plan.schedule.switch_step)}; --if-behind go-on goes on"
        )

    def _branch(self, guard: Guard) -> RunFolder:
        return RunFolder(self.folder.path / "guard" / f"step-{guard.step:07d}")

    def _done(self, guard: Guard) -> bool:
        branch = self._branch(guard)
        return branch.summary_file.exists() or branch.diverged_file.exists()

    def _loss(self, guard: Guard) -> float | None:
        summary = self._branch(guard).read_summary()
        return None if summary is None else float(summary["final_validation_loss"])


def _facts(config: RunConfig) -> tuple[dict[str, Any], int]:
    """What a baseline must have in common with a run of this settled configuration; and the FLOPs of a step."""
    corpora, settings = Corpora.open(config.data), config.train
    with abstract():
        model: Any = corpora.model_spec(config.model).build_unchecked()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        flops_per_position = model_cost(model).flops_per_position(settings.sequence_length)
    num_tokens = Validators(config, corpora).num_tokens(config.logging.validation_tokens)
    facts = {
        **model_facts(config.model.architecture, config.model.config, config.model.init_from),
        **size_facts(settings.batch_size, settings.sequence_length, parameters, num_tokens),
        **data_facts(corpora.tokenizer.name, corpora.num_tokens, corpora.num_bytes),
        **fingerprint_fact(corpora.fingerprint),
        **training_facts(settings.model_dump(mode="json")),
    }
    return facts, flops_per_position * settings.positions_per_step


def _in_words(found: dict[str, Any], number: int) -> str:
    """A line on what a guard found, and what follows for the end."""
    guard, said = found["guards"][number], found["forecast"]
    at = f"guard after step {guard['step']:,}"
    if guard["loss"] is None:
        return f"{at}: its branch diverged, so it says nothing"
    text = (
        f"{at}: loss {guard['loss']:.4f}, the baseline's after as many steps {guard['baseline_loss']:.4f}: "
        f"{_where(guard['gap'])}"
    )
    if said["gap_at_end"] is None:
        return f"{text}; no forecast yet: {said['reasons']['gap_at_end']}"
    text += f"; forecast for the end: {_where(said['gap_at_end'])}"
    if said["probability_ahead"] is None:
        return f"{text}; {said['reasons']['probability_ahead']}"
    low, high = said["interval"]
    return f"{text} ({said['confidence_level']:.0%} interval {low:+.4f} to {high:+.4f}), " + (
        f"ahead with a probability of {said['probability_ahead']:.2f}"
    )


def _where(gap: float) -> str:
    return f"{abs(gap):.4f} nats {'ahead' if gap < 0 else 'behind'}"
