"""Shards a model with FSDP2 in three ways, trains it across the switch, and trains the same model unsharded beside it.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 tests/gpu/sharded.py OUT.json --size gpu

`root`: `fully_shard` on the layers and on `SuperposedLM`. `accelerate`: `Accelerator.prepare`, as it is configured by
the launcher. `trainer`: `SuperpositionTrainer` with `fsdp=True`. Each with tied and with untied embeddings. The first
process writes, for each, the losses of both models, how far their weights are apart at the end, and which modules
became units of FSDP. With `--device cpu` it does the same over gloo. `tests/gpu/adapters.py` starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from tests.integrations.runs import SIZES, Recorded, Size, adamw, core_losses, llama, losses, optimizer_options, rows
from token_superposition import SuperposedLM, split_inputs_and_targets

BAG_SIZE = 4


def batches(size: Size) -> list[dict[str, Tensor]]:
    """A batch a step, over all processes; the first half of them bags."""
    found = []
    for step in range(size.num_steps):
        bag_size = BAG_SIZE if step < size.num_steps // 2 else 1
        raw = rows(size.rows_per_step, seed=step, length=bag_size * (size.length + 1), vocab_size=size.vocab_size)
        inputs, targets = split_inputs_and_targets(torch.stack([row["input_ids"] for row in raw]), bag_size)
        found.append({"input_ids": inputs, "labels": targets})
    return found


def loop(
    superposed: nn.Module, optimizer: Any, size: Size, device: torch.device, backward: Callable[[Tensor], None]
) -> list[float]:
    """Train on this process's rows; returns the losses over all processes."""
    rank, num_processes = dist.get_rank(), dist.get_world_size()
    found = []
    for batch in batches(size):
        ids, targets = (batch[name][rank::num_processes].to(device) for name in ("input_ids", "labels"))
        loss = superposed(ids, targets).loss
        backward(loss)
        nn.utils.clip_grad_norm_(superposed.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        dist.all_reduce(total)
        found.append(total.item() / num_processes)
    return found


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A sharded model's state dict, gathered on the first process."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def root(model: Any, size: Size, device: torch.device) -> tuple[list[float], dict[str, Tensor], list[Any]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Its head's weight is whole only inside the forward: that is where the chunked loss must find it, tied or not.
    superposed = SuperposedLM(model.to(device), loss_backend="chunked")
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(superposed, mesh=mesh)
    found = loop(superposed, adamw(superposed, size), size, device, lambda loss: loss.backward())
    return found, whole_state(model), [[batch] for batch in batches(size)]


def accelerated(model: Any, size: Size, device: torch.device) -> tuple[list[float], dict[str, Tensor], list[Any]]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu")
    superposed, optimizer = accelerator.prepare(SuperposedLM(model), adamw(model, size))
    found = loop(superposed, optimizer, size, device, accelerator.backward)
    return found, accelerator.get_state_dict(model), [[batch] for batch in batches(size)]


def trainer(model: Any, size: Size, device: torch.device) -> tuple[list[float], dict[str, Tensor], list[Any]]:
    from transformers import TrainingArguments

    from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer

    class Recording(Recorded, SuperpositionTrainer):
        pass

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=size.num_steps,
            per_device_train_batch_size=max(size.rows_per_step // dist.get_world_size(), 1),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            fsdp=True,
            fsdp_config={"cpu_ram_efficient_loading": True},
            **optimizer_options(size),
        )
        run: Any = Recording(
            model=model,
            args=args,
            train_dataset=rows(40 * size.rows_per_step, length=size.length, vocab_size=size.vocab_size),
            superposition=SuperpositionArguments(bag_size=BAG_SIZE, superposition_ratio=0.5),
        )
        run.train()
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, [{name: value.cpu() for name, value in batch.items()} for batch in run.seen])
        return losses(run), run.accelerator.get_state_dict(run.model), list(zip(*seen, strict=True))


def pretend_gpus() -> None:
    """Accelerate shards on GPUs only; told that each process has one, it shards on the CPU by the same code."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    start = PartialState.__init__

    def start_and_say_so(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = start_and_say_so


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--ways", nargs="+", default=["root", "accelerate", "trainer"])
    given = parser.parse_args()
    size = SIZES[given.size]
    device = torch.device(given.device, int(os.environ["LOCAL_RANK"]) if given.device == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
        if given.ways != ["root"]:
            pretend_gpus()
    # The gathering of whole state dicts goes over the CPU.
    dist.init_process_group("cpu:gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=timedelta(minutes=2))
    ways = {"root": root, "accelerate": accelerated, "trainer": trainer}
    report = {}
    for way in given.ways:
        for tied in (True, False):
            model = llama(size, tied=tied)
            found, state, steps = ways[way](model, size, device)
            alone = llama(size, tied=tied).to(device)
            on_device = [[{k: v.to(device) for k, v in batch.items()} for batch in step] for step in steps]
            expected = core_losses(on_device, alone, adamw(alone, size))
            if dist.get_rank():
                continue
            own = {name: value.cpu() for name, value in alone.state_dict().items()}
            report[f"{way}, {'tied' if tied else 'untied'}"] = {
                "losses": found,
                "unsharded": expected,
                "bags": [step[0]["input_ids"].dim() == 3 and step[0]["input_ids"].shape[-1] > 1 for step in steps],
                "same_keys": list(state) == list(own),
                "weights_apart": max((state[name].cpu() - own[name]).abs().max().item() for name in own),
                "units": sorted({type(m).__name__ for m in model.modules() if type(m).__name__.startswith("FSDP")}),
            }
    if not dist.get_rank():
        given.out.write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
