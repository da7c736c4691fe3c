"""Tune the tile sizes of the Triton convolutions for the GPU at hand.

    python bench/tune_atrous.py                  # writes kernels/atrous/triton/configs/GPU.json
    python bench/tune_atrous.py --out DIR        # elsewhere, to look at first
    python bench/tune_atrous.py --resume         # go on where the last run stopped
    python bench/tune_atrous.py --arithmetic half --most-seconds 120

For each problem every candidate is compiled, in as many processes as there are cores and ahead of
the GPU. Those that spill or do not fit the shared memory go; of the others the TIMED that
bench/static.py predicts to be fastest are held against PyTorch in float64, and timed as replays of
a CUDA graph. The fastest becomes the problem's entry. `kernels.atrous.triton.configs` takes the
entry whose sizes are nearest, by ratio.

A run compiles about 1240 candidates, 2.5 s each, and times 12 of each of 42 problems, 0.3 s each:
on 16 cores about 200 s and 150 s, which overlap.

exit code  0 done, 2 no GPU or a wrong argument, 3 stopped: a CUDA error leaves nothing to trust in
the process, 75 the time was up. What was found before is written in each case; `--resume` leaves
finished problems, and the candidate that stopped the run, out.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, whatever is installed

import torch  # noqa: E402
from binaries import Binary, compile_launch, of_target, pool, record  # noqa: E402
from machine import versions  # noqa: E402
from report import RECORDS, write_whole  # noqa: E402
from static import predict  # noqa: E402
from switches import without_cudnn  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402
from tune_problems import ARITHMETIC, PROBLEMS, Run, TuneProblem, budget, launch  # noqa: E402
from work import bytes_of, work_of  # noqa: E402

from kernels.atrous.triton import configs  # noqa: E402

TIMED = 12  # candidates of a problem
KERNELS = ("conv", "weight_grad")
STOPPED, TIME_UP = 3, 75
Entry = dict[str, Any]


class Stopped(Exception):
    """A candidate after which the process cannot go on."""


def main(arguments: Sequence[str]) -> int:
    """Tune, print what won, write the files; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=configs.FOLDER, help="folder for the table")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder for the record")
    parser.add_argument("--arithmetic", choices=ARITHMETIC, nargs="+", default=list(ARITHMETIC))
    parser.add_argument(
        "--kernels", choices=KERNELS, nargs="+", default=KERNELS, help="the others keep theirs"
    )
    parser.add_argument("--resume", action="store_true", help="leave out what is in the record")
    parser.add_argument("--most-seconds", type=float, default=float("inf"), metavar="N")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune_atrous: torch sees no CUDA device; there is nothing to tune here")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    kept = options.records / f"tune-{configs.slug(gpu)}.json"
    found: Entry = {"gpu": gpu, "versions": versions(), "finished": {}, "faulty": []}
    if options.resume and kept.exists():
        found = json.loads(kept.read_text())
    found["stopped"] = None
    problems = [
        (kind, problem)
        for kind, problem in itertools.product(options.arithmetic, PROBLEMS)
        if problem.kernel in options.kernels and key(kind, problem) not in found["finished"]
    ]
    before = configs.table(configs.name_of(device))

    def write() -> None:
        write_whole(kept, json.dumps(found, indent=1) + "\n")
        entries = merged(before, [one["entry"] for one in found["finished"].values()])
        write_whole(options.out / f"{configs.slug(gpu)}.json", table(gpu, entries))

    room = shared_memory(device)
    return tune(problems, room, configs.family(device), found, write, options.most_seconds)


def tune(
    problems: Sequence[tuple[str, TuneProblem]],
    room: int,
    target: str,
    found: Entry,
    write: Callable[[], None],
    most_seconds: float,
) -> int:
    """Tune each problem and `write` after it; the exit code."""
    start, total = time.monotonic(), len(problems)
    with pool() as processes:
        jobs = {
            key(kind, problem): [
                (config, processes.submit(compiled, problem, kind, config, target))
                for config in candidates(kind, room)
                if [key(kind, problem), asdict(config)] not in found["faulty"]
            ]
            for kind, problem in problems
        }
        try:
            for number, (kind, problem) in enumerate(problems):
                name = key(kind, problem)
                if time.monotonic() - start > most_seconds:
                    print(f"THE TIME WAS UP: {total - number} of {total} problems are left")
                    return TIME_UP
                result = tune_one(problem, kind, jobs[name], room)
                if result is not None:
                    found["finished"][name] = result
                write()
        except Stopped as stop:
            config, error = stop.args
            found["stopped"] = f"{name}: {config}: {error}"
            found["faulty"].append([name, asdict(config)])
            write()
            print(f"STOPPED, nothing after a CUDA error can be trusted: {found['stopped']}")
            return STOPPED
        finally:
            processes.shutdown(wait=False, cancel_futures=True)
    return 0


