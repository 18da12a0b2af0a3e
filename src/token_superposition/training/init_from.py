"""What a run goes on from: `model.init_from`, a trained model of ours or of anybody's.

The folder of a run gives its newest whole checkpoint; an export of ours and any other Hugging Face folder give
their safetensors. Architecture and configuration are the folder's, and the run's config.yaml keeps them: from its
first checkpoint on the run needs the folder no more, and does not look at it again.

Weights mean nothing for the ids of another tokenizer, so the data's must be the one that the model was trained
with. Ours say which that was. A model that still predicts bags is refused: its run keeps an optimizer and a place in
its schedule that are not in the weights, so going on from them is not going on with that run.
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
from token_superposition.training.datasets import Corpora
from token_superposition.training.provenance import Origin, check_usable, read_origin
from token_superposition.training.trained import TrainedRun, open_trained

_KEY = "model.init_from"
NO_EVIDENCE = (
    f"{_KEY} with superposition: there is no evidence that it helps a model that is trained already "
    "(docs/continuing.md); compare with a baseline"
)


@dataclass(frozen=True)
class InitialModel:
    """A trained model to go on from, its weights still on the disk.

    Attributes:
        given: what the user wrote.
        folder: where it lies.
        architecture, keys: its own, as `ModelSpec` takes them.
        origin: how it was trained; None for somebody else's.
        run: the run whose folder it is; None for a Hugging Face folder.
        warnings: what the user should know.
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
        """For people, such as `runs/base (step 300 of 2,000)`."""
        return self.given if self.origin is None else f"{self.given} ({self.origin.words})"

    def fill(self, model: nn.Module) -> dict[str, Any]:
        """Give a model that was built from `architecture` and `keys` the weights.

        Returns:
            What the run remembers of it: `path` as it was given, `origin` (see `Origin`, or None), and `weights`, a
            checksum of all of them.

        Raises:
            UserError: where they are damaged, or do not fit the model.
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


def open_source(config: RunConfig) -> InitialModel | None:
    """What a run that has no checkpoint yet is to go on from; None where it begins with fresh weights.

    Raises:
        UserError: where it is not there, is damaged, still predicts bags, or is of another tokenizer than the data.
    """
    given = config.model.init_from
    if given is None:
        return None
    tokenizer = Corpora.open(config.data).tokenizer
    try:
        source = _open(given, _find(given))
    except UserError as error:
        raise UserError(f"{_KEY}: {error}") from None
    return replace(source, warnings=[*source.warnings, *check_tokenizer(source, tokenizer)])


def settle_model(
    given: ModelConfig, architecture: str, keys: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """The `model` section of a run that goes on from a model of this architecture and configuration.

    Raises:
        UserError: where the user's keys contradict; names the key.
    """
    if "architecture" in given.model_fields_set and given.architecture != architecture:
        raise UserError(
            f"model.architecture: {given.architecture!r} contradicts {given.init_from}, which is {architecture!r}; "
            "leave the key out"
        )
    check_keys(architecture, given.config)
    meant = ModelSpec.for_tokenizer(architecture, keys, tokenizer).resolved()
    for key, value in given.config.items():
        found = (getattr(meant, "rope_parameters", None) or {}).get(key, getattr(meant, key, None))  # an older place
        if not _agrees(value, found):
            raise UserError(
                f"model.config.{key}: {value!r} contradicts {given.init_from}, which has {found!r}; leave the key out"
            )
    return {**given.model_dump(mode="json"), "architecture": architecture, "config": dict(keys)}


def check_tokenizer(source: InitialModel, tokenizer: Tokenizer) -> list[str]:
    """What is to be said of the model's tokenizer and the data's, where they cannot be compared.

    Raises:
        UserError: where they are known to differ, or the data may hold ids that the model has not.
    """
    theirs = source.origin
    if theirs is not None:
        if theirs.fingerprint == tokenizer.fingerprint:
            return []
        raise UserError(
            f"{_KEY}: {source.given} was trained with tokenizer {theirs.tokenizer!r} ({theirs.fingerprint[:12]}), and "
            f"the data was prepared with {tokenizer.name!r} ({tokenizer.fingerprint[:12]}); prepare it with the model's"
        )
    if source.keys["vocab_size"] < tokenizer.num_ids:
        raise UserError(
            f"{_KEY}: {source.given} has a vocabulary of {source.keys['vocab_size']:,} ids, and tokenizer "
            f"{tokenizer.name!r} of the data has {tokenizer.num_ids:,}; prepare the data with the model's tokenizer"
        )
    return [
        f"{_KEY}: whether {source.given} was trained with tokenizer {tokenizer.name!r}, as the data was prepared, "
        "cannot be told; if it was not, the validation loss at step 0 is that of no training, or worse"
    ]


def _find(given: str) -> Path:
    """The folder of that path, or of a model of that name that has been downloaded before."""
    path = Path(given)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{given}: is a file; name the folder it lies in")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(given, local_files_only=True))
    except Exception:  # no name that a model could have, or none that is there
        raise UserError(
            f"{given}: no such folder, and no model of that name in the Hugging Face cache (hf download puts it there)"
        ) from None


def _open(given: str, folder: Path) -> InitialModel:
    mend = "let its own run finish, and go on from that"
    if (folder / "config.yaml").exists():
        run = open_trained(folder)
        warnings = [*run.warnings, *check_usable(folder, run.origin, mend=mend)]
        return InitialModel(given, folder, run.architecture, run.keys, run.origin, run, warnings)
    if (folder / "config.json").exists():
        check_files(folder)
        origin = read_origin(folder)
        warnings = [] if origin is None else check_usable(folder, origin, mend=mend)
        return InitialModel(given, folder, *read_config(folder), origin, None, warnings)
    raise UserError(f"{folder}: is neither a run (no config.yaml) nor a Hugging Face folder (no config.json)")


def _agrees(given: Any, found: Any) -> bool:
    """Whether a key says what is there; of a section of keys, a part of it is enough."""
    if isinstance(given, dict) and isinstance(found, dict):
        return all(key in found and _agrees(value, found[key]) for key, value in given.items())
    return bool(given == (list(found) if isinstance(found, tuple) else found))


def _checksum(model: nn.Module) -> str:
    """BLAKE2b, in hex, over every weight and its name."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
