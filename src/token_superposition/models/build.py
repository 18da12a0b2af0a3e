"""The steps by which `models.spec.ModelSpec` builds a model, and the count of what the model costs.

A model is any architecture that transformers knows, named by its `model_type`, with that family's own configuration
keys. The family's own code initialises the weights. With `scale_residual_init` the projections that write into the
residual stream are then scaled by 1 / sqrt(2 * layers), as GPT-2's own code does.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from token_superposition.errors import UserError, did_you_mean, shortened
from token_superposition.files import is_whole_number
from token_superposition.models.families import num_attention_layers, refusal
from token_superposition.models.flops import ModelCost
from token_superposition.models.size_limits import check_numbers

# What of a configuration belongs to the data rather than to the model. A padding id would freeze one row of the
# embedding, and families bring one that is a byte of ours.
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_IN_ROPE_PARAMETERS = {
    "rotary_emb_base": "rope_parameters.rope_theta",
    "rotary_pct": "rope_parameters.partial_rotary_factor",
    "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    "rope_local_base_freq": "rope_parameters.sliding_attention.rope_theta",
}


def check_length(model: nn.Module, sequence_length: int) -> None:
    """Refuse rows that are longer than a model takes; UserError says both lengths."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 <= longest < sequence_length:  # negative stands for no limit
        raise UserError(
            f"train.sequence_length: {sequence_length} is more than the model's "
            f"max_position_embeddings of {longest}; lower it, or for a new model raise "
            "model.config.max_position_embeddings"
        )


def resolve_config(
    architecture: str,
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    eos_id: int,
    num_ids: int | None = None,
) -> Any:
    """The family's configuration object with these values; see `models.spec.ModelSpec.resolved`."""
    from transformers import AutoConfig

    known = check_keys(architecture, config)
    check_numbers(config)
    size, least = config.get("vocab_size", vocab_size), vocab_size if num_ids is None else num_ids
    if not isinstance(size, int) or size < least:
        raise UserError(
            f"model.config.vocab_size: {size!r} is smaller than the data's vocabulary of {least}; "
            "leave the key out to take the data's"
        )
    special = dict(zip(SPECIAL_IDS, (eos_id, eos_id, None), strict=True))
    if num_ids is not None:  # else the data is not known
        config = _with_ids_of_the_data(config, eos_id, num_ids)
    values = {**special, **config, "vocab_size": size}
    values.pop("model_type", None)
    if "torch_dtype" in values:
        values["dtype"] = values.pop("torch_dtype")
    if "is_decoder" in known:  # families that can be encoders look ahead unless told not to
        values.setdefault("is_decoder", True)
    try:
        resolved = AutoConfig.for_model(architecture, **values)
    except Exception as error:  # families refuse values in every way there is
        raise _refused(architecture, "refuses", error) from error
    known_refusal = refusal(resolved)
    if known_refusal is not None:
        raise UserError(f"model.architecture: {known_refusal}")
    num_layers = getattr(resolved, "num_hidden_layers", 1)
    if not is_whole_number(num_layers, 1):
        raise UserError(
            f"model.config: {architecture} with these values has {num_layers!r} layers; at least 1 is needed"
        )
    return resolved


def _with_ids_of_the_data(
    config: Mapping[str, Any], eos_id: int, num_ids: int, place: str = "model.config"
) -> dict[str, Any]:
    """A configuration whose special ids agree with the data's, also in configurations inside of it.

    A padding id that is the end of a document becomes none: the model would never learn that id's embedding.

    Raises:
        UserError: for ids that the data does not use so, all of them in one line; published configurations have them.
    """
    wrong, values = [], dict(config)
    for key, value in config.items():
        if isinstance(value, Mapping):
            size = value.get("vocab_size")
            if isinstance(size, int) and is_whole_number(size) and size < num_ids:
                raise UserError(
                    f"{place}.{key}.vocab_size: {size} is smaller than the data's vocabulary of {num_ids}; leave it out"
                )
            values[key] = _with_ids_of_the_data(value, eos_id, num_ids, f"{place}.{key}")
        elif key in SPECIAL_IDS and value is not None:
            ids = value if isinstance(value, list) and value else [value]
            if not all(is_whole_number(each) and each == eos_id for each in ids):
                wrong.append(f"{key} {value!r}")
            values[key] = None if key == "pad_token_id" else eos_id
    if wrong:
        raise UserError(
            f"{place}: {', '.join(wrong)}: not the ids of the data, whose documents end with id "
            f"{eos_id} and which has no padding; leave the key{'s' * (len(wrong) > 1)} out"
        )
    return values


def construct(architecture: str, resolved: Any) -> nn.Module:
    """The model of a configuration object; UserError if the family refuses its values."""
    try:
        return from_config(resolved)
    except UserError:
        raise
    except Exception as error:
        raise _refused(architecture, "refuses", error) from error


def from_config(resolved: Any) -> nn.Module:
    """The same with the family's own exceptions."""
    from transformers import AutoModelForCausalLM

    # Code from the Hub is never run: the family's own, that was installed, is what was asked for.
    model: nn.Module = AutoModelForCausalLM.from_config(resolved, dtype=torch.float32, trust_remote_code=False)
    return model


