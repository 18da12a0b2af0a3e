"""The record of how a model was trained, which an export contains as `token_superposition.json`.

    {"format": "token_superposition.export", "version": 1, "origin": {...}, "figures": {...}}

A model from the superposition phase predicts bags of tokens. If it is evaluated or sampled as a next-token model, its
results are bad without an error. The package therefore refuses such a model unless the user allows it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from token_superposition.errors import UserError
from token_superposition.files import is_whole_number
from token_superposition.schedule import Phase, Schedule

ORIGIN_FILE = "token_superposition.json"
EXPORT_FORMAT = "token_superposition.export"
EXPORT_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """How a model was trained.

    Attributes:
        step, total_steps: completed optimizer steps, and steps of the whole run.
        phase: phase of the last completed step, "superposition" or "recovery".
        stages: stages of the run, in the form of `Schedule.as_dicts`.
        sequence_length: latent positions per training row.
        tokenizer, fingerprint: name and fingerprint of the tokenizer of the training data.
        init_from: the model that the run started from: the given `path`, and the `origin` of that model if it is known;
            None for a run that started with new weights.
    """

    step: int
    total_steps: int
    phase: str
    stages: list[dict[str, Any]]
    sequence_length: int
    tokenizer: str
    fingerprint: str
    init_from: dict[str, Any] | None = None

    @property
    def words(self) -> str:
        """The training progress as text, such as `step 300 of 2,000`."""
        return f"step {self.step:,} of {self.total_steps:,}"


def check_usable(
    path: Path,
    origin: Origin,
    *,
    allow_superposed: bool = False,
    advice: str = "train it into the recovery phase, or use --allow-superposed",
) -> list[str]:
    """Check that a model is ready for use; returns warnings.

    Args:
        path: folder of the model.
        origin: how the model was trained.
        allow_superposed: accept a model from the superposition phase.
        advice: end of the error message for such a model.

    Raises:
        UserError: for a model from the superposition phase, unless it is allowed.
    """
    if origin.phase == "superposition":
        if not allow_superposed:
            raise UserError(
                f"{path}: this model ({origin.words}) is still in the superposition phase: it predicts bags of tokens, "
                f"not the next token; {advice}"
            )
        return [f"{path}: {origin.words} is in the superposition phase; its next-token predictions are not meaningful"]
    if origin.step < origin.total_steps:
        return [f"{path}: the training of this model is not finished ({origin.words})"]
    return []


def write_origin(folder: Path, origin: Origin, figures: dict[str, Any]) -> None:
    """Write `token_superposition.json` into the folder of an export."""
    content = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION, "origin": asdict(origin), "figures": figures}
    (folder / ORIGIN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Read how an exported model was trained; None for a folder that is not an export of this package.

    Raises:
        UserError: if the file exists but is unreadable, because the model might be from the superposition phase.
    """
    file = folder / ORIGIN_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != EXPORT_FORMAT or content["version"] != EXPORT_VERSION:
            raise ValueError
        return _checked(content["origin"])
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{file}: is damaged or of another version; export the run again") from None


def _checked(values: dict[str, Any]) -> Origin:
    """Convert and check the content of a file, including nested origins; raises ValueError and others."""
    origin = Origin(**values)
    Schedule.from_dicts(origin.stages)
    numbers, texts = (origin.step, origin.total_steps, origin.sequence_length), (origin.tokenizer, origin.fingerprint)
    if not all(map(is_whole_number, numbers)) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if origin.phase not in get_args(Phase):
        raise ValueError
    if origin.init_from is not None:
        if not isinstance(origin.init_from["path"], str):
            raise ValueError
        if origin.init_from["origin"] is not None:
            _checked(origin.init_from["origin"])
    return origin
