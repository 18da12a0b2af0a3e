"""The optimizers and the learning rate schedule, which do not change at the switch between the phases.

The code has no phases on purpose: in a test at 100M parameters, a reset at the switch lost the whole gain of
superposition.

With `muon`, torch's Muon trains the matrices between embedding and head. AdamW trains all other parameters: embeddings,
the head, norms, biases, and experts that are stored as one tensor of three dimensions. The update of Muon is scaled to
the size of AdamW's update ("Muon is scalable for LLM training", arXiv 2502.16982), so both use the same learning rate
and weight decay.

A step with a NaN or infinite loss or gradient is skipped completely. Fused AdamW skips the step on the device, so the
host does not wait. For optimizers without this feature, the host reads the flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from token_superposition.training.config import TrainConfig


@dataclass(frozen=True)
class WarmupStableDecay:
    """A learning rate that rises linearly, stays constant, and falls linearly over the last steps.

    Attributes:
        peak: the learning rate between warm-up and decay.
        total_steps, warmup_steps, decay_steps: optimizer steps.
        final_ratio: the learning rate at the end of the decay, divided by the peak.
    """

    peak: float
    total_steps: int
    warmup_steps: int
    decay_steps: int
    final_ratio: float = 0.0

    def at(self, step: int) -> float:
        """The learning rate of a step; steps count from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        left = self.total_steps - step
        if left >= self.decay_steps:
            return self.peak
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * left / self.decay_steps)

    @property
    def steps_before_decay(self) -> int:
        """Number of first steps whose learning rate does not depend on the decay or on the length of the run."""
        if self.decay_steps <= 1 or self.final_ratio == 1:
            return self.total_steps
        return max(self.warmup_steps, self.total_steps - self.decay_steps + 1)

    def shared_steps(self, other: WarmupStableDecay) -> int:
        """Number of first steps that have the same learning rate in both schedules."""
        if (self.peak, self.warmup_steps) != (other.peak, other.warmup_steps):
            return 0
        return self.total_steps if self == other else min(self.steps_before_decay, other.steps_before_decay)


class ShardedMuon(torch.optim.Muon):
    """Muon for sharded matrices: each rank gathers the whole matrix for the orthogonalization, and keeps its part.

    On DTensors, torch's Muon would compute the products of the orthogonalization in parts, in bfloat16: its results
    differ from those of one process in the third digit, and a step takes many times longer.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Do one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                grad, state = parameter.grad, self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
                buffer, local = state["momentum_buffer"], grad.to_local()
                buffer.to_local().lerp_(local, 1 - group["momentum"])
                update = local.lerp(buffer.to_local(), group["momentum"]) if group["nesterov"] else buffer.to_local()
                whole = DTensor.from_local(
                    update, grad.device_mesh, grad.placements, run_check=False, shape=grad.shape, stride=grad.stride()
                ).full_tensor()
                whole = _zeropower_via_newtonschulz(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
                shape, offset = compute_local_shape_and_global_offset(grad.shape, grad.device_mesh, grad.placements)
                part = whole[offset[0] : offset[0] + shape[0]]
                parameter.to_local().mul_(1 - group["lr"] * group["weight_decay"]).add_(part, alpha=-rate)


class Optimizers:
    """One or two torch optimizers that step together, or skip a step together.

    Attributes:
        parts: the optimizers, for DCP.
        parameters: all parameters that they train.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        self.parameters: list[nn.Parameter] = [p for part in parts for g in part.param_groups for p in g["params"]]
        # GradScaler of torch checks the same attribute: whether the optimizer skips a step if `found_inf` is set.
        self._skips_on_device = all(getattr(part, "_step_supports_amp_scaling", False) for part in parts)

    def step(self, learning_rate: float, skip: Tensor) -> None:
        """Do one step with the present gradients, and then delete the gradients.

        Args:
            learning_rate: learning rate of every parameter group.
            skip: scalar bool on the device; if it is true, weights and optimizer state do not change.
        """
        if self._skips_on_device or not skip.item():
            for part in self.parts:
                for group in part.param_groups:
                    group["lr"] = learning_rate
                if self._skips_on_device:
                    part.found_inf = skip.float()  # type: ignore[attr-defined]
                part.step()
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def build_optimizers(model: nn.Module, config: TrainConfig, device: torch.device) -> Optimizers:
    """Build the optimizers of a configuration for the parameters of a Hugging Face model."""
    hidden = _hidden_matrices(model) if config.optimizer == "muon" else []
    others = list(model.parameters())
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        sharded = isinstance(hidden[0], DTensor)
        parts.append(
            (ShardedMuon if sharded else torch.optim.Muon)(
                hidden,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
        taken = {id(parameter) for parameter in hidden}
        others = [parameter for parameter in others if id(parameter) not in taken]
    parts.append(
        torch.optim.AdamW(
            _decay_groups(others, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=device.type in ("cpu", "cuda"),
        )
    )
    return Optimizers(parts)


def states_kept(model: nn.Module, config: TrainConfig) -> int:
    """Size of the optimizer state in numbers: two per parameter of AdamW, and one per parameter of Muon."""
    hidden = _hidden_matrices(model) if config.optimizer == "muon" else []
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return 2 * trained - sum(parameter.numel() for parameter in hidden)


def build_learning_rate(config: TrainConfig) -> WarmupStableDecay:
    """Build the learning rate schedule of a configuration."""
    return WarmupStableDecay(
        peak=config.learning_rate,
        total_steps=config.total_steps,
        warmup_steps=config.num_warmup_steps,
        decay_steps=config.decay_steps,
        final_ratio=config.final_learning_rate_ratio,
    )


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay; norms and biases (fewer than two dimensions) without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon trains: all except embeddings and the head."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    outside.add(id(model.get_output_embeddings().weight))  # type: ignore[operator]
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in outside]
