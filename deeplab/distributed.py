"""Several processes, one run: each has a share of every step, gradients are averaged.

Started by `torchrun --nproc-per-node N -m deeplab train ...`, or by a program that has initialised
torch.distributed itself. Processes with a GPU each speak NCCL over gradients, and gloo over the few
numbers on the host, so that agreeing on those never waits for the GPU. Only the first process
writes and prints.

A process that fails says why; the others notice that it is gone, raise `OtherProcessEnded`, and
have nothing of their own to say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from deeplab.errors import InputError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


class OtherProcessEnded(RuntimeError):
    """Another process of the run failed or was killed, so that this one cannot go on."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run has ended before its time: what it said itself tells why"
        )


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device.

    host: the group that exchanges tensors on the CPU; None is torch.distributed's default group.
    store: what the processes leave for each other, by name; None where there is one process, or
        another program has initialised torch.distributed.
    """

    rank: int
    world: int
    device: torch.device
    host: dist.ProcessGroup | None = None
    store: Store | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def beside(self) -> int:
        """How many processes of the run this machine has, itself among them."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.world > 1 else 1

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group that exchanges tensors on `device`; None is the default group."""
        return self.host if self.device.type == "cpu" else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the CPU."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.host)
        return values

    def broadcast(self, values: Tensor) -> None:
        """Overwrite a tensor on `device` with that of the first process."""
        if self.world > 1:
            dist.broadcast(values, 0, group=self.group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.host)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does by itself, and all have to pass; nothing is exchanged in it.

        Where it fails, the first process that failed raises its error and all others
        OtherProcessEnded, so that what is wrong for all is said once.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = self.gather(failure is not None)
        if failure is not None and failed.index(True) == self.rank:
            raise failure
        if any(failed):
            raise OtherProcessEnded


LONGEST = timedelta(days=30)


@contextmanager
def processes(device: str, patience: timedelta | None = None) -> Iterator[Processes]:
    """The processes of this run, for as long as it lasts.

    device: "cpu", "cuda" or "auto": a GPU where there is one.
    patience: how long one process waits for another that lives; None: as long as torch does, half
        an hour.

    Raises:
        InputError: "cuda" without a GPU, fewer GPUs than processes on this machine, or processes
            that do not find each other.
        OtherProcessEnded: in place of the error that a lost connection gives.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local)
    started = started_with_others() and not dist.is_initialized()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store = None
    if started:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        store = _start_group(backend, patience)
    group = Processes(0, 1, chosen)
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        # Whatever backends another program has chosen, the CPU's numbers travel by gloo.
        host = dist.new_group(backend="gloo") if world > 1 and not started else None
        group = Processes(dist.get_rank(), world, chosen, host, store)
    try:
        yield group
    except RuntimeError as error:
        # Gloo raises RuntimeErrors that name its source files; NCCL and the store have a class.
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if group.world > 1 and lost:
            raise OtherProcessEnded from error
        raise
    finally:
        if started:
            dist.destroy_process_group()
        elif group.host is not None:
            dist.destroy_process_group(group.host)


def is_first() -> bool:
    """Whether this process is the one that prints: the only one, or torchrun's rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


def started_with_others() -> bool:
    """Whether torchrun, or who sets the same variables, has started more processes than this."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _start_group(backend: str, patience: timedelta | None) -> Store:
    """Initialise torch.distributed; the store that its processes have found each other by."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://"))
        groups = PrefixStore("groups", store)
        dist.init_process_group(
            backend, timeout=patience, store=groups, rank=rank, world_size=world
        )
    except (dist.DistError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes of this run do not find "
            f"each other ({reason:.200}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    return PrefixStore("work", store)


def _device(wanted: str, local: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("device: cuda, but torch sees no GPU here; use cpu or auto")
    if local >= torch.cuda.device_count():
        raise InputError(
            f"device: process {local + 1} of this machine has no GPU of its own, torch sees "
            f"{torch.cuda.device_count()}; start as many processes as there are GPUs"
        )
    return torch.device("cuda", local)
