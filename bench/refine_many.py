"""`deeplab refine` on a folder beside a pool of pydensecrf2 processes, both from files to files.

    python bench/refine_many.py       # 200 pictures of 500x375, 21 labels; prints, writes a record

Photographs beside the checkout (generated scenes where there are none) as JPEG, a softmax for each
as float32 .npy; out come label maps as PNG with a palette. The settings are those of `refine`:
10 iterations, smoothness 3 / 3 pixels, appearance 4 / 49 pixels / 5 levels. Each side is a command
of its own, so its start counts. The peer is the program that weakly supervised pipelines have: a
pool of as many processes as cores, a picture at a time to whoever is free. Few of the pictures
differ, and the rest are links to these, since 200 softmaxes are 3 GB.

The gate: 99.9% of all pixels with the same label. Then rounds, the order turning around in each;
a round is all pictures, warm-up aside. Wall time counts; processor seconds are beside it.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH, LABELS = 375, 500, 21
PHOTOGRAPHS = (
    *(
        f"voc_sample/JPEGImages/{name}.jpg"
        for name in ("2011_000003", "2011_000006", "2011_000025")
    ),
    *(f"cc0/{name}.png" for name in ("astronaut", "chelsea", "coffee")),
    *(f"pydensecrf/im{number}.png" for number in (1, 3)),
)
OURS, PEER = "deeplab refine", "a pool of pydensecrf2"
BAR = 2.2
SAME = 0.999  # of the pixels
Seconds = dict[str, float]  # "wall" and "cpu"


def write_inputs(folder: Path, pictures: int) -> list[str]:
    """Photographs in folder/photos and a softmax for each in folder/softmax; which they are of."""
    from crf_problem import unary_energies

    (folder / "photos").mkdir()
    (folder / "softmax").mkdir()
    sources = _photographs()[:pictures]
    for i, (_, image) in enumerate(sources):
        image.resize((WIDTH, HEIGHT)).save(folder / "photos" / f"{i:06d}.jpg", quality=92)
        softmax = np.exp(-unary_energies(LABELS, HEIGHT, WIDTH, seed=i))
        np.save(folder / "softmax" / f"{i:06d}.npy", softmax.reshape(LABELS, HEIGHT, WIDTH))
    for i in range(len(sources), pictures):
        for kind, suffix in (("photos", ".jpg"), ("softmax", ".npy")):
            source = folder / kind / f"{i % len(sources):06d}{suffix}"
            os.link(source, folder / kind / f"{i:06d}{suffix}")
    return [name for name, _ in sources]


def commands(folder: Path, processes: int) -> dict[str, list[str]]:
    """What is timed, by name: the arguments of a process, all but the folder of the results."""
    given = [str(folder / "photos"), str(folder / "softmax")]
    workers = ["--workers", str(processes)]
    ours = [sys.executable, "-m", "deeplab", "refine", *given, "--no-overlay", *workers, "--out"]
    peer = [sys.executable, __file__, "--peer", *given, str(processes)]
    return {OURS: ours, PEER: peer}


def peer(photos: str, softmax: str, processes: str, out: str) -> None:
    """The pool of pydensecrf2, as its users write it."""
    Path(out).mkdir(parents=True, exist_ok=True)
    names = sorted(path.stem for path in Path(photos).iterdir())
    one = partial(peer_picture, Path(photos), Path(softmax), Path(out))
    with get_context("fork").Pool(int(processes)) as pool:
        for _ in pool.imap_unordered(one, names):
            pass


def peer_picture(photos: Path, softmaxes: Path, out: Path, name: str) -> None:
    """One picture by pydensecrf2."""
    from pydensecrf import densecrf
    from pydensecrf.utils import unary_from_softmax

    image = np.array(Image.open(photos / f"{name}.jpg").convert("RGB"))
    softmax = np.load(softmaxes / f"{name}.npy")
    labels, height, width = softmax.shape
    dense = densecrf.DenseCRF2D(width, height, labels)
    dense.setUnaryEnergy(unary_from_softmax(softmax))
    dense.addPairwiseGaussian(sxy=3, compat=3)
    dense.addPairwiseBilateral(sxy=49, srgb=5, rgbim=image, compat=4)
    found = np.argmax(dense.inference(10), axis=0).reshape(height, width)
    picture = Image.fromarray(found.astype(np.uint8))
    picture.putpalette([value % 256 for k in range(256) for value in (37 * k, 91 * k, 151 * k)])
    picture.save(out / f"{name}_labels.png")


def timed(command: Sequence[str]) -> Seconds:
    """Wall and processor seconds of a process and those that it starts; its failure is raised."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    before, start = _children(), time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return {"wall": time.perf_counter() - start, "cpu": _children() - before}


