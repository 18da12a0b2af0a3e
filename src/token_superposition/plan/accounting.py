"""What a run costs and reads: positions, raw tokens, unique raw tokens, FLOPs.

Three counters that are never mixed. *Positions* are latent: what the network computes, what FLOPs and MFU
count, the same a step in both phases. *Raw tokens* are what is read as input: positions times the bag size
in superposition. *Unique raw tokens* are raw tokens without repetition: at most one epoch of the corpus.

FLOPs are counted by the usual rule, per position and for forward and backward together: 6 for every weight
that is multiplied with (the head counts, the embedding look-up does not; of a mixture of experts, the
experts that a position visits), plus attention's score and value products over the latent sequence. A bag
costs what a token costs, so a superposition step costs exactly a recovery step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelCost:
    """What FLOPs are counted from.

    Attributes:
        multiplied_parameters: weights that take part in a matrix product for one position, head included,
            embedding look-up excluded, inactive experts excluded.
        attention_width: the sum over attention layers of (number of query heads * head size).
    """

    multiplied_parameters: int
    attention_width: int

    def flops_per_position(self, sequence_length: int) -> int:
        """Forward and backward FLOPs of one latent position in a sequence of `sequence_length` positions.

        Scores and values are two products of 2 * sequence_length * width FLOPs each; a causal mask halves
        them; backward costs twice forward.
        """
        return 6 * self.multiplied_parameters + 6 * sequence_length * self.attention_width


def bits_per_byte(total_nats: float, num_bytes: float) -> float:
    """Summed loss in nats over the bytes of text it covers, in bits a byte; NaN for no bytes."""
    return total_nats / (math.log(2) * num_bytes) if num_bytes else math.nan
