from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphs
import pytest
import torch
from timing import Budget

BUDGET = Budget(seconds=0, least_rounds=3, most_rounds=9)
ON_GPU = Budget(seconds=0.05, least_rounds=3, most_rounds=9)


class Counted:
    """A graph of a kernel that takes some time, on a made-up device."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.replays = 0
        self.clock = 0.0

    def replay(self) -> None:
        self.replays += 1
        self.clock += self.seconds


def timer_of(made: list[Counted]) -> Callable[[Callable[[], Any]], float]:
    def timer(call: Callable[[], Any]) -> float:
        before = sum(graph.clock for graph in made)
        call()
        return sum(graph.clock for graph in made) - before

    return timer


@pytest.mark.parametrize(("seconds", "count"), [(1e-2, 1), (1e-3, 5), (1e-6, graphs.MOST_REPLAYS)])
def test_a_sample_is_one_replay_of_as_many_as_fill_it(seconds: float, count: int) -> None:
    graph, other = Counted(seconds), Counted(2e-2)
    made = {"ours": graph, "peer": other}
    samples = graphs.replayed(
        {"ours": lambda: None, "peer": lambda: None},
        BUDGET,
        capture=lambda name, call: made[name],
        timer=timer_of([graph, other]),
    )
    assert samples["ours"] == pytest.approx([seconds] * 3)
    assert samples["peer"] == pytest.approx([2e-2] * 3)
    to_count, warm_up, rounds = 3, 2, 3
    assert graph.replays == to_count + count * (warm_up + rounds)


def test_where_one_cannot_be_captured_all_are_timed_by_events_and_the_reader_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def captured(name: str, call: Callable[[], Any]) -> Counted:
        if name == "peer":
            raise graphs.NotCaptured(f"{name}: it waits for the device")
        return Counted(1.0)

    def timer(call: Callable[[], Any]) -> float:
        return float(call())

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "time_on_device", timer)
    times = graphs.device_times({"ours": lambda: 2, "peer": lambda: 6}, BUDGET)
    assert times.how == graphs.EVENTS
    assert times.seconds == {"ours": [2.0] * 3, "peer": [6.0] * 3}
    (note,) = times.notes
    assert "NOT CAPTURED" in note
    assert "peer: it waits for the device" in note


def test_a_replay_that_leaves_a_value_unwritten_is_no_capture() -> None:
    output = {"output": torch.ones(3), "gradients": (torch.ones(2, 3), torch.ones(1).expand(4))}
    tensors = list(graphs.tensors_in(output))

    class Writes(Counted):
        def replay(self) -> None:
            for tensor in tensors[: self.replays]:
                graphs.whole(tensor).fill_(1)

    graph = Writes(1.0)
    for graph.replays in range(3):
        with pytest.raises(graphs.NotCaptured, match="ours: a replay leaves values"):
            graphs._replay_over_nan("ours", graph, output)
    graph.replays = 3
    graphs._replay_over_nan("ours", graph, output)
    with pytest.raises(graphs.NotCaptured):
        graphs._replay_over_nan("ours", graph, None)


@pytest.fixture
def gradients() -> Callable[[], Any]:
    """A call with a backward."""
    matrix = torch.randn(64, 64, device="cuda")

    def call() -> Any:
        leaf = matrix.detach().requires_grad_()
        output = (leaf @ leaf).relu()
        return output, torch.autograd.grad(output.sum(), [leaf])

    return call


@pytest.mark.gpu
def test_a_captured_call_writes_what_the_eager_call_gives(gradients: Callable[[], Any]) -> None:
    times = graphs.device_times({"ours": gradients, "peer": gradients}, ON_GPU)
    assert times.how == graphs.REPLAYS
    assert times.notes == ()
    assert all(0 < sample < 1e-2 for samples in times.seconds.values() for sample in samples)


@pytest.mark.gpu
def test_after_a_failed_capture_the_next_one_works(gradients: Callable[[], Any]) -> None:
    stream = torch.cuda.current_stream()
    flag = torch.ones(1, device="cuda")

    def waits() -> torch.Tensor:
        return flag * flag.item()

    with pytest.raises(graphs.NotCaptured, match="waits: "):
        graphs.captured("waits", waits)
    assert torch.cuda.current_stream() == stream
    times = graphs.device_times({"ours": gradients, "waits": waits}, ON_GPU)
    assert times.how == graphs.EVENTS
    assert graphs.device_times({"ours": gradients}, ON_GPU).how == graphs.REPLAYS


@pytest.mark.gpu
def test_a_replay_takes_as_long_as_its_kernels() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    calls = {"one": lambda: matrix @ matrix, "four": lambda: [matrix @ matrix for _ in range(4)]}
    seconds = graphs.replayed(calls, ON_GPU)
    assert 3 < min(seconds["four"]) / min(seconds["one"]) < 5
