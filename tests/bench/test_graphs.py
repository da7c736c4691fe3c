import time
from collections.abc import Callable
from functools import partial
from typing import Any

import graphs
import pytest
import torch
from timing import Budget, samples

BUDGET = Budget(rounds=3, seconds=0.01)


class Graph:
    """A graph that counts its replays."""

    replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_replays_are_timed_and_not_the_calls(monkeypatch):
    graph = Graph()
    monkeypatch.setattr(graphs, "captured", lambda name, call: graph)
    monkeypatch.setattr(graphs, "EventClock", lambda: time.perf_counter)
    rounds, how, notes = graphs.device_times({"ours": lambda: pytest.fail("called")}, BUDGET)
    assert how == graphs.REPLAYS
    assert notes == []
    assert graph.replays > len(rounds["ours"]) == BUDGET.rounds


def test_where_one_cannot_be_captured_all_are_timed_by_events_and_the_reader_told(monkeypatch):
    called = []

    def captured(name: str, call: Callable[[], Any]) -> Graph:
        if name == "peer":
            raise graphs.NotCaptured(f"{name}: it waits for the device")
        return Graph()

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "EventClock", lambda: time.perf_counter)
    calls = {name: partial(called.append, name) for name in ("ours", "peer")}
    _, how, (note,) = graphs.device_times(calls, BUDGET)
    assert how == graphs.EVENTS
    assert set(called) == {"ours", "peer"}
    assert "NOT CAPTURED" in note
    assert "peer: it waits for the device" in note


def test_a_replay_that_leaves_a_value_unwritten_is_no_capture():
    output = {"output": torch.ones(3), "gradients": (torch.ones(2, 3), torch.ones(1).expand(4))}
    tensors = list(graphs.tensors_in(output))

    class Writes(Graph):
        def replay(self) -> None:
            for tensor in tensors[: self.replays]:
                graphs.whole(tensor).fill_(1)

    graph = Writes()
    for graph.replays in range(3):
        with pytest.raises(graphs.NotCaptured, match="ours: a replay leaves values"):
            graphs._replay_over_nan("ours", graph, output)
    graph.replays = 3
    graphs._replay_over_nan("ours", graph, output)
    with pytest.raises(graphs.NotCaptured):
        graphs._replay_over_nan("ours", graph, None)


@pytest.fixture
def gradients():
    """A call with a backward."""
    matrix = torch.randn(64, 64, device="cuda")

    def call() -> Any:
        leaf = matrix.detach().requires_grad_()
        output = (leaf @ leaf).relu()
        return output, torch.autograd.grad(output.sum(), [leaf])

    return call


@pytest.mark.gpu
def test_a_captured_call_writes_what_the_eager_call_gives(gradients):
    rounds, how, notes = graphs.device_times({"ours": gradients, "peer": gradients}, BUDGET)
    assert (how, notes) == (graphs.REPLAYS, [])
    assert all(0 < sample < 1e-2 for each in rounds.values() for sample in samples(each))


@pytest.mark.gpu
def test_after_a_failed_capture_the_next_one_works(gradients):
    stream = torch.cuda.current_stream()
    flag = torch.ones(1, device="cuda")

    def waits() -> torch.Tensor:
        return flag * flag.item()

    with pytest.raises(graphs.NotCaptured, match="waits: "):
        graphs.captured("waits", waits)
    assert torch.cuda.current_stream() == stream
    assert graphs.device_times({"ours": gradients, "waits": waits}, BUDGET)[1] == graphs.EVENTS
    assert graphs.device_times({"ours": gradients}, BUDGET)[1] == graphs.REPLAYS


@pytest.mark.gpu
def test_a_replay_takes_as_long_as_its_kernels():
    matrix = torch.randn(4096, 4096, device="cuda")
    calls = {"one": lambda: matrix @ matrix, "four": lambda: [matrix @ matrix for _ in range(4)]}
    rounds, _, _ = graphs.device_times(calls, BUDGET)
    assert 3 < min(samples(rounds["four"])) / min(samples(rounds["one"])) < 5
