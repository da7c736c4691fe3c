"""Tune the tile sizes of the Triton convolutions for the GPU at hand.

    python bench/tune_atrous.py              # writes kernels/atrous/triton/configs/GPU.json
    python bench/tune_atrous.py --out DIR    # elsewhere, to look at first
    python bench/tune_atrous.py --arithmetic half

For each kernel, arithmetic and problem it compiles every candidate that fits the GPU's shared
memory, holds its result against the first one's, times it, and keeps the fastest. A problem stands
for those near it: `kernels.atrous.triton.configs` takes the entry whose sizes are nearest by ratio.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, whatever is installed

from kernels.atrous.triton import configs, weight_grad  # noqa: E402
from kernels.atrous.triton.conv import conv  # noqa: E402
from kernels.atrous.triton.layout import pixels_of, taps_of  # noqa: E402

RATES = (6, 12, 18, 24)
ARITHMETIC = {"half": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
KERNELS = ("conv", "weight_grad")
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Problem:
    """One launch: the product of the shift algorithm (one rate, 1 x 1) or a wide convolution."""

    kernel: str
    batch: int
    side: int
    inputs: int
    outputs: int
    rates: tuple[int, ...] = (1,)
    size: int = 1
    to_input: bool = False  # the gradient to the input, which reads the weights the other way


PROBLEMS = [
    Problem("conv", 1, 41, 2048, 704),
    Problem("conv", 1, 65, 2048, 704),
    Problem("conv", 8, 65, 2048, 704),  # a training batch
    Problem("conv", 1, 65, 704, 2048, to_input=True),
    Problem("conv", 8, 65, 704, 2048, to_input=True),
    Problem("conv", 1, 41, 512, 1024, RATES, 3),
    Problem("conv", 4, 41, 512, 1024, RATES, 3),
    Problem("conv", 4, 41, 1024, 512, RATES, 3, to_input=True),
    Problem("conv", 4, 65, 2048, 256, (12, 24, 36), 3),
    Problem("conv", 4, 65, 256, 2048, (12, 24, 36), 3, to_input=True),
    Problem("weight_grad", 1, 65, 2048, 704),
    Problem("weight_grad", 8, 65, 2048, 704),
    Problem("weight_grad", 4, 41, 512, 1024, RATES, 3),
    Problem("weight_grad", 4, 65, 2048, 256, (12, 24, 36), 3),
]


def main(arguments: list[str] | None = None) -> int:
    """Tune, print what won, write the file; the exit code is 2 where there is no GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=configs.FOLDER, help="folder for the file")
    parser.add_argument("--arithmetic", choices=ARITHMETIC, nargs="+", default=list(ARITHMETIC))
    parser.add_argument(
        "--kernels", choices=KERNELS, nargs="+", default=KERNELS, help="the others keep theirs"
    )
    options = parser.parse_args(arguments)
    console = Console()
    if not torch.cuda.is_available():
        console.print("tune_atrous: torch sees no CUDA device; there is nothing to tune here")
        return 2
    problems = [problem for problem in PROBLEMS if problem.kernel in options.kernels]
    name = torch.cuda.get_device_name()
    path = options.out / f"{configs.slug(name)}.json"
    before = configs.table(configs.name_of(torch.device("cuda", torch.cuda.current_device())))
    found: list[dict[str, Any]] = []
    entries = before
    for kind, problem in itertools.product(options.arithmetic, problems):
        entry = tune(problem, kind, console)
        if entry is not None:
            found.append(entry)
        tuned = {(entry["kernel"], entry["arithmetic"]) for entry in found}
        entries = found + [e for e in before if (e["kernel"], e["arithmetic"]) not in tuned]
        write(path, name, entries)  # what an interruption leaves
    console.print(f"{len(entries)} configurations -> {path}")
    return 0


def tune(problem: Problem, kind: str, console: Console) -> dict[str, Any] | None:
    """The entry of the fastest candidate; None where none runs."""
    allow = kind == "tf32"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allow):
        run, pixels = launch(problem, ARITHMETIC[kind])
        reference, timed = None, list[tuple[float, configs.Config]]()
        listed = list(candidates(kind))
        for config in track(listed, f"{kind} {problem}", console=console, transient=True):
            with mock.patch.object(configs, "select", lambda *_, c=config: c):
                try:
                    found = run().float()
                    seconds = time(run)
                except Exception as refused:  # out of shared memory or registers
                    console.log(f"{config}: {type(refused).__name__}: {str(refused)[:80]}")
                    continue
            reference = found if reference is None else reference
            difference = ((found - reference).norm() / reference.norm()).item()
            if difference < 1e-2:  # the rounding of one order of sums against another
                timed.append((seconds, config))
            else:
                console.print(f"[red]{config} computes something else: {difference:.1e}")
    if not timed:
        return None
    seconds, config = min(timed, key=lambda pair: pair[0])
    console.print(f"{kind} {problem}: {config} {1e6 * seconds:.1f} us")
    sizes = {"pixels": pixels, "outputs": problem.outputs, "inputs": problem.inputs}
    sizes["inputs"] *= problem.size**2 if problem.kernel == "conv" else 1
    tile = {name: getattr(config, name) for name in asdict(config)}
    head = {"kernel": problem.kernel, "arithmetic": kind}
    return {**head, **sizes, **tile, "microseconds": round(1e6 * seconds, 1)}


