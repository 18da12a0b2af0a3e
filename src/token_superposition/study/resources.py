"""How a study's runs share the machine: how many at once, and cores, memory and CUDA devices among them.

On the CPU a core is enough for a run, but runs have to fit into memory together: the system stops one that does not,
and that ends the study. On CUDA every device has a run; two on one would take each other's time and memory.

A run that is dealt a device sees no other, by CUDA_VISIBLE_DEVICES: to it this one is `cuda:0`, whichever it is, and
`cuda:0` is what it records. So it can go on, and others can begin as it did, on any of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from token_superposition.models.device import device_type, resolve_dtype
from token_superposition.models.size_limits import available_memory
from token_superposition.models.step_memory import abstract
from token_superposition.training.config import ModelConfig, RunConfig
from token_superposition.training.datasets import Corpora
from token_superposition.training.dry_run import step_memory
from token_superposition.training.init_from import open_source, settle_model

_PROCESS_BYTES = 350 * 2**20  # Python and the libraries, measured: what processes do not share of them
_MARGIN = 0.2  # of the memory, left free: runs of 6M and 27M parameters took 16% to 26% more than a step should
_MEMORY_KEYS = ("micro_batch_size", "optimizer", "dtype", "loss_backend", "activation_checkpointing")  # arms may differ
_ANY_DEVICE = ("auto", "cuda")  # others are names of one


@dataclass(frozen=True)
class Share:
    """How runs share the machine.

    Attributes:
        at_once: how many are trained at a time.
        threads: CPU threads of each.
        devices: CUDA devices to be dealt to them, as CUDA_VISIBLE_DEVICES names them; empty where there is no choice.
    """

    at_once: int
    threads: int
    devices: tuple[str, ...] = ()

    def free_device(self, taken: Iterable[str | None]) -> str | None:
        """The device that the fewest runs are on, the first of several; None where there is no choice.

        Args:
            taken: the device of each run that is being trained.
        """
        held = list(taken)
        return min(self.devices, key=held.count, default=None)


def share_machine(configs: Sequence[RunConfig], num_runs: int, jobs: int | None) -> Share:
    """How so many runs share this machine.

    Args:
        configs: what is trained, each with some seeds.
        num_runs: of all of them.
        jobs: how many at once, whatever the machine bears.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    train = configs[0].train
    pinned = train.num_threads if isinstance(train.num_threads, int) else None
    devices: tuple[str, ...] = ()
    if device_type(train.device) == "cpu":
        at_once = jobs or _that_fit(configs, max(1, min(num_runs, cores // (pinned or 1))))
    else:
        if device_type(train.device) == "cuda" and all(config.train.device in _ANY_DEVICE for config in configs):
            devices = visible_devices()
        at_once = jobs or max(1, min(num_runs, len(devices)))
    return Share(at_once, pinned or max(1, cores // at_once), devices if len(devices) > 1 else ())


def visible_devices() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES would call each of the CUDA devices that this process sees: a number or a UUID."""
    if torch.version.hip:  # has variables of its own, and what those hide the numbers here would not say
        return ()
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if given is None else (name.strip() for name in given.split(","))
    return tuple(names)[:count]  # CUDA stops at the first that is not there


def _that_fit(configs: Sequence[RunConfig], most: int) -> int:
    """How many runs fit into memory together, if each were the largest; at least one, which may be tried."""
    if most == 1:
        return 1
    # Of arms that take the same for a step one is enough: budgets and learning rates make no difference.
    different = {
        (_largest_stage(config), *(getattr(config.train, key) for key in _MEMORY_KEYS)): config for config in configs
    }
    largest = max(map(run_bytes, different.values()))
    return max(1, min(most, int((1 - _MARGIN) * available_memory() / largest)))


def run_bytes(config: RunConfig) -> int:
    """Memory that a run should take on the CPU, with its process; of that alone where the model cannot be sketched."""
    corpora, part = Corpora.open(config.data), config.model
    source = open_source(config, corpora.tokenizer)
    if source is not None:
        part = ModelConfig(**settle_model(part, source.architecture, source.keys, corpora.tokenizer))
    dtype = resolve_dtype(config.train.dtype, torch.device("cpu"))
    try:
        with abstract():
            model = corpora.model_spec(part).build_unchecked()
            bag_size, num_targets = _largest_stage(config)
            return _PROCESS_BYTES + step_memory(model, config.train, bag_size, num_targets, dtype).total
    except Exception:  # a family whose code looks at values; what is wrong with the model, the run itself says
        return _PROCESS_BYTES


def _largest_stage(config: RunConfig) -> tuple[int, int]:
    """Tokens that a position reads and predicts, where these are the most."""
    return max(((stage.input_bag_size, stage.num_targets) for stage in config.schedule().stages), key=sum)
