"""Two processes that write the same output at the same moment, while a third reads it.

Every file is whole at every moment, and at the end is one of the two that the processes write
alone, with nothing temporary beside it. Two trainings leave the files of one of them, or the second
is refused.
"""

import random
import time
from pathlib import Path
from typing import Any

from campaign import kill
from campaign.case import Outcome, Wrong, require
from campaign.files import content, contents, lay
from campaign.labels import drawn, one_set, stored
from campaign.network import WEIGHTS, write_weights
from campaign.processes import Child, warm
from campaign.rasters import lay_picture, png, raster
from campaign.runner import Tally, emptied, world
from deeplab.model import build
from deeplab.weights import save_weights

INPUTS = "../inputs/{which}"
PAIRS = {  # a command that two processes run, each with inputs of its own
    "segment": f"segment {INPUTS}/a.png --weights {WEIGHTS} --no-crf --probabilities --out out",
    "refine": f"refine {INPUTS}/a.png {INPUTS}/marks.png --out out",
    "convert": f"convert {INPUTS}/w.safetensors w.safetensors --model deeplab_v2_small --classes 3",
    "evaluate": f"evaluate --data folder --root {INPUTS}/set --split all --weights {WEIGHTS} "
    "--no-crf --out s.json --save-confusion c.csv",
    "data check": f"data check folder {INPUTS}/set --workers 0 --json found.json",
    "train": f"train --steps {{steps}} {kill.RECIPE} --out w.safetensors",
}


def run_writers(seed: int, count: int) -> Tally:
    """`count` pairs of writers."""
    tally, chance, reads = Tally("writers", seed), random.Random(seed), 0
    if count >= len(PAIRS):  # trainings are among them
        warm()
    with world(tally) as root:
        _lay_inputs(root)
        alone = {}
        for number in range(count):
            pair = list(PAIRS)[number % len(PAIRS)]
            try:
                if pair not in alone:
                    alone[pair] = [_one(root, _line(pair, which)) for which in (1, 2)]
                outcome, seen = _two(root, pair, alone[pair], chance.choice((0.0, 0.05, 0.3)))
                reads += seen
                tally.ended(outcome)
            except (Wrong, OSError, ValueError) as wrong:
                tally.fail(number, f"two of {pair}", PAIRS[pair], f"{wrong!r}"[:1500])
            tally.cases += 1
    tally.facts = {"reads": reads, "commands": list(PAIRS)}
    return tally


def _line(pair: str, which: int) -> list[str]:
    steps = {1: 8, 2: 3}[which]  # the first training ends last: it would end in the other's log
    return PAIRS[pair].format(which=which, steps=steps).split()


def _lay_inputs(root: Path) -> None:
    (root / "shared").mkdir()
    write_weights(root / "shared")
    kill.lay_data(root / "data")
    for which in (1, 2):
        inputs = root / "inputs" / str(which)
        inputs.mkdir(parents=True)
        lay_picture(inputs, 40, 56, which)
        save_weights(
            build("deeplab_v2_small", num_classes=3).eval(),
            inputs / "w.safetensors",
            {"which": which},
        )
        noise = png(raster("noise", 12, 16, which), 2)
        lay(inputs, one_set([(noise, *stored(drawn(3, which), "grey"))]))


def _one(root: Path, args: list[str]) -> dict[str, Any]:
    with emptied(root) as folder:
        child = Child(args, root / "said")
        child.wait()
        ended = child.status == 0 or "finding" in child.text()
        require(ended, f"alone: status {child.status}, {child.text()[-500:]}")
        return contents(folder)


def _two(root: Path, pair: str, alone: list[dict[str, Any]], delay: float) -> tuple[Outcome, int]:
    with emptied(root) as folder:
        first = Child(_line(pair, 1), root / "said1")
        time.sleep(delay)
        second = Child(_line(pair, 2), root / "said2")
        reads = 0
        while first.poll() is None or second.poll() is None:
            for path in folder.rglob("*"):
                if path.is_file() and not path.name.startswith("."):
                    content(path)  # raises where it is not whole
                    reads += 1
        for child in (first, second):
            lines = [line for line in child.text().splitlines() if line.startswith("Error: ")]
            ended = child.status == 0 or "finding" in child.text()
            ended = ended or (child.status == 2 and len(lines) == 1)
            require(ended, f"status {child.status}: {child.text()[-800:]}")
        found = contents(folder)
        require(
            found.keys() == alone[0].keys(),
            f"there are {sorted(found)}, expected {sorted(alone[0])}",
        )
        for name, what in found.items():
            require(what in (alone[0][name], alone[1][name]), f"{name} is of neither process")
        if pair == "train":
            mixed = found not in alone
            require(not mixed, "weights, state and log are of two trainings, mixed")
        return "refused" if 2 in (first.status, second.status) else "result", reads
