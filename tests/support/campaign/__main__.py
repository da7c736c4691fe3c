"""Run the campaign, each family in a process of its own, and write its record."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from campaign.families import INPUTS, PARTS

ROOT = Path(__file__).resolve().parents[3]
TOLD_EVERY = 20  # cases between two words of a family to the campaign


def main() -> int:
    given = _arguments()
    if given.worker:
        return _work(given)
    if given.only is not None:
        return _again(given)
    names = given.family or list(PARTS)
    counts = {name: given.count or max(1, round(PARTS[name].count * given.scale)) for name in names}
    start = time.perf_counter()
    tallies = _run_all(names, counts, given.seed, given.jobs)
    seconds = time.perf_counter() - start
    _show(tallies)
    if given.out is not None:
        record = _record(tallies, counts, given, seconds)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"-> {given.out}")
    return 1 if any(tally["failures"] for tally in tallies) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m campaign", description=__doc__)
    parser.add_argument(
        "--family", action="append", choices=list(PARTS), help="one of them; repeatable"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--count", type=int, help="cases of each family; by default as many as it has"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full size")
    parser.add_argument("--jobs", type=int, default=2, help="families at once")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record there")
    parser.add_argument("--only", type=int, metavar="CASE", help="one case of one family, in full")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="with --only: keep its folder there"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(given: argparse.Namespace) -> int:
    """The process of a family: its cases' numbers, then its tally, as lines of JSON."""
    from campaign import families

    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the product or a library prints is no part of it
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done % TOLD_EVERY == 0:
            print(json.dumps({"done": done}), file=told, flush=True)

    tally = families.run(given.family[0], given.seed, given.count, advance)
    print(json.dumps({"tally": tally.as_dict()}), file=told, flush=True)
    return 0


def _again(given: argparse.Namespace) -> int:
    """One case once more."""
    from campaign import families

    (name,) = given.family
    count = max(given.only + 1, given.count or PARTS[name].count)
    tally = families.run(name, given.seed, count, only=given.only, keep=given.keep)
    for failure in tally.failures:
        print(f"{failure['said']}\n{failure['line']}\n{failure['wrong']}")
    print("failed" if tally.failures else "passed")
    return 1 if tally.failures else 0


def _run_all(
    names: list[str], counts: dict[str, int], seed: int, jobs: int
) -> list[dict[str, Any]]:
    waiting, tallies, lock = deque(names), {}, threading.Lock()
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        tasks = {name: progress.add_task(name, total=counts[name], start=False) for name in names}

        def work() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    name = waiting.popleft()
                progress.start_task(tasks[name])
                tallies[name] = _in_process(
                    name,
                    seed,
                    counts[name],
                    lambda done, name=name: progress.update(tasks[name], completed=done),
                )
                progress.update(tasks[name], completed=counts[name])
                if not console.is_terminal:
                    print(_line(tallies[name]), file=sys.stderr, flush=True)

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [tallies[name] for name in names]


def _in_process(name: str, seed: int, count: int, tell: Any) -> dict[str, Any]:
    """The tally of a family; a process that ends otherwise is a failure of its last case."""
    command = [sys.executable, "-m", "campaign", "--worker", "--family", name]
    command += ["--seed", str(seed), "--count", str(count)]
    paths = f"{ROOT / 'tests' / 'support'}:{ROOT}"
    threads = "2" if name == "concurrency" else "1"  # a fork wants a parent of one
    about = {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    child = subprocess.Popen(
        command, env=os.environ | about, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stderr is not None
    errors: deque[str] = deque(maxlen=60)
    listening = threading.Thread(target=errors.extend, args=(child.stderr,))
    listening.start()
    done, tally = 0, None
    for line in child.stdout:
        said = json.loads(line)
        tally = said.get("tally", tally)
        done = said.get("done", done)
        tell(done)
    listening.join()
    status = child.wait()
    if tally is not None and status == 0:
        return dict(tally)
    wrong = f"its process ended with status {status}: {''.join(errors)[-3000:]}"
    failure = {
        "case": done,
        "said": f"after case {done}",
        "line": " ".join(command),
        "wrong": wrong,
    }
    return {
        "family": name, "seed": seed, "cases": done, "result": 0, "refused": 0,
        "failures": [failure], "seconds": 0.0, "facts": {},
    }  # fmt: skip


def _record(
    tallies: list[dict[str, Any]], counts: dict[str, int], given: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    import hypothesis

    sys.path.insert(0, str(ROOT / "bench"))
    import machine

    inputs = [tally for tally in tallies if tally["family"] in INPUTS]
    return {
        "about": "the campaign: inputs, kills, full disks and writers at once, against the product",
        "command": "make campaign",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "hardware": machine.hardware(),
        "versions": machine.versions() | {"hypothesis": hypothesis.__version__},
        "seed": given.seed,
        "counts": counts,
        "seconds": round(seconds, 1),
        "inputs": {
            key: sum(tally[key] for tally in inputs) for key in ("cases", "result", "refused")
        },
        "failures": sum(len(tally["failures"]) for tally in tallies),
        "families": tallies,
    }


def _line(tally: dict[str, Any]) -> str:
    return (
        f"{tally['family']}: {tally['cases']} cases, {tally['result']} results, {tally['refused']} "
        f"refused, {len(tally['failures'])} failures, {tally['seconds']:.0f} s"
    )


def _show(tallies: list[dict[str, Any]]) -> None:
    table = Table(title="Campaign")
    for column in ("family", "cases", "results", "refused", "failures", "s"):
        table.add_column(column, justify="left" if column == "family" else "right")
    for tally in tallies:
        figures = (tally["cases"], tally["result"], tally["refused"], len(tally["failures"]))
        table.add_row(tally["family"], *map(str, figures), f"{tally['seconds']:.0f}")
    console = Console(markup=False)
    console.print(table)
    for tally in tallies:
        for failure in tally["failures"]:
            console.print(
                f"FAILED {tally['family']} {failure['case']}: {failure['said']}", soft_wrap=True
            )
            console.print(f"  {failure['line'][:400]}\n  {failure['wrong'][-600:]}", soft_wrap=True)
            if "again" in failure:
                console.print(f"  again: {failure['again']}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
