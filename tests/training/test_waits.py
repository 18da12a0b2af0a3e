"""Nothing in a step waits for the device, and the loop asks it only where it has something to say.

The device is torch's `meta`: its tensors have no content, so whatever asks for one raises an error there.
"""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import tiny_model
from token_superposition.models.transformers_compat import rows_hold_one_document
from token_superposition.schedule import Schedule, Stage
from token_superposition.training import loop
from token_superposition.training.config import parse_config
from token_superposition.training.distributed import World
from token_superposition.training.parallel_config import ParallelConfig
from token_superposition.training.trainer import Trainer

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Writes down copies from the host that the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and kwargs.get("device") == META:
            self.moved += 1
            if not kwargs.get("non_blocking"):
                self.waits.append(f"{args[0].dtype} {tuple(args[0].shape)}")
        return func(*args, **kwargs)


def on_meta(values: dict[str, Any], patch: pytest.MonkeyPatch, **keys: Any) -> Trainer:
    """A trainer whose model and steps are on a device without content; its optimizers are asked to step, and do not."""
    dotted = {"train.dtype": "float32", "train.num_threads": 1}
    config = parse_config(values, {**dotted, **{key.replace("__", "."): value for key, value in keys.items()}})
    trainer = Trainer(config, config.schedule())
    trainer.model.to(META)
    trainer.device, trainer.pinned = META, True
    trainer.optimizers.parameters = list(trainer.model.parameters())
    for part in trainer.optimizers.parts:
        patch.setattr(part, "step", lambda: None)
    patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta
    patch.setattr(torch, "is_autocast_enabled", lambda _: False)
    return trainer


@pytest.mark.parametrize("weights", ["uniform", "power_law"])
@pytest.mark.parametrize("backend", ["plain", "chunked"])
def test_a_step_asks_the_device_nothing(
    small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, weights: str, backend: str
) -> None:
    keys = {"train__loss_backend": backend, "superposition__slot_weights": weights, "train__micro_batch_size": 2}
    trainer = on_meta(small_run, monkeypatch, **keys)
    for step in (0, trainer.schedule.switch_step):
        with Copies() as copies:
            result = trainer.step(trainer.stream.batch(step))
        assert {result.loss.device, result.grad_norm.device, result.skipped.device} == {META}
        assert copies.moved >= 5  # ids and targets of two micro-batches, and the sum of weights
        assert not copies.waits


def test_transformers_looks_for_packed_documents_where_rows_hold_several() -> None:
    from transformers import masking_utils

    def search() -> Tensor | None:
        return masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]]))

    seen: list[Tensor | None] = []
    with rows_hold_one_document():
        with rows_hold_one_document():
            pass
        assert search() is None
        elsewhere = threading.Thread(target=lambda: seen.append(search()))
        elsewhere.start()
        elsewhere.join()
    for found in (*seen, search()):
        assert found is not None
        assert found.tolist() == [[0, 0, 1, 1]]


def test_the_search_that_is_left_out_changes_no_bit() -> None:
    model = tiny_model("llama", tied=True)
    ids = torch.arange(24).view(2, 12)
    own = model(input_ids=ids, use_cache=False).logits
    with rows_hold_one_document():
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, own)


class Told:
    """Stands for a run's record: counts how often it looks at what the device has done."""

    def __init__(self) -> None:
        self.done, self.looks, self.logged = 0, [], []  # type: ignore[var-annotated]

    def add(self, batch: Any, _: Any) -> None:
        self.done = batch.step + 1

    def look(self) -> dict[str, Any]:
        self.looks.append(self.done)
        return {}

    def log(self, *_: Any) -> None:
        self.logged.append(self.done)

    def finish(self) -> dict[str, Any]:
        return {}

    def validate(self, _: int) -> None: ...
    def checkpoint(self, _: Any) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize(("device", "looks"), [("cuda", [4, 5, 6, 8, 10, 12]), ("cpu", list(range(1, 13)))])
def test_the_loop_waits_for_a_gpu_only_where_it_logs(device: str, looks: list[int]) -> None:
    schedule = Schedule([Stage(2, 6), Stage(1, 6)])
    intervals = SimpleNamespace(
        log_interval=4,
        checkpoint_interval=5,
        keep_checkpoint_steps=[],
        validation_interval=100,
        interim_validation_tokens=0,
    )
    batches = [SimpleNamespace(step=step, span=SimpleNamespace(stage=schedule.index_at(step))) for step in range(12)]
    trainer: Any = SimpleNamespace(
        schedule=schedule,
        config=SimpleNamespace(logging=intervals, train=SimpleNamespace(parallel=ParallelConfig())),
        device=torch.device(device),
        batches=lambda first: iter(batches[first:]),
        step=lambda _: None,
        world=World(),
    )
    told: Any = Told()
    loop._run(trainer, told, stop_after=None)
    assert told.logged == [4, 6, 8, 12]
    assert told.looks == looks


def test_batches_for_a_gpu_are_pinned_whole(small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(small_run, {"train.dtype": "float32", "data.bag_boundary": "document"})
    trainer = Trainer(config, config.schedule())
    pinned: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self.data_ptr()) or self.clone())
    plain = next(trainer.batches(0))
    assert not pinned
    trainer.pinned = True
    batch = next(trainer.batches(0))
    assert len(pinned) == 3  # ids, targets and positions
    for name in ("ids", "targets", "position_ids"):
        assert torch.equal(getattr(batch, name), getattr(plain, name))
        assert getattr(batch, name).data_ptr() not in pinned
