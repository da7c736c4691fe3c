"""`deeplab segment` on a folder of many pictures, beside network and CRF alone.

    python bench/segment_many.py                   # 1,000 pictures of 480x360; writes a record
    python bench/segment_many.py --pictures 200    # fewer

Photographs of CamVid beside the checkout as JPEG (generated scenes of that size where there are
none), with the shipped network and its CRF; labels, overlays and a manifest come out.

- Time: the whole command, its start counted, against network and CRF alone on pictures that lie in
  memory, as many at a time as there are cores. The command is halted (SIGSTOP) after each tenth of
  the pictures, and the others are timed meanwhile, so that a machine that is shared, and faster at
  one time than at another, is that for both. Bar: 1.15 times as long.
- Memory: the most that is resident when a picture is done, in the second tenth of the pictures and
  in the last one, since it differs from one picture to the next. Bar: 5 % more.
- Restarts: a run of a fifth of the pictures is killed (SIGKILL) five times, each after some random
  number of pictures, and started again with --skip-existing. Bar: the same files, byte for byte.
"""

import argparse
import filecmp
import os
import resource
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
SOURCES = 64  # different pictures
ROUNDS, ALONE = 10, 32  # how often the command is halted; pictures timed alone meanwhile


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


class Alone:
    """Network and CRF alone, on pictures that lie in memory: seconds of each round, wall and
    processor time."""

    def __init__(self, photos: Path, at_once: int) -> None:
        import torch

        from deeplab.crf_settings import CRFSettings
        from deeplab.predict import Predictor
        from deeplab.weights import SHIPPED, load_model, read_metadata

        network = load_model(SHIPPED)
        layer = CRFSettings.stored(read_metadata(SHIPPED)).refiner(network.num_classes)
        torch.set_num_threads(1)
        files = sorted(photos.iterdir())[:SOURCES]
        self.images = [np.asarray(Image.open(file)) for file in files]
        self.predictor = Predictor(network, layer, at_once=at_once)
        self.pool = ThreadPoolExecutor(at_once)
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._timed(2 * at_once)  # compiled, and its memory taken

    def round(self) -> None:
        """Time some of the pictures, those that come next."""
        wall, cpu = self._timed(ALONE)
        self.wall.append(wall)
        self.cpu.append(cpu)

    def _timed(self, pictures: int) -> tuple[float, float]:
        first = len(self.wall) * pictures
        images = [self.images[(first + i) % len(self.images)] for i in range(pictures)]
        start, cpu = time.perf_counter(), time.process_time()
        list(self.pool.map(lambda image: self.predictor(image, probabilities=False), images))
        return (time.perf_counter() - start) / pictures, (time.process_time() - cpu) / pictures


def command(photos: Path, out: Path, *more: str) -> list[str]:
    """The command that is timed."""
    given = [str(photos), "--weights", "scenes", "--device", "cpu", "--out", str(out), *more]
    return [sys.executable, "-m", "deeplab", "segment", *given]


def segmented(arguments: Sequence[str], pictures: int, alone: Alone) -> dict[str, Any]:
    """Seconds that a command takes, wall and processor time, without those in which it is halted;
    and the most bytes resident in the second tenth of its pictures and in the last."""
    resident, tenth = [0, 0], pictures // ROUNDS
    before, wall, start = _cpu_of_children(), 0.0, time.perf_counter()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=_paths()) as child:
        assert child.stdout is not None
        for number, _ in enumerate(child.stdout, start=1):  # a line a picture, and the summary
            if tenth < number <= 2 * tenth:
                resident[0] = max(resident[0], _resident(child.pid))
            elif pictures - tenth < number < pictures:
                resident[1] = max(resident[1], _resident(child.pid))
            if number % tenth == 0 and number < pictures:
                child.send_signal(signal.SIGSTOP)
                wall += time.perf_counter() - start
                try:
                    alone.round()
                finally:
                    start = time.perf_counter()
                    child.send_signal(signal.SIGCONT)
    wall += time.perf_counter() - start
    if child.returncode:
        raise RuntimeError(f"{arguments} ended with status {child.returncode}")
    return {"seconds": wall, "cpu_seconds": _cpu_of_children() - before, "resident": resident}


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
    print("network and CRF alone are made ready", file=sys.stderr)
    alone = Alone(photos, at_once)
    print(f"the command, {pictures} pictures, and they between", file=sys.stderr)
    out, again = folder / "out", folder / "again"
    manifest = ["--manifest", str(folder / "manifest.csv")]
    found = segmented(command(photos, out, *options, *manifest), pictures, alone)
    print("restarts", file=sys.stderr)
    kills = killed(command(few, again, *options, "--skip-existing"), max(2, pictures // 5))
    slower = found["seconds"] / pictures / float(np.mean(alone.wall))
    grown = found["resident"][-1] / found["resident"][0]
    same = same_files(again, out) and len(list(again.iterdir())) == 2 * len(list(few.iterdir()))
    return found | {
        "pictures": pictures,
        "of": source,
        "at_once": at_once,
        "alone_seconds_each": alone.wall,
        "alone_cpu_seconds_each": alone.cpu,
        "times_alone": slower,
        "times_alone_cpu": found["cpu_seconds"] / pictures / float(np.mean(alone.cpu)),
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


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident(process: int) -> int:
    """Bytes; 0 of a process that has ended and was not waited for yet."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _paths() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
