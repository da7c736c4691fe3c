"""A disk that fills up, at each kind of file that is written and at any byte of it.

By three ways, two of them the kernel's own: a limit on the size of files (EFBIG at byte N of any
file, whoever writes it, a library in C too), a small file system that is full at byte N of all
files together (ENOSPC; where this process may mount one), and a flush that finds no room when the
data reach the disk. After it every file is what it was before, or whole and right, or not there;
the same command, given room, then does what it would have done.
"""

import errno
import os
import random
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign import kill
from campaign.case import Ended, Outcome, Wrong, invoke, judged, require
from campaign.files import contents, lay
from campaign.labels import drawn, one_set, stored
from campaign.network import WEIGHTS, write_weights
from campaign.options import IMAGE, LINES
from campaign.rasters import lay_picture
from campaign.runner import Tally, emptied, world
from deeplab.model import build
from deeplab.weights import save_weights

LOGS = ("w.csv", "tuned/results.jsonl")  # which grow, and may end in a part of a line
DRAWN_ANEW = ("events.out",)  # whose names and contents have the time in them


@dataclass(frozen=True)
class Written:
    """A command line that writes into the folder that it runs in. again: what to
    run once there is room. share: how often it is taken, of 100."""

    name: str
    line: str
    again: str | None = None
    share: int = 10


SET = "../inputs/set"
IN = "../inputs"
TRAIN = f"train --steps 3 {kill.RECIPE} --out w.safetensors"
RESUME = "train --resume --out w.safetensors"
ON_SET = f"evaluate --data folder --root {SET} --split all --weights {WEIGHTS} --no-crf"
TUNE = " ".join(LINES["tune-crf"][0]).replace("--root=set", f"--root={SET}")
COMMANDS = (
    Written("segment", f"segment {IN}/a.png --weights {WEIGHTS} --probabilities --out out"),
    Written("refine", f"refine {IN}/a.png {IN}/marks.png --probabilities --out out"),
    Written("convert", f"convert {WEIGHTS} w.safetensors --model deeplab_v2_small --classes 3"),
    Written("train", TRAIN, RESUME),
    Written("train --tensorboard", f"{TRAIN} --tensorboard", RESUME, 6),
    Written("scores", f"{ON_SET} --out s.json --save-confusion c.csv"),
    Written("trimap", f"{ON_SET} --trimap curve --trimap-widths 1,2", share=6),
    Written(
        "submission",
        f"evaluate --data voc2012 --root {IN}/voc --split test --no-score --no-crf "
        f"--submission sub --weights {IN}/voc.safetensors",
    ),
    Written("tune-crf", f"tune-crf {TUNE}"),
    Written("data check", f"data check folder {SET} --workers 0 --json found.json"),
    Written("demo", "demo --out demo", share=2),
    Written("export --format export", f"export net.pt2 --weights {WEIGHTS}", share=2),
    Written("export --format onnx", f"export net.onnx --weights {WEIGHTS}", share=2),
)


