"""Check and measure on a machine with a GPU, in two parts of at most five minutes each.

    PYTHONPATH=. python bench/gpu.py suite --out DIR      # kernels compiled, then the GPU's tests
    PYTHONPATH=. python bench/gpu.py compare --out DIR    # comparisons, then tuning

The project need not be installed, nor pydantic, tomli-w and typer; nothing is downloaded. A part is
a list of steps, each a process with a time limit; one that fails, or is stopped at its limit, does
not stop the next. The folder holds at most eight files: a log a part, gpu.json, and what the steps
write.

The same command again goes on: steps that ended, or reached their own limit, are not repeated;
one that was killed, for which the part's time was up, or that has more to do is.

exit code  0 all steps passed, 1 one did not, or is left, 2 no CUDA device or a wrong argument
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 290.0
LEAST = 15.0  # seconds with which a step is still started
GRACE = 8.0  # seconds in which a step that is interrupted may write what it has
MOST_LINES = 60
MORE_TO_DO = 75  # the exit code of a step that wants to be run again
TOLD = (
    "FAILED", "ERROR", "GATE FAILED", "BROKE", "bar ", "LEFT OUT", "STOPPED", "SPILLS", "WRONG",
    "NONE of",
)  # fmt: skip

PASSED, FAILED, LATE, UNFINISHED = "passed", "FAILED", "OUT OF TIME", "unfinished"
ENDED = (PASSED, FAILED, LATE)

# Every file with GPU tests is in one of these; a group is a process, or several on one GPU.
GPU_TESTS = {
    "atrous": ("gpu/kernels/atrous", "triton/kernels/atrous"),
    "lattice": (
        "gpu/kernels/permutohedral", "triton/kernels/permutohedral", "gpu/kernels/meanfield",
        "triton/kernels/meanfield", "kernels/permutohedral/test_reference.py",
    ),
    "pairs": (
        "gpu/kernels/exact", "triton/kernels/exact", "kernels/exact/test_exact.py",
        "gpu/kernels/separable", "triton/kernels/separable",
    ),
    "others": ("gpu/crf", "triton/crf", "deeplab/patch/test_computes.py", "bench"),
}  # fmt: skip
WORKERS = 6  # of pytest: what takes time is compiling


@dataclass(frozen=True)
class Step:
    """A command of this checkout.

    Attributes:
        most_seconds: its time limit.
        writes: the pattern of the record that it writes to the folder.
        margin: seconds before its limit after which it shall start nothing new; None: the command
            takes no `--most-seconds`.
    """

    name: str
    command: Sequence[str]
    most_seconds: float
    writes: str | None = None
    margin: float | None = None


def steps(part: str, out: Path, target: str) -> list[Step]:
    """What a part runs, what matters most first."""
    if part == "suite":
        several = ("-n", str(WORKERS)) if importlib.util.find_spec("xdist") else ()
        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *several)
        compiling = ("bench/static.py", "--targets", target, "--out", str(out))
        return [
            Step("kernels", compiling, 60, "*-static.json"),
            *(
                Step(f"tests of {name}", (*pytest, *(f"tests/{path}" for path in paths)), 120)
                for name, paths in GPU_TESTS.items()
            ),
        ]
    folder = ("--out", str(out))
    measure = ("bench/compare.py", "--device", "cuda", *folder)
    tune = ("bench/tune_atrous.py", *folder, "--records", str(out), "--resume")
    return [
        Step("aspp", (*measure, "aspp"), 110, "*-aspp.json", margin=40),
        Step("crf", (*measure, "crf"), 90, "*-crf.json", margin=40),
        Step("tune", tune, 270, margin=25),
    ]


def own_target() -> str:
    """The GPU here, as bench/static.py names it; the nearest of those that it knows."""
    import torch

    if torch.version.hip:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability() >= (9, 0) else "sm_80"


def run_part(part: str, listed: Sequence[Step], out: Path, seconds: float) -> int:
    """Run the steps that have not ended, keep their state, print the summary; the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "gpu.json"
    state: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    results = state.setdefault(part, {})
    end = time.monotonic() + seconds
    with open(out / f"{part}.log", "a") as log:
        for step in listed:
            left = end - time.monotonic()
            if results.get(step.name, {}).get("status") in ENDED or left < LEAST:
                continue
            for old in out.glob(step.writes) if step.writes else ():
                old.unlink()
            start, begin = time.monotonic(), log.tell()
            given = min(step.most_seconds, left - GRACE)
            status = run_step(step, log, given)
            if status == LATE and given < step.most_seconds:
                status = UNFINISHED
            results[step.name] = {
                "status": status,
                "seconds": round(time.monotonic() - start, 1),
                "told": told(out / log.name, begin),
            }
            write(kept, state)
    print("\n".join(summary(part, listed, results)))
    return 0 if all(results.get(s.name, {}).get("status") == PASSED for s in listed) else 1


def run_step(step: Step, log: IO[str], seconds: float) -> str:
    """Run one, its output to the log, for so many seconds at most; how it ended."""
    log.write(f"\n=== {step.name}, at most {seconds:.0f} s\n")
    log.flush()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *step.command]
    if step.margin is not None:
        command += ["--most-seconds", f"{max(0, seconds - step.margin):.0f}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_listen,
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return LATE
    finally:
        stop(process)
        log.seek(0, os.SEEK_END)
    if code == MORE_TO_DO:
        return UNFINISHED
    return PASSED if code == 0 else FAILED


def _listen() -> None:
    """Take SIGINT, which a process that `nohup` or a shell's `&` began would ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen[Any]) -> None:
    """End what is left of a step: asked first, so that it writes what it has, then for good."""
    for number, wait in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(wait)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def told(log: Path, begin: int) -> list[str]:
    """The lines of a step's log that a summary wants, and the last one."""
    with open(log, errors="replace") as file:
        file.seek(begin)
        lines = [line.strip() for line in file if line.strip()][1:]
    found = [line for line in lines if line.startswith(TOLD)]
    return [*found, *(line for line in lines[-1:] if line not in found)]


def summary(part: str, listed: Sequence[Step], results: dict[str, Any]) -> list[str]:
    """A line a step, and below it what it told; MOST_LINES at most."""
    lines = []
    for step in listed:
        found = results.get(step.name, {"status": "not run", "seconds": 0.0, "told": []})
        lines.append(f"{found['status']:<12}{found['seconds']:6.0f} s  {step.name}")
        lines += [f"    {line[:150]}" for line in found["told"]]
    if len(lines) >= MOST_LINES:
        most = MOST_LINES - 2
        lines = [*lines[:most], f"    ... {len(lines) - most} more lines: see gpu.json"]
    passed = sum(results.get(step.name, {}).get("status") == PASSED for step in listed)
    return [*lines, f"{part}: {passed} of {len(listed)} steps passed"]


def write(path: Path, state: dict[str, Any]) -> None:
    """In one step: a killed run leaves the state before or the state after."""
    new = path.with_suffix(".part")
    new.write_text(json.dumps(state, indent=1) + "\n")
    os.replace(new, path)


def main(arguments: Sequence[str]) -> int:
    """Run a part; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("suite", "compare"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for all results")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="N")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; bench/static.py needs none")
    out = options.out.resolve()
    return run_part(options.part, steps(options.part, out, own_target()), out, options.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
