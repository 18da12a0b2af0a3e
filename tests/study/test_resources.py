"""How a study's runs share cores, memory and CUDA devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from token_superposition.models.spec import ModelSpec
from token_superposition.study import resources as machine
from token_superposition.study.resources import Share, run_bytes, share_machine, visible_devices
from token_superposition.training.config import RunConfig, parse_config
from token_superposition.training.dry_run import dry_run

GIB = 2**30


def config(small_run: dict[str, Any], **train: Any) -> RunConfig:
    return parse_config({**small_run, "train": {**small_run["train"], **train}})


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of them."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, not to be touched: a study's own process has no use for a GPU's memory."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("a CUDA context was made"))


@pytest.mark.usefixtures("cores", "gpus")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_cuda_device_has_a_run_and_the_cores_are_shared(small_run: dict[str, Any], device: str) -> None:
    given = [config(small_run, device=device, num_threads="auto")]
    assert share_machine(given, 10, None) == Share(4, 4, ("0", "1", "2", "3"))
    assert share_machine(given, 2, None) == Share(2, 8, ("0", "1", "2", "3"))
    assert share_machine(given, 10, 8) == Share(8, 2, ("0", "1", "2", "3"))
    assert share_machine(given, 10, 99).threads == 1


@pytest.mark.usefixtures("cores", "gpus")
def test_a_device_that_is_named_is_the_only_one(small_run: dict[str, Any]) -> None:
    named = config(small_run, device="cuda:1", num_threads="auto")
    assert share_machine([named], 10, None) == Share(1, 16)
    assert share_machine([named], 10, 2) == Share(2, 8)
    # Where one arm names a device, those it would be dealt need not hold that one.
    assert share_machine([config(small_run, device="cuda"), named], 10, None).devices == ()


@pytest.mark.usefixtures("cores", "gpus")
def test_of_one_cuda_device_there_is_nothing_to_deal(
    small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    given = [config(small_run, device="auto", num_threads="auto")]
    assert share_machine(given, 10, None) == Share(1, 16)
    assert share_machine(given, 10, 2) == Share(2, 8)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 3, ("0", "1", "2")),
        ("5,2", 2, ("5", "2")),
        ("GPU-1f2e, GPU-77aa", 2, ("GPU-1f2e", "GPU-77aa")),
        ("3,1,-1,0", 2, ("3", "1")),  # CUDA stops at the first that is not there
        ("", 0, ()),
    ],
)
def test_devices_are_named_as_the_environment_names_them(
    monkeypatch: pytest.MonkeyPatch, given: str | None, count: int, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_devices() == names


def test_devices_are_dealt_in_turn_and_again_once_they_are_free() -> None:
    share, taken = Share(5, 1, ("0", "1")), list[str | None]()
    for _ in range(5):
        taken.append(share.free_device(taken))
    assert taken == ["0", "1", "0", "1", "0"]
    assert share.free_device(["0", "0", "1"]) == "1"
    assert Share(2, 1).free_device([None]) is None


@pytest.mark.usefixtures("cores")
def test_on_the_cpu_as_many_as_fit_into_memory(small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = [config(small_run, num_threads="auto"), config(small_run, num_threads="auto", micro_batch_size=2)]
    monkeypatch.setattr(machine, "available_memory", lambda: 50 * GIB)
    monkeypatch.setattr(machine, "run_bytes", lambda one: (10 if one.train.micro_batch_size is None else 4) * GIB)
    assert share_machine(given, 64, None) == Share(4, 4)
    assert share_machine(given, 3, None) == Share(3, 5)
    assert share_machine(given[1:], 64, None) == Share(10, 1)
    assert share_machine(given, 64, 16) == Share(16, 1)
    monkeypatch.setattr(machine, "available_memory", lambda: 5 * GIB)
    assert share_machine(given, 64, None) == Share(1, 16)


@pytest.mark.usefixtures("cores")
def test_runs_of_several_threads_have_them_each(small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "run_bytes", lambda _: 1)
    assert share_machine([config(small_run, num_threads=4)], 64, None) == Share(4, 4)
    assert share_machine([config(small_run, num_threads=4)], 64, 9) == Share(9, 4)
    assert share_machine([config(small_run, num_threads=99)], 64, None) == Share(1, 99)


def test_a_run_takes_what_a_dry_run_says_and_its_process(small_run: dict[str, Any], tmp_path: Path) -> None:
    given = config(small_run, dtype="auto")
    step = dry_run(given, tmp_path / "run")["memory"]["total"]
    assert run_bytes(given) - step == 350 * 2**20
    wider = {**small_run["model"]["config"], "hidden_size": 32_768, "num_attention_heads": 256}
    large = {**small_run, "model": {**small_run["model"], "config": wider}}
    assert run_bytes(parse_config(large)) > 16 * 4 * 32_768**2  # of the attention's matrices alone


def test_a_model_that_cannot_be_sketched_counts_as_its_process(
    small_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def values_are_needed(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(ModelSpec, "build_unchecked", values_are_needed)
    assert run_bytes(config(small_run)) == 350 * 2**20
