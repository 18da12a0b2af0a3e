"""FLOPs per position, and bits per byte; this module needs no torch.

Three counters are kept apart:

- *Positions* are latent positions: the network computes them, and FLOPs and MFU count them. Their number per step is
  the same in both phases.
- *Raw tokens* are the tokens that are read as inputs: in superposition, positions times the bag size.
- *Unique raw tokens* are raw tokens without repetition: at most one epoch of the corpus.

FLOPs are counted per position, for forward and backward together. Every weight of a matrix product counts 6. The head
counts, the embedding look-up does not, and of a mixture of experts only the experts that a position visits count. The
score and value products of attention over the latent sequence are added. A bag costs as much as a token, so a
superposition step costs exactly as much as a recovery step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCost:
    """The numbers from which FLOPs are counted.

    Attributes:
        multiplied_parameters: the number of weights in matrix products for one position: with the head, without the
            embedding look-up and without inactive experts.
        attention_width: the sum over attention layers of (number of query heads * head size).
    """

    multiplied_parameters: int
    attention_width: int

    def flops_per_position(self, sequence_length: int) -> int:
        """Return the forward and backward FLOPs of one latent position in a sequence of `sequence_length` positions.

        Scores and values are two products of 2 * sequence_length * width FLOPs each. A causal mask halves them. The
        backward pass costs twice as much as the forward pass.
        """
        return 6 * self.multiplied_parameters + 6 * sequence_length * self.attention_width


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Convert a summed loss in nats over `num_bytes` bytes of text to bits per byte; NaN for 0 bytes."""
    return total_nats / (math.log(2) * num_bytes) if num_bytes else math.nan
