"""What the compiler makes of the hot kernels, and the time that this predicts: no GPU is needed.

    python bench/static.py                      # compile for sm_80, sm_90 and gfx942; print, record
    python bench/static.py --targets sm_90      # for one of them
    python bench/static.py --markdown           # also the table for docs/figures.md

A prediction is of an H200 (sm_90), the same rule for every kernel, fitted to nothing. A launch
takes LAUNCH and the largest of

    memory      the bytes of its tensors, each once, at COPY of the datasheet's bandwidth
    cache       the bytes that its programs load, repeats too, at COPY of the L2's 5120 a cycle
    arithmetic  matrix operations at PRODUCT of the datasheet's rate, others at the float32 rate,
                on the multiprocessor that has most programs
    issue       its instructions, the loop's once a step, four a cycle and multiprocessor
    latency     for each wave of resident blocks one wait for memory, and a wait for the L2 a step;
                a loop of matrix instructions waits once in as many steps as it has stages

floor: the bytes, or the operations, at the datasheet's rates. Kernels that PyTorch launches beside
(sorts, sums, copies) are in neither, nor is the host.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # measure this checkout, whatever is installed

import torch  # noqa: E402
from atrous_heads import Head  # noqa: E402
from binaries import (  # noqa: E402
    MULTIPROCESSORS,
    TARGETS,
    Binary,
    Launch,
    compile_launch,
    of_target,
    pool,
    record,
)
from compare_aspp import GPU_HEADS  # noqa: E402
from crf_problem import CRFProblem  # noqa: E402
from report import RECORDS, new_record, write_record  # noqa: E402
from torch import Tensor  # noqa: E402
from work import Work, bytes_of, work_of  # noqa: E402

from kernels.separable.factors import Separable  # noqa: E402

BF16, FP32, CYCLES = 989e12, 67e12, 1.98e9  # operations/s and cycles/s of an H200
BANDWIDTH, CACHE = 4.8e12, 5120 * CYCLES  # bytes/s of its memory and its L2
COPY, PRODUCT = 0.9, 0.8  # what of these a plain copy and a plain product reach
LAUNCH = 2e-6  # seconds from one kernel of a graph to the next
WAIT, CACHE_WAIT = 0.5e-6, 0.15e-6  # seconds that a load takes from memory and from the L2
PREDICTED = "sm_90"

CRF = CRFProblem(375, 500, 21, 80, 13, 10)
# Of the photograph that the comparisons use: vertices of both lattices; landmarks, grid, pieces.
VERTICES = {2: 24_540, 5: 26_100}
LANDMARKS, GRID, PIECES = 320, (11, 9), 240
REACH = 19  # taps of the smoothness, of sigma 3, on each side

Row = dict[str, Any]


def cases() -> dict[str, Callable[[], object]]:
    """The hot configurations: each launches its kernels on tensors without memory."""
    heads = {
        "v2 head, batch 1": ("shift", "v2 head 65x65", 1),
        "v2 head, batch 16": ("shift", "v2 head 65x65", 16),
        "VGG ASPP, batch 4": ("implicit", "VGG ASPP-L 41x41", 4),
        "DeepLabV3, batch 4": ("implicit", "v3 branches 65x65", 4),
    }
    return {
        **{name: partial(_head, how, GPU_HEADS[of], b) for name, (how, of, b) in heads.items()},
        "lattice, build": _build,
        "lattice, 10 updates": _updates,
        "exact, build": partial(_exact, "build"),
        "exact, one filter": partial(_exact, "apply"),
        "separable, one filter": _separable,
        "separable, 10 updates": _composed_updates,
    }


def compile_case(name: str, target: str) -> list[Row]:
    """A row for each kernel of a case, launches of the same code in one."""
    with of_target(target):
        launches = record(cases()[name])
        different = {launch.code: launch for launch in launches}
        made = {code: compile_launch(launch, target) for code, launch in different.items()}
    rows: dict[tuple[Any, ...], Row] = {}
    for launch in launches:
        binary = made[launch.code]
        row = rows.setdefault(launch.code, _row(name, target, launch, binary))
        _add(row, launch, binary)
    return list(rows.values())


def predict(
    binary: Binary, work: Work, moved: int, programs: int, multiprocessors: int = MULTIPROCESSORS
) -> dict[str, float]:
    """Seconds of each thing that bounds a launch: see the module's docstring."""
    busiest = -(-programs // multiprocessors)
    uneven = busiest * multiprocessors / programs
    once = binary.instructions - (binary.loop or 0)
    issued = busiest * binary.warps * (once + work.steps * (binary.loop or 0))
    waves = -(-programs // (multiprocessors * max(1, binary.resident)))
    depth = binary.stages if binary.matrix and binary.loop else 1
    return {
        "memory": moved / (COPY * BANDWIDTH),
        "cache": work.loaded / (COPY * CACHE),
        "arithmetic": uneven * max(work.matrix / (PRODUCT * BF16), work.plain / FP32),
        "issue": issued / (4 * CYCLES),
        "latency": waves * (WAIT + CACHE_WAIT * work.steps / depth),
    }


def floor(work: Work, moved: int) -> float:
    """The least seconds that an H200 takes by its datasheet."""
    return max(moved / BANDWIDTH, work.matrix / BF16, work.plain / FP32)


def _row(case: str, target: str, launch: Launch, binary: Binary) -> Row:
    kernel = f"{launch.operation}.{launch.name}".removesuffix("_kernel")
    empty: Row = {"launches": 0, "programs": 0, "bytes": 0, "operations": 0}
    seconds = {"floor_seconds": 0.0, "predicted_seconds": 0.0} if target == PREDICTED else {}
    return {"case": case, "kernel": kernel, "target": target, **asdict(binary), **empty, **seconds}


def _add(row: Row, launch: Launch, binary: Binary) -> None:
    """One launch more of a row's kernel."""
    work, moved = work_of(launch), bytes_of(launch)
    row["launches"] += 1
    row["programs"] += launch.programs
    row["bytes"] += moved
    row["operations"] += int(work.matrix + work.plain)
    if row["target"] == PREDICTED:
        bounds = predict(binary, work, moved, launch.programs)
        row["bound"] = max(bounds, key=lambda name: bounds[name])
        row["floor_seconds"] += floor(work, moved)
        row["predicted_seconds"] += LAUNCH + max(bounds.values())


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _head(algorithm: str, head: Head, batch: int) -> None:
    from kernels.atrous.triton import implicit, shift
    from kernels.atrous.triton.layout import Epilogue

    def maps(channels: int) -> Tensor:
        made = meta(batch, channels, head.side, head.side, dtype=torch.bfloat16)
        return made.contiguous(memory_format=torch.channels_last)

    rates = len(head.rates)
    weight = meta(rates, head.outputs, 3, 3, head.channels, dtype=torch.bfloat16)
    vectors = meta(rates * head.outputs, dtype=torch.bfloat16)
    bias = None if head.normalised else vectors.view(rates, head.outputs)
    scale = vectors if head.normalised else None
    {"shift": shift, "implicit": implicit}[algorithm].forward(
        maps(head.channels), weight.permute(0, 1, 4, 2, 3), head.rates, head.fuse,
        Epilogue(bias, scale, scale, None if head.fuse == "sum" else "relu"),
        maps(head.output_channels),
    )  # fmt: skip


def _points() -> int:
    return CRF.height * CRF.width


def _build() -> None:
    """Both lattices of a CRF, without the wait between the launches."""
    from kernels.permutohedral.triton import building

    for dims, rows in VERTICES.items():
        points = meta(_points(), dims)
        placed = building._placed(points, 1, meta(10, dtype=torch.float64))
        building._finished(placed, [rows - 1.0, 100.0, *[30.0] * dims])


def _updates() -> None:
    from kernels.meanfield import triton
    from kernels.meanfield.term import LatticeTerm
    from kernels.permutohedral.lattice import Lattice
    from kernels.permutohedral.triton import segments

    count = _points()
    terms = []
    for dims, rows in VERTICES.items():
        entries = count * (dims + 1)
        partial_rows = entries // segments.PIECE
        lattice = Lattice(
            corners=meta(count, dims + 1, dtype=torch.int32),
            weights=meta(count, dims + 1),
            neighbours=meta(dims + 1, 2, rows, dtype=torch.int32),
            ghosts=meta(0, 2, dtype=torch.int32),
            parts=meta(2, 3, dtype=torch.int64),
            entries=meta(entries, dtype=torch.int32),
            pieces=meta(3, rows + partial_rows, dtype=torch.int32),
            sums=meta(3, partial_rows, dtype=torch.int32),
        )
        terms.append(LatticeTerm(lattice, meta(CRF.labels), meta(count), meta(count)))
    unary = meta(CRF.labels, count).T
    order = meta(count, dtype=torch.int64)
    triton.mean_field(unary, terms, CRF.iterations, None, order, True, torch.empty_like(unary))


def _exact(part: str) -> None:
    from kernels.exact import tiles, triton

    count, total = _points(), tiles.tiles_of(_points())
    points = meta(5, total * tiles.TILE)
    if part == "build":
        triton.masses(points, meta(total, total), count, 1e-9)
        return
    kept, order = meta(total * (total + 1), dtype=torch.int32), meta(count, dtype=torch.int64)
    values = meta(count, CRF.labels)
    triton.apply(values, tiles.Pairs(points, order, kept), "bf16", torch.empty_like(values))


def _separable() -> None:
    from kernels.separable import triton

    triton.filter(_factors(), meta(_points(), CRF.labels), "bf16")


def _composed_updates() -> None:
    """Smoothness on the grid and appearance over landmarks, as a GPU takes them."""
    from kernels import Term
    from kernels.meanfield import GridFilter, SeparableFilter, filters
    from kernels.meanfield.triton import composed
    from kernels.separable import triton

    taps, scale = meta(REACH), meta(1, _points(), 1)
    over = (GridFilter(taps, taps, CRF.width), SeparableFilter([_factors()], "bf16"))
    terms = [Term(each, meta(CRF.labels), scale, scale) for each in over]
    with (
        mock.patch.object(filters, "apply_separable", triton.filter),
        mock.patch.object(filters, "convolve", triton.convolve),
    ):
        composed.mean_field(meta(1, _points(), CRF.labels), terms, CRF.iterations)


def _factors() -> Separable:
    count, nodes = _points(), GRID[0] * GRID[1]
    return Separable(
        meta(LANDMARKS, 3), meta(LANDMARKS, LANDMARKS), tuple(meta(m) for m in GRID), GRID,
        meta(count, dtype=torch.int64), meta(count, 3), meta(count, 2), meta(count),
        meta(PIECES, 3, dtype=torch.int32), meta(nodes + 1, dtype=torch.int32), 0.1,
    )  # fmt: skip


HEADINGS = (
    "kernel", "target", "launches", "blocks", "regs", "shared", "resident", "spills", "loop",
    "matrix", "MB", "GFLOP", "floor us", "predicted us", "bound",
)  # fmt: skip


def show(rows: Sequence[Row]) -> str:
    """The rows as text, a paragraph a case; "-": the kernel has no loop, or no prediction."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        table = [HEADINGS, *(_cells(row) for row in rows if row["case"] == case)]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEADINGS))]
        lines.append(case)
        for line in table:
            first = "  ".join(line[i].ljust(widths[i]) for i in range(2))
            rest = "  ".join(line[i].rjust(widths[i]) for i in range(2, len(line)))
            lines.append(f"  {first}  {rest}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    each = row["launches"]
    times = [
        f"{1e6 * row[name]:.1f}" if name in row else "-"
        for name in ("floor_seconds", "predicted_seconds")
    ]
    return (
        row["kernel"], row["target"], str(each), str(round(row["programs"] / each)),
        str(row["registers"]), str(row["shared"]), str(row["resident"]), str(row["spills"]),
        "-" if row["loop"] is None else str(row["loop"]), str(row["matrix"]),
        f"{row['bytes'] / 1e6:.1f}", f"{row['operations'] / 1e9:.1f}", *times,
        row.get("bound", "-"),
    )  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The totals of each case, predicted for an H200."""
    lines = ["| configuration | launches | floor | predicted | bound by |", "|---|---|---|---|---|"]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case and row["target"] == PREDICTED]
        least, total = (sum(r[f"{what}_seconds"] for r in own) for what in ("floor", "predicted"))
        slowest = max(own, key=lambda row: row["predicted_seconds"])
        lines.append(
            f"| {case} | {sum(row['launches'] for row in own)} | {1e6 * least:.0f} us "
            f"| {1e6 * total:.0f} us | `{slowest['kernel']}`: {slowest['bound']} |"
        )
    return "\n".join(lines)


def compile_all(names: Sequence[str], targets: Sequence[str]) -> list[Row]:
    """The rows of all cases on all targets, compiled in as many processes as there are cores."""
    with pool() as processes:
        jobs = [processes.submit(compile_case, n, target) for n in names for target in targets]
        return [row for job in jobs for row in job.result()]


def main(arguments: Sequence[str]) -> int:
    """Compile, print, write the record; 1 where a kernel spills."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--cases", choices=cases(), nargs="+", default=list(cases()))
    parser.add_argument("--markdown", action="store_true", help="also print the predictions so")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if options.markdown and PREDICTED not in options.targets:
        parser.error(f"--markdown needs {PREDICTED} among --targets, which the predictions are of")
    start = time.monotonic()
    rows = compile_all(options.cases, options.targets)
    print(show(rows))
    if options.markdown:
        print(f"\n{markdown(rows)}\n")
    found = new_record(["bench/static.py", *arguments], ["static"], threads=1)
    found["comparisons"] = [{"name": "static", "model": _model(), "rows": rows}]
    took = time.monotonic() - start
    print(f"compiled and read in {took:.0f} s; record: {write_record(found, options.out)}")
    spilling = sorted({f"{r['kernel']} on {r['target']}" for r in rows if r["spills"]})
    if spilling:
        print(f"SPILLS: {', '.join(spilling)}")
    return 1 if spilling else 0


def _model() -> Mapping[str, float]:
    """What the predictions rest on, for the record."""
    return {
        "bytes_per_second": BANDWIDTH, "cache_bytes_per_second": CACHE, "bf16": BF16,
        "float32": FP32, "cycles_per_second": CYCLES, "multiprocessors": MULTIPROCESSORS,
        "copy": COPY, "product": PRODUCT, "launch_seconds": LAUNCH, "wait_seconds": WAIT,
        "cache_wait_seconds": CACHE_WAIT,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
