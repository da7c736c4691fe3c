"""What a call costs the GPU alone: captured in a CUDA graph, and timed as replays of it.

An eager call of small kernels mostly waits for Python. Its graph launches all of them at once, so
that replays in a row take the time of the device and nothing of the host's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from timing import Budget, Timer, interleave, time_on_device, time_queued

WARM_UPS = 3  # what is compiled, tuned or allocated once must be, before the capture
SAMPLE_SECONDS = 5e-3
MOST_REPLAYS = 50  # in one sample: the host launches so many while time_queued holds the device

REPLAYS = "replays of a CUDA graph"
EVENTS = "events around eager calls"

# A capture that fails leaves its graph registered with the allocators, which ask it at every
# allocation until the process ends: so it must live that long.
_failed: list[Any] = []


class NotCaptured(RuntimeError):
    """A call that a CUDA graph cannot hold, and why."""


class Graph(Protocol):
    """What this module needs of a torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        """Enqueue the captured kernels."""


@dataclass(frozen=True)
class Replays:
    """`count` replays in a row; called, it enqueues them."""

    graph: Graph
    count: int

    def __call__(self) -> None:
        for _ in range(self.count):
            self.graph.replay()


@dataclass(frozen=True)
class DeviceTimes:
    """Seconds of each call by candidate, how they were taken, and what the reader must be told."""

    seconds: Mapping[str, list[float]]
    how: str
    notes: tuple[str, ...] = ()


def device_times(candidates: Mapping[str, Callable[[], Any]], budget: Budget) -> DeviceTimes:
    """Time every candidate by replays, or, where one cannot be captured, every one by events.

    Never some in one way and some in the other: their ratio would mean nothing.
    """
    try:
        return DeviceTimes(replayed(candidates, budget), REPLAYS)
    except NotCaptured as error:
        note = f"NOT CAPTURED, so timed by {EVENTS}, with Python's share in them: {error}"
        return DeviceTimes(interleave(candidates, time_on_device, budget), EVENTS, (note,))


def replayed(
    candidates: Mapping[str, Callable[[], Any]],
    budget: Budget,
    capture: Callable[[str, Callable[[], Any]], Graph] | None = None,
    timer: Timer = time_queued,
) -> dict[str, list[float]]:
    """Seconds of one replay of each candidate, in rounds as `interleave` makes them.

    A sample is as many replays in a row as fill `SAMPLE_SECONDS`, divided by their number.

    Raises:
        NotCaptured: a candidate cannot be captured; the message names it.
    """
    capture = capture or captured
    graphs = {name: capture(name, call) for name, call in candidates.items()}
    runs = {name: Replays(graph, _count(graph, timer)) for name, graph in graphs.items()}
    samples = interleave(runs, timer, budget)
    return {name: [sample / runs[name].count for sample in samples[name]] for name in runs}


def captured(name: str, call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A graph of one call, whose first replay has written every value of what the call returns.

    Raises:
        NotCaptured: the call waits for the device, or does something else that a graph cannot hold.
    """
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    here.wait_stream(side)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=side):
            output = call()
    except Exception as error:
        _clean_up(graph, pool, here)
        cause = error.__context__ or error  # what ended the capture, rather than that it ended
        raise NotCaptured(f"{name}: {_first_line(cause)}") from error
    _replay_over_nan(name, graph, output)
    return graph


def _clean_up(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> None:
    """Leave PyTorch able to capture again, which torch.cuda.graph does not do when it fails."""
    _failed.append(graph)
    torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):  # the allocator says so where the capture ended in order
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    torch.cuda.synchronize()


def _replay_over_nan(name: str, graph: Graph, output: Any) -> None:
    """Replay with every output set to NaN: a graph that missed the kernels would time nothing."""
    tensors = list(tensors_in(output))
    with torch.no_grad():
        for tensor in tensors:
            whole(tensor).fill_(float("nan"))
    graph.replay()
    if not tensors or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise NotCaptured(f"{name}: a replay leaves values of the output unwritten")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's memory in one dimension: an expanded tensor cannot be filled itself."""
    flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return flat.set_(tensor.untyped_storage())


def tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested mappings and sequences, detached."""
    if isinstance(output, torch.Tensor):
        yield output.detach()
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_in(value)


def _count(graph: Graph, timer: Timer) -> int:
    seconds = min(timer(graph.replay) for _ in range(3))
    return min(max(round(SAMPLE_SECONDS / max(seconds, 1e-9)), 1), MOST_REPLAYS)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
