"""Measure this project beside what people use today, on this machine, and keep a record.

    python bench/compare.py --quick         everything on small inputs, under five minutes
    python bench/compare.py crf             one comparison, as it is quoted
    python bench/compare.py crf --against bench/records/RECORD.json    what has become slower?
    python bench/compare.py aspp --device cuda  one comparison on the GPU
    python bench/compare.py --help          the comparisons, the options, how to read the table

bench/README.md says how a comparison is made and how to add one.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from against import SLOWER, changes, show_changes
from machine import cores
from report import RECORDS, new_record, read_record, show, write_record
from rich.console import Console

if TYPE_CHECKING:
    from frame import Comparison


class Topic(NamedTuple):
    """What can be asked for: its comparisons, of which NAME is the COMPARISON of compare_NAME.py
    beside this file, and a summary of them."""

    comparisons: Sequence[str]
    summary: str


TOPICS = {
    "aspp": Topic(["aspp"], "multi-rate atrous convolution: kernels beside one F.conv2d a rate"),
    "crf": Topic(
        ["crf", "small_maps"], "dense CRF: crf.pydensecrf and crf.DenseCRF beside pydensecrf2"
    ),
    "model": Topic(["model"], "pictures to labels: deeplab.predict beside pipelines made by hand"),
    "train": Topic(["train"], "a step of training: deeplab.training beside a loop in PyTorch"),
    "accuracy": Topic(["accuracy"], "what each CRF method changes: against all pairs, and labels"),
}
ALL = "all"
WIDTH = 180  # of a table that goes to a file

GUIDE = """\
how to read the table
  one core      one thread of each side, by the processor's clock; all cores: ours on --threads
  p20 p50 p80   percentiles of the time of one call; on a GPU of a replay of its CUDA graph
  wall ms       GPU only: median wall clock of an eager call until the device has done it
  ours x        how many times as fast ours is: the median, over rounds, of the peer's time over
                ours. Both run in every round, so a busy machine slows both
  of p50        the same from the two medians; far from 'ours x' means a restless machine
  peak MB       memory that one call adds at its peak; on a CPU in a process of its own (not with
                --quick)
  images/s      pictures that it takes over p50
  same label %  share of pixels with the label of exact mean field; mean |dQ|: of the marginals
  mIoU %        against the labels of the pictures; trimap: of the pixels near a boundary alone
  GB/s GFLOP/s  bytes and operations that the task needs over p50; both are in the record
  x floor       p50 over the least time in which this machine can move the bytes and do the
                operations, at the speeds of a plain copy and a plain matrix product
A bar is a speed that is asked for. It is printed below the table, and fails nothing.

exit code
  0 all measured, 1 outputs did not agree or a case broke (it is not timed), 2 a wrong argument,
  3 all measured, and something of ours is slower than in --against RECORD beyond noise

beside it
  python bench/pictures.py RECORD...  the tables of records as report.md, and plots of them as SVG
  python bench/first_call.py      the first CRF of a process against the next one
  python bench/static.py          what the kernels compile to, and times that this predicts
  python bench/tune_atrous.py     tune the tile sizes of the Triton convolutions for this GPU
  python bench/gpu.py             tests, comparisons and tuning on a machine with a GPU

