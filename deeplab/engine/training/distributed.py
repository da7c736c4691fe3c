"""Several processes, one run: each has a share of every step, gradients are averaged.

Started by `torchrun --nproc-per-node N -m deeplab train ...`, or by a program that has initialised
torch.distributed itself. Processes with a GPU each speak NCCL over gradients, and gloo over the few
numbers on the host (how many pixels are labelled, whether to stop), so that agreeing on those never
waits for the GPU. Only the first process writes and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deeplab.errors import InputError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a tensor on the CPU."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """The processes of this run, for as long as it lasts.

    device: "cpu", "cuda" or "auto": a GPU where there is one. InputError: "cuda" without a GPU, or
    fewer GPUs than processes on this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local)
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if started:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        if dist.is_available() and dist.is_initialized():
            yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        else:
            yield Processes(0, 1, chosen)
    finally:
        if started:
            dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that prints: the only one, or torchrun's rank 0."""
    return int(os.environ.get("RANK", "0")) == 0


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
