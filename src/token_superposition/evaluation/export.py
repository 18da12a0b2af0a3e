"""Export of a run as a Hugging Face folder, which can be used without this package.

    config.json, generation_config.json, *.safetensors, tokenizer.json, tokenizer_config.json
    README.md                   the model card, with the results of the run
    token_superposition.json    how the model was trained, for the commands of this package

transformers 5 writes keys that older versions do not read. The export therefore adds the older keys: the base of the
rotary embedding as `rope_theta`, its scaling as `rope_scaling`, the dtype as `torch_dtype`, the number of experts as
`num_experts`, and a tokenizer class that all versions have.

The folder is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from token_superposition.data.tokenizers import Tokenizer, load_tokenizer
from token_superposition.errors import UserError
from token_superposition.evaluation.evaluation_options import check_export, check_shard_size
from token_superposition.evaluation.load import UsableModel, load_run
from token_superposition.evaluation.model_card import model_card
from token_superposition.files import could_not_write, replace_folder, sync_folder
from token_superposition.models.build import model_cost
from token_superposition.models.device import DTYPES
from token_superposition.models.pretrained import quiet_transformers
from token_superposition.schedule import Schedule
from token_superposition.training.metrics import read_metrics
from token_superposition.training.provenance import Origin, write_origin
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.stored_run import StoredRun

_PROBES = ("Plain text, 123.", "  two  spaces\r\n\ttab", "cafe\u0301 \u00e9 \u65e5\u672c \U0001f642", "<|endoftext|>")


def export(
    run: Path,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    allow_superposed: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the model of a run's newest checkpoint as a Hugging Face folder.

    Args:
        run: the run folder.
        out: the folder to write.
        dtype: data type of the weights, float32 (as trained) or bfloat16.
        max_shard_size: largest size of a weight file, such as `500MB`.
        allow_superposed: accept a model from the superposition phase.
        overwrite: replace an earlier export; other files are never replaced.

    Returns:
        `folder`, `files`, `bytes`, `dtype`, the origin's `step`, `total_steps` and `phase`, the card's
        `figures`, and `warnings`.

    Raises:
        UserError: if the run cannot be used, `out` has other files, or the disk is full.
    """
    check_export(run, out, max_shard_size=max_shard_size, overwrite=overwrite)
    loaded = load_run(run, device=torch.device("cpu"), allow_superposed=allow_superposed)
    if loaded.origin is None or loaded.run is None:
        raise RuntimeError("load_run returned no run")
    figures = _figures(loaded.model, loaded.run, loaded.origin)
    loaded.model.to(DTYPES[dtype])
    final = Path(os.path.realpath(out))
    workplace = final.with_name(f".{final.name}.exporting")
    try:
        shutil.rmtree(workplace, ignore_errors=True)
        workplace.mkdir(parents=True)
        with quiet_transformers():
            warnings = _write(loaded, loaded.origin, figures, workplace, max_shard_size)
        files = sorted(path for path in workplace.iterdir())
        sizes = [_sync(path) for path in files]
        sync_folder(workplace)
        replace_folder(workplace, final)
    except SafetensorError as error:  # raised by the safetensors writer for errors of the system
        raise UserError(could_not_write(out, error)) from None
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
        raise UserError(f"{out}: cannot be written ({reason})") from None
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return {
        "folder": str(out),
        "files": [path.name for path in files],
        "bytes": sum(sizes),
        "dtype": dtype,
        "step": loaded.origin.step,
        "total_steps": loaded.origin.total_steps,
        "phase": loaded.origin.phase,
        "figures": figures,
        "warnings": [*loaded.warnings, *warnings],
    }


def _write(
    loaded: UsableModel, origin: Origin, figures: dict[str, Any], folder: Path, max_shard_size: str
) -> list[str]:
    """Write the files of the export; returns warnings."""
    config = write_model(loaded.model, loaded.tokenizer, folder, max_shard_size=max_shard_size)
    write_origin(folder, origin, figures)
    taken = tokenizer_class(folder, load_tokenizer(loaded.path))
    card = model_card(loaded.path.resolve().name, origin, figures, config, tokenizer_class=taken)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if taken == "AutoTokenizer":
        return []
    return [f"AutoTokenizer loads another tokenizer for {config['model_type']} folders; use {taken} instead"]


