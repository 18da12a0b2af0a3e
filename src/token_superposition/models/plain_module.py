"""`superpose` and `SuperposedModule`: train a plain `nn.Module` on bags, given the names of its embedding and head.

The module's own forward runs on the first token of each bag. While it runs, the output of its embedding is replaced by
the mean over the bag, and the output of its head is recorded: these are the logits. The module needs no argument for
embeddings. It may scale its embeddings, and it may compute its own loss, which is not used.

`plain_module_checks` refuses a module for which this would give a wrong loss.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from token_superposition.errors import did_you_mean
from token_superposition.losses.linear import LossBackend
from token_superposition.models.embedding import mean_embedding
from token_superposition.models.superposed import SuperposedLM, SuperposedOutput, loss_and_weight

# Names of the argument for targets. The forward of nanoGPT returns logits for all positions only if it gets targets.
_TARGETS = ("targets", "target", "labels", "label")


@overload
def superpose(
    module: nn.Module, *, z_loss: float = 0.0, loss_backend: LossBackend = "auto", verify: bool = True
) -> SuperposedLM: ...


@overload
def superpose(
    module: nn.Module,
    *,
    embedding: str | nn.Module,
    head: str | nn.Module,
    z_loss: float = 0.0,
    verify: bool = True,
) -> SuperposedModule: ...


def superpose(
    module: nn.Module,
    *,
    embedding: str | nn.Module | None = None,
    head: str | nn.Module | None = None,
    z_loss: float = 0.0,
    loss_backend: LossBackend = "auto",
    verify: bool = True,
) -> SuperposedLM | SuperposedModule:
    """Make a model accept bags of tokens as well as tokens; the model and its parameters are not changed.

    Args:
        module: a Hugging Face causal language model; or, with `embedding` and `head`, any module that is called as
            `module(ids_BL)`. Its logits must not depend on later tokens. If a forward returns logits for all positions
            only with targets (nanoGPT), it gets the ids as targets; the loss that it computes from them is not used.
        embedding: the submodule that turns ids (B, L) into (B, L, d): the module itself or its dotted name.
        head: the submodule whose output is the logits, (B, L, V) or (B * L, V): the module itself or its dotted name.
            If the module caps or scales logits after its head, put both into one submodule and name that submodule.
        z_loss: the coefficient of logsumexp(logits)^2.
        loss_backend: only for a Hugging Face model, as in `linear_multi_hot_cross_entropy`.
        verify: check these requirements on a few tokens.

    Returns:
        A module that is called with ids and targets, and returns `.loss` and `.weight_sum`.

    Raises:
        TypeError: if the module cannot be trained on bags. The message says why and what to do.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = superpose(LlamaForCausalLM(LlamaConfig(vocab_size=64, **size)))
        >>> ids, targets = torch.randint(0, 64, (2, 3, 8, 4))  # (B, L, s) each: bags, and the bags after them
        >>> model(ids, targets).loss.backward()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"superpose takes a model, not a {type(module).__name__}")
    if (embedding is None) != (head is None):
        raise TypeError("give both embedding= and head=, or neither for a Hugging Face model")
    if embedding is not None and head is not None:
        if loss_backend != "auto":
            raise TypeError(
                "loss_backend works only for Hugging Face models: remove loss_backend=, because with embedding= and "
                "head= the module computes its own logits"
            )
        return SuperposedModule(module, embedding, head, z_loss, verify)
    if not callable(getattr(module, "get_input_embeddings", None)):
        raise TypeError(
            f"{type(module).__name__} is not a Hugging Face causal language model: name its submodules, "
            "superpose(model, embedding=..., head=...)"
        )
    return SuperposedLM(module, verify=verify, z_loss=z_loss, loss_backend=loss_backend)


class Call(NamedTuple):
    """One call of a submodule: its first argument and its output."""

    given: Any
    output: Any


