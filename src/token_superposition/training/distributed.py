"""The processes of one run, and how they agree.

`torchrun` starts one process (rank) per GPU, or several on a CPU. All ranks do the same steps. They must also take the
same decisions: a rank that raises an error while the others wait for it in a collective operation would leave them
waiting until the timeout. Therefore:

- Rank 0 alone reads and writes the run folder (`World.on_main`); the other ranks get its result, or its error.
- An error of any rank becomes an error of all ranks (`World.together`).
- One small collective operation per step (`World.step_sum`) adds up the weights of the targets and the requests to
  stop, so all ranks stop after the same step.

These operations use a gloo group of their own on the host. They never wait for a GPU, and cannot be confused with the
collective operations of the training. In a run of one process, all of them do nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from token_superposition.errors import RunError, UserError, first_line, machine_trouble
from token_superposition.torchrun import launched_by_torchrun

_START_SECONDS = 1800  # the start may verify data and checkpoints on rank 0 alone
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "socket", "timed out", "recvvalue failed")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class PeerError(RunError):
    """Another process of the run has ended, or does not answer."""


class World:
    """The ranks of a run.

    Args:
        group: gloo group of all ranks on the host; None for a run of one process.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        stop_wanted: function that returns whether this rank received a request to stop.
        stop: whether any rank had received one at the last `step_sum`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.stop_wanted: Callable[[], bool] = lambda: False
        self.stop = False

    @property
    def per_machine(self) -> int:
        """Number of ranks on this machine."""
        return 1 if self.group is None else int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which owns the run folder and prints."""
        return self.rank == 0

    def on_main(self, work: Callable[[], T], share: Callable[[T], Any] = lambda result: result) -> T | Any:
        """Do work on rank 0 only.

        Args:
            work: the work.
            share: what of the result the other ranks get; it must be possible to pickle it.

        Returns:
            On rank 0 the result; on the other ranks the shared part of it.

        Raises:
            Exception: the error of rank 0, on every rank.
        """
        if self.group is None:
            return work()
        result: Any = None
        error: Exception | None = None
        message: list[Any] = [None, None]
        if self.is_main:
            try:
                result = work()
                message = [share(result), None]
            except Exception as caught:
                error = caught
                message = [None, _portable(caught)]
        with self._collective():
            dist.broadcast_object_list(message, src=0, group=self.group)
        failed: Exception | None = error or message[1]
        if failed is not None:
            raise of_all_ranks(failed)
        return result if self.is_main else message[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every rank if any rank raises inside the block.

        Raises:
            Exception: the own error, or that of the first rank that failed.
        """
        if self.group is None:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as caught:
            if is_lost_peer(caught) or getattr(caught, "of_all_ranks", False):
                raise  # the ranks already know, or cannot be told
            own = caught
        errors = self.gather(None if own is None else _portable(own, self.rank))
        first = next((error for error in errors if error is not None), None)
        if first is not None:
            raise of_all_ranks(own if own is not None and errors[self.rank] is first else first) from own

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks of a tensor on the host."""
        if self.group is not None:
            with self._collective():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def step_sum(self, number: Tensor) -> Tensor:
        """The sum over the ranks of a float64 scalar on the host, once per step; also updates `stop`."""
        if self.group is None:
            return number
        both = self.sum(torch.stack([number, number.new_tensor(float(self.stop_wanted()))]))
        self.stop = bool(both[1] > 0)
        return both[0]

    def check_equal(self, what: str, value: Any) -> None:
        """Raise UserError on every rank if a value differs between the ranks; `what` names the value."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise of_all_ranks(UserError(f"rank {rank}: {what} differs: {other!r}, but rank 0 has {values[0]!r}"))

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise lost_peer(error) from error


def lost_peer(error: BaseException) -> PeerError:
    """The error for a collective operation that failed, because another rank ended or does not answer."""
    return PeerError(
        f"another process of this run ended, or did not answer in time ({first_line(error)[:160]}); start the run "
        "again to continue from its newest checkpoint"
    )


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error comes from a collective operation whose other ranks are gone."""
    if isinstance(error, PeerError | dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)


@contextlib.contextmanager
def open_world(device_type: str) -> Iterator[World]:
    """The ranks of this run; under `torchrun` the process groups are made, and destroyed after the block.

    A process group that the caller has made is used as it is.

    Args:
        device_type: `cpu` or `cuda`.

    Raises:
        UserError: if torch was built without a library that is needed, or if a device type has no ranks.
    """
    made = launched_by_torchrun() and not dist.is_initialized()
    if made:
        if device_type not in ("cpu", "cuda"):
            raise UserError(f"train.device: {device_type} cannot be used under torchrun; use cpu or cuda")
        if device_type == "cuda" and not dist.is_nccl_available():
            raise UserError("train.device: this build of torch has no NCCL, so several GPUs cannot be used; use cpu")
        if device_type == "cuda":
            local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= there:
                raise UserError(
                    f"torchrun started at least {local + 1} processes on this machine, but it has {there} GPUs; lower "
                    "--nproc-per-node"
                )
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=_START_SECONDS))
        except RuntimeError as error:
            raise lost_peer(error) from error
    try:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            yield World()
        else:
            yield World(dist.new_group(backend="gloo", timeout=timedelta(seconds=_START_SECONDS)))
    finally:
        if made:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def shorten_timeouts(world: World, seconds: float) -> None:
    """Let every later collective operation fail after `seconds`, so that a rank that hangs ends the run."""
    if world.group is not None:
        for group in (world.group, dist.group.WORLD):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def of_all_ranks(error: E) -> E:
    """Mark an error that every rank raises, so that rank 0 alone prints it."""
    error.of_all_ranks = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception, rank: int | None = None) -> Exception:
    """The error as other ranks raise it: of a type that can be pickled, and with the rank that it comes from."""
    where = "" if rank is None else f"rank {rank}: "
    trouble = machine_trouble(error)
    if trouble is not None:
        return UserError(f"{where}{trouble}")
    if isinstance(error, UserError | RunError):
        return type(error)(f"{where}{error}")
    return RunError(f"{where}{type(error).__name__}: {first_line(error)}")
