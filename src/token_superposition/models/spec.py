"""`ModelSpec`: one object that describes a model and builds it.

Every part of the package that builds or measures a model takes a `ModelSpec` in place of an architecture, a
configuration and the numbers of the data's tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from token_superposition.errors import UserError
from token_superposition.models.build import (
    construct,
    from_config,
    model_cost,
    resolve_config,
    scale_residual_projections,
    try_out,
)
from token_superposition.models.families import RESIDUAL_PROJECTIONS
from token_superposition.models.seeding import seed_torch
from token_superposition.models.size_limits import WEIGHT_BYTES, check_size, counted
from token_superposition.models.step_memory import abstract

if TYPE_CHECKING:
    from token_superposition.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class ModelSpec:
    """A causal language model of transformers, with what its construction needs besides a seed.

    Attributes:
        architecture: the `model_type` of transformers, such as `llama`.
        config: configuration keys of that family.
        vocab_size: rows of the embedding if `config` has no `vocab_size`.
        eos_id: id of the end token; the model's configuration gets it as begin and end of text.
        num_ids: number of ids that the data may hold, the smallest `vocab_size` that `config` may have; None if the
            data is not known.
        scale_residual_init: divide the initial residual projections by sqrt(2 * layers); `auto` does so for families
            whose projections are known.

    Example:
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> spec = ModelSpec("llama", sizes, vocab_size=256, eos_id=0)
        >>> spec.build(seed=0).num_parameters()
        28832
        >>> spec.flops_per_position(sequence_length=128)
        196608
    """

    architecture: str
    config: Mapping[str, Any]
    vocab_size: int
    eos_id: int
    num_ids: int | None = None
    scale_residual_init: bool | Literal["auto"] = "auto"

    @classmethod
    def for_tokenizer(
        cls,
        architecture: str,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        scale_residual_init: bool | Literal["auto"] = "auto",
    ) -> ModelSpec:
        """The model for data of this tokenizer."""
        return cls(
            architecture,
            config,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.end_of_document_id,
            num_ids=tokenizer.num_ids,
            scale_residual_init=scale_residual_init,
        )

    def resolved(self) -> Any:
        """The family's configuration object.

        Raises:
            UserError: if the architecture or a key is unknown, the family refuses a value, or the vocabulary is smaller
                than the data's.
        """
        return resolve_config(
            self.architecture, self.config, vocab_size=self.vocab_size, eos_id=self.eos_id, num_ids=self.num_ids
        )

    def build(self, seed: int, *, bytes_per_parameter: int = WEIGHT_BYTES) -> nn.Module:
        """A new model in float32 on the CPU, in training mode.

        Args:
            seed: seed of the initial weights; the same seed gives the same weights.
            bytes_per_parameter: memory that this machine will need for each parameter.

        Raises:
            UserError: as `resolved`; also if the model cannot run with its values, or does not fit this machine's
                memory.
        """
        self.meta(bytes_per_parameter=bytes_per_parameter)  # refuses a model that is too large before it is built
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed)
            with counted(bytes_per_parameter):
                model = self.build_unchecked()
            try_out(self.architecture, model)
        projections = RESIDUAL_PROJECTIONS.get(self.architecture)
        if projections and self.scale_residual_init:
            scale_residual_projections(model, projections)
        return model

    def meta(self, *, bytes_per_parameter: int = WEIGHT_BYTES) -> nn.Module | None:
        """The model on the meta device, without storage; None if the family's code cannot be built there.

        Raises:
            UserError: as `build`, except for values that only the real construction refuses.
        """
        resolved = self.resolved()
        if self.architecture not in RESIDUAL_PROJECTIONS and self.scale_residual_init is True:
            raise UserError(
                f"model.scale_residual_init: the residual projections of {self.architecture} are not known; set it to "
                "false"
            )
        try:
            with torch.device("meta"), counted(bytes_per_parameter):
                model = from_config(resolved)
        except UserError:
            raise
        except Exception:  # the real construction reports what is wrong with the values
            return None
        check_size(model, bytes_per_parameter)
        return model

    def build_unchecked(self) -> nn.Module:
        """The model without a check of this machine's memory; inside `step_memory.abstract()` it has no storage."""
        return construct(self.architecture, self.resolved())

    def flops_per_position(self, sequence_length: int) -> int:
        """Forward and backward FLOPs per position in rows of `sequence_length` positions; nothing is allocated."""
        with abstract():
            return model_cost(self.build_unchecked()).flops_per_position(sequence_length)
