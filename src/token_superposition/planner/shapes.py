"""A model for a parameter count: a Llama of usual proportions, and what it costs, by arithmetic alone.

Without a model library a plan comes at once; a test holds these counts against the model that is built. Proportions:
heads of 64 (128 from a width of 2,048), a feed-forward of 8/3 of the width, 64 times as wide as deep or nearly so, tied
embeddings under a billion parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from token_superposition.errors import UserError
from token_superposition.models.flops import ModelCost

_MULTIPLE = 64
_WIDEST = 32_768
_ASPECT = 64  # width over layers
_ASPECT_WEIGHT = 0.02  # a shape twice as slim counts as one that misses the parameters by so much
_TIED_UNDER = 1_000_000_000
_MOST_OFF = 0.2
_MOST_LAYERS = 2_000  # more is refused of any model


@dataclass(frozen=True)
class Shape:
    """A Llama.

    Attributes:
        hidden_size, num_layers, vocab_size, tied: what it is.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int
    tied: bool

    @property
    def intermediate_size(self) -> int:
        """Of the feed-forward."""
        return _MULTIPLE * round(8 / 3 * self.hidden_size / _MULTIPLE)

    @property
    def num_heads(self) -> int:
        """Query heads, and as many for keys and values."""
        return self.hidden_size // (128 if self.hidden_size >= 2048 and self.hidden_size % 128 == 0 else 64)

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that are multiplied with."""
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """All of them."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.num_layers * (self.layer_matrices + 2 * self.hidden_size) + self.hidden_size

    @property
    def cost(self) -> ModelCost:
        """What FLOPs are counted from."""
        multiplied = self.num_layers * self.layer_matrices + self.vocab_size * self.hidden_size
        return ModelCost(multiplied, self.num_layers * self.hidden_size)

    def config(self, sequence_length: int) -> dict[str, Any]:
        """As the `model.config` of a run, for rows of so many positions."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "max_position_embeddings": sequence_length,
            "tie_word_embeddings": self.tied,
        }


def shape_for(parameters: int, vocab_size: int) -> Shape:
    """The shape nearest to so many parameters in usual proportions.

    Raises:
        UserError: where none is within a fifth, such as of a vocabulary that is all of the model.
    """
    tied = parameters < _TIED_UNDER
    best: tuple[float, Shape] | None = None
    for hidden_size in range(_MULTIPLE, _WIDEST + 1, _MULTIPLE):
        one, two = (Shape(hidden_size, layers, vocab_size, tied).parameters for layers in (1, 2))
        layers = max(1, round(1 + (parameters - one) / (two - one)))
        shape = Shape(hidden_size, layers, vocab_size, tied)
        off = abs(math.log(shape.parameters / parameters))
        score = off + _ASPECT_WEIGHT * abs(math.log2(hidden_size / layers / _ASPECT))
        if layers <= _MOST_LAYERS and off <= _MOST_OFF and (best is None or score < best[0]):
            best = score, shape
    if best is None:
        raise UserError(
            f"--parameters: no usual shape has about {parameters:,} parameters with a vocabulary of {vocab_size:,}; "
            "name a --vocab-size that suits it, or a configuration"
        )
    return best[1]
