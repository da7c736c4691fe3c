import json
import os

import memory
import numpy as np
import pytest
from memory import in_fresh_process

BLOCK = 2**15  # below the size that malloc maps and unmaps at once


def peak_of_call(call) -> int:
    peak = memory.peak_of_call(call, "cpu")
    if peak is None:
        pytest.skip("this system does not let a process set back its peak of resident memory")
    return peak


def test_memory_that_the_call_frees_again_counts() -> None:
    size = 64 * 2**20
    # Linux counts resident pages in batches: allow for a few that are not yet counted.
    assert 0.95 * size <= peak_of_call(lambda: np.ones(size, np.uint8).sum()) < 2 * size


def test_memory_that_was_freed_before_is_not_reused_unseen() -> None:
    def blocks() -> list[np.ndarray]:
        return [np.ones(BLOCK, np.uint8) for _ in range(2000)]

    freed = blocks()
    pin = np.ones(BLOCK, np.uint8)  # above the others: malloc keeps what is freed below it
    del freed
    assert peak_of_call(lambda: len(blocks())) >= 0.9 * 2000 * pin.size


def test_a_function_runs_in_another_process_and_gives_back_its_result() -> None:
    assert in_fresh_process(json.loads, "[1, null]") == [1, None]
    assert in_fresh_process(os.getpid) != os.getpid()


def test_what_the_function_raises_is_raised_here() -> None:
    with pytest.raises(json.JSONDecodeError):
        in_fresh_process(json.loads, "no JSON")
