"""The optimizer and its learning rate, which run straight through the switch.

Nothing here knows of phases: resetting the optimizer at the switch loses superposition's whole gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from token_superposition.train.config import TrainConfig


@dataclass(frozen=True)
class WarmupStableDecay:
    """A learning rate that rises linearly, stays, and falls linearly over the last steps.

    Attributes:
        peak: the learning rate between warm-up and decay.
        total_steps, warmup_steps, decay_steps: optimizer steps.
        final_ratio: where the decay is heading, over the peak.
    """

    peak: float
    total_steps: int
    warmup_steps: int
    decay_steps: int
    final_ratio: float = 0.0

    def at(self, step: int) -> float:
        """The learning rate of a step (they count from 0)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        left = self.total_steps - step
        if left >= self.decay_steps:
            return self.peak
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * left / self.decay_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay, norms and biases (fewer than two dimensions) without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the model's parameters, fused where the device has it."""
    return torch.optim.AdamW(
        [group for group in parameter_groups(model, config.weight_decay) if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def build_learning_rate(config: TrainConfig) -> WarmupStableDecay:
    """The learning rate that a run's configuration asks for."""
    return WarmupStableDecay(
        peak=config.learning_rate,
        total_steps=config.total_steps,
        warmup_steps=config.warmup_steps,
        decay_steps=config.decay_steps,
        final_ratio=config.final_learning_rate_ratio,
    )
