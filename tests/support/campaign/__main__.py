"""Run the campaign, each family in a process of its own, and write its record."""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis

from campaign import families
from campaign.families import INPUTS, PARTS
from campaign.runner import Tally

ROOT = Path(__file__).resolve().parents[3]


def main() -> int:
    given = _arguments()
    if given.worker:
        return _work(given)
    if given.only is not None:
        return _again(given)
    names = given.family or list(PARTS)
    counts = {name: given.count or max(1, round(PARTS[name].count * given.scale)) for name in names}
    start = time.perf_counter()
    with ThreadPoolExecutor(given.jobs) as pool:
        tallies = list(pool.map(lambda name: _in_process(name, given.seed, counts[name]), names))
    seconds = time.perf_counter() - start
    for tally in tallies:
        for failure in tally["failures"]:
            print(f"FAILED {tally['family']} {failure['case']}: {failure['said']}")
            print(f"  {failure['line'][:400]}\n  {failure['wrong'][-600:]}")
            print(f"  again: {failure.get('again', 'the whole family')}")
    if given.out is not None:
        record = _record(tallies, counts, given.seed, seconds)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"-> {given.out}")
    return 1 if any(tally["failures"] for tally in tallies) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m campaign", description=__doc__)
    add = parser.add_argument
    add("--family", action="append", choices=list(PARTS), help="one of them; repeatable")
    add("--seed", type=int, default=0)
    add("--count", type=int, help="cases of each family; by default as many as it has")
    add("--scale", type=float, default=1.0, help="a share of the full size")
    add("--jobs", type=int, default=2, help="families at once")
    add("--out", type=Path, metavar="FILE", help="write the record there")
    add("--only", type=int, metavar="CASE", help="one case of one family, in full")
    add("--keep", type=Path, metavar="DIR", help="with --only: keep its folder there")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _work(given: argparse.Namespace) -> int:
    """The process of a family: its tally as a line of JSON."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the product or a library prints is no part of it
    tally = families.run(given.family[0], given.seed, given.count)
    print(json.dumps(tally.as_dict()), file=told, flush=True)
    return 0


def _again(given: argparse.Namespace) -> int:
    """One case once more."""
    (name,) = given.family
    count = max(given.only + 1, given.count or PARTS[name].count)
    tally = families.run(name, given.seed, count, only=given.only, keep=given.keep)
    for failure in tally.failures:
        print(f"{failure['said']}\n{failure['line']}\n{failure['wrong']}")
    print("failed" if tally.failures else "passed")
    return 1 if tally.failures else 0


def _in_process(name: str, seed: int, count: int) -> dict[str, Any]:
    """The tally of a family; a process that ends otherwise is a failure of its last case."""
    command = [sys.executable, "-m", "campaign", "--worker", "--family", name]
    command += ["--seed", str(seed), "--count", str(count)]
    paths = f"{ROOT / 'tests' / 'support'}:{ROOT}"
    threads = "2" if name == "concurrency" else "1"  # a fork wants a parent of one
    about = {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    child = subprocess.run(command, env=os.environ | about, capture_output=True, text=True)
    if child.returncode == 0:
        tally: dict[str, Any] = json.loads(child.stdout)
    else:
        ended = Tally(name, seed)
        wrong = f"its process ended with status {child.returncode}: {child.stderr[-3000:]}"
        ended.fail(-1, "the last that it names", " ".join(command), wrong)
        tally = ended.as_dict()
    print(
        f"{name}: {tally['cases']} cases, {tally['result']} results, {tally['refused']} refused, "
        f"{len(tally['failures'])} failures, {tally['seconds']:.0f} s",
        flush=True,
    )
    return tally


def _record(
    tallies: list[dict[str, Any]], counts: dict[str, int], seed: int, seconds: float
) -> dict[str, Any]:
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
        "seed": seed,
        "counts": counts,
        "seconds": round(seconds, 1),
        "inputs": {
            key: sum(tally[key] for tally in inputs) for key in ("cases", "result", "refused")
        },
        "failures": sum(len(tally["failures"]) for tally in tallies),
        "families": tallies,
    }


if __name__ == "__main__":
    sys.exit(main())