def run_disk(seed: int, count: int) -> Tally:
    """`count` full disks, each command once before any comes again."""
    tally, chance = Tally("disk", seed), random.Random(seed)
    shares = [one.share for one in COMMANDS]
    turns = chance.choices(COMMANDS, shares, k=max(0, count - len(COMMANDS)))
    ways: dict[str, int] = {}
    with world(tally) as root:
        _lay_inputs(root)
        expected: dict[str, dict[str, Any]] = {}
        for number, one in enumerate([*COMMANDS, *turns][:count]):
            way = chance.choice(list(WAYS))
            said = f"{one.name}, {way}"
            try:
                if one.name not in expected:
                    expected[one.name] = _undisturbed(root, one)
                sizes = [size for size, _ in expected[one.name].values()]
                most = sum(sizes) if way == "tmpfs" else max(sizes)
                full_at = (0, 1, 4096, most // 2, most - 1, chance.randrange(most + 1))
                bytes_ = chance.choice(full_at)
                said += f" full at byte {bytes_}"
                tally.ended(_full_disk(root, one, way, bytes_, expected[one.name]))
                ways[way] = ways.get(way, 0) + 1
            except (Wrong, OSError, ValueError) as wrong:
                tally.fail(number, said, one.line, f"{wrong!r}"[:1500])
            tally.cases += 1
    tally.facts = {"ways": ways, "commands": len(COMMANDS)}
    return tally


def _lay_inputs(root: Path) -> None:
    shared, inputs = root / "shared", root / "inputs"
    shared.mkdir()
    inputs.mkdir()
    write_weights(shared)
    save_weights(build("deeplab_v2_small", num_classes=21).eval(), inputs / "voc.safetensors")
    kill.lay_data(root / "data")
    lay_picture(inputs, 24, 32, 1)
    lay(inputs, one_set([(IMAGE, *stored(drawn(3, number), "grey")) for number in (1, 2)]))
    voc = {
        "SegmentationClass/two.png": stored(drawn(3, 1), "grey")[1],
        "JPEGImages/one.jpg": IMAGE,
        "ImageSets/Segmentation/test.txt": b"one\n",
    }
    lay(inputs / "voc", voc)


def _undisturbed(root: Path, one: Written) -> dict[str, Any]:
    """Size and content of each file that the command leaves on a disk with room."""
    with _folder(root, "memory") as folder:
        ended = invoke(one.line.split())
        require(judged(ended) == "result", f"with room: {ended.stderr[-600:]}")
        sizes = {
            p.relative_to(folder).as_posix(): p.stat().st_size
            for p in folder.rglob("*")
            if p.is_file()
        }
        return {name: (sizes[name], what) for name, what in contents(folder, DRAWN_ANEW).items()}


def _full_disk(
    root: Path, one: Written, way: str, bytes_: int, expected: dict[str, Any]
) -> Outcome:
    with _folder(root, way, bytes_) as folder:
        with WAYS[way](bytes_):
            ended = invoke(one.line.split())
        _judge(ended)
        for name, found in contents(folder, DRAWN_ANEW).items():
            require(name in expected, f"left behind: {name}")
            if name not in LOGS and not name.endswith(
                (".state", "w.safetensors", "w-last.safetensors")
            ):
                require(found == expected[name][1], f"{name} is whole, and not what it should be")
        if ended.status != 2:
            missing = sorted(expected.keys() - contents(folder, DRAWN_ANEW).keys())
            require(not missing, f"a result, without {missing}: {ended.stderr[-500:]}")
        outcome: Outcome = "refused" if ended.status == 2 else "result"
        if way == "tmpfs":
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        again = one.line
        if one.again is not None:
            again = one.again if (folder / "w.state").exists() else f"{one.line} --overwrite"
        after = invoke(again.split())
        require(judged(after) == "result", f"with room again: {after.stderr[-600:]}")
        now = contents(folder, DRAWN_ANEW)
        for name, (_, wanted) in expected.items():
            require(name in now, f"with room again, {name} is missing")
            require(now[name] == wanted, f"with room again, {name} differs")
        return outcome


def _judge(ended: Ended) -> None:
    require("Traceback (most recent" not in ended.stderr, f"a traceback: {ended.stderr[-1500:]}")
    require(ended.status in (0, 1, 2), f"status {ended.status}: {ended.stderr[-600:]}")
    if ended.status == 2:
        lines = [line for line in ended.stderr.splitlines() if not line.startswith("Note: ")]
        one = len(lines) == 1 and lines[0].startswith("Error: ")
        require(one, f"not one line: {ended.stderr[-900:]}")
        said = any(word in lines[0] for word in ("cannot", "written", "room"))
        require(said, f"does not say what is wrong: {lines[0]}")


@contextmanager
def _folder(root: Path, way: str, bytes_: int = 0) -> Iterator[Path]:
    """A folder to work in; in a small file system of its own for "tmpfs"."""
    with emptied(root) as folder:
        if way != "tmpfs":
            yield folder
            return
        size = max(4096, bytes_ // 4096 * 4096)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
        os.chdir(folder)  # the folder of the file system, not that below it
        try:
            yield folder
        finally:
            os.chdir(root)
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def _limited_files(bytes_: int) -> Iterator[None]:
    """No file grows beyond so many bytes: EFBIG, a write before it may be short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def _late(bytes_: int) -> Iterator[None]:
    """Room is missing when data are flushed: at the first, second or third flush."""
    flush, left = os.fsync, [bytes_ % 3]

    def refuse(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    os.fsync = refuse
    try:
        yield
    finally:
        os.fsync = flush


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", name]
        try:
            if subprocess.run(mount, capture_output=True).returncode:
                return False
            return subprocess.run(["umount", name], capture_output=True).returncode == 0
        except OSError:
            return False


WAYS: dict[str, Callable[[int], Any]] = {"size of files": _limited_files, "flush": _late}
if os.geteuid() == 0 and _may_mount():
    WAYS["tmpfs"] = nullcontext  # the folder is it
