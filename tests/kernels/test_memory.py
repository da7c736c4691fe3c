"""What cannot fit is refused before it is allocated, with the size that it would need."""

from pathlib import Path

import pytest
import torch

from kernels import memory

CPU = torch.device("cpu")


def test_more_than_is_free_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 3_000_000_000)
    memory.require(3_000_000_000, CPU, "it", "take less")
    with pytest.raises(MemoryError, match=r"it needs at least 3.1 GB, and 3.0 GB .*cpu; take less"):
        memory.require(3_100_000_000, CPU, "it", "take less")


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: None)
    memory.require(10**18, CPU, "it", "take less")


def test_free_memory_is_told_on_linux() -> None:
    free = memory.available(CPU)
    assert (free is not None) == Path("/proc/meminfo").exists()
    assert free is None or free > 0
    assert memory.available(torch.device("meta")) is None
