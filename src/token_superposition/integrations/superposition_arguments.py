"""`SuperpositionArguments`: what a user adds to `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass, field

from token_superposition.schedule import Mode, Schedule


@dataclass
class SuperpositionArguments:
    """Arguments in addition to `TrainingArguments`; `HfArgumentParser` can parse both together.

    The help texts below explain the attributes. With `bag_size` 1 the Trainer behaves like the original Trainer.

    Example:
        >>> SuperpositionArguments(bag_size=6, superposition_ratio=0.25).schedule(total_steps=400).switch_step
        100
    """

    bag_size: int = field(default=1, metadata={"help": "Tokens per bag; 1 is ordinary training."})
    superposition_ratio: float = field(default=0.25, metadata={"help": "Share of the steps in superposition."})
    superposition_steps: int | None = field(
        default=None, metadata={"help": "The same as a number of steps; has priority."}
    )
    mode: Mode = field(default="full", metadata={"help": "full, output_only or input_only."})
    slot_weights: str = field(
        default="uniform",
        metadata={
            "help": "uniform, power_law[:1], exponential[:0.5], first_token or mutual_information:C0,a,k, "
            "which fit_mutual_information(tokens, bag_size).slot_weights returns."
        },
    )

    def schedule(self, total_steps: int) -> Schedule:
        """The stages of a run with `total_steps` steps; raises ValueError for numbers out of range."""
        ratio = self.superposition_ratio if self.superposition_steps is None else None
        return Schedule.two_phase(
            total_steps,
            self.bag_size,
            ratio,
            superposition_steps=self.superposition_steps,
            mode=self.mode,
            slot_weights=self.slot_weights,
        )
