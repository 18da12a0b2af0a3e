"""The device a run resolves to."""

from __future__ import annotations

import pytest
import torch

from token_superposition.models.device import device_type, resolve_device


class Somewhere:
    """Stands for a tensor on a device that this machine need not have."""

    def item(self) -> float:
        return 0.0


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_cuda_device_has_its_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`torch.cuda.set_device` takes no device without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Somewhere())
    assert resolve_device(name) == torch.device("cuda", 3)


def test_without_an_accelerator_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


def test_the_kind_of_a_device_is_told_without_touching_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("the device was used"))
    assert [device_type(name) for name in ("auto", "cuda", "cuda:1", "cpu", "mps")] == ["cuda"] * 3 + ["cpu", "mps"]
