"""What is wrong with the files of a data set, and what is in it.

Every picture and every label map is read once. What a person has to mend is a `Finding`; a broken
picture ends nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageStat

from deeplab.data.conversions import SPOILING, Conversion, by_kind
from deeplab.data.datasets.base import SegmentationData, size_message
from deeplab.data.datasets.counts import NO_CLASS, LabelCounts, histogram
from deeplab.data.datasets.labels import IGNORE, UnknownLabels
from deeplab.errors import InputError

KINDS = {
    "missing": "Files that are not there",
    "unreadable": "Files that cannot be used",
    "size": "Sizes that differ, or tiny pictures",
    "contrast": "Pictures of nearly no contrast",
    "labels": "Label values that are no class",
    "duplicate": "Pictures listed more than once",
    "unpaired": "Label maps without a picture",
    "shared": "Pictures in both training and validation",
    "classes": "Labels from which nothing can be learned",
}
"""The kinds of findings, and what they are."""

TINY = 16  # pixels of the shorter side: below are icons, or cut-off files
FLAT = 3.0  # grey levels of standard deviation in any channel: below is nearly one colour
_PICTURES_PER_WORKER = 500  # starting a process takes as long as reading some hundreds


@dataclass(frozen=True)
class Finding:
    """One thing to mend: its kind (a key of `KINDS`), and a line that names the file."""

    kind: str
    message: str


@dataclass
class Report:
    """What was found in one split.

    `pixels` and `images` count pixels of each class, and pictures that have it; `ignored` pixels
    that are marked so, `unknown` those whose label is no class; `unlabelled` pictures in which all
    are ignored; `sizes` pictures by (width, height), where they could be read; `conversions` are
    what reading changed in pictures; `bands` has mean and deviation of each band, over all pixels
    of the pictures that could be read, in the pictures' own units. masks: each class has its own,
    whose values `pixels`, `ignored`, `unknown` and `others`, those that are not the class, count.
    """

    name: str
    pictures: int
    classes: tuple[str, ...]
    findings: list[Finding] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    ignored: int = 0
    unknown: int = 0
    unlabelled: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    conversions: list[Conversion] = field(default_factory=list)
    bands: list[tuple[float, float]] = field(default_factory=list)
    masks: bool = False
    others: int = 0

    def labels(self) -> LabelCounts:
        """What occurs in the labels that could be read."""
        return LabelCounts(self.name, self.classes, tuple(self.pixels), self.ignored, self.masks)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, ready for JSON."""
        counts = zip(self.classes, self.pixels, self.images, strict=True)
        return {
            "pictures": self.pictures,
            "findings": [asdict(finding) for finding in self.findings],
            "classes": [{"name": n, "pixels": p, "images": i} for n, p, i in counts],
            "ignored_pixels": self.ignored,
            "unknown_pixels": self.unknown,
            "unlabelled_pictures": self.unlabelled,
            "sizes": [
                {"width": width, "height": height, "pictures": count}
                for (width, height), count in self.sizes.most_common()
            ],
            "bands": [{"mean": mean, "deviation": deviation} for mean, deviation in self.bands],
            "conversions": [
                {"kind": kind, "pictures": len(group), "example": str(group[0])}
                for kind, group in by_kind(self.conversions).items()
            ],
        }


@dataclass(frozen=True)
class _Examined:
    """What one picture gave: its findings, size (width, height) and pixels by class, `[256]`,
    those without a known label counted apart; what was converted in reading it; mean and variance
    of each band, `[2, bands]`."""

    findings: tuple[Finding, ...]
    size: tuple[int, int] | None
    pixels: npt.NDArray[np.int64] | None
    unknown: int
    conversions: tuple[Conversion, ...]
    bands: npt.NDArray[np.float64] | None


