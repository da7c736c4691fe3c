"""The first CRF of a process: what it takes more than the next one, imports apart.

    python bench/first_call.py            # prints a table, writes a record

A small image (30x40, 21 labels), one thread, compiled code on disk. Each sample is a process of its
own, which has torch, imports the library and calls it twice: the first call beside the second is
what has to be loaded. Processor seconds count, which a busy machine changes least.
crf.pydensecrf imports nothing at its first call but LLVM, which counts; numba, which it needs only
to compile, is timed beside it. One more process has nothing compiled yet.
"""

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OURS = "crf.pydensecrf.densecrf"
LIBRARIES = {OURS: OURS, "pydensecrf2": "pydensecrf.densecrf"}
BAR = 0.3  # processor seconds of the first call above the second
STEPS = ("import the library", "first call", "second call")

Seconds = dict[str, float]  # "cpu" and "wall"


def sample(library: str, cache: str | None = None) -> dict[str, Any]:
    """In a fresh process: the seconds of each step, and which compilers the calls imported.

    `cache` is a folder for compiled code; None: the one that is used anyhow.
    """
    if cache is not None:
        os.environ["NUMBA_CACHE_DIR"] = cache
    import numpy as np
    import torch

    def call() -> Any:
        dense = sys.modules[library].DenseCRF2D(40, 30, 21)
        dense.setUnaryEnergy(energies)
        dense.addPairwiseGaussian(sxy=3, compat=3)
        dense.addPairwiseBilateral(sxy=49, srgb=5, rgbim=image, compat=4)
        return np.array(dense.inference(10))

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    energies = random.random((21, 30 * 40), dtype=np.float32)
    steps = (lambda: importlib.import_module(library), call, call)
    seconds = {name: _seconds(step) for name, step in zip(STEPS, steps, strict=True)}
    compilers = sorted({"numba", "torch._dynamo", "triton"} & sys.modules.keys())
    return {"seconds": seconds, "compilers": compilers}


def import_of_numba() -> Seconds:
    """In a fresh process: what `import numba` takes, NumPy already there."""
    import numpy as np  # noqa: F401

    return _seconds(lambda: importlib.import_module("numba"))


def measure(samples: int, say: Callable[[str], object] = str) -> dict[str, Any]:
    """Every sample of each library, and the import of numba."""
    from memory import in_fresh_process

    found: dict[str, Any] = {"samples": {}, "import numba": []}
    with tempfile.TemporaryDirectory() as cache:
        say("nothing compiled yet")
        found["nothing compiled yet"] = in_fresh_process(sample, LIBRARIES[OURS], cache)
        for i in range(samples):
            say(f"process {i + 1} of {samples}")
            for name, module in LIBRARIES.items():
                if importlib.util.find_spec(module.partition(".")[0]) is not None:
                    one = in_fresh_process(sample, module, cache)
                    found["samples"].setdefault(name, []).append(one)
            found["import numba"].append(in_fresh_process(import_of_numba))
    return found


def medians(samples: Sequence[dict[str, Any]], clock: str) -> Seconds:
    """The median of each step, and of what the first call takes more than the second."""
    steps = {name: [one["seconds"][name][clock] for one in samples] for name in STEPS}
    steps["first above second"] = [
        first - second
        for first, second in zip(steps["first call"], steps["second call"], strict=True)
    ]
    return {name: statistics.median(seconds) for name, seconds in steps.items()}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where the bar is missed."""
    from report import RECORDS, new_record, write_record

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=7, metavar="N", help="processes each")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"--samples must be at least 1, not {options.samples}")
    found = measure(options.samples, lambda step: print(step, file=sys.stderr))
    table = {
        name: {clock: medians(samples, clock) for clock in ("cpu", "wall")}
        for name, samples in found["samples"].items()
    }
    for name, clocks in table.items():
        for clock, steps in clocks.items():
            listed = ", ".join(f"{step} {1000 * value:.1f}" for step, value in steps.items())
            print(f"{name}, {clock} ms: {listed}")
    numba = statistics.median(one["cpu"] for one in found["import numba"])
    compiled = found["nothing compiled yet"]["seconds"]["first call"]["cpu"]
    print(f"import numba {1000 * numba:.1f} cpu ms; nothing compiled yet {compiled:.1f} cpu s")
    passed = table[OURS]["cpu"]["first above second"] < BAR
    record = new_record(["bench/first_call.py", *arguments], ["first-call"], threads=1)
    record["comparisons"] = [{"name": "first-call", "passed": passed, "bar": BAR, **table, **found}]
    print(f"record: {write_record(record, options.out)}")
    return 0 if passed else 1


def _seconds(step: Callable[[], object]) -> Seconds:
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
