"""Models in Hugging Face folders: what a stranger may have sent, or anybody downloaded.

Weights are safetensors or refused, for a pickle runs what it likes; code in the folder runs only where the caller
allows it; nothing is fetched from anywhere. Every weight of the model must be in the files, in its shape:
transformers itself puts a fresh one in the place of one that is missing, and only logs it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from token_superposition.errors import UserError
from token_superposition.models.build import SPECIAL_IDS, known_keys
from token_superposition.models.spec import ModelSpec

_LONGEST = 300  # characters of a library's message
_NO_CODE = "training never runs it"


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """A folder's architecture and configuration keys, whole, as `ModelSpec` takes them.

    Left out are the ids that begin and end a text and the one of padding: they are those of the data, as in every
    run, and a padding id would freeze a row of the embedding.

    Raises:
        UserError: where config.json cannot be read, names no causal language model of transformers, is of quantized
            weights, or means something else when the model is built from its keys.
    """
    from transformers import AutoConfig, PreTrainedConfig

    with quiet_transformers(), reading(folder, _NO_CODE):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{folder}: its weights are quantized, and cannot be trained; name the model they were made of")
    architecture: str = config.model_type
    try:
        known = known_keys(architecture) - PreTrainedConfig().to_dict().keys() - set(SPECIAL_IDS)
        values = json.loads(json.dumps(config.to_dict()))  # tuples are lists, as when they are read back
        keys = {key: values[key] for key in values if key in known}
        resolved = ModelSpec(architecture, keys, vocab_size=0, eos_id=0).resolved()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    meant = json.loads(json.dumps(resolved.to_dict()))
    for key in keys:
        if meant[key] != keys[key]:
            raise UserError(
                f"{folder}: its config.json has {key} {keys[key]!r}, which becomes {meant[key]!r} when a model is "
                "built from it, so the model would be another"
            )
    return architecture, keys


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Give a model that `ModelSpec.build` made from a folder's configuration that folder's weights: all, and no others.

    The weights go into the model that is there, so that one gone on from a checkpoint, which is built and filled the
    same way, computes the same bits.

    Args:
        model: in float32; weights of other types are converted.
        folder: with config.json and safetensors.

    Raises:
        UserError: as `load_pretrained`; also for a weight that the model has no place for, that is no finite number, or
            that config.json ties to another with other values.
    """
    config: Any = model.config
    loaded, unexpected = load_pretrained(folder, dtype=torch.float32, config=copy.deepcopy(config))
    if unexpected:
        raise UserError(f"{folder}: its weights have {_some(unexpected)}, for which {config.model_type} has no place")
    for name, parameter in loaded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{folder}: its weight {name!r} holds values that are no finite numbers")
    theirs = loaded.state_dict()
    model.load_state_dict(theirs)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, theirs[name]):
            raise UserError(f"{folder}: config.json ties its weight {name!r} to another one, and the two differ")


def load_pretrained(
    folder: Path, *, dtype: torch.dtype | str, config: Any = None, trust_remote_code: bool = False
) -> tuple[Any, list[str]]:
    """A folder's causal language model, on the CPU and in evaluation mode.

    Args:
        folder: with config.json and safetensors.
        dtype: of the model, whatever the files have; `auto` is the files' own.
        config: to build it from, instead of the folder's own.
        trust_remote_code: run code that lies in the folder.

    Returns:
        The model, and the names of weights in the files that it has no place for.

    Raises:
        UserError: where the folder is an adapter, has no safetensors, cannot be read, or lacks a weight.
    """
    from transformers import AutoModelForCausalLM

    check_files(folder)
    model_class: Any = AutoModelForCausalLM
    options = {} if config is None else {"config": config}
    with quiet_transformers(), reading(folder):
        model, found = model_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # it raises without their names: they are looked at below
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    if found["missing_keys"]:
        raise UserError(f"{folder}: its weights lack {_some(found['missing_keys'])}, and so do not fit its config.json")
    for name, in_file, in_model in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{folder}: its weight {name!r} has the shape {list(in_file)}, which by its config.json is {list(in_model)}"
        )
    return model, sorted(found["unexpected_keys"])


def check_files(folder: Path) -> None:
    """Refuse an adapter, and a folder without safetensors; UserError says how to mend it."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: is an adapter for another model; merge it into that model first")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: has no .safetensors weights (pickled ones are not loaded); where you trust them, convert them "
            "with AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )


@contextlib.contextmanager
def reading(folder: Path, code: str = "read it, then allow it with --trust-remote-code") -> Iterator[None]:
    """Whatever transformers raises inside the block, as one line that names the folder.

    Args:
        folder: what is read.
        code: what to say of code in the folder that transformers would have to run.
    """
    try:
        yield
    except Exception as error:  # a folder can be wrong in every way there is
        line = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in line:
            raise UserError(f"{folder}: needs code that lies in the folder; {code}") from error
        raise UserError(f"{folder}: cannot be loaded: {line[:_LONGEST]}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and remarks: what matters is checked and said in a line."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _some(names: Any) -> str:
    """One name, and how many more there are."""
    more = len(names) - 1
    return f"{min(names)!r}{f' and {more} more' if more else ''}"
