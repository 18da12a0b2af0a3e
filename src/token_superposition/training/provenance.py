"""What is known of how a model was trained; an export carries it as `token_superposition.json`.

    {"format": "token_superposition.export", "version": 1, "origin": {...}, "figures": {...}}

A model from the superposition phase predicts bags. Scored or sampled as if it predicted next tokens it looks
merely bad, so it is refused wherever it is used, until the user insists.
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
    """A trained model's past.

    Attributes:
        step, total_steps: optimizer steps completed, of the whole run.
        phase: of the last step trained, "superposition" or "recovery".
        stages: of the run, as `Schedule.as_dicts` gives them.
        sequence_length: latent positions of a training row.
        tokenizer, fingerprint: of the data it was trained on.
        init_from: the model that its run went on from: `path` as it was given, and its own `origin` where that is
            known; None for a run that began with fresh weights.
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
        """For people, such as `step 300 of 2,000`."""
        return f"step {self.step:,} of {self.total_steps:,}"


def check_usable(
    path: Path,
    origin: Origin,
    *,
    allow_superposed: bool = False,
    mend: str = "train it into recovery, or insist with --allow-superposed",
) -> list[str]:
    """What a user of this model should know.

    Args:
        path: where the model is from.
        origin: its past.
        allow_superposed: a model of the superposition phase is what the user wants.
        mend: what to do about one.

    Raises:
        UserError: for a model of the superposition phase, unless it is allowed.
    """
    if origin.phase == "superposition":
        if not allow_superposed:
            raise UserError(
                f"{path}: this model ({origin.words}) is still in the superposition phase: it predicts bags of tokens, "
                f"not the next one; {mend}"
            )
        return [f"{path}: {origin.words} is in the superposition phase; what it says of the next token means little"]
    if origin.step < origin.total_steps:
        return [f"{path}: this model is not trained to its end ({origin.words})"]
    return []


def write_origin(folder: Path, origin: Origin, figures: dict[str, Any]) -> None:
    """Put `token_superposition.json` into an export that is being written."""
    content = {"format": EXPORT_FORMAT, "version": EXPORT_VERSION, "origin": asdict(origin), "figures": figures}
    (folder / ORIGIN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """The past of an exported model; None for a folder that is not an export of ours.

    Raises:
        UserError: where the file is there but cannot be read: it may say that the model is superposed.
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
    """The past that a file tells, and those that it tells of in turn; ValueError and others where it is none."""
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
