"""Loading a model for use: the newest checkpoint of a run, or any Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from token_superposition.data.tokenizers import Tokenizer
from token_superposition.evaluation.evaluation_options import check_model
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer
from token_superposition.models.device import DTYPES
from token_superposition.models.pretrained import check_files, load_pretrained, quiet_transformers, reading
from token_superposition.training.provenance import Origin, check_usable, read_origin
from token_superposition.training.stored_run import StoredRun
from token_superposition.training.trained import open_trained


@dataclass(frozen=True)
class UsableModel:
    """A loaded model.

    Attributes:
        path: the folder of the model.
        model: a Hugging Face causal language model in evaluation mode.
        tokenizer: its Hugging Face tokenizer.
        device: the device of the model.
        dtype: data type of the computation with autocast; float32 means the data type of the weights.
        context_length: largest number of positions.
        origin: how the model was trained; None if this package did not train it.
        run: the run, as its folder records it; None for a Hugging Face folder.
        warnings: warnings for the user.
    """

    path: Path
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    context_length: int
    origin: Origin | None
    run: StoredRun | None = None
    warnings: list[str] = field(default_factory=list)

    def autocast(self) -> torch.autocast:
        """The autocast context for the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def load_model(
    path: Path,
    *,
    device: torch.device,
    allow_superposed: bool = False,
    trust_remote_code: bool = False,
) -> UsableModel:
    """Load the newest intact checkpoint of a run, or a Hugging Face folder.

    Raises:
        UserError: if the path is neither, if it is damaged, or if the model is from the superposition phase and
            `allow_superposed` is false.
    """
    check_model(path)
    with quiet_transformers():
        if (path / "config.yaml").exists():
            return load_run(path, device=device, allow_superposed=allow_superposed)
        return _load_folder(path, device, allow_superposed, trust_remote_code)


def load_run(path: Path, *, device: torch.device, allow_superposed: bool = False) -> UsableModel:
    """Load the model of the newest intact checkpoint of a run.

    Raises:
        UserError: if the folder is not a run or has no intact checkpoint, or if the model is from the superposition
            phase and `allow_superposed` is false.
    """
    run = open_trained(path)
    warnings = [*run.warnings, *check_usable(path, run.origin, allow_superposed=allow_superposed)]
    model: Any = run.build()
    model.generation_config = _generation_config(run.tokenizer, model.config.vocab_size)
    return UsableModel(
        path=path,
        model=model.eval().to(device),
        tokenizer=hugging_face_tokenizer(run.tokenizer, max_length=run.origin.sequence_length),
        device=device,
        dtype=DTYPES[run.run.config.train.dtype],
        context_length=_context_length(model.config, run.origin),
        origin=run.origin,
        run=run.run,
        warnings=warnings,
    )


def _generation_config(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """Settings with which generation ends at the end of a document and never returns an unused id."""
    from transformers import GenerationConfig

    end, padding = tokenizer.end_of_document_id, list(range(tokenizer.num_ids, vocab_size))
    return GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, suppress_tokens=padding or None, do_sample=True
    )


def _load_folder(path: Path, device: torch.device, allow_superposed: bool, trust_remote_code: bool) -> UsableModel:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    origin = read_origin(path)
    warnings = [] if origin is None else check_usable(path, origin, allow_superposed=allow_superposed)
    check_files(path)
    # transformers 5 ignores the folder's tokenizer class for some families; for our exports the class is known.
    tokenizer_class: Any = AutoTokenizer if origin is None else PreTrainedTokenizerFast
    with reading(path):
        tokenizer = tokenizer_class.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    model, _ = load_pretrained(path, dtype="auto", trust_remote_code=trust_remote_code)
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
    """The number of training positions if it is known, else the number in the configuration."""
    most = getattr(config, "max_position_embeddings", None) or 2048
    return min(most, origin.sequence_length) if origin is not None else most
