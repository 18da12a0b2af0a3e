"""Loading what is to be used: a run's newest checkpoint, or a Hugging Face folder, ours or anybody's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from token_superposition.data.tokenizers import Tokenizer
from token_superposition.evaluation.evaluation_options import check_model
from token_superposition.evaluation.export_tokenizer import hugging_face_tokenizer
from token_superposition.models.pretrained import check_files, load_pretrained, quiet_transformers, reading
from token_superposition.training.provenance import Origin, check_usable, read_origin
from token_superposition.training.trained import open_trained


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
    check_model(path)
    with quiet_transformers():
        if (path / "config.yaml").exists():
            return load_run(path, device=device, allow_superposed=allow_superposed)
        return _load_folder(path, device, allow_superposed, trust_remote_code)


def load_run(path: Path, *, device: torch.device, allow_superposed: bool = False) -> UsableModel:
    """Load the model of a run's newest whole checkpoint.

    Raises:
        UserError: where the folder is no run, has no whole checkpoint, or is superposed and not allowed to be.
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
        dtype=run.dtype,
        context_length=_context_length(model.config, run.origin),
        origin=run.origin,
        config=run.config,
        warnings=warnings,
    )


def _generation_config(tokenizer: Tokenizer, vocab_size: int) -> Any:
    """Generation ends at the end of a document, and never gives an id that stands for nothing."""
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
    # transformers 5 reads some families with a tokenizer of their own, whatever the folder says; ours is known.
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
    """Positions it was trained on, where that is known, else those it says it has."""
    most = getattr(config, "max_position_embeddings", None) or 2048
    return min(most, origin.sequence_length) if origin is not None else most
