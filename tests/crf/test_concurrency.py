"""CRF calls at once, from threads, forks and spawned processes."""

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from crf_concurrency import PATIENCE, concurrent_crf_calls

import crf.pydensecrf.densecrf as dcrf
from kernels._numba import jit, threads

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(autouse=True)
def _three_threads(set_threads: Any) -> None:
    set_threads(3)


def test_calls_from_threads_forks_and_spawned_processes_give_the_bits_of_serial_ones() -> None:
    done = concurrent_crf_calls(16, seed=0)
    assert done["calls"] == {"threads": 4, "forks": 8, "spawned": 4}
    assert threading.active_count() < 100


@pytest.mark.parametrize("lock", [threads._starting, jit._compiling], ids=["threads", "kernels"])
def test_a_fork_waits_for_the_locks_that_other_threads_hold(lock: Any) -> None:
    """Held at the fork, a lock would stay locked in the child for ever."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)
    threading.Timer(0.1, release.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=10) else 1)
    _, status = os.waitpid(child, 0)
    holder.join(PATIENCE)
    assert os.waitstatus_to_exitcode(status) == 0
    assert lock.acquire(timeout=PATIENCE)
    lock.release()


def _every_call_of_the_drop_in() -> list[Any]:
    """On an image large enough for torch to compute in parallel, of a size not divisible by 4."""
    draw = np.random.default_rng(0)
    height, width, labels = 91, 97, 5
    dense = dcrf.DenseCRF2D(width, height, labels)
    dense.setUnaryEnergy(draw.random((labels, height * width), dtype=np.float32))
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    dense.addPairwiseGaussian(sxy=3, compat=np.linspace(-3, -1, labels))
    matrix = draw.random((labels, labels))
    dense.addPairwiseBilateral(sxy=30, srgb=20, rgbim=image, compat=matrix)
    dense.addPairwiseEnergy(draw.random((2, height * width)), compat=3)
    marginals, *scratch = dense.startInference()
    dense.stepInference(marginals, *scratch)
    plain = dcrf.DenseCRF(height * width, labels)
    plain.addPairwiseEnergy(draw.random((2, height * width)), compat=3)
    divergences = [each.klDivergence(marginals) for each in (dense, plain)]
    return [marginals.tobytes(), dense.inference(2).tobytes(), divergences]


def test_the_drop_in_works_in_a_child_forked_after_torch_ran_in_parallel() -> None:
    """Where torch itself hangs: multiprocessing.Pool behind a network."""
    torch.randn(2**18).exp_()
    expected = _every_call_of_the_drop_in()
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # ends a child that hangs
        os._exit(0 if _every_call_of_the_drop_in() == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
