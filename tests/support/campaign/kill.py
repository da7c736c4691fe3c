"""kill -9 at random moments of `train`: what is resumed ends as the run that was never killed.

The run has several scales, two pieces a step, validations and many states. A moment is drawn as a
row of the log that is waited for, and a share of a step's time behind it. After each kill every
file that is there must be whole. A run is killed up to three times and then goes on to its end,
where its weights, last weights, state and log must be those of the run that was left alone, bit for
bit.
"""

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from campaign.case import Wrong, require
from campaign.files import content
from campaign.labels import CLASSES, drawn, stored
from campaign.processes import Child, warm
from campaign.rasters import png, raster
from campaign.runner import Tally, emptied, world

STEPS = 8
RECIPE = (
    "--batch-size 4 --accumulate 2 --crop 33 --loss-stride 8 --workers 0 --warmup 0 "
    "--validate-every 3 --precision float32 --device cpu --lr 0.01 "
    "--set model_options.scales=[1.0,0.5] --set save_every=2 --set log_every=1 "
    "--set data.name=folder --set data.root=../data --set data.train=train "
    "--set data.validation=val"
)
OPTIONS = f"--steps {STEPS} {RECIPE}".split()
FILES = ("w.safetensors", "w-last.safetensors", "w.state", "w.csv")


def run_kills(seed: int, count: int) -> Tally:
    """`count` kills; each case of the tally is a kill that the run has survived."""
    tally, chance, runs = Tally("kill", seed), random.Random(seed), 0
    warm()
    with world(tally) as root:
        lay_data(root / "data")
        expected, seconds = _alone(root)
        while tally.cases < count and len(tally.failures) < 10:
            kills = min(chance.randint(1, 3), count - tally.cases)
            try:
                with emptied(root) as folder:
                    survived = len(_killed_run(folder, kills, chance, seconds, expected))
                tally.result += survived
            except (Wrong, OSError, ValueError) as wrong:
                survived = kills
                said = f"run {runs} of seed {seed}, killed {kills} times"
                tally.fail(tally.cases, said, "train, --resume", f"{wrong!r}")
            tally.cases += survived
            runs += 1
    tally.facts = {"runs": runs, "steps": STEPS, "seconds_of_a_run": round(seconds, 2)}
    return tally


def lay_data(folder: Path) -> None:
    """Six pictures of three classes, four to train on."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for number in range(6):
        labels = drawn(3, number, ignored=False)
        labels = np.kron(labels, np.ones((3, 3), np.uint8))
        picture = raster("noise", *labels.shape, number) // 3 + labels[..., None] * 60
        (folder / "images" / f"{number}.png").write_bytes(png(picture.astype(np.uint8), 2))
        (folder / "labels" / f"{number}.png").write_bytes(stored(labels, "grey")[1])
    (folder / "train.txt").write_text("0\n1\n2\n3\n")
    (folder / "val.txt").write_text("4\n5\n")


def _start(*more: str) -> Child:
    return Child(["train", "--out", "w.safetensors", *more], Path("../said"))


def _alone(root: Path) -> tuple[dict[str, Any], float]:
    """What the run that nobody disturbs leaves, and how long it takes."""
    begin = time.perf_counter()
    with emptied(root) as folder:
        child = _start(*OPTIONS)
        child.wait()
        ended = f"the run that is not killed: status {child.status}, {child.text()[-500:]}"
        require(child.status == 0, ended)
        return {name: content(folder / name) for name in FILES}, time.perf_counter() - begin


def _killed_run(
    folder: Path, kills: int, chance: random.Random, seconds: float, expected: dict[str, Any]
) -> list[tuple[int, float]]:
    """Kill a run so many times, let it end, and compare; the moments at which it was killed."""
    moments: list[tuple[int, float]] = []
    child = _start(*OPTIONS)
    while len(moments) < kills:
        row, delay = chance.randrange(STEPS), chance.uniform(0, seconds / STEPS)
        child.wait(lambda row=row: _rows(folder / "w.csv") >= row)
        time.sleep(delay)
        status = child.kill()
        if status == -signal.SIGKILL:
            moments.append((row, delay))
        else:  # it was through before: resuming a finished run must leave it as it is
            require(status == 0, f"status {status} before a kill: {child.text()[-500:]}")
        _all_whole(folder)
        child = _resumed(folder)
        if status == 0:
            break
    child.wait()
    ended = f"status {child.status} after kills at {moments}: {child.text()[-600:]}"
    require(child.status == 0, ended)
    for name, wanted in expected.items():
        found = content(folder / name)
        shown = f": {found} instead of {wanted}" if name == "w.csv" else ""
        require(found == wanted, f"{name} differs, after kills at {moments}{shown}")
    left = [path.name for path in folder.iterdir() if path.name not in FILES]
    require(not left, f"left behind after kills at {moments}: {left}")
    return moments


def _resumed(folder: Path) -> Child:
    if (folder / "w.state").exists():
        return _start("--resume")
    return _start(*OPTIONS, "--overwrite")  # killed before its first state


def _rows(log: Path) -> int:
    try:
        return max(0, log.read_text().count("\n") - 1)
    except FileNotFoundError:
        return -1


def _all_whole(folder: Path) -> None:
    for name in FILES:
        if name != "w.csv" and (folder / name).exists():  # the log may end in half a row
            content(folder / name)
