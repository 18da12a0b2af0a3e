"""Which bag size, ratio and slot weights a run is to have.

Of the settings that were measured on this kind of tokens, those whose mean gain is within noise of the best are as good
as each other, and of these the one that reads the fewest raw tokens is taken: the optimum is flat, and data is what
superposition is paid with. Sweeps come first, for they have every setting of one run; but what gained near in size
comes before sweeps that are far, and a setting that lost near in size is not taken, nor an untried one of bags as large
as lost there. Where the corpus is too small to be read once, only settings that fit it are asked, near ones and then
those of far sweeps; then `output_only`, which reads no more than ordinary training; and where even that has to repeat
text, none: data is short then, not compute, and at equal data superposition loses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from token_superposition.formatting import three_figures
from token_superposition.planner.estimate import mean_gain, speedup_range
from token_superposition.planner.measured_runs import Cell, MeasuredStudy, RunSize, Start, Unit, of_kind, paper_runs
from token_superposition.planner.workload import PlannedCorpus
from token_superposition.schedule import Mode, Schedule
from token_superposition.study.significance import NOISE

LARGEST_BAG = 8  # above it bags read more for no more gain, and uniform slot weights are no longer the best


@dataclass(frozen=True)
class Setting:
    """How a run is superposed; bag size 1 is not at all."""

    bag_size: int = 1
    ratio: float = 0.0
    mode: Mode = "full"
    slot_weights: str = "uniform"

    def schedule(self, total_steps: int) -> Schedule:
        """The stages of a run of so many steps."""
        return Schedule.two_phase(
            total_steps, self.bag_size, self.ratio, mode=self.mode, slot_weights=self.slot_weights
        )

    @property
    def cell(self) -> Cell:
        """Where in the sweeps it is."""
        return self.bag_size, self.ratio


@dataclass(frozen=True)
class Need:
    """What is asked for advice.

    Attributes:
        scale, total_steps, positions_per_step: of the ordinary run.
        unit, start: of its tokens and weights.
        corpus: None where it is not known, and then taken as enough.
        less_cost: whether the saving is taken as a shorter run, rather than as a lower loss.
    """

    scale: RunSize
    total_steps: int
    positions_per_step: int
    unit: Unit
    start: Start
    corpus: PlannedCorpus | None
    less_cost: bool = False


def choose(need: Need) -> tuple[Setting, list[str]]:
    """The setting for a run, and what it rests on: the first of the three kinds above that its corpus suffices for."""
    kind = of_kind(need.unit, need.start)
    near = [study for study in kind if study.scale.near(need.scale)]
    # By what is most likely, not by what is certain: of that the range speaks.
    helpful = [study for study in kind if any(gain > NOISE for gain, _ in study.gains.values())]
    sweeps = [study for study in helpful if study.is_sweep]
    beside = [study for study in sweeps if study in near] or [study for study in helpful if study in near]
    among = beside or sweeps or helpful

    def allowed(cell: Cell) -> bool:
        return not _lost_near(cell, near)

    best = _cheapest_of_the_best(among, allowed)
    if best is None and among:
        return Setting(), [
            f"of the settings that help elsewhere {kind_words(need)} none is lighter than what lost near"
        ]
    if best is None:
        return Setting(), [f"nothing was measured that helps {kind_words(need)}"]
    if fits(need, Setting(*best)):
        more = 1 + best[1] * (best[0] - 1)
        where = "" if beside else " of runs of other sizes"
        return Setting(*best), [
            f"bags of {best[0]} for {best[1]:.0%} of the steps: within noise ({NOISE} nats) of the best measured "
            f"setting{where}, and of those the one that reads least ({three_figures(more)} times the text)"
        ]
    fit = (
        _cheapest_of_the_best(pool, lambda cell: allowed(cell) and fits(need, Setting(*cell)))
        for pool in (among, sweeps)
    )
    fitting = next((cell for cell in fit if cell is not None), None)
    short = f"{need.corpus} is too small to read bags of {best[0]} for {best[1]:.0%} of the steps once"
    if fitting is not None:
        return Setting(*fitting), [f"{short}; bags of {fitting[0]} for {fitting[1]:.0%} fit"]
    output_only = Setting(best[0], best[1], "output_only")
    if fits(need, output_only):
        return output_only, [
            f"{short}, and no measured setting fits: output_only reads no more than ordinary training. The paper "
            "says that it helps, less than both halves together, and gives no figures; on bytes, in three seeds of a "
            "tiny model, it was level with ordinary training (docs/results.md)"
        ]
    return Setting(), [too_little_text(need)]


def _lost_near(cell: Cell, near: Sequence[MeasuredStudy]) -> bool:
    """Whether a setting lost in the studies near in size, or, where they have not tried it, whether such bags did.

    Bags no smaller than those that lost at every ratio that was tried are taken to lose too.
    """
    gain = mean_gain(cell, near)
    if gain is not None:
        return gain < -NOISE
    gains: dict[int, list[float]] = defaultdict(list)
    for tried in {tried for study in near for tried in study.gains}:
        gains[tried[0]].append(mean_gain(tried, near) or 0.0)
    return any(cell[0] >= bag_size and max(found) < -NOISE for bag_size, found in gains.items())


def _cheapest_of_the_best(among: Sequence[MeasuredStudy], allowed: Callable[[Cell], bool]) -> Cell | None:
    """Of the allowed settings within noise of the best mean gain, the one that reads least; None where none gains."""
    cells = sorted({cell for study in among for cell in study.gains if cell[0] <= LARGEST_BAG})
    means = {cell: gain for cell in cells if allowed(cell) and (gain := mean_gain(cell, among)) is not None}
    means = {cell: gain for cell, gain in means.items() if gain > NOISE}
    if not means:
        return None
    enough = max(means.values()) - NOISE
    return min((cell for cell in means if means[cell] >= enough), key=lambda cell: (cell[1] * (cell[0] - 1), cell))


def fits(need: Need, setting: Setting) -> bool:
    """Whether no text is read twice."""
    return need.corpus is None or need.corpus.holds(raw_tokens(need, setting))


def raw_tokens(need: Need, setting: Setting) -> int:
    """What the run reads, which is shorter where the saving is taken as cost."""
    steps = need.total_steps
    if need.less_cost and setting.mode == "full":
        speedup = speedup_range(need.scale, setting.cell, need.unit, need.start)
        steps = steps_at(steps, speedup.low) if speedup is not None else steps
    return setting.schedule(steps).raw_tokens(need.positions_per_step)


def steps_at(total_steps: int, speedup: float) -> int:
    """Steps of a run that is so many times shorter."""
    return max(1, round(total_steps / speedup))


def too_little_text(need: Need) -> str:
    """That ordinary training repeats the corpus, and what was measured at equal data."""
    runs = paper_runs()
    pairs = [
        (a, b)
        for a in runs
        for b in runs
        if a.model == b.model and a.arm == "tst" and b.arm == "baseline" and a.raw_tokens == b.raw_tokens
    ]
    losses = "; ".join(f"{a.model}: {a.final_loss:.3f} against {b.final_loss:.3f}" for a, b in pairs)
    return (
        f"ordinary training already reads {need.corpus} more than once: "
        f"text is short, not compute, and at equal data superposition loses ({losses})"
    )


def kind_words(need: Need) -> str:
    """What kind of run it is, to follow a noun: `on bytes`."""
    going_on = ", going on from trained weights" if need.start == "trained" else ""
    return f"on {need.unit}{going_on}"