@torch.no_grad()
def try_out(architecture: str, model: nn.Module) -> None:
    """Run a few tokens through the family's own code: some values are refused only there."""
    for training in (False, True):  # and leave it in training mode, as it was built
        model.train(training)
        try:
            logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
            if logits.shape[:2] != (1, 2):
                raise ValueError(f"the logits of 2 tokens have the shape {tuple(logits.shape)}")
            if logits.isnan().any():
                raise ValueError("its logits are not numbers")
        except Exception as error:
            raise _refused(architecture, "cannot run with", error) from error


def _refused(architecture: str, verb: str, error: Exception) -> UserError:
    line = " ".join(map(shortened, str(error).split())) or type(error).__name__
    return UserError(f"model.config: {architecture} {verb} these values: {line[:300]}")


def model_cost(model: nn.Module) -> ModelCost:
    """What one position costs, counted from the model's weights and configuration.

    Raises:
        UserError: for a model whose configuration does not say what is needed.
    """
    try:
        return _count_cost(model)
    except Exception as error:  # attributes that a family does not have, or has once a layer
        line = " ".join(str(error).split())
        raise UserError(f"model.architecture: the FLOPs of {type(model).__name__} cannot be counted: {line}") from error


def _count_cost(model: nn.Module) -> ModelCost:
    config: Any = model.config
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()  # type: ignore[operator]
    looked_up.discard(id(head.weight))
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((found for name in names if (found := getattr(config, name, None))), None)
    active = getattr(config, "num_experts_per_tok", None)
    multiplied = 0
    for name, parameter in model.named_parameters():  # a tied head stands here once, as the embedding
        if parameter.dim() < 2 or id(parameter) in looked_up or name.endswith("bias"):  # experts' have two dimensions
            continue
        share = active / experts if experts and active and ".experts." in name else 1
        multiplied += round(parameter.numel() * share)
    heads = getattr(config, "num_attention_heads", None) or 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    if getattr(config, "qk_head_dim", None):  # multi-head latent attention: scores and values have their own sizes
        head_size = (config.qk_head_dim + config.v_head_dim) // 2
    return ModelCost(multiplied, num_attention_layers(config) * heads * head_size)


def check_keys(architecture: str, config: Mapping[str, Any]) -> set[str]:
    """Refuse a key that a family does not have; UserError names the nearest one. Returns every key it has."""
    known = known_keys(architecture)
    for key in config:
        if key == "model_type" and config[key] == architecture:
            continue
        if key == "model_type":
            raise UserError(f"model.config.{key}: is said by model.architecture ({architecture}); leave it out")
        if key not in known and key in _IN_ROPE_PARAMETERS and "rope_parameters" in known:
            raise UserError(f"model.config.{key}: {architecture} has {_IN_ROPE_PARAMETERS[key]} instead")
        if key not in known:
            raise UserError(f"model.config.{key}: {architecture} has no such key{did_you_mean(key, known)}")
    for old, new in (("rope_scaling", "rope_parameters"), ("torch_dtype", "dtype")):
        if old in config and new in config:
            raise UserError(f"model.config.{old}: is the older name of {new}, which is given too; keep {new}")
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope(f"model.config.{name}", config.get(name))
    return known


def _check_rope(name: str, values: Any) -> None:
    """Refuse a scaling factor of positions without its kind; transformers would ignore the factor."""
    if not isinstance(values, Mapping):
        return
    if "factor" in values and not {"rope_type", "type"} & set(values):
        raise UserError(
            f"{name}: has a factor but no rope_type, so it would not be used; add rope_type, such as linear"
        )
    for key, below in values.items():  # some families have one section for each kind of layer
        _check_rope(f"{name}.{key}", below)


def known_keys(architecture: str) -> set[str]:
    """Every key of a family: its configuration's, its names for the common ones, and what its code asks for besides.

    Some keys are in no default: Qwen3-MoE's attention reads `getattr(config, "head_dim", ...)`.

    Raises:
        UserError: for what is no causal language model of transformers.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or architecture not in CONFIG_MAPPING:
        near = did_you_mean(architecture, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise UserError(f"model.architecture: {architecture!r} is not a causal language model of transformers{near}")
    try:
        return _keys_of(CONFIG_MAPPING[architecture])
    except Exception as error:  # a family whose own defaults do not fit each other
        raise _refused(architecture, "refuses even its own values, not", error) from error


def _keys_of(config_class: type) -> set[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    defaults: Any = config_class()
    source = inspect.getsource(inspect.getmodule(MODEL_FOR_CAUSAL_LM_MAPPING[config_class]) or config_class)
    asked = set(re.findall(r"getattr\((?:self\.)?config, \"([a-z]\w*)\"", source))
    known = set(defaults.to_dict()) | set(getattr(config_class, "attribute_map", {})) | asked
    older = {"torch_dtype"} | ({"rope_theta", "rope_scaling"} if "rope_parameters" in known else set())
    return known | older  # names of transformers 4, which published configurations have and version 5 takes


@torch.no_grad()
def scale_residual_projections(model: nn.Module, projections: frozenset[str]) -> None:
    """Divide the weights of these projections by sqrt(2 * layers)."""
    config: Any = model.config
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and projections & set(name.split(".")[-2:]):
            parameter.mul_(scale)