class SuperposedModule(nn.Module):
    """The result of `superpose` for a plain module, used like `SuperposedLM`; the module is available as `.model`."""

    def __init__(
        self, module: nn.Module, embedding: str | nn.Module, head: str | nn.Module, z_loss: float, verify: bool
    ) -> None:
        super().__init__()
        self.model = module
        self.z_loss = z_loss
        self.names = {"embedding": _name_of(module, embedding), "head": _name_of(module, head)}
        parameters = inspect.signature(module.forward).parameters
        self.targets_argument = next((name for name in _TARGETS if name in parameters), None)
        self.gives_targets = bool(
            self.targets_argument and parameters[self.targets_argument].default is inspect.Parameter.empty
        )
        if verify:
            from token_superposition.models.plain_module_checks import check_plain

            check_plain(self)

    def forward(
        self, ids: Tensor, targets: Tensor, slot_weights: Tensor | None = None, **inputs: Any
    ) -> SuperposedOutput:
        """Return the loss of one batch.

        Args:
            ids: (B, L) tokens or (B, L, s) bags.
            targets: (B, L) next tokens or (B, L, k) next bags, aligned with the inputs; -100 is ignored.
            slot_weights: (k,), or None for uniform.
            inputs: passed on to the module.
        """
        if targets.shape[:2] != ids.shape[:2]:
            raise ValueError(f"ids {tuple(ids.shape)} and targets {tuple(targets.shape)} are not aligned")
        embedded = None
        if ids.dim() == 3:
            if ids.shape[-1] > 1:
                embedded = mean_embedding(self.part("embedding"), ids)
            ids = ids[..., 0].contiguous()  # so that a forward may call `ids.view`
        _, _, (_, output) = self.run(ids, embedded, **inputs)
        logits = in_rows(output, ids.shape)
        if logits is None:
            raise self.no_logits(output)
        return SuperposedOutput(*loss_and_weight(logits, targets, slot_weights, self.z_loss))

    def part(self, role: str) -> nn.Module:
        """Return the submodule with the role `embedding` or `head`."""
        return self.model.get_submodule(self.names[role])

    def run(
        self, ids_BL: Tensor, embedded: Tensor | None = None, put_out: Tensor | None = None, **inputs: Any
    ) -> tuple[Any, Call, Call]:
        """Run one forward and return its result, the call of its embedding, and the call of its head.

        Args:
            ids_BL: contiguous token ids.
            embedded: (B, L, d), replaces the output of the embedding.
            put_out: replaces the output of the head.
            inputs: passed on to the module.

        Raises:
            TypeError: if the module does not call its embedding and its head exactly once.
        """
        if self.gives_targets and self.targets_argument:
            inputs.setdefault(self.targets_argument, ids_BL)
        with _watched(self.part("embedding"), embedded) as looked_up, _watched(self.part("head"), put_out) as headed:
            returned = self.model(ids_BL, **inputs)
        for role, calls in (("embedding", looked_up), ("head", headed)):
            if len(calls) != 1:
                raise self.wrong_count(role, len(calls))
        return returned, looked_up[0], headed[0]

    def wrong_count(self, role: str, count: int) -> TypeError:
        """Return the error for a forward that does not call a submodule exactly once."""
        use = "looks token ids up" if role == "embedding" else "gives the logits"
        advice = f"name the submodule that {use} in one call"
        if count == 0:
            advice += " (the forward has to call the submodule itself, not a function on its weight)"
        return TypeError(
            f"{type(self.model).__name__} calls its {role} {self.names[role]!r} {count} times in a forward, not once: "
            f"{advice}"
        )

    def no_logits(self, output: Any) -> TypeError:
        """Return the error for a head whose output is not logits of shape (B, L, V)."""
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        return TypeError(
            f"{type(self.model).__name__}: its head {self.names['head']!r} gives {shape}, not logits (B, L, V) for all "
            "positions: let the forward apply the head to every position, as it does in training"
        )


def in_rows(output: Any, shape: torch.Size) -> Tensor | None:
    """Return a submodule's output (B, L, n) or (B * L, n) as (B, L, n); None for any other output."""
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[0] == shape.numel():
        return output.view(*shape, -1)
    return output if isinstance(output, Tensor) and output.dim() == 3 and output.shape[:2] == shape else None


@contextlib.contextmanager
def _watched(module: nn.Module, replaced_by: Tensor | None = None) -> Iterator[list[Call]]:
    """Record the calls of a submodule inside the block; `replaced_by` replaces its output."""
    calls: list[Call] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> Tensor | None:
        calls.append(Call(next(iter((*arguments, *options.values())), None), output))
        return replaced_by

    handle = module.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _name_of(module: nn.Module, part: str | nn.Module) -> str:
    every = dict(module.named_modules())
    names = [name for name, found in every.items() if name == part or found is part]
    if not names or not names[0]:
        wanted = repr(part) if isinstance(part, str) else type(part).__name__
        inner = next((name for name in every if isinstance(part, str) and name.endswith(f".{part}")), None)
        near = f"; did you mean {inner!r}?" if inner else did_you_mean(wanted.strip("'"), every)
        raise TypeError(f"{type(module).__name__} has no submodule {wanted}{near}")
    return names[0]