Close other programs first: two busy cores make every figure wrong.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = list(dict.fromkeys(options.names))
    unknown = [name for name in names if name not in (*TOPICS, ALL)]
    if unknown:
        parser.error(
            f"unknown comparison {', '.join(unknown)}; there are: {', '.join((*TOPICS, ALL))}"
        )
    topics = list(TOPICS) if not names or ALL in names else names
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, not {options.threads}")
    try:
        before = None if options.against is None else read_record(options.against)
    except ValueError as error:
        parser.error(f"--against {error}")

    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {options.out}: no folder can be made there ({error.strerror})")

    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; leave the option out")
    comparisons = [
        importlib.import_module(f"compare_{name}").COMPARISON
        for topic in topics
        for name in TOPICS[topic].comparisons
    ]
    devices = [options.device] if options.device else _devices()
    if options.clock == "cpu" and "cuda" in devices:
        parser.error("--clock cpu: a GPU is timed by its own events; add --device cpu")
    pairs = [(c, device) for c in comparisons for device in devices if device in c.devices]
    left_out = [c.name for c in comparisons if c.name not in {chosen.name for chosen, _ in pairs}]
    if names and ALL not in names and left_out:
        parser.error(f"{', '.join(left_out)} does not run on {' or '.join(devices)}")

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    record = _measure(pairs, topics, options, arguments, console)
    if left_out:
        console.print(f"left out, not made for {devices[0]}: {', '.join(left_out)}")
    if not all(comparison["passed"] for comparison in record["comparisons"]):
        console.print("Some cases failed: see GATE FAILED or BROKE above.", style="bold red")
        return 1
    if before is None:
        return 0
    judged = changes(before, record)
    show_changes(judged, options.against.name, console)
    return SLOWER if any(change.slower for change in judged) else 0


def _measure(
    pairs: Sequence[tuple[Comparison, str]],
    topics: Sequence[str],
    options: argparse.Namespace,
    arguments: Sequence[str],
    console: Console,
) -> dict[str, Any]:
    """Run each comparison on its device, show it, and write the record."""
    import machine
    import torch
    from frame import Settings
    from runner import run

    torch.set_num_threads(options.threads)
    measured = {comparison.name for comparison, _ in pairs}
    names = [topic for topic in topics if measured & {*TOPICS[topic].comparisons}]
    record = new_record(["bench/compare.py", *arguments], names, options.threads, options.quick)
    record["ceilings"] = {d: machine.ceilings(d) for d in sorted({device for _, device in pairs})}
    done: list[dict[str, Any]] = []

    def keep(report: dict[str, Any]) -> None:  # lest a run that is stopped leave nothing
        record["comparisons"] = [*done, report]
        write_record(record, options.out)

    for comparison, device in pairs:
        if options.most_seconds is not None:
            comparison = replace(comparison, most_seconds={device: options.most_seconds})
        settings = Settings(device, options.threads, options.quick, options.clock)
        with console.status(f"{comparison.name} on the {device}") as status:
            say = status.update if console.is_terminal else _on_stderr(time.monotonic())
            report = run(comparison, settings, record["ceilings"][device], say, keep)
        show(report, console)
        done.append(report)
    record["comparisons"] = done
    path = write_record(record, options.out)
    console.print(f"\nrecord: {path}", highlight=False, soft_wrap=True)
    return record


def _on_stderr(start: float) -> Callable[[str], object]:
    """Tell each step on standard error, with the seconds since the start: for runs in a log."""

    def say(step: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {step}", file=sys.stderr, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:<14}{topic.summary}" for name, topic in TOPICS.items())
    parser = argparse.ArgumentParser(
        prog="python bench/compare.py",
        description="Measure this project beside what people use today. Outputs are compared "
        "first: what does not agree is not timed.",
        epilog=f"comparisons\n{listing}\n\n{GUIDE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"comparisons, or {ALL} (the default)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small inputs, few rounds: to try, not to quote"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="one kind of device (default: all there are)"
    )
    parser.add_argument(
        "--threads", type=int, default=cores(), metavar="N", help="CPU threads (default: all cores)"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="on a CPU: wall or processor seconds; these add up over threads (default: wall)",
    )
    parser.add_argument(
        "--most-seconds",
        type=float,
        metavar="N",
        help="start no further case of a comparison after so long (default: its own limit, if any)",
    )
    parser.add_argument(
        "--out", type=Path, default=RECORDS, metavar="DIR", help="folder for the JSON record"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RECORD",
        help="tell what of ours is slower than in this record, beyond noise",
    )
    return parser


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
