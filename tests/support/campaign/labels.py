"""Label maps and data sets of one's own, through `data check`, `evaluate` and `refine --indices`.

Oracles: the pixels of each class that `data check` counts are those that were drawn; the confusion
matrix of `evaluate` is that of the drawn labels and of what the network says.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from campaign import damage
from campaign.case import Case, Command, Ended, require
from campaign.network import CLASSES, WEIGHTS, label_map, labels_of, write_weights
from campaign.rasters import chunk, png, raster, saved
from campaign.runner import Family

HEIGHT, WIDTH = 12, 16
PICTURE = png(raster("noise", HEIGHT, WIDTH, 0), 2)
COLOURS = np.array([[0, 0, 0], [9, 200, 9], [9, 9, 200]], np.uint8)
CHECK = ["data", "check", "folder", "set", "--json", "found.json", "--workers", "0"]
EVALUATE = ["evaluate", "--data", "folder", "--root", "set", "--split", "all", "--weights", WEIGHTS]
SCORES = [*EVALUATE, "--no-crf", "--out", "scores.json", "--save-confusion", "confusion.csv"]


def drawn(classes: int, seed: int, ignored: bool = True) -> np.ndarray:
    """Labels in blocks, some of them 255."""
    rng = np.random.default_rng(seed)
    values = [*range(classes), *([255] if ignored else [])]
    blocks = rng.choice(values, (3, 4)).astype(np.uint8)
    return np.kron(blocks, np.ones((4, 4), np.uint8))


def stored(labels: np.ndarray, form: str) -> tuple[str, bytes]:
    """A label map in one of the forms that are allowed."""
    if form == "palette":
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(COLOURS)] = COLOURS
        return ".png", png(labels[..., None], 3, extra=[chunk(b"PLTE", colours.tobytes())])
    if form == "grey of 16 bits":
        return ".png", png(labels[..., None].astype(np.uint16), 0, 16)
    suffix, kind = {"grey": (".png", "PNG"), "bmp": (".bmp", "BMP"), "tiff": (".tif", "TIFF")}[form]
    return suffix, saved(Image.fromarray(labels), kind)


FORMS = ("palette", "grey", "grey of 16 bits", "bmp", "tiff")


def one_set(pairs: list[tuple[bytes, str, bytes]]) -> dict[str, bytes]:
    """A data set: (picture, suffix of the labels, labels) each."""
    files = {"set/classes.txt": "\n".join(CLASSES).encode()}
    for number, (image, suffix, labels) in enumerate(pairs):
        files[f"set/images/{number}.png"] = image
        files[f"set/labels/{number}{suffix}"] = labels
    return files


def counts(maps: list[np.ndarray]) -> tuple[list[int], int]:
    every = np.concatenate([labels.ravel() for labels in maps])
    return [int((every == k).sum()) for k in range(len(CLASSES))], int((every == 255).sum())


def counted(maps: list[np.ndarray], folder: Path, ended: Ended) -> None:
    report = json.loads((folder / "found.json").read_text())["splits"]["all"]
    pixels, ignored = counts(maps)
    found = [one["pixels"] for one in report["classes"]]
    require(found == pixels, f"pixels: {found}, are {pixels}")
    found = report["ignored_pixels"]
    require(found == ignored, f"ignored: {found}, are {ignored}")
    status = 1 if report["findings"] else 0
    require(ended.status == status, f"status {ended.status} with {report}")


def scored(images: list[np.ndarray], maps: list[np.ndarray], folder: Path, _ended: Ended) -> None:
    matrix = np.zeros((3, 3), np.int64)
    for image, labels in zip(images, maps, strict=True):
        counts_it = labels != 255
        np.add.at(matrix, (labels[counts_it], labels_of(image)[counts_it]), 1)
    lines = (folder / "confusion.csv").read_text().splitlines()[1:]
    found = [[int(n) for n in line.split(",")[1:]] for line in lines]
    require(found == matrix.tolist(), f"confusion {found}, expected {matrix.tolist()}")
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    iou = matrix.diagonal()[union > 0] / union[union > 0]
    said = json.loads((folder / "scores.json").read_text())["network"]["miou"]
    require(abs(said - iou.mean()) < 1e-9, f"mIoU {said}, expected {iou.mean()}")


@st.composite
def sound(draw: Any) -> Case:
    """Labels in any allowed form, counted or scored."""
    pictures = draw(st.integers(1, 2))
    maps = [drawn(3, draw(damage.seeds())) for _ in range(pictures)]
    if not any((labels != 255).any() for labels in maps):
        maps[0][0, 0] = 1
    forms = [draw(st.sampled_from(FORMS)) for _ in maps]
    images = [raster("noise", HEIGHT, WIDTH, number) for number in range(pictures)]
    laid = [stored(labels, form) for labels, form in zip(maps, forms, strict=True)]
    files = one_set([(png(image, 2), *one) for image, one in zip(images, laid, strict=True)])
    if draw(st.booleans()):
        return Command(f"check {forms}", CHECK, files, "result", check=partial(counted, maps))
    return Command(
        f"evaluate {forms}", SCORES, files, "result", check=partial(scored, images, maps)
    )


@st.composite
def odd_values(draw: Any) -> Case:
    """Values that are no class: `evaluate` refuses and names the file, `data check` finds them."""
    labels = drawn(3, draw(damage.seeds()))
    value = draw(st.integers(3, 254))
    labels[draw(st.integers(0, HEIGHT - 1)), draw(st.integers(0, WIDTH - 1))] = value
    files = one_set([(PICTURE, *stored(labels, draw(st.sampled_from(FORMS))))])
    if draw(st.booleans()):
        return Command(f"evaluate with value {value}", SCORES, files, "refused", ["set/labels/0"])

    def check(folder: Path, ended: Ended) -> None:
        report = json.loads((folder / "found.json").read_text())["splits"]["all"]
        require(ended.status == 1, "no finding")
        require(report["unknown_pixels"] == 1, f"unknown: {report['unknown_pixels']}")

    return Command(f"check with value {value}", CHECK, files, "result", check=check)


@st.composite
def odd_sizes(draw: Any) -> Case:
    height, width = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    labels = np.ones((height, width), np.uint8)
    files = one_set([(PICTURE, *stored(labels, "grey"))])
    same = (height, width) == (HEIGHT, WIDTH)
    args = draw(st.sampled_from((CHECK, SCORES)))
    wanted = "refused" if args is SCORES and not same else "result"

    def check(folder: Path, ended: Ended) -> None:
        if args is CHECK:
            require(same == (ended.status == 0), f"status {ended.status}: {ended.stdout[:300]}")

    return Command(f"labels of {width} x {height}", args, files, wanted, check=check)


@st.composite
def harmed(draw: Any) -> Case:
    """A damaged label map or picture, beside a sound pair."""
    labels, other = drawn(3, 3), drawn(3, 4)
    form = draw(st.sampled_from(FORMS))
    suffix, whole = stored(labels, form)
    how, broken = damage.harm(draw, whole)
    images = [raster("noise", HEIGHT, WIDTH, n) for n in (0, 1)]
    sound = png(images[1], 2), *stored(other, "grey")
    files = one_set([(png(images[0], 2), suffix, broken), sound])
    sealed = suffix == ".png" or how in damage.CUTS  # a PNG has checksums
    args = draw(st.sampled_from((CHECK, SCORES)))

    def check(folder: Path, ended: Ended) -> None:
        if args is SCORES and sealed:
            scored(images, [labels, other], folder, ended)
        elif args is CHECK and sealed and ended.status == 0:
            counted([labels, other], folder, ended)

    return Command(f"{form} labels, {how}", args, files, check=check)


@st.composite
def indices(draw: Any) -> Case:
    """Label maps as scribbles: `refine --indices`."""
    classes = draw(st.integers(1, 6))
    labels = drawn(classes, draw(damage.seeds()))
    form = draw(st.sampled_from(("palette", "grey", "bmp")))
    suffix, content = stored(labels, form)
    given = draw(st.sampled_from((None, 1, 2, 3, 7, 255, 256, 0, -1)))
    name = f"marks{suffix}"
    args = ["refine", "photo.png", name, "--indices", "--out", "out", "--iterations", "1"]
    args += [] if given is None else [f"--classes={given}"]
    highest = max(labels[labels != 255].tolist(), default=-1)
    count = highest + 1 if given is None else given
    right = 2 <= count <= 255 and 0 <= highest < count

    def check(folder: Path, _ended: Ended) -> None:
        found = label_map(folder / "out" / "photo_labels.png")
        require(found.shape == labels.shape, f"size {found.shape}")
        require(found.max() < count, f"label {found.max()} of {count}")

    files = {"photo.png": png(raster("few", HEIGHT, WIDTH, 1), 2), name: content}
    said = f"{highest + 1} classes as {form}, --classes {given}"
    return Command(said, args, files, "result" if right else "refused", check=check)


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(sound(), odd_values(), odd_sizes(), harmed(), harmed(), indices())


def handmade(_shared: Path) -> list[Case]:
    labels = drawn(3, 1)
    rgb = COLOURS[np.where(labels == 255, 0, labels)]
    odd = {
        "colours without colours in the class file": (".png", png(rgb, 2)),
        "a JPEG": (".jpg", saved(Image.fromarray(labels), "JPEG")),
        "floating point": (".tif", saved(Image.fromarray(labels.astype(np.float32)), "TIFF")),
        "a value of 300": (".png", png(labels[..., None].astype(np.uint16) + 300, 0, 16)),
        "transparency": (".png", png(np.dstack([labels, labels // 2]), 4)),
    }
    odd |= {what: (".png", content) for what, content in damage.OTHER_FILES.items()}
    made: list[Case] = []
    for what, (suffix, content) in odd.items():
        files, said = one_set([(PICTURE, suffix, content)]), f"labels are {what}"
        made.append(Command(f"evaluate, {said}", SCORES, files, "refused", ["set/labels/0"]))
        made.append(Command(f"check, {said}", CHECK, files, "result", check=_finds))
    whole = one_set([(PICTURE, *stored(labels, "grey"))])
    for what, gone in {"labels": "set/labels/0.png", "picture": "set/images/0.png"}.items():
        files = {name: content for name, content in whole.items() if name != gone}
        made.append(Command(f"evaluate without the {what}", SCORES, files, "refused"))
    without = {name: content for name, content in whole.items() if "classes" not in name}
    made.append(Command("no class file", CHECK, without, "refused", ["classes.t"]))
    lists = {
        "an empty list": b"",
        "a list of nothing there": b"nowhere\n",
        "a list twice": b"0\n0\n",
        "a list that leads out": b"../../etc/passwd\n",
        "a binary list": bytes(range(256)),
        "a list with a suffix": b"0.png\n",
    }
    for what, content in lists.items():
        files = whole | {"set/val.txt": content}
        args = ["val" if arg == "all" else arg for arg in SCORES]
        wanted = "result" if what == "a list with a suffix" else None
        made.append(Command(what, args, files, wanted))
        made.append(Command(f"check, {what}", [*CHECK, "--split", "val"], files))
    everything = np.full((HEIGHT, WIDTH), 255, np.uint8)
    files = one_set([(PICTURE, *stored(everything, "grey"))])
    made.append(Command("no labelled pixel", SCORES, files, "refused"))
    return made


def _finds(folder: Path, ended: Ended) -> None:
    require(ended.status == 1, f"no finding: {ended.stdout[:300]}")
    report = json.loads((folder / "found.json").read_text())["splits"]["all"]
    require(report["findings"], "none in JSON")


FAMILY = Family("labels", "label maps and data sets of one's own", write_weights, cases, handmade)