def same_labels(one: Path, other: Path) -> float:
    """The share of pixels with the same label, over all pictures of two folders of results.

    Raises ValueError where the folders hold other names.
    """
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        raise ValueError(f"{one} and {other} hold other pictures")
    equal = [
        np.mean(np.array(Image.open(one / n)) == np.array(Image.open(other / n))) for n in names
    ]
    return float(np.mean(equal))


def measure(
    pictures: int, rounds: int, processes: int, say: Callable[[str], object] = str
) -> dict[str, Any]:
    """The gate, and every round of each command."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        facts = {"photographs": write_inputs(folder, pictures), "pictures": pictures}
        facts |= {"height": HEIGHT, "width": WIDTH, "labels": LABELS, "processes": processes}
        listed = commands(folder, processes)
        seconds: dict[str, list[Seconds]] = {name: [] for name in listed}
        order = list(listed)
        for number in range(rounds):
            for name in order:
                say(f"round {number + 1} of {rounds}: {name}")
                out = folder / f"out{list(listed).index(name)}"
                seconds[name].append(timed([*listed[name], str(out)]))
            order.reverse()
        same = same_labels(folder / "out0", folder / "out1")
    return {"facts": facts, "seconds": seconds, "same_labels": same}


def ratios(seconds: dict[str, list[Seconds]], clock: str) -> list[float]:
    """How many times the throughput of the peer ours is, in each round."""
    both = zip(seconds[OURS], seconds[PEER], strict=True)
    return [peer[clock] / ours[clock] for ours, peer in both]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where the bar is missed or labels differ."""
    from report import RECORDS, new_record, write_record

    from deeplab.data.folders import cores

    if arguments[:1] == ["--peer"]:
        peer(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="in each round")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each side")
    parser.add_argument("--processes", type=int, default=cores(), metavar="N", help="of each side")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    for name in ("pictures", "rounds", "processes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    say = partial(print, file=sys.stderr)
    record = new_record(
        ["bench/refine_many.py", *arguments], ["refine-many"], threads=options.processes
    )
    found = measure(options.pictures, options.rounds, options.processes, say)
    for name, rounds in found["seconds"].items():
        each = {c: statistics.median(r[c] for r in rounds) / options.pictures for c in rounds[0]}
        print(f"{name}: " + ", ".join(f"{c} {1000 * s:.0f} ms a picture" for c, s in each.items()))
    times = {clock: statistics.median(ratios(found["seconds"], clock)) for clock in ("wall", "cpu")}
    print(", ".join(f"{times[clock]:.2f} times the throughput by {clock} time" for clock in times))
    print(f"same label: {100 * found['same_labels']:.3f}% of pixels")
    passed = found["same_labels"] >= SAME and times["wall"] >= BAR
    report = {"name": "refine-many", "passed": passed, "bar": BAR, "times": times, **found}
    record["comparisons"] = [report]
    print(f"record: {write_record(record, options.out)}")
    return 0 if passed else 1


def _photographs() -> list[tuple[str, Image.Image]]:
    from deeplab.data.scenes import scene

    data = ROOT.parent / "shared" / "data"
    found = [(name, data / name) for name in PHOTOGRAPHS if (data / name).exists()]
    if found:
        return [(name, Image.open(path).convert("RGB")) for name, path in found]
    return [(f"scene {i}", Image.fromarray(scene(i, size=(HEIGHT, WIDTH)).image)) for i in range(8)]


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
