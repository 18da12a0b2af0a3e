"""`slot_weights: mutual_information` in a run: measured on its data once, when it starts, and the same from then on.

One measurement serves every stage, out to twice the largest bag: the law is of the corpus, and a bag of s takes its
first s values. What came out stands in the run's `config.yaml` and stages as `mutual_information:C0,a,k`, and the
estimates in its `run.json`, so that a run that goes on, another machine and an export need no corpus to know it.
"""

from __future__ import annotations

from typing import Any

from token_superposition.data.mutual_information import MutualInformation
from token_superposition.plan.slot_weights import MEASURED
from token_superposition.train.config import RunConfig
from token_superposition.train.corpora import Corpora


def measure_slot_weights(config: RunConfig) -> tuple[RunConfig, MutualInformation | None]:
    """The configuration with the numbers of the weights that are to be measured, and the measurement, if any was.

    Takes seconds where a superposition stage asks for it.

    Raises:
        UserError: where the data is too short for it, or shows no decay.
    """
    bag_sizes = [stage.bag_size for stage in config.schedule().stages if stage.slot_weights == MEASURED]
    if max(bag_sizes, default=1) == 1:
        return config, None
    found = Corpora.open(config.data).measure_mutual_information(max(bag_sizes))
    part = config.superposition
    if part.stages is None:
        part = part.model_copy(update={"slot_weights": found.slot_weights})
    else:
        stages = [
            stage.model_copy(update={"slot_weights": found.slot_weights}) if stage.slot_weights == MEASURED else stage
            for stage in part.stages
        ]
        part = part.model_copy(update={"stages": stages})
    return config.model_copy(update={"superposition": part}), found


def take_measured(settled: dict[str, Any], stored: dict[str, Any]) -> None:
    """Put the numbers that a run measured when it started where its configuration asks for them again.

    Args:
        settled: the `superposition` section that was given; changed in place.
        stored: that of the run.
    """
    givens, before = (part.get("stages") or [part] for part in (settled, stored))
    for given, old in zip(givens, before, strict=False):  # of other stages the run is refused anyway
        if given["slot_weights"] == MEASURED and old["slot_weights"].startswith(f"{MEASURED}:"):
            given["slot_weights"] = old["slot_weights"]
