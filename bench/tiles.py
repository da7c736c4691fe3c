"""Large pictures in tiles: what the seams change, and a picture that does not fit into memory.

    python bench/tiles.py seams                # labels in tiles against those of the whole picture
    python bench/tiles.py seams --weights FILE --tiles 3           # the same on photographs
    python bench/tiles.py large                # 20,000 x 20,000 pixels by deeplab segment --no-crf
    python bench/tiles.py large --side 5000    # a smaller one
    python bench/tiles.py large --scales 0.1   # of the large one the memory alone

`seams` takes pictures that fit, of so many by so many tiles which share as little as they may. The
network's labels and those of a CRF are compared with those of the picture taken whole; at least
99.5 % must be equal. The network is the one for generated scenes, with the CRF that is stored with
it: one scene that fills the picture, larger than any that it was trained on, and many of the size
that it knows. With --weights it is another one, such as of `deeplab train --config camvid_small`,
with the CRFs that `segment` and `refine` take: on street scenes side by side, on one of them
enlarged, and on photographs of other kinds. They are read from ../shared/data beside the checkout;
where that is not, the pictures are the generated ones.

`large` lays generated scenes of 321 pixels side by side, has `deeplab segment` take the picture in
tiles of 1024 in a process of its own, which may have 4 GB of data and no more (RLIMIT_DATA), and
asks the system for that process's peak of resident memory (bar: 4 GB). Then the network takes crops
whole: at tiles' centres, where at least 99.9 % of the labels must be equal, and at random places,
seams and all. A crop is compared without the outermost 384 pixels. With --scales 0.1 the network
sees a hundredth of the pixels, while all else stays as it is: its own part of the peak, about
0.1 GB, is missing. The whole takes about 40 processor minutes, and 2 GB on the disk.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

OVERLAP = 384  # that of the defaults
TILE, SEAMS, LARGE, MEMORY = 1024, 0.995, 0.999, 4_000_000_000
CELL, DISTINCT, FIRST = 321, 64, 10_000_000  # pixels, scenes, and the first one's number
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
STREETS, PHOTOGRAPH = 4, (480, 360)  # every fourth street scene; size of other photographs
COMPARED, AROUND, CROPS = 257, 384, 20  # pixels of a crop and beside it, and how many


def mosaic(side: int) -> np.ndarray:
    """Generated scenes side by side, uint8 `[side, side, 3]`; they repeat from the 65th on."""
    from deeplab.data.scenes import scene

    count = (-(-side // CELL)) ** 2
    return laid([scene(FIRST + i, CELL).image for i in range(min(DISTINCT, count))], side)


def laid(pictures: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Pictures of one size side by side, row by row and again, uint8 `[side, side, 3]`."""
    height, width = pictures[0].shape[:2]
    rows, columns = -(-side // height), -(-side // width)
    image = np.empty((side, side, 3), np.uint8)
    for i in range(rows * columns):
        y, x = height * (i // columns), width * (i % columns)
        room = image[y : y + height, x : x + width]
        room[:] = pictures[i % len(pictures)][: room.shape[0], : room.shape[1]]
    return image


def generated(side: int) -> dict[str, np.ndarray]:
    """Pictures `[side, side, 3]` of generated scenes."""
    from deeplab.data.scenes import scene

    return {"one scene": scene(FIRST + 3, side).image, "many scenes": mosaic(side)}


def photographs(side: int) -> dict[str, np.ndarray]:
    """Pictures `[side, side, 3]` made of photographs; none where their folder is not."""
    streets = sorted((DATA / "camvid/images/val").glob("*.jpg"))[::STREETS]
    others = [*sorted((DATA / "cc0").glob("*.png")), *sorted((DATA / "pydensecrf").glob("im*.png"))]
    if not streets or not others:
        return {}
    one = _read(streets[len(streets) // 2])
    scale = side / min(one.size)
    one = one.resize([round(n * scale) for n in one.size], Image.Resampling.BICUBIC)
    return {
        "street scenes": laid([np.asarray(_read(file)) for file in streets], side),
        "one street scene": np.asarray(one)[:side, :side],
        "photographs": laid([np.asarray(_read(file).resize(PHOTOGRAPH)) for file in others], side),
    }


def _read(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def seams(
    overlap: int, tile: int = TILE, count: int = 2, weights: Path | None = None, only: str = ""
) -> list[dict[str, Any]]:
    """The share of equal labels, before and after the CRF, of pictures in tiles and whole.

    count: of tiles a side; only: a picture's name, all of them without.
    """
    from deeplab.crf_settings import CRFSettings
    from deeplab.predict import Predictor, Tiling
    from deeplab.refine import SCRIBBLES
    from deeplab.weights import SHIPPED, load_model, read_metadata

    network = load_model(weights or SHIPPED)
    tiling = Tiling.of(network, (1.0,), tile, overlap)
    side = tiling.tile + (count - 1) * ((tiling.tile - overlap) // tiling.unit * tiling.unit)
    crfs, pictures = {"segment": CRFSettings(), "refine": SCRIBBLES}, photographs(side)
    if weights is None:
        crfs = {"stored": CRFSettings.stored(read_metadata(SHIPPED))}
    elif not pictures:
        print(f"no photographs in {DATA}: generated scenes instead", file=sys.stderr)
    if weights is None or not pictures:
        pictures = generated(side)
    found = []
    for name, image in pictures.items():
        if only not in ("", name):
            continue
        for crf, settings in crfs.items():
            layer = settings.refiner(network.num_classes)
            whole = Predictor(network, layer, tile=None).labels(image)
            parts = Predictor(network, layer, tile=tile, overlap=overlap).labels(image)
            before, after = (float((a == b).mean()) for a, b in zip(parts, whole, strict=True))
            about = {"picture": name, "side": side, "tile": tile, "overlap": overlap}
            about |= {"tiles": count**2, "crf": crf, "settings": str(settings)}
            changes = float((whole[0] != whole[1]).mean())
            found.append(about | {"network": before, "refined": after, "crf changes": changes})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def large(
    side: int, folder: Path, scales: str = "1", tile: int = TILE, overlap: int = OVERLAP
) -> dict[str, Any]:
    """Peak memory, seconds and agreement on crops of a picture that `deeplab segment` takes."""
    image, file = mosaic(side), folder / "large.png"
    Image.fromarray(image).save(file, compress_level=1)
    print(f"{file}: made", file=sys.stderr, flush=True)
    options = ["--weights", "scenes", "--no-crf", "--out", str(folder), "--device", "cpu"]
    options += ["--tile", str(tile), "--overlap", str(overlap), "--scales", scales]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "deeplab", "segment", str(file), *options]
    subprocess.run(command, check=True, preexec_fn=_limit)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = {
        "side": side,
        "tile": tile,
        "overlap": overlap,
        "scales": scales,
        "peak_bytes": 1024 * after.ru_maxrss,
        "limit_bytes": MEMORY,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_seconds": time.perf_counter() - start,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
    }
    if scales != "1":
        return found  # the network's reach grows beyond the crops
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(folder / "large_labels.png") as picture:
        labels = np.asarray(picture)
    return found | agreement(image, labels, tile, overlap)


def _limit() -> None:
    """Of the process that calls it: what it writes to in memory, whether resident or not."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def agreement(image: np.ndarray, labels: np.ndarray, tile: int, overlap: int) -> dict[str, Any]:
    """The share of labels that the network gives crops too: at tiles' centres, and anywhere."""
    from deeplab.predict import Predictor, Tiling
    from deeplab.weights import SHIPPED, load_model

    network = load_model(SHIPPED)
    tiling, whole = Tiling.of(network, (1.0,), tile, overlap), Predictor(network, tile=None)
    middle = (tiling.tile - COMPARED) // 2 // tiling.unit * tiling.unit
    random = np.random.default_rng(0)
    low, high = AROUND, len(image) - AROUND - COMPARED
    starts = [span.start + middle for span in tiling.spans(len(image))]
    starts = [start for start in starts if low <= start <= high]
    shares: dict[str, list[float]] = {"away from seams": [], "anywhere": []}
    for _ in range(CROPS):
        anywhere = random.integers(low, high + 1, 2) // tiling.unit * tiling.unit
        for place, (y, x) in {
            "away from seams": random.choice(starts, 2),
            "anywhere": np.maximum(anywhere, low),
        }.items():
            y, x = int(y), int(x)
            crop = image[y - AROUND : y + COMPARED + AROUND, x - AROUND : x + COMPARED + AROUND]
            expected = whole.labels(crop)[0][AROUND:-AROUND, AROUND:-AROUND]
            found = labels[y : y + COMPARED, x : x + COMPARED]
            shares[place].append(float((found == expected).mean()))
    return {"equal labels": {place: float(np.mean(each)) for place, each in shares.items()}}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where a bar is missed."""
    from report import RECORDS, new_record, write_record

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("seams", "large"))
    parser.add_argument("--side", type=int, metavar="PIXELS", help="of the picture")
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, metavar="PIXELS", help=f"default: {OVERLAP}"
    )
    parser.add_argument("--tiles", type=int, default=2, metavar="N", help="a side; default: 2")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of `seams` on photographs")
    parser.add_argument("--only", default="", metavar="NAME", help="this picture of `seams`")
    parser.add_argument("--scales", default="1", metavar="S", help="of `large`, as segment's")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if options.side is not None and options.side < 2 * TILE:
        parser.error(f"--side must be at least {2 * TILE}, for a tile with others all around")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    found: Any
    if options.what == "seams":
        found = seams(
            options.overlap, count=options.tiles, weights=options.weights, only=options.only
        )
        passed = min(min(each["network"], each["refined"]) for each in found) >= SEAMS
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = large(
                options.side or 20_000, Path(folder), options.scales, overlap=options.overlap
            )
        share = found.get("equal labels", {"away from seams": 1})["away from seams"]
        passed = found["peak_bytes"] <= MEMORY and share >= LARGE
    print(found)
    name = f"tiles-{options.what}"
    record = new_record(["bench/tiles.py", *arguments], [name], threads=options.threads)
    record["comparisons"] = [{"name": name, "passed": passed, "found": found}]
    print(f"record: {write_record(record, options.out)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