def write_model(model: Any, tokenizer: Any, folder: Path, *, max_shard_size: str = "5GB") -> dict[str, Any]:
    """Write a model and its tokenizer for new and old versions of transformers; returns the config.json.

    Raises:
        UserError: if `max_shard_size` is not a size.
    """
    check_shard_size(max_shard_size)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    _change(folder / "tokenizer_config.json", lambda values: {**values, "tokenizer_class": "PreTrainedTokenizerFast"})
    return _change(folder / "config.json", readable_by_older)


def _change(file: Path, change: Any) -> dict[str, Any]:
    values: dict[str, Any] = change(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return values


def readable_by_older(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of transformers 5 with the additional keys of older versions."""
    config = dict(config)
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    if "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    if "full_attention" in rope:  # one section per kind of layer; older versions read the base of the local layers
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            config.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope["full_attention"] or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if config.get("model_type") == "gpt_neox":
            config.setdefault("rotary_emb_base", rope["rope_theta"])
    if "partial_rotary_factor" in rope:
        config.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
        if config.get("model_type") == "gpt_neox":
            config.setdefault("rotary_pct", rope["partial_rotary_factor"])
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    config.setdefault("rope_scaling", None if scaling.get("rope_type", "default") == "default" else scaling)
    return config


def tokenizer_class(folder: Path, tokenizer: Tokenizer) -> str:
    """The class that loads the written tokenizer correctly; AutoTokenizer replaces it for a few families."""
    from transformers import AutoTokenizer

    try:
        read = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        faithful = all(read(text)["input_ids"] == tokenizer.encode(text).tolist() for text in _PROBES)
    except Exception:  # the class of a family may fail to load it
        faithful = False
    return "AutoTokenizer" if faithful else "PreTrainedTokenizerFast"


def _figures(model: Any, run: StoredRun, origin: Origin) -> dict[str, Any]:
    """The values of the run for the model card; final results only if the run is finished."""
    schedule = Schedule.from_dicts(origin.stages)
    positions_per_step = run.config.train.positions_per_step
    positions = schedule.positions(positions_per_step, origin.step)
    summary = run.summary or {}
    if summary.get("steps") != origin.step:
        summary = {}
    scored = summary or _last_validation(run.folder, origin.step)
    return {
        "architecture": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bag_size": schedule.bag_size,
        "switch_step": schedule.switch_step,
        "positions": positions,
        "raw_tokens": scored["raw_tokens"]  # fewer than in the schedule if bags have padding
        if scored.get("step") == origin.step
        else schedule.raw_tokens(positions_per_step, origin.step),
        "unique_raw_tokens": summary.get("unique_raw_tokens"),
        "flops": positions * model_cost(model).flops_per_position(origin.sequence_length),
        "validation_loss": scored.get("validation_loss"),
        "bits_per_byte": scored.get("bits_per_byte"),
        "text_lost": scored.get("text_lost"),
        "validation_tokens": scored.get("validation_tokens"),
        "validation_step": scored.get("step"),
        "data_fingerprint": run.record.data_fingerprint,
        "seed": run.config.train.seed,
    }


def _last_validation(folder: RunFolder, step: int) -> dict[str, Any]:
    """The last validation within the first `step` steps; empty if there is none."""
    lines = [line for line in read_metrics(folder.metrics_file) if "validation_loss" in line and line["step"] <= step]
    return lines[-1] if lines else {}


def _sync(file: Path) -> int:
    """Flush a file to the disk and give it the permissions of config.json; returns its size."""
    file.chmod(file.with_name("config.json").stat().st_mode)  # weight files are readable only by their owner
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        return os.fstat(handle.fileno()).st_size
