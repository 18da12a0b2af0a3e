"""`superpose`: a plain `nn.Module` that takes bags, told where its embedding and its head are.

The module is asked for a forward on the first token of each bag, as it would be on tokens. While it runs, what its
embedding returns is replaced by the mean over the bag, and what its head returns is kept: these are the
logits. So the module needs no argument for embeddings, may compute a loss of its own or none, may scale what it
looks up, cap what it puts out, or return whatever it likes.

A module that looks ids up in more places than its embedding would be trained wrongly, and is refused: on a few
tokens, other ids with the same embeddings must give the same logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from token_superposition.model.checks import evaluating
from token_superposition.model.embedding import mean_embedding
from token_superposition.model.superposed import SuperposedOutput, loss_and_weight


def superpose(
    module: nn.Module,
    *,
    embedding: str | nn.Module,
    head: str | nn.Module,
    z_loss: float = 0.0,
    verify: bool = True,
) -> SuperposedModule:
    """Make a plain module take bags; it stays what it is, and trains as it did on tokens.

    Args:
        module: called as `module(ids_BL)`; its logits may not see later tokens.
        embedding: the submodule that turns ids (B, L) into (B, L, d), itself or its dotted name.
        head: the submodule whose output is the logits, (B, L, V), itself or its dotted name. Where the module
            caps or scales logits after its head, wrap both in a submodule and name that.
        z_loss: as in `SuperposedLM`.
        verify: check on a few tokens that all this holds.

    Raises:
        TypeError: where there is no such submodule, it is not used exactly once, or the module looks ids up
            outside its embedding or sees later tokens.
    """
    return SuperposedModule(module, embedding, head, z_loss, verify)


class SuperposedModule(nn.Module):
    """What `superpose` returns; like `SuperposedLM`, with the module as `.model`."""

    def __init__(
        self, module: nn.Module, embedding: str | nn.Module, head: str | nn.Module, z_loss: float, verify: bool
    ) -> None:
        super().__init__()
        self.model = module
        self.z_loss = z_loss
        self._names = {"embedding": _name_of(module, embedding), "head": _name_of(module, head)}
        if verify:
            self._verify()

    def forward(
        self, ids: Tensor, targets: Tensor, slot_weights: Tensor | None = None, **inputs: Any
    ) -> SuperposedOutput:
        """The loss of one batch.

        Args:
            ids: (B, L) tokens or (B, L, s) bags.
            targets: (B, L) next tokens or (B, L, k) next bags, aligned with the inputs; -100 is ignored.
            slot_weights: (k,), or None for uniform.
            inputs: passed on to the module.
        """
        if targets.shape[:2] != ids.shape[:2]:
            raise ValueError(f"ids {tuple(ids.shape)} and targets {tuple(targets.shape)} are not aligned")
        logits = self._logits(ids, **inputs)
        return SuperposedOutput(*loss_and_weight(logits, targets, slot_weights, self.z_loss))

    def _logits(self, ids: Tensor, embedded: Tensor | None = None, **inputs: Any) -> Tensor:
        """What the head puts out for tokens or bags; `embedded` (B, L, d) takes the place of their embeddings."""
        embedding, head = (self.model.get_submodule(name) for name in self._names.values())
        if ids.dim() == 3:
            if ids.shape[-1] > 1:
                embedded = mean_embedding(embedding, ids)
            ids = ids[..., 0]
        with _watched(embedding, replaced_by=embedded) as looked_up, _watched(head) as put_out:
            self.model(ids, **inputs)
        for role, seen in (("embedding", looked_up), ("head", put_out)):
            if len(seen) != 1:
                raise TypeError(
                    f"{type(self.model).__name__} uses its {role} {self._names[role]!r} {len(seen)} times in a "
                    "forward, not once"
                )
        return put_out[0]

    @torch.no_grad()
    def _verify(self) -> None:
        name = type(self.model).__name__
        embedding = self.model.get_submodule(self._names["embedding"])
        weight = next(embedding.parameters())
        ids_BL = torch.linspace(0, weight.shape[0] - 1, 8, device=weight.device).long().unsqueeze(0)
        other_BL = ids_BL.flip(1)
        with evaluating(self.model):
            own = self._logits(ids_BL)
            same = self._logits(other_BL, embedded=embedding(ids_BL))
            changed_BL = torch.cat([ids_BL[:, :-1], ids_BL[:, :1]], dim=1)
            changed = self._logits(changed_BL)
        if own.shape[:2] != ids_BL.shape:
            raise TypeError(f"{name}: the head's output has shape {tuple(own.shape)}, not (B, L, V)")
        tolerance = 1e-4 * max(own.abs().max().item(), 1e-6)
        if not torch.allclose(own, same, rtol=0, atol=tolerance):
            raise TypeError(f"{name} cannot be superposed: it looks ids up outside its embedding too")
        if not torch.allclose(own[:, :-1], changed[:, :-1], rtol=0, atol=tolerance):
            raise TypeError(f"{name} is not causal: its logits see later tokens")


@contextlib.contextmanager
def _watched(module: nn.Module, replaced_by: Tensor | None = None) -> Iterator[list[Tensor]]:
    """What a submodule puts out inside the block; the callers see `replaced_by` in its place."""
    seen: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        seen.append(output)
        return replaced_by

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _name_of(module: nn.Module, part: str | nn.Module) -> str:
    names = [name for name, found in module.named_modules() if name == part or found is part]
    if not names or not names[0]:
        wanted = repr(part) if isinstance(part, str) else type(part).__name__
        raise TypeError(f"{type(module).__name__} has no submodule {wanted}")
    return names[0]
