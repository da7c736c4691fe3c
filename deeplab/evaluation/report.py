"""The report of an evaluation as a folder: a page to open, scores to load, the worst pictures.

    index.html     everything, in one file that can be sent on
    scores.json    the scores, as `deeplab evaluate --out` writes them
    pictures.csv   every picture with its own scores, the worst first
    confusion.png  the confusion matrix
    worst/         the pictures of the page: image, truth, prediction and errors side by side

Pictures are ranked by the mean IoU of the classes that each shows, which unlike its accuracy tells
of small things that are missed. It is not the mIoU of the set, whose counts are summed first.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deeplab.data import outputs
from deeplab.data.datasets.base import Remembering, SegmentationData
from deeplab.errors import InputError
from deeplab.evaluation import report_page
from deeplab.evaluation.evaluate import Evaluation
from deeplab.evaluation.panels import as_rgb, panel
from deeplab.evaluation.plots import plot_confusion, require_matplotlib
from deeplab.evaluation.submission import keep_the_sets_own
from deeplab.model.preprocess import Bands, Preprocessing
from deeplab.whole_file import whole_folder

FORMAT = "deeplab evaluation report, version 1"
FILES = {"index.html", "scores.json", "pictures.csv", "confusion.png", "worst"}


class PictureScores(NamedTuple):
    """Of one picture, in [0, 1]; the worst sorts first.

    Attributes:
        miou: mean IoU of the classes that the truth shows.
        accuracy: share of the pixels that count which are right.
    """

    miou: float
    accuracy: float
    name: str


@dataclass(frozen=True)
class Found:
    """What some of the pictures showed: all their scores, and the panels of the worst, as JPEG."""

    scores: list[PictureScores]
    worst: list[tuple[PictureScores, bytes]]


class WorstPictures:
    """The scores of each picture as its prediction comes, and panels of the `most` worst alone.

    dataset: what `evaluate` scores, `add` being its `on_prediction`; data: the set behind it;
    bands: of pictures of other bands those that are shown, as a CRF takes them.
    """

    def __init__(
        self,
        dataset: Remembering,
        data: SegmentationData,
        preprocessing: Preprocessing,
        most: int,
        bands: Bands = None,
    ) -> None:
        self.dataset, self.data, self.preprocessing, self.most = dataset, data, preprocessing, most
        self.bands = None if bands is None or bands == "all" else tuple(bands)
        self.palette = outputs.full_palette(data.palette)
        self.found = Found([], [])

    def add(self, index: int, labels: np.ndarray) -> None:
        """The prediction of the picture that was read last; one without labelled pixels is not
        ranked."""
        image, truth = (np.asarray(part) for part in self.dataset.last)
        scores = picture_scores(self.data.names[index], truth, labels, len(self.data.classes))
        if scores is None:
            return
        self.found.scores.append(scores)
        worst = self.found.worst
        if len(worst) < self.most or (worst and scores < worst[-1][0]):
            image = as_rgb(image, self.preprocessing, self.bands)
            bisect.insort(worst, (scores, _jpeg(panel(image, truth, labels, self.palette))))
            del worst[self.most :]

    def joined(self, found: Iterable[Found]) -> Found:
        """What all processes found, sorted."""
        parts = list(found)
        worst = sorted(one for part in parts for one in part.worst)[: self.most]
        return Found(sorted(one for part in parts for one in part.scores), worst)


class ReportFolder:
    """Where a report goes.

    others: what else is going to be written.

    Raises InputError where matplotlib is missing, and for a folder that holds anything but an
    earlier report, that cannot be replaced, where others would go, or whose files would become part
    of the data set.
    """

    def __init__(self, folder: Path, data: SegmentationData, others: Iterable[Path] = ()) -> None:
        require_matplotlib()
        self.folder, self.data = folder, data
        self.place = Path(os.path.realpath(folder))  # of a link the folder that it leads to
        self._check_free()
        for path in others:
            if Path(os.path.realpath(path)).is_relative_to(self.place):
                raise InputError(
                    f"{path}: would lie in the folder of --report, which is replaced as a whole; "
                    "choose another place"
                )
        keep_the_sets_own([folder / "index.html"], data)
        outputs.check_writable(folder)
        outputs.check_writable(self.place.parent)  # where the new one grows

    def write(self, result: Evaluation, found: Found, about: Mapping[str, Any]) -> None:
        """All files or none. about: what was scored, for scores.json and the page.

        Raises InputError where they cannot be written, and as at first.
        """
        self._check_free()  # hours may have passed
        scores = {"format": FORMAT} | dict(about) | result.as_dict()
        matrix = final_confusion(result)
        try:
            with whole_folder(self.place) as folder:
                plot_confusion(folder / "confusion.png", matrix, self.data.classes)
                outputs.write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
                outputs.write_bytes(folder / "pictures.csv", _encoded(_table(found.scores)))
                for number, (one, jpeg) in enumerate(found.worst, 1):
                    name = re.sub(r"[^\w.-]+", "_", one.name)[-60:]
                    outputs.write_bytes(folder / "worst" / f"{number:03d}_{name}.jpg", jpeg)
                page = report_page.page(
                    f"{self.data.name}: {result.images} pictures",
                    result,
                    about,
                    matrix,
                    self.data.palette,
                    (folder / "confusion.png").read_bytes(),
                    [(one.name, _said(one), jpeg) for one, jpeg in found.worst],
                    len(found.scores),
                )
                outputs.write_bytes(folder / "index.html", _encoded(page))
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror or error}); choose another "
                "folder"
            ) from error

    def _check_free(self) -> None:
        """InputError where something lies there that is neither nothing nor a whole report."""
        if Path.cwd().is_relative_to(self.place) or os.path.ismount(self.place):
            raise InputError(
                f"--report {self.folder} must be a folder that can be replaced as a whole, not the "
                "one that you are in or a disk's own; name a new one in it"
            )
        try:
            free = not os.path.lexists(self.place) or _is_empty_or_report(self.place)
        except OSError as error:
            raise InputError(
                f"--report {self.folder}: cannot be read ({error.strerror or error}); choose "
                "another folder"
            ) from error
        if not free:
            raise InputError(
                f"--report {self.folder} must be a new folder, or a report to replace, not one of "
                "something else; name another, or remove it first"
            )


def picture_scores(
    name: str, truth: np.ndarray, predicted: np.ndarray, classes: int, ignore: int = 255
) -> PictureScores | None:
    """The scores of a prediction; None where no pixel is labelled.

    truth, predicted: labels `[H, W]`, below `classes` or, in the truth, `ignore`.
    """
    counts = truth != ignore
    if not counts.any():
        return None
    truth, predicted = truth[counts].astype(np.int64), predicted[counts].astype(np.int64)
    hits, true, said = (
        np.bincount(labels, minlength=classes)
        for labels in (truth[truth == predicted], truth, predicted)
    )
    shown = true > 0
    iou = hits[shown] / (true + said - hits)[shown]
    return PictureScores(float(iou.mean()), float(hits.sum() / truth.size), name)


def final_confusion(result: Evaluation) -> np.ndarray:
    """The counts `[C, C]` of the final labels, the CRF's where there is one: rows true."""
    return result.confusion["network" if result.crf is None else "crf"].matrix.numpy()


def _is_empty_or_report(place: Path) -> bool:
    if not place.is_dir():
        return False
    there = {path.name for path in place.iterdir()}
    if not there:
        return True
    if not there <= FILES or "scores.json" not in there:
        return False
    try:
        scores = json.loads((place / "scores.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    pictures = (place / "worst").glob("*")
    ours = all(re.fullmatch(r"\d{3}_.*\.jpg", path.name) for path in pictures)
    return ours and isinstance(scores, dict) and scores.get("format") == FORMAT


def _jpeg(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="JPEG", quality=88, subsampling=0)
    return content.getvalue()


def _encoded(text: str) -> bytes:
    """UTF-8; bytes of a file's name that are none are spelled out."""
    return text.encode(errors="backslashreplace")


def _said(one: PictureScores) -> str:
    return f"mIoU {100 * one.miou:.1f}, pixel accuracy {100 * one.accuracy:.1f}"


def _table(scores: Iterable[PictureScores]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "miou", "pixel_accuracy"])
    writer.writerows([one.name, f"{one.miou:.6f}", f"{one.accuracy:.6f}"] for one in scores)
    return text.getvalue()
