"""Load models from Hugging Face folders, which may come from an untrusted source.

Weights must be safetensors, because a pickle can run arbitrary code. Code in the folder runs only if the caller allows
it. Nothing is downloaded. The files must hold every weight of the model in the right shape. transformers itself would
initialize a missing weight with random values and only log that.
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
    """Return the architecture and all configuration keys of a folder, as `ModelSpec` takes them.

    The token ids that begin or end a text and the padding id are left out. The dataset defines these ids in every run,
    and a padding id would freeze a row of the embedding.

    Raises:
        UserError: if config.json cannot be read, names no causal language model of transformers, describes quantized
            weights, or has a key whose value changes when the model is built from the keys.
    """
    from transformers import AutoConfig, PreTrainedConfig

    with quiet_transformers(), reading(folder, _NO_CODE):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{folder}: its weights are quantized and cannot be trained; name the model before its quantization"
        )
    architecture: str = config.model_type
    try:
        known = known_keys(architecture) - PreTrainedConfig().to_dict().keys() - set(SPECIAL_IDS)
        values = json.loads(json.dumps(config.to_dict()))  # JSON turns tuples into lists, as in a file
        keys = {key: values[key] for key in values if key in known}
        resolved = ModelSpec(architecture, keys, vocab_size=0, eos_id=0).resolved()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    meant = json.loads(json.dumps(resolved.to_dict()))
    for key in keys:
        if meant[key] != keys[key]:
            raise UserError(
                f"{folder}: its config.json has {key} {keys[key]!r}, which becomes {meant[key]!r} when a model is "
                "built from it, so the model would differ"
            )
    return architecture, keys


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Load all weights of a folder into a model that `ModelSpec.build` made from the configuration of this folder.

    The weights are copied into the existing model. A run that resumes from a checkpoint builds and fills its model in
    the same way, so both compute the same bits.

    Args:
        model: a float32 model; weights of other dtypes are converted.
        folder: a folder with config.json and safetensors.

    Raises:
        UserError: as `load_pretrained`; also if the files have a weight that the model does not have, if a weight is
            NaN or infinite, or if config.json ties two weights with different values.
    """
    config: Any = model.config
    loaded, unexpected = load_pretrained(folder, dtype=torch.float32, config=copy.deepcopy(config))
    if unexpected:
        raise UserError(f"{folder}: its weights have {_some(unexpected)}, which {config.model_type} does not have")
    for name, parameter in loaded.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{folder}: its weight {name!r} holds values that are NaN or infinite")
    theirs = loaded.state_dict()
    model.load_state_dict(theirs)
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, theirs[name]):
            raise UserError(f"{folder}: config.json ties its weight {name!r} to another weight, but the two differ")


def load_pretrained(
    folder: Path, *, dtype: torch.dtype | str, config: Any = None, trust_remote_code: bool = False
) -> tuple[Any, list[str]]:
    """Load the causal language model of a folder, on the CPU and in evaluation mode.

    Args:
        folder: a folder with config.json and safetensors.
        dtype: the dtype of the model; `auto` is the dtype of the files.
        config: a configuration that replaces the folder's own.
        trust_remote_code: run code from the folder.

    Returns:
        The model, and the names of weights in the files that the model does not have.

    Raises:
        UserError: if the folder is an adapter, has no safetensors, cannot be read, or lacks a weight.
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
            ignore_mismatched_sizes=True,  # its error would not name the weights; they are checked below
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    if found["missing_keys"]:
        raise UserError(f"{folder}: its weights lack {_some(found['missing_keys'])} and do not fit its config.json")
    for name, in_file, in_model in sorted(found["mismatched_keys"]):
        raise UserError(
            f"{folder}: its weight {name!r} has the shape {list(in_file)}, but its config.json means {list(in_model)}"
        )
    return model, sorted(found["unexpected_keys"])


def check_files(folder: Path) -> None:
    """Refuse an adapter or a folder without safetensors with a UserError that says how to fix it."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: is an adapter for another model; merge the adapter into that model first")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: has no .safetensors weights (pickled weights are not loaded); if you trust the weights, "
            "convert them with AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)"
        )


@contextlib.contextmanager
def reading(folder: Path, code: str = "read it, then allow it with --trust-remote-code") -> Iterator[None]:
    """Turn any error of transformers inside the block into a UserError of one line that names the folder.

    Args:
        folder: the folder that is read.
        code: the advice in the message if transformers would have to run code from the folder.
    """
    try:
        yield
    except Exception as error:  # a damaged folder can cause any exception
        line = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in line:
            raise UserError(f"{folder}: needs code from the folder; {code}") from error
        raise UserError(f"{folder}: cannot be loaded: {line[:_LONGEST]}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off the progress bars and log lines of transformers inside the block; UserErrors report the problems."""
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
    """Return one name and the number of further names, as text."""
    more = len(names) - 1
    return f"{min(names)!r}{f' and {more} more' if more else ''}"
