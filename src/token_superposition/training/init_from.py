"""The trained model that a run starts from (`model.init_from`).

The model is in the folder of a run, in an export of this package, or in any other Hugging Face folder. A run provides
the weights of its newest intact checkpoint; the other folders provide safetensors files. The new run takes architecture
and configuration from the folder and stores them in its config.yaml. After its first checkpoint the new run no longer
needs the folder.

The tokenizer of the data must be the tokenizer of the model, because the weights are useless for other token ids. Runs
and exports of this package record their tokenizer. A model from the superposition phase is refused, because a
continuation would also need the optimizer state and the position in the schedule, which the weights do not contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from token_superposition.data.tokenizers import Tokenizer
from token_superposition.errors import UserError
from token_superposition.models.build import check_keys
from token_superposition.models.pretrained import check_files, load_weights, read_config
from token_superposition.models.spec import ModelSpec
from token_superposition.training.config import ModelConfig, RunConfig
from token_superposition.training.provenance import Origin, check_usable, read_origin
from token_superposition.training.trained import TrainedRun, open_trained

_KEY = "model.init_from"
NO_EVIDENCE = (
    f"{_KEY} with superposition: there is no evidence that superposition helps a model that is already trained "
    "(docs/continuing.md); compare with a baseline"
)


@dataclass(frozen=True)
class InitialModel:
    """A trained model to start from; its weights are not loaded yet.

    Attributes:
        given: the value of `model.init_from`.
        folder: folder of the model.
        architecture, keys: architecture and configuration, as arguments of `ModelSpec`.
        origin: how the model was trained; None if this package did not train it.
        run: the run in the folder; None for a Hugging Face folder.
        warnings: warnings for the user.
    """

    given: str
    folder: Path
    architecture: str
    keys: dict[str, Any]
    origin: Origin | None
    run: TrainedRun | None
    warnings: list[str]

    @property
    def words(self) -> str:
        """The model as text for messages, such as `runs/base (step 300 of 2,000)`."""
        return self.given if self.origin is None else f"{self.given} ({self.origin.words})"

    def fill(self, model: nn.Module) -> dict[str, Any]:
        """Load the weights into a model that was built from `architecture` and `keys`.

        Returns:
            The record that the run keeps: `path` (the given value), `origin` (see `Origin`, or None), and `weights` (a
            checksum of all weights).

        Raises:
            UserError: if the weights are damaged or do not match the model.
        """
        try:
            if self.run is not None:
                self.run.fill(model)
            else:
                load_weights(model, self.folder)
        except UserError as error:
            raise UserError(f"{_KEY}: {error}") from None
        origin = None if self.origin is None else asdict(self.origin)
        return {"path": self.given, "origin": origin, "weights": _checksum(model)}


def open_source(config: RunConfig, tokenizer: Tokenizer) -> InitialModel | None:
    """Find the model that a run without a checkpoint starts from; None for a run with new weights.

    Args:
        config: the run's configuration.
        tokenizer: the tokenizer of the run's data.

    Raises:
        UserError: if the model is missing or damaged, is from the superposition phase, or has another tokenizer than
            the data.
    """
    given = config.model.init_from
    if given is None:
        return None
    try:
        source = _open(given, _find(given))
    except UserError as error:
        raise UserError(f"{_KEY}: {error}") from None
    return replace(source, warnings=[*source.warnings, *check_tokenizer(source, tokenizer)])


def settle_model(
    given: ModelConfig, architecture: str, keys: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The `model` section of a run that starts from a model with this architecture and configuration.

    Raises:
        UserError: if a key of the user contradicts the model; names the key.
    """
    if "architecture" in given.model_fields_set and given.architecture != architecture:
        raise UserError(
            f"model.architecture: {given.architecture!r} contradicts {given.init_from}, which is {architecture!r}; "
            "remove the key"
        )
    check_keys(architecture, given.config)
    meant = ModelSpec.for_tokenizer(architecture, keys, tokenizer).resolved()
    for key, value in given.config.items():
        # Older configurations have the keys of rope_parameters at the top level.
        found = (getattr(meant, "rope_parameters", None) or {}).get(key, getattr(meant, key, None))
        if not _agrees(value, found):
            raise UserError(
                f"model.config.{key}: {value!r} contradicts {given.init_from}, which has {found!r}; remove the key"
            )
    return {**given.model_dump(mode="json"), "architecture": architecture, "config": dict(keys)}


def check_tokenizer(source: InitialModel, tokenizer: Tokenizer) -> list[str]:
    """Compare the tokenizers of model and data; returns a warning if the model's tokenizer is unknown.

    Raises:
        UserError: if the tokenizers differ, or the data can contain ids outside the model's vocabulary.
    """
    theirs = source.origin
    if theirs is not None:
        if theirs.fingerprint == tokenizer.fingerprint:
            return []
        raise UserError(
            f"{_KEY}: {source.given} was trained with tokenizer {theirs.tokenizer!r} ({theirs.fingerprint[:12]}), but "
            f"the data was prepared with {tokenizer.name!r} ({tokenizer.fingerprint[:12]}); "
            "prepare the data with the model's tokenizer"
        )
    if source.keys["vocab_size"] < tokenizer.num_ids:
        raise UserError(
            f"{_KEY}: {source.given} has a vocabulary of {source.keys['vocab_size']:,} ids, but tokenizer "
            f"{tokenizer.name!r} of the data has {tokenizer.num_ids:,}; prepare the data with the model's tokenizer"
        )
    return [
        f"{_KEY}: the tokenizer of {source.given} is unknown; if it differs from tokenizer {tokenizer.name!r} of the "
        "data, the validation loss at step 0 is as high as without training, or higher"
    ]


def _find(given: str) -> Path:
    """The folder with this path, or the folder of a downloaded model with this name on the Hugging Face Hub."""
    path = Path(given)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{given}: is a file; give the folder that contains it")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(given, local_files_only=True))
    except Exception:  # not a valid name of a model, or not in the cache
        raise UserError(
            f"{given}: no such folder, and no model of that name in the Hugging Face cache (get it with: hf download)"
        ) from None


def _open(given: str, folder: Path) -> InitialModel:
    advice = "finish the run of this model first, then start from the finished run"
    if (folder / "config.yaml").exists():
        run = open_trained(folder)
        warnings = [*run.warnings, *check_usable(folder, run.origin, advice=advice)]
        part = run.run.config.model
        return InitialModel(given, folder, part.architecture, dict(part.config), run.origin, run, warnings)
    if (folder / "config.json").exists():
        check_files(folder)
        origin = read_origin(folder)
        warnings = [] if origin is None else check_usable(folder, origin, advice=advice)
        return InitialModel(given, folder, *read_config(folder), origin, None, warnings)
    raise UserError(f"{folder}: is neither a run (no config.yaml) nor a Hugging Face folder (no config.json)")


def _agrees(given: Any, found: Any) -> bool:
    """Whether a given value equals the model's value; a given section may contain only some of the keys."""
    if isinstance(given, dict) and isinstance(found, dict):
        return all(key in found and _agrees(value, found[key]) for key, value in given.items())
    return bool(given == (list(found) if isinstance(found, tuple) else found))


def _checksum(model: nn.Module) -> str:
    """A BLAKE2b checksum, in hex, of all weights and their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
