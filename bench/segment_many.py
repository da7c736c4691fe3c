"""`deeplab segment` on a folder of many pictures, beside network and CRF alone.

    python bench/segment_many.py                   # 1,000 pictures of 480x360; writes a record
    python bench/segment_many.py --pictures 200    # fewer

Photographs of CamVid beside the checkout as JPEG (generated scenes of that size where there are
none), with the shipped network and its CRF; labels, overlays and a manifest come out.

- Time: the whole command, its start counted, against network and CRF alone on pictures that lie in
  memory, as many at a time as there are cores, before and after it. Bar: 1.15 times as long.
- Memory: the most that is resident when a picture is done, in the second tenth of the pictures and
  in the last one, since it differs from one picture to the next. Bar: 5 % more.
- Restarts: a run of a fifth of the pictures is killed (SIGKILL) five times, each after some random
  number of pictures, and started again with --skip-existing. Bar: the same files, byte for byte.
"""

import argparse
import filecmp
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CAMVID = ROOT.parent / "shared" / "data" / "camvid" / "images"
HEIGHT, WIDTH = 360, 480
SLOWER, GROWN, KILLED = 1.15, 1.05, 5
SOURCES, ALONE = 64, 64  # different pictures; how many are timed alone


def write_inputs(folder: Path, pictures: int) -> str:
    """Pictures in the folder, of which the first ones differ and the rest are links to these."""
    files = sorted(CAMVID.rglob("*.jpg"))[:SOURCES] if CAMVID.is_dir() else []
    count = min(len(files) or SOURCES, pictures)
    for i in range(count):
        _source(files, i).save(folder / f"{i:06d}.jpg", quality=92)
    for i in range(count, pictures):
        os.link(folder / f"{i % count:06d}.jpg", folder / f"{i:06d}.jpg")
    return "CamVid" if files else "generated scenes"


def _source(files: Sequence[Path], i: int) -> Image.Image:
    from deeplab.data.scenes import scene

    if files:
        return Image.open(files[i]).convert("RGB").resize((WIDTH, HEIGHT))
    return Image.fromarray(scene(i, size=(HEIGHT, WIDTH)).image)


def alone(photos: Path, at_once: int) -> float:
    """Seconds a picture of network and CRF alone, on pictures that lie in memory."""
    import torch

    from deeplab.crf_settings import CRFSettings
    from deeplab.predict import Predictor
    from deeplab.weights import SHIPPED, load_model, read_metadata

    network = load_model(SHIPPED)
    layer = CRFSettings.stored(read_metadata(SHIPPED)).refiner(network.num_classes)
    predictor = Predictor(network, layer, at_once=at_once)
    images = [np.asarray(Image.open(file)) for file in sorted(photos.iterdir())[:ALONE]]
    torch.set_num_threads(1)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(predictor, images[: 2 * at_once]))  # compiled, and its memory taken
        start = time.perf_counter()
        list(pool.map(lambda image: predictor(image, probabilities=False), images))
        return (time.perf_counter() - start) / len(images)


def command(photos: Path, out: Path, *more: str) -> list[str]:
    """The command that is timed."""
    given = [str(photos), "--weights", "scenes", "--device", "cpu", "--out", str(out), *more]
    return [sys.executable, "-m", "deeplab", "segment", *given]


def segmented(arguments: Sequence[str], pictures: int) -> dict[str, Any]:
    """Seconds that a command takes, and the most bytes resident in the second tenth of its pictures
    and in the last."""
    start, resident, tenth = time.perf_counter(), [0, 0], pictures // 10
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=_paths()) as child:
        assert child.stdout is not None
        for number, _ in enumerate(child.stdout, start=1):  # a line a picture, and the summary
            if tenth < number <= 2 * tenth:
                resident[0] = max(resident[0], _resident(child.pid))
            elif pictures - tenth < number < pictures:
                resident[1] = max(resident[1], _resident(child.pid))
    if child.returncode:
        raise RuntimeError(f"{arguments} ended with status {child.returncode}")
    return {"seconds": time.perf_counter() - start, "resident": resident}


def killed(arguments: Sequence[str], pictures: int) -> list[int]:
    """Start a command again and again, kill it after a random number of pictures each time, and let
    the last one end; how many pictures were done at each kill."""
    random, kills = np.random.default_rng(0), []
    for _ in range(KILLED):
        last = int(random.integers(1, max(2, pictures // (KILLED + 1))))
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=_paths()) as child:
            assert child.stdout is not None
            done = [line for line, _ in zip(child.stdout, range(last), strict=False)]
            child.send_signal(signal.SIGKILL)
        kills.append(len(done))
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=_paths())
    return kills


def same_files(some: Path, all_of_them: Path) -> bool:
    """Whether each file of a folder has the bytes of the one of its name in another."""
    names = [path.name for path in some.iterdir()]
    same, _, _ = filecmp.cmpfiles(some, all_of_them, names, shallow=False)
    return len(same) == len(names) > 0


def measure(pictures: int, at_once: int, folder: Path) -> dict[str, Any]:
    """All that the record holds, and whether each bar is met."""
    photos, few = folder / "photos", folder / "few"
    photos.mkdir()
    few.mkdir()
    source = write_inputs(photos, pictures)
    for file in sorted(photos.iterdir())[: max(2, pictures // 5)]:
        os.link(file, few / file.name)
    options = ["--workers", str(at_once)]
    print("network and CRF alone", file=sys.stderr)
    seconds = [alone(photos, at_once)]
    print(f"the command, {pictures} pictures", file=sys.stderr)
    out, again = folder / "out", folder / "again"
    manifest = ["--manifest", str(folder / "manifest.csv")]
    found = segmented(command(photos, out, *options, *manifest), pictures)
    seconds.append(alone(photos, at_once))
    print("restarts", file=sys.stderr)
    kills = killed(command(few, again, *options, "--skip-existing"), max(2, pictures // 5))
    slower = found["seconds"] / pictures / (sum(seconds) / 2)
    grown = found["resident"][-1] / found["resident"][0]
    same = same_files(again, out) and len(list(again.iterdir())) == 2 * len(list(few.iterdir()))
    return found | {
        "pictures": pictures,
        "of": source,
        "at_once": at_once,
        "alone_seconds_each": seconds,
        "times_alone": slower,
        "memory_grown": grown,
        "killed_after": kills,
        "same_bytes": same,
        "passed": slower <= SLOWER and grown <= GROWN and same,
    }


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the record; 1 where a bar is missed."""
    from report import RECORDS, new_record, write_record

    from deeplab.data.folders import cores

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--at-once", type=int, default=cores(), metavar="N", help="default: cores")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="DIR", help="for the record")
    options = parser.parse_args(arguments)
    if options.pictures < 20 or options.at_once < 1:
        parser.error("--pictures must be at least 20, and --at-once at least 1")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.pictures, options.at_once, Path(folder))
    print(found)
    name = "segment-many"
    record = new_record(["bench/segment_many.py", *arguments], [name], threads=options.at_once)
    record["comparisons"] = [{"name": name, **found}]
    print(f"record: {write_record(record, options.out)}")
    return 0 if found["passed"] else 1


def _resident(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


def _paths() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
