"""Loading what is to be used: a run's newest checkpoint, or a Hugging Face folder, ours or anybody's.

Of a checkpoint only the model's tensors are read; no optimizer is built. A run is opened without its lock:
it may be training. A folder is what a stranger may have sent: weights are safetensors or refused, and code
in the folder runs only where the user allows it. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from token_superposition.data.tokenizers import TOKENIZER_FILE, Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.model.build import build_model
from token_superposition.model.device import DTYPES
from token_superposition.model.superposed import SuperposedLM
from token_superposition.plan.stages import Schedule
from token_superposition.run.checkpoint import load_checkpoint, newest_checkpoint, no_whole_checkpoint, read_state
from token_superposition.run.folder import RunFolder
from token_superposition.use.origin import Origin, check_usable, read_origin
from token_superposition.use.tokenizer import hugging_face_tokenizer

_CODE = "needs code that lies in the folder; read it, then allow it with --trust-remote-code"


@dataclass(frozen=True)
class UsableModel:
    """A model ready to be used.

    Attributes:
        path: where it is from.
        model: a Hugging Face causal language model in evaluation mode.
        tokenizer: its Hugging Face tokenizer.
        device: where it is.
        dtype: what to compute in, by autocast; float32 stands for the weights' own.
        context_length: the most positions it was made for.
        origin: how it was trained; None for somebody else's.
        config: the run's resolved configuration; None for a folder.
        warnings: what the user should know.
    """

    path: Path
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    context_length: int
    origin: Origin | None
    config: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    def autocast(self) -> torch.autocast:
        """The context its forward is to run in."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def load_model(
    path: Path,
    *,
    device: torch.device,
    allow_superposed: bool = False,
    trust_remote_code: bool = False,
) -> UsableModel:
    """Load a run's newest whole checkpoint, or a Hugging Face folder.

    Raises:
        UserError: where it is neither, is damaged, or is of the superposition phase and not allowed to be.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run or a Hugging Face folder")
    with quiet_transformers():
        if (path / "config.yaml").exists():
            return load_run(path, device=device, allow_superposed=allow_superposed)
        if (path / "config.json").exists():
            return _load_folder(path, device, allow_superposed, trust_remote_code)
    raise UserError(f"{path}: is neither a run (no config.yaml) nor a Hugging Face folder (no config.json)")


def load_run(path: Path, *, device: torch.device, allow_superposed: bool = False) -> UsableModel:
    """Load the model of a run's newest whole checkpoint.

    Raises:
        UserError: where the folder is no run, has no whole checkpoint, or is superposed and not allowed to be.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    if config is None:
        raise UserError(f"{path}: is not a run folder (no config.yaml)")
    checkpoint, warnings = newest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if warnings:
            raise no_whole_checkpoint(folder.checkpoints, warnings)
        raise UserError(f"{path}: this run has no checkpoint yet; train it further")
    if not (path / TOKENIZER_FILE).exists():
        raise UserError(f"{path}: has no {TOKENIZER_FILE}; copy it here from the data the run was trained on")
    tokenizer, state = load_tokenizer(path), read_state(checkpoint)
    try:
        origin = _origin(config, state, tokenizer)
        architecture, keys, dtype = config["model"]["architecture"], config["model"]["config"], config["train"]["dtype"]
        computed = DTYPES[dtype]
    except (LookupError, TypeError):
        raise UserError(f"{folder.config_file}: is not a run's configuration; was it edited?") from None
    warnings = [f"{complaint}; using the checkpoint before it" for complaint in warnings]
    warnings += check_usable(path, origin, allow_superposed=allow_superposed)
    end, size = tokenizer.end_of_document_id, tokenizer.vocab_size
    model: Any = build_model(architecture, keys, vocab_size=size, end_of_document_id=end, seed=0)
    wrapped = SuperposedLM(model, verify=False)  # as the trainer saved it
    tensors = {"model": get_model_state_dict(wrapped)}
    load_checkpoint(checkpoint, tensors)
    set_model_state_dict(wrapped, tensors["model"])
    model.generation_config = _generation_config(tokenizer, model.config.vocab_size)
    return UsableModel(
        path=path,
        model=model.eval().to(device),
        tokenizer=hugging_face_tokenizer(tokenizer, max_length=origin.sequence_length),
        device=device,
        dtype=computed,
        context_length=_context_length(model.config, origin),
        origin=origin,
        config=config,
        warnings=warnings,
    )


def _origin(config: dict[str, Any], state: dict[str, Any], tokenizer: Tokenizer) -> Origin:
    schedule = Schedule.from_dicts(state["stages"])
    return Origin(
        step=state["step"],
        total_steps=schedule.total_steps,
        phase=schedule.lookup(max(state["step"] - 1, 0)).phase,
        stages=schedule.as_dicts(),
        sequence_length=config["train"]["sequence_length"],
        tokenizer=tokenizer.name,
        fingerprint=tokenizer.fingerprint,
    )


def _generation_config(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """Generation ends at the end of a document, and never gives an id that stands for nothing."""
    from transformers import GenerationConfig

    end, padding = tokenizer.end_of_document_id, list(range(tokenizer.num_ids, vocab_size))
    return GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=padding or None, do_sample=True
    )


def _load_folder(path: Path, device: torch.device, allow_superposed: bool, trust_remote_code: bool) -> UsableModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    origin = read_origin(path)
    warnings = [] if origin is None else check_usable(path, origin, allow_superposed=allow_superposed)
    if (path / "adapter_config.json").exists():
        raise UserError(f"{path}: is an adapter for another model; merge it into that model first")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{path}: has no .safetensors weights (pickled ones are not loaded); convert them first")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    # transformers 5 reads some families with a tokenizer of their own, whatever the folder says; ours is known.
    tokenizer_class: Any = AutoTokenizer if origin is None else PreTrainedTokenizerFast
    model_class: Any = AutoModelForCausalLM
    try:
        tokenizer = tokenizer_class.from_pretrained(path, **options)
        model, found = model_class.from_pretrained(
            path, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # a folder can be wrong in every way there is
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: {_CODE if 'trust_remote_code' in line else f'cannot be loaded: {line}'}") from error
    if found["missing_keys"]:
        raise UserError(f"{path}: its weights lack {min(found['missing_keys'])!r}, and so do not fit its config.json")
    return UsableModel(
        path=path,
        model=model.eval().to(device),
        tokenizer=tokenizer,
        device=device,
        dtype=torch.float32,
        context_length=_context_length(model.config, origin),
        origin=origin,
        warnings=warnings,
    )


def _context_length(config: Any, origin: Origin | None) -> int:
    """Positions it was trained on, where that is known, else those it says it has."""
    most = getattr(config, "max_position_embeddings", None) or 2048
    return min(most, origin.sequence_length) if origin is not None else most


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