def tune_one(
    problem: TuneProblem,
    kind: str,
    jobs: Sequence[tuple[configs.ConvConfig, Future[tuple[Binary, float]]]],
    room: int,
) -> Entry | None:
    """The entry of the fastest candidate and the times of all; None where none can run.

    Raises:
        Stopped: CUDA reported an error.
    """
    listed = chosen([(config, *job.result()) for config, job in jobs], room)
    timed: list[tuple[float, configs.ConvConfig]] = []
    run = launch(problem, kind, "cuda")
    with without_cudnn():
        exact = run.truth()
    most = budget(problem, kind, run.out.dtype)
    for config in listed:
        with taking(config, kind):
            try:
                error = difference(run, exact)
                if error > most:
                    print(f"WRONG: {kind} {problem}: {config} is off by {error:.1e}")
                    continue
                timed.append((seconds(run), config))
            except OutOfResources as refused:
                print(f"refused: {kind} {problem}: {config}: {refused}")
            except Exception as error:
                raise Stopped(config, f"{type(error).__name__}: {error}") from error
    if not timed:
        print(f"NONE of {len(jobs)} candidates runs: {kind} {problem}")
        return None
    best, config = min(timed, key=lambda pair: pair[0])
    print(f"{kind} {problem}: {config} {1e6 * best:.1f} us", flush=True)
    return {
        "entry": entry(problem, kind, config, best),
        "timed": [{**asdict(c), "microseconds": round(1e6 * s, 1)} for s, c in timed],
    }


def candidates(kind: str, room: int) -> Iterator[configs.ConvConfig]:
    """Tilings with enough accumulators a thread, and stages that `room` bytes should hold."""
    size = 2 if kind == "half" else 4
    depths = {"half": (32, 64), "tf32": (16, 32), "ieee": (16,)}[kind]
    for m, n, k in itertools.product((64, 128, 256), (64, 128, 256), depths):
        deepest = int(0.95 * room / (size * k * (m + n)))
        for warps in (4, 8):
            if m * n / (32 * warps) not in ((16, 32) if kind == "ieee" else (64, 128)):
                continue
            for stages in sorted({min(deepest, 4), min(deepest, 3)} - {0, 1}):
                yield configs.ConvConfig(m, n, k, warps, stages)


def compiled(
    problem: TuneProblem, kind: str, config: configs.ConvConfig, target: str
) -> tuple[Binary, float]:
    """In a process without a GPU: what a candidate compiles to, and its predicted seconds."""
    with of_target(target), taking(config, kind):
        launches = record(launch(problem, kind, "meta").call)
        (main,) = [each for each in launches if each.name == f"{problem.kernel}_kernel"]
        binary = compile_launch(main, target)
    bounds = predict(binary, work_of(main), bytes_of(main), main.programs)
    return binary, max(bounds.values())


def chosen(
    listed: Sequence[tuple[configs.ConvConfig, Binary, float]], room: int
) -> list[configs.ConvConfig]:
    """What is worth timing: nothing spilled, it fits, and the least predicted seconds."""
    fits = [each for each in listed if not each[1].spills and each[1].shared <= room]
    return [config for config, _, _ in sorted(fits, key=lambda each: each[2])[:TIMED]]


@contextmanager
def taking(config: configs.ConvConfig, kind: str) -> Iterator[None]:
    """Every launch takes this configuration, and float32 is computed so."""
    precision = "tf32" if kind == "tf32" else "ieee"
    with mock.patch.multiple(
        configs, select=lambda *problem: config, precision=lambda dtype: precision
    ):
        yield


def difference(run: Run, exact: torch.Tensor) -> float:
    """How far a run is off, as a share of the norm; unwritten values count."""
    run.out.fill_(float("nan"))
    off = (run.call().double() - exact).norm() / exact.norm()
    return float(off.nan_to_num(nan=float("inf")))  # which waits for the device


def seconds(run: Run) -> float:
    """Of one run: the median over replays of a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(run.call, rep=10, return_mode="median")) / 1e3


def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 64 * 1024))


def key(kind: str, problem: TuneProblem) -> str:
    """The name of a problem in the record."""
    return f"{kind} {problem}"


def entry(problem: TuneProblem, kind: str, config: configs.ConvConfig, best: float) -> Entry:
    """A line of the table."""
    taps = problem.size**2 if problem.kernel == "conv" else 1
    return {
        "kernel": problem.kernel,
        "arithmetic": kind,
        "pixels": problem.batch * problem.side**2,
        "outputs": problem.outputs,
        "inputs": problem.inputs * taps,
        **asdict(config),
        "microseconds": round(1e6 * best, 1),
    }


def merged(before: Sequence[Entry], found: Sequence[Entry]) -> list[Entry]:
    """What was found, and the old entries of kernels and arithmetic that have none yet."""
    tuned = {(one["kernel"], one["arithmetic"]) for one in found}
    return [*found, *(e for e in before if (e["kernel"], e["arithmetic"]) not in tuned)]


def table(gpu: str, entries: Sequence[Entry]) -> str:
    """The file of configurations: a line an entry."""
    packages = versions()
    about = (
        f"Tuned by bench/tune_atrous.py, torch {packages['torch']}, triton {packages['triton']}."
    )
    lines = ",\n    ".join(json.dumps(one) for one in entries)
    target = configs.family(torch.device("cuda", torch.cuda.current_device()))
    head = f'{{\n  "about": {json.dumps(about)},\n  "gpu": {json.dumps(gpu)},\n'
    return f'{head}  "target": {json.dumps(target)},\n  "configs": [\n    {lines}\n  ]\n}}\n'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