def candidates(kind: str) -> Iterator[configs.Config]:
    """Tilings that a GPU of this kind has shared memory and registers for."""
    size = 2 if kind == "half" else 4
    properties = torch.cuda.get_device_properties(0)
    room = getattr(properties, "shared_memory_per_block_optin", 99 * 1024)
    depths = {"half": (32, 64), "tf32": (16, 32), "ieee": (16,)}[kind]
    for m, n, k in itertools.product((64, 128, 256), (64, 128, 256), depths):
        deepest = int(0.95 * room / (size * k * (m + n)))
        for warps in (4, 8):
            accumulators = m * n / (32 * warps)  # a thread
            if accumulators not in ((16, 32) if kind == "ieee" else (64, 128)):
                continue
            for stages in {min(deepest, 4), min(deepest, 3)} - {0, 1}:
                yield configs.Config(m, n, k, warps, stages)


def launch(problem: Problem, dtype: torch.dtype) -> tuple[Run, int]:
    """A function that runs the kernel once, and how many pixels it sees."""
    torch.manual_seed(0)
    shape = problem.batch, problem.inputs, problem.side, problem.side

    def maps(*shape: int) -> Tensor:
        made = torch.randn(*shape, device="cuda", dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last)

    x, _ = pixels_of(maps(*shape))
    branches = len(problem.rates)
    if problem.kernel == "weight_grad":
        g, _ = pixels_of(maps(shape[0], branches * problem.outputs, *shape[2:]), branches)
        if problem.size == 1:
            part, grads = x.as_row(), g.as_row()
            rows = problem.outputs
            _, splits = weight_grad.splits_for(part, rows, 1, rows)
            slices = torch.empty(splits, rows, problem.inputs, device="cuda")

            def multiply() -> Tensor:
                weight_grad.product(part, grads, slices, add=False)
                return slices.sum(0)

            return multiply, x.pixels
        gradient = torch.empty(
            branches, problem.outputs, problem.size, problem.size, problem.inputs,
            device="cuda", dtype=dtype,
        ).permute(0, 1, 4, 2, 3)  # fmt: skip

        def correlate() -> Tensor:
            weight_grad.correlate(x, g, problem.rates, problem.outputs, gradient)
            return gradient

        return correlate, x.pixels
    if problem.to_input:
        return gradient_to_input(problem, dtype), x.pixels
    weight = torch.randn(
        branches, problem.outputs, problem.inputs, problem.size, problem.size,
        device="cuda", dtype=dtype,
    )  # fmt: skip
    taps = taps_of(weight / weight[0, 0].numel() ** 0.5)
    seen = x if problem.size > 1 else x.as_row()
    sides = shape[2:] if problem.size > 1 else (1, shape[2] * shape[3] * shape[0])
    out = torch.empty(
        shape[0] if problem.size > 1 else 1, branches * problem.outputs, *sides, device="cuda",
        dtype=dtype if problem.size > 1 else torch.float32, memory_format=torch.channels_last,
    )  # fmt: skip

    def convolve() -> Tensor:
        conv(seen, taps, out, problem.rates, fuse="sum" if problem.size == 1 else "concat")
        return out

    return convolve, x.pixels


def gradient_to_input(problem: Problem, dtype: torch.dtype) -> Run:
    """The same kernel from the outputs' gradient, `problem.inputs` of each rate, to the input."""
    branches = len(problem.rates)
    shape = problem.batch, branches * problem.inputs, problem.side, problem.side
    g = torch.randn(*shape, device="cuda", dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    seen, step = pixels_of(g, branches)
    weight = torch.randn(
        branches, problem.inputs, problem.outputs, problem.size, problem.size,
        device="cuda", dtype=dtype,
    )  # fmt: skip
    taps = taps_of(weight / weight[0].numel() ** 0.5, pad_outputs=True).transposed(problem.outputs)
    out = torch.empty(
        shape[0], problem.outputs, *shape[2:], device="cuda", dtype=dtype,
        memory_format=torch.channels_last,
    )  # fmt: skip
    stride = step if branches > 1 else 0

    def convolve() -> Tensor:
        conv(seen, taps, out, problem.rates, fuse="sum", direction=-1, x_rate_stride=stride)
        return out

    return convolve


def time(run: Run) -> float:
    """Seconds of one run: the median over replays of a CUDA graph."""
    from triton.testing import do_bench_cudagraph

    return float(do_bench_cudagraph(run, rep=10, return_mode="median")) / 1e3


def write(path: Path, gpu: str, entries: list[dict[str, Any]]) -> None:
    """Write the table in one step, so that an interruption leaves the old one."""
    from importlib.metadata import version

    about = f"Tuned by bench/tune_atrous.py, torch {torch.__version__}, triton {version('triton')}."
    lines = ",\n    ".join(json.dumps(entry) for entry in entries)
    head = f'{{\n  "about": {json.dumps(about)},\n  "gpu": {json.dumps(gpu)},\n'
    head += f'  "target": {json.dumps(configs.family(torch.device("cuda", 0)))},\n'
    text = f'{head}  "configs": [\n    {lines}\n  ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


if __name__ == "__main__":
    sys.exit(main())
