"""What a call costs the GPU alone: captured in a CUDA graph, and timed as replays of it.

An eager call of small kernels mostly waits for Python. Its graph launches all of them at once, so
that replays in a row take the time of the device and nothing of the host's.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from timing import Budget, EventClock, Rounds, time_in_turn

WARM_UPS = 3  # what is compiled, tuned or allocated once must be, before the capture

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


def device_times(
    candidates: Mapping[str, Callable[[], Any]], budget: Budget
) -> tuple[dict[str, Rounds], str, list[str]]:
    """Time every candidate by replays, or, where one cannot be captured, every one by events:
    the ratio of one to the other would mean nothing.

    Returns:
        The measurements, how they were taken (`REPLAYS` or `EVENTS`), and notes for the reader.
    """
    try:
        graphs = {name: captured(name, call) for name, call in candidates.items()}
    except NotCaptured as error:
        note = f"NOT CAPTURED, so timed by {EVENTS}, with Python's share in them: {error}"
        return time_in_turn(candidates, budget, EventClock), EVENTS, [note]
    replays = {name: graph.replay for name, graph in graphs.items()}
    return time_in_turn(replays, budget, EventClock), REPLAYS, []


def captured(name: str, call: Callable[[], Any]) -> Graph:
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
        first_line = "".join(str(cause).splitlines()[:1])
        raise NotCaptured(f"{name}: {type(cause).__name__}: {first_line}") from error
    _replay_over_nan(name, graph, output)
    return graph


def _clean_up(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> None:
    """Leave PyTorch able to capture again, which torch.cuda.graph does not do when it fails."""
    _failed.append(graph)
    torch.cuda.set_stream(stream)
    with contextlib.suppress(Exception):  # the allocator raises where the capture ended in order
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
    elif isinstance(output, Mapping | list | tuple):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_in(value)