def check(
    data: SegmentationData,
    workers: int | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Report:
    """Read every picture of a data set and report.

    workers: processes that read; 0 reads in this one; by default as many as pay off. A script that
        uses them must guard its main part with `if __name__ == "__main__"`.

    Raises InputError: workers is negative, or a worker was killed.
    """
    if workers is None:
        workers = min(os.cpu_count() or 1, 8, len(data) // _PICTURES_PER_WORKER)
        workers = 0 if workers == 1 else workers
    if workers < 0:
        raise InputError(f"workers must be 0 or more, not {workers}")
    report = Report(data.name, len(data), data.classes, masks=data.multilabel)
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    statistics: list[tuple[int, npt.NDArray[np.float64]]] = []
    for name, count in Counter(data.names).items():
        if count > 1:
            report.findings.append(_finding("duplicate", f"{name}: listed {count} times"))
    for path in data.unpaired():
        report.findings.append(_finding("unpaired", f"{path}: no picture has this name"))
    for examined in _examine_all(data, workers):
        report.findings += examined.findings
        report.conversions += examined.conversions
        if examined.size is not None:
            report.sizes[examined.size] += 1
            if examined.bands is not None:
                statistics.append((math.prod(examined.size), examined.bands))
        if examined.pixels is not None:
            pixels += examined.pixels
            images += examined.pixels > 0
            report.unknown += examined.unknown
            report.unlabelled += examined.unknown == 0 and not examined.pixels[:IGNORE].any()
        advance()
    report.bands = _of_all(statistics)
    report.pixels = pixels[: len(data.classes)].tolist()
    report.images = images[: len(data.classes)].tolist()
    report.ignored = int(pixels[IGNORE])
    report.others = int(pixels[NO_CLASS]) if report.masks else 0
    defect = report.labels().defect()
    if defect and (pixels.any() or report.labels().alone()):  # labels that nobody could read aside
        report.findings.append(_finding("classes", defect))
    order = list(KINDS)
    report.findings.sort(key=lambda finding: order.index(finding.kind))  # stable within a kind
    return report


def shared_pictures(splits: Mapping[str, SegmentationData]) -> list[Finding]:
    """Pictures that a training split and the validation or test split have in common.

    Splits are taken by name: "train", "train...", but not "trainval...", against "val..." and
    "test...".
    """
    found = []
    for (one, first), (two, second) in combinations(sorted(splits.items(), reverse=True), 2):
        training = [n for n in (one, two) if n.startswith("train") and "trainval" not in n]
        held_out = [n for n in (one, two) if n.startswith(("val", "test"))]
        if len(training) == len(held_out) == 1:
            for name in sorted(set(first.names) & set(second.names)):
                line = f"{name}: in {training[0]} and in {held_out[0]}"
                found.append(_finding("shared", f"{line}, so that scores would be too good"))
    return found


def _finding(kind: str, message: str) -> Finding:
    return Finding(kind, str(InputError(message)))  # printable, whatever a file is called


def _examine(data: SegmentationData, index: int) -> _Examined:
    image = labels = None
    unknown = 0
    conversions: tuple[Conversion, ...] = ()
    missing = [path for path in data.files(index) if _is_missing(path)]
    findings = [_finding("missing", f"{path}: no such file") for path in missing]
    image_file, *label_files = data.files(index) or (None,)
    if image_file not in missing:
        try:
            image, converted = data.picture(index)
            conversions = tuple(converted)
        except InputError as error:
            findings.append(Finding("unreadable", str(error)))
    if not any(path in missing for path in label_files):
        try:
            labels = data.labels(index)
        except UnknownLabels as error:
            findings.append(Finding("labels", str(error)))
            labels, unknown = error.labels, error.unknown
        except InputError as error:
            findings.append(Finding("unreadable", str(error)))
    size, file, bands = None, data.file(index), None
    if image is not None:
        bands = _statistics(image)
        size = (image.shape[1], image.shape[0])
        if min(size) < TINY:
            findings.append(_finding("size", f"{file}: only {size[0]} x {size[1]} pixels"))
        findings += _contrast(file, image.dtype, bands, conversions)
        if labels is not None and labels.shape[-2:] != image.shape[:2]:
            findings.append(_finding("size", f"{file}: {size_message(image, labels)}"))
    counts = None if labels is None else histogram(labels)
    if counts is not None:
        counts[IGNORE] -= unknown
    return _Examined(tuple(findings), size, counts, unknown, conversions, bands)


def _contrast(
    file: str,
    dtype: np.dtype[Any],
    bands: npt.NDArray[np.float64],
    conversions: tuple[Conversion, ...],
) -> list[Finding]:
    """Whether a picture is nearly one colour, or reading left little of it; one finding at most."""
    spoiled = [conversion for conversion in conversions if conversion.kind in SPOILING]
    if spoiled:
        return [Finding("contrast", str(spoiled[0]))]
    means, deviation = bands[0], float(np.sqrt(bands[1].max()))
    if deviation >= FLAT or (deviation > 0 and dtype != np.uint8):  # no levels: any range may be
        return []
    colour = ", ".join(f"{mean:.0f}" if dtype == np.uint8 else f"{mean:g}" for mean in means)
    what = "RGB" if len(means) == 3 else "bands"
    line = (
        f"{file}: nearly one colour, {what} {colour} with a standard deviation of {deviation:.1f}"
    )
    return [_finding("contrast", line)]


def _statistics(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean and variance of each band, `[2, bands]`."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        found = ImageStat.Stat(Image.fromarray(image))  # by its histograms: quick
        return np.array([found.mean, found.var])
    return np.array([image.mean((0, 1), np.float64), image.var((0, 1), np.float64)])


def _of_all(
    pictures: Sequence[tuple[int, npt.NDArray[np.float64]]],
) -> list[tuple[float, float]]:
    """Mean and deviation of each band over all pixels, of pictures' pixels and `_statistics`.

    Nothing where the pictures differ in their number of bands.
    """
    if len({statistics.shape for _, statistics in pictures}) != 1:
        return []
    share = np.array([pixels for pixels, _ in pictures], np.float64)[:, None]
    share /= share.sum()
    means, variances = np.moveaxis(np.stack([statistics for _, statistics in pictures]), 1, 0)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return list(zip(mean.tolist(), np.sqrt(variance).tolist(), strict=True))


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # in a folder that may not be looked into: reading it says so
        return False


def _examine_all(data: SegmentationData, workers: int) -> Iterator[_Examined]:
    """Every picture's result, in order."""
    if workers == 0:
        for index in range(len(data)):
            yield _examine(data, index)
        return
    # Not a plain fork: the parent may run threads (a progress bar, torch's) that hold locks.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(data,))
    try:
        yield from pool.map(_examine_mine, range(len(data)), chunksize=8)
    except BrokenExecutor as error:
        raise InputError(
            f"{data.name}: a reading process was killed, for lack of memory most likely; "
            "use fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_mine: SegmentationData | None = None  # a worker's copy: sent once, not with every picture


def _start(data: SegmentationData) -> None:
    global _mine
    _mine = data
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business


def _examine_mine(index: int) -> _Examined:
    assert _mine is not None
    return _examine(_mine, index)
