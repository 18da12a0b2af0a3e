"""The mean embedding of bags, from embedding modules of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from token_superposition.models.embedding import mean_embedding

IDS_BLS = torch.randint(0, 11, (2, 5, 4), generator=torch.Generator().manual_seed(0))


def embedding(dtype: torch.dtype = torch.float32) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(11, 6, dtype=dtype)


class Halved(nn.Module):
    """An embedding that is no `nn.Embedding`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = embedding()

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.inner(ids_BL) / 2


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process that takes itself for a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_plain_one_a_hooked_one_and_an_unknown_one() -> None:
    expected = embedding()(IDS_BLS).mean(dim=2)
    torch.testing.assert_close(mean_embedding(embedding(), IDS_BLS), expected)
    torch.testing.assert_close(mean_embedding(Halved(), IDS_BLS), expected / 2)
    hooked = embedding()
    hooked.register_forward_hook(lambda _, __, output: output + 1)
    torch.testing.assert_close(mean_embedding(hooked, IDS_BLS), expected + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sharded_one_is_called_once(mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Each call would gather its weight from all ranks."""
    from torch.distributed.fsdp import fully_shard

    plain, sharded = embedding(dtype), embedding(dtype)
    fully_shard(sharded, mesh=mesh)
    calls: list[Any] = []
    sharded.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    found, expected = mean_embedding(sharded, IDS_BLS), mean_embedding(plain, IDS_BLS)
    assert len(calls) == 1
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    gradient: Any = sharded.weight.grad
    torch.testing.assert_close(gradient.full_tensor(), plain.weight.grad)
