"""Evaluation: the next-token loss on any number of named validation sets.

A set is a dataset folder that was prepared with the tokenizer of the model, or text that is encoded during the
evaluation: a text file, a folder, .jsonl or .parquet. It is scored as in training, in rows without overlap, so the
validation set of a run gives the same result as the final validation of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from token_superposition.data.dataset import TokenDataset
from token_superposition.data.manifest import DATASET_FILE, loss_warning
from token_superposition.data.readers import Corpus
from token_superposition.errors import UserError
from token_superposition.evaluation.encoded_text import EncodedText
from token_superposition.evaluation.evaluation_options import ValidationSet, parse_sets
from token_superposition.evaluation.load import UsableModel
from token_superposition.training.validation import ScoredTokens, Validator

__all__ = ["ValidationSet", "evaluate", "lines_of", "parse_sets"]

MAX_TOKENS = 262_144
ENOUGH_TOKENS = 250_000  # for a final result; 4,096 tokens gave noise of 0.02 nats
_POSITIONS_A_FORWARD = 8192
_MOST_POSITIONS = 2048


def evaluate(
    loaded: UsableModel,
    sets: Sequence[ValidationSet],
    *,
    split: str = "validation",
    max_tokens: int = MAX_TOKENS,
    sequence_length: int | None = None,
    batch_size: int | None = None,
    text_key: str = "text",
) -> list[dict[str, Any]]:
    """Measure the loss of a model on each set.

    Args:
        loaded: the model.
        sets: the validation sets.
        split: split of the dataset folders.
        max_tokens: largest number of tokens per set.
        sequence_length: positions per row; default: as in training, or at most 2,048 if that is unknown.
        batch_size: rows per forward pass; default: as in training, or as many as fit into 8,192 positions.
        text_key: column of .jsonl and .parquet that holds the text.

    Returns:
        For each set: name, path, split (of a dataset folder), validation_loss (nats per token), bits_per_byte,
        validation_tokens, validation_bytes, and text_lost, the share of the characters that the tokenizer lost (None if
        unknown). If text_lost is above 0.01, the bits per byte are too low and `warning` has a text; else it is None.

    Raises:
        UserError: if a set is missing, damaged or too short, or has another tokenizer.
    """
    length = sequence_length or _usual_length(loaded)
    most = getattr(loaded.model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise UserError(f"--sequence-length: {length} exceeds the {most} positions of the model; use at most {most}")
    rows = batch_size or _training_rows(loaded) or max(1, _POSITIONS_A_FORWARD // length)
    # Open every set before the first is scored, so that a misspelt name is an error at once.
    opened = [_open(loaded, each, split, text_key, max(max_tokens, length), length) for each in sets]
    return [
        _score(loaded, each, tokens, split, max_tokens, length, rows) for each, tokens in zip(sets, opened, strict=True)
    ]


def lines_of(scored: Sequence[dict[str, Any]], tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The results as text: one line per set, and one line per metric of a task."""
    width = max((len(name) for name in [*(each["name"] for each in scored), *tasks]), default=0)
    lines = []
    for each in scored:
        tokens = each["validation_tokens"]
        noisy = f" (under {ENOUGH_TOKENS:,}: noisy)" if tokens < ENOUGH_TOKENS else ""
        loss, bits = each["validation_loss"], each["bits_per_byte"]
        lines.append(
            f"{each['name']:{width}}  {loss:.4f} nats per token  {bits:.4f} bits per byte  {tokens:,} tokens{noisy}"
        )
        if each.get("warning"):
            lines.append(f"{'':{width}}  warning: {each['warning']}")
    for name, metrics in tasks.items():
        for metric, value in metrics.items():
            if metric == "samples" or "_stderr" in metric:
                continue
            head, comma, tail = metric.partition(",")
            error = metrics.get(f"{head}_stderr{comma}{tail}")
            spread = "" if error is None else f" ± {error:.4f}"
            count = metrics["samples"]
            lines.append(f"{name:{width}}  {metric} {value:.4f}{spread}  {count:,} sample{'s' * (count != 1)}")
    return lines


def _usual_length(loaded: UsableModel) -> int:
    # Another model may have a hundred thousand positions, with logits for each position in memory.
    return loaded.context_length if loaded.origin is not None else min(loaded.context_length, _MOST_POSITIONS)


def _training_rows(loaded: UsableModel) -> int | None:
    """Rows per forward pass in training: equal shapes give a result with equal bits."""
    if loaded.run is None:
        return None
    train = loaded.run.config.train
    return train.micro_batch_size or train.batch_size


def _open(
    loaded: UsableModel, each: ValidationSet, split: str, text_key: str, max_tokens: int, length: int
) -> ScoredTokens:
    tokens: ScoredTokens
    path = Path(each.source)
    if (path / DATASET_FILE).exists():
        tokens = TokenDataset.open(path, split)
        _check_tokenizer(loaded, path, tokens.tokenizer.fingerprint, tokens.tokenizer.name)
        tokens.verify(max_tokens + 1)
    else:
        corpus = Corpus([each.source], text_key=text_key, pieces=False)
        tokens = EncodedText(corpus, loaded.tokenizer, max_tokens // length * length + 1)
    if tokens.num_tokens <= length:
        raise UserError(
            f"{each.source}: has {tokens.num_tokens:,} tokens, fewer than one row of {length} positions and the token "
            "after it; use more text, or a shorter --sequence-length"
        )
    return tokens


def _check_tokenizer(loaded: UsableModel, path: Path, fingerprint: str, name: str) -> None:
    advice = "give the original text instead (a text file, a folder, .jsonl, .parquet), which this command encodes"
    if loaded.origin is None:
        raise UserError(
            f"{path}: was prepared with tokenizer {name!r}, but the tokenizer of {loaded.path} is unknown; {advice}"
        )
    if loaded.origin.fingerprint != fingerprint:
        theirs = loaded.origin.tokenizer
        raise UserError(
            f"{path}: was prepared with tokenizer {name!r}, but the model has tokenizer {theirs!r}; {advice}"
        )


def _score(
    loaded: UsableModel, each: ValidationSet, tokens: ScoredTokens, split: str, max_tokens: int, length: int, rows: int
) -> dict[str, Any]:
    validator = Validator(tokens, sequence_length=length, batch_size=rows)
    result = validator.run(loaded.model, max_tokens, loaded.device, loaded.dtype)
    return {
        "name": each.name,
        "path": each.source,
        "split": split if isinstance(tokens, TokenDataset) else None,
        "validation_loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
        "validation_tokens": result.num_tokens,
        "validation_bytes": result.num_bytes,
        "text_lost": result.text_lost,
        "warning": loss_warning(result.text_lost),
    }
