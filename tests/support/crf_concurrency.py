"""CRF calls from many threads and processes at once: equal to those one after another.

    concurrent_crf_calls(count=200, seed=0)     # raises AssertionError, or tells what it did

Threads call at once, and amid their calls the process forks: the children are born while other
threads hold locks, queues and compiled kernels, and call from threads of their own. Spawned
processes start from nothing, at once. Each result must have the bits of the serial one. Whoever
waits gives up after `PATIENCE` seconds, which no machine needs: a deadlock is an error, not a hang.
"""

import hashlib
import multiprocessing
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import crf
import crf.pydensecrf.densecrf as dcrf

PATIENCE = 300.0
THREADS = 4  # that call at once
KINDS = ("drop-in", "layer", "gradient")


@dataclass(frozen=True)
class Problem:
    """One call: what it is given follows from these numbers alone."""

    kind: str
    seed: int
    labels: int
    height: int
    width: int


def problems(count: int, seed: int) -> list[Problem]:
    """Few different sizes, many of them again and again: kernels are shared."""
    draw = random.Random(seed)
    choices = (KINDS, range(8), (2, 5, 21), (24, 70), (31, 90))
    return [Problem(*(draw.choice(each) for each in choices)) for _ in range(count)]


def digest(problem: Problem) -> str:
    """Solve it; the digest of the result's bits."""
    random_numbers = np.random.default_rng(problem.seed)
    shape = problem.height, problem.width
    image = random_numbers.integers(0, 256, (*shape, 3), dtype=np.uint8)
    energies = random_numbers.random((problem.labels, *shape), dtype=np.float32)
    if problem.kind == "drop-in":
        dense = dcrf.DenseCRF2D(problem.width, problem.height, problem.labels)
        dense.setUnaryEnergy(energies.reshape(problem.labels, -1))
        dense.addPairwiseGaussian(sxy=3, compat=3)
        dense.addPairwiseBilateral(sxy=20, srgb=30, rgbim=image, compat=4)
        result = dense.inference(3)
    else:
        layer = crf.DenseCRF(problem.labels, bilateral=crf.Bilateral(4.0, 20.0, 30.0), iterations=2)
        images = torch.from_numpy(image).permute(2, 0, 1)[None]
        logits = torch.from_numpy(energies)[None].requires_grad_(problem.kind == "gradient")
        marginals = layer(logits, images)
        if problem.kind == "gradient":
            marginals.square().sum().backward()
            assert logits.grad is not None
            marginals = logits.grad
        result = marginals.numpy()
    return hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest()


def concurrent_crf_calls(count: int, seed: int) -> dict[str, Any]:
    """Make `count` calls at once, from threads, forks and spawned processes; compare their bits.

    Returns:
        The seed, the number of calls by where they ran, and how many different problems they were.

    Raises:
        AssertionError: a result that differs, a process that failed, hung or is left over.
    """
    given = problems(count, seed)
    expected = {problem: digest(problem) for problem in dict.fromkeys(given)}
    shares = {"threads": given[0::4], "forks": given[1::4] + given[2::4], "spawned": given[3::4]}
    before = set(multiprocessing.active_children())
    with ThreadPoolExecutor(THREADS) as pool:
        spawned = [_start("spawn", shares["spawned"])]
        halves = shares["forks"][0::2], shares["forks"][1::2]
        calls = [pool.submit(digest, problem) for problem in shares["threads"]]
        children = spawned + [_start("fork", half) for half in halves]  # amid the calls
        found = [call.result(PATIENCE) for call in calls]
    results = {"threads": found, "forks": [], "spawned": []}
    for where, child in zip(("spawned", "forks", "forks"), children, strict=True):
        results[where] += _finish(child)
    shares["forks"] = [problem for half in halves for problem in half]
    for where, share in shares.items():
        assert results[where] == [expected[problem] for problem in share], where
    assert set(multiprocessing.active_children()) <= before
    calls_made = {where: len(share) for where, share in shares.items()}
    return {"seed": seed, "calls": calls_made, "problems": len(expected)}


@dataclass(frozen=True)
class _Child:
    process: Any
    results: Any


def _start(method: str, share: Sequence[Problem]) -> _Child:
    context: Any = multiprocessing.get_context(method)
    results, sender = context.Pipe(duplex=False)
    arguments = share, torch.get_num_threads(), sender
    process = context.Process(target=_solve_on_threads, args=arguments, daemon=True)
    process.start()
    sender.close()
    return _Child(process, results)


def _solve_on_threads(share: Sequence[Problem], threads: int, sender: Any) -> None:
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(2) as pool:
        sender.send(list(pool.map(digest, share)))


def _finish(child: _Child) -> list[str]:
    try:
        assert child.results.poll(PATIENCE), f"{child.process.name} hangs"
        found: list[str] = child.results.recv()
        child.process.join(PATIENCE)
        assert child.process.exitcode == 0, f"{child.process.name} ended {child.process.exitcode}"
        return found
    finally:
        child.process.kill()  # nothing where it has ended
        child.process.join()
        child.results.close()
