"""Evaluation: the scores of a network over a data set, with and without a CRF, in one pass.

Besides the usual scores there is one for edges and thin structures, the papers' trimap idea: the
mIoU over the *band*, the pixels within ``band`` pixels of a class boundary. The curve over bands of
growing width is in ``deeplab.evaluation.trimap``. Source: Krähenbühl and Koltun, NIPS 2011,
figure 2; Chen et al., DeepLab v1, figure 6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from deeplab.data.datasets.base import LabelledImages as LabelledImages  # for those that train too
from deeplab.data.datasets.counts import LabelCounts
from deeplab.errors import InputError
from deeplab.evaluation.metrics import Absent, ConfusionMatrix, MaskCounts
from deeplab.evaluation.trimap import Around, TrimapCurve, TrimapTally, band_index
from deeplab.model import DeepLab
from deeplab.model.preprocess import Bands
from deeplab.predict import CRF, OVERLAP, Precision, Predictor, Tile


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1]. ``iou`` has None for a class that never occurs (0 with absent="zero");
    ``band_miou`` is the mIoU over the pixels near class boundaries (None where there is none)."""

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    band_miou: float | None
    iou: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """The result of ``evaluate``: ``network`` alone, and ``crf`` on top of it if there was one.

    ``trimap`` has the curves of "network" and "crf" where they were asked for, ``confusion`` the
    counts behind the scores, by the same names. Of a multi-label model the scores are those of
    each class's mask (``MaskCounts``), and no band has any.
    """

    images: int
    band: int
    network: Scores
    crf: Scores | None
    trimap: dict[str, TrimapCurve] | None = None
    confusion: dict[str, ConfusionMatrix | MaskCounts] = field(
        default_factory=dict, repr=False, compare=False
    )

    def truth(self, where: str) -> LabelCounts:
        """How many pixels of each class the true labels have; where: what they are called."""
        confusion = self.confusion["network"]
        pixels, masks = tuple(confusion.true_pixels().tolist()), isinstance(confusion, MaskCounts)
        return LabelCounts(where, tuple(self.network.iou), pixels, confusion.ignored, masks)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, ready for JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, confusion={}))
        plain["confusion"] = {name: c.matrix.tolist() for name, c in self.confusion.items()}
        return plain


def evaluate(
    model: DeepLab,
    dataset: LabelledImages,
    crf: CRF | None = None,
    *,
    class_names: Sequence[str] | None = None,
    ignore: int = 255,
    absent: Absent = "skip",
    band: int = 4,
    trimap: Sequence[int] = (),
    around: Around = "boundary",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: Precision = torch.float32,
    bands: Bands = None,
    threshold: float | None = None,
    tile: Tile = None,
    overlap: int = OVERLAP,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
    shard: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Scores of ``model`` on every picture of ``dataset``, one confusion matrix over the whole set.

    Args:
        model: in any mode, without a ``crf`` of its own, so that both scores come from one pass.
        dataset: pairs (image uint8 [H, W, 3] RGB, or of the model's bands, labels [H, W], or masks
            [C, H, W] of 0, 1 and 255 for a multi-label model).
        crf: ``crf(logits [1, C, H, W], image [1, 3, H, W] RGB 0-255)`` -> marginals
            [1, C, H, W], such as ``crf.DenseCRF``; None scores the network alone.
        class_names: names of the classes in the result; numbers by default.
        ignore: true label of pixels that do not count.
        absent: see ``ConfusionMatrix``.
        band: half-width in pixels of the band around class boundaries.
        trimap, around: widths in pixels of the trimap curve, and what its bands lie around.
        scales, flip, precision, bands, threshold, tile, overlap: as of
            ``deeplab.predict.Predictor``, save that pictures are whole by default: scores must not
            hang on how much memory is free.
        on_prediction: called with the index of each picture and its labels [H, W], uint8, or int64
            above 256 classes (the CRF's where there is one), or masks [C, H, W].
        shard: with several processes of torch.distributed, each evaluates its share of the pictures
            and all get the scores of the whole set; every process must call.
        progress: show a progress bar, on standard error; with shard, in the first process only.

    Raises:
        ValueError: an empty data set, a model with its own CRF, a wrong number of class names,
            widths, scales or a threshold without sense, a CRF or a trimap for a multi-label model.
        InputError: labels of another size than the picture or outside the classes; a set without
            a labelled pixel; memory that is not enough. It names the picture by its number.
        FloatingPointError: the network gives NaN or Inf.
    """
    names = [str(i) for i in range(model.num_classes)] if class_names is None else list(class_names)
    _check(model, dataset, names, band)
    masks = model.multilabel
    if masks and (crf is not None or len(trimap)):
        what = "trimap" if crf is None else "crf"
        raise ValueError(f"{what} must be left out for a multi-label model; it is for one label")
    predictor = Predictor(
        model,
        crf,
        scales=scales,
        flip=flip,
        precision=precision,
        bands=bands,
        threshold=threshold,
        tile=tile,
        overlap=overlap,
    )

    def tally() -> _Tally | _MaskTally:
        if masks:
            return _MaskTally(len(names), ignore, absent)
        curve = TrimapTally(len(names), trimap, around, ignore, absent) if len(trimap) else None
        return _Tally(len(names), ignore, absent, band, curve)

    network, refined = tally(), None if crf is None else tally()
    several = shard and dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    mine = range(rank, len(dataset), world)
    with progress_bar(progress and rank == 0) as bar:
        task = bar.add_task("evaluate", total=len(mine))
        for index in mine:
            image, labels = (np.asarray(part) for part in dataset[index])
            size = f"labels of {list(labels.shape)} for a picture of {list(image.shape[:2])} pixels"
            try:
                if labels.shape != (*([len(names)] if masks else []), *image.shape[:2]):
                    raise ValueError(size)
                before, after = predictor.labels(image)
                truth = torch.from_numpy(labels.astype(np.int64))
                network.add(truth, before)
                if refined is not None:
                    refined.add(truth, after)
            except FloatingPointError as error:
                raise FloatingPointError(_not_finite(index)) from error
            except ValueError as error:
                raise InputError(f"picture {index}: {error}") from error
            if on_prediction is not None:
                on_prediction(index, after)
            bar.advance(task)
    tallies = {"network": network} | ({} if refined is None else {"crf": refined})
    for one in tallies.values():
        if shard:
            one.all_reduce()
    if not network.all.matrix.any():
        raise InputError(
            f"none of the {len(dataset)} pictures has a labelled pixel, so that there is nothing "
            "to score; check the labels, and which of them is ignored, or predict a test split "
            "without scores"
        )
    return Evaluation(
        images=len(dataset),
        band=band,
        network=network.scores(names),
        crf=None if refined is None else refined.scores(names),
        trimap={
            name: one.curve.curve()
            for name, one in tallies.items()
            if isinstance(one, _Tally) and one.curve
        }
        or None,
        confusion={name: one.all for name, one in tallies.items()},
    )


def require_finite(logits: Tensor, index: int) -> None:
    """FloatingPointError where a network's output for picture ``index`` has NaN or Inf."""
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(_not_finite(index))


def _not_finite(index: int) -> str:
    """What is wrong where it has."""
    return (
        f"the network's output for picture {index} has NaN or Inf; the weights are damaged or "
        "come from a training that diverged"
    )


def boundary_band(labels: Tensor, width: int) -> Tensor:
    """Pixels with another label within ``width`` pixels (a square window): bool [H, W]."""
    return band_index(labels, (width,), "boundary") == 0


class _Tally:
    """The confusion over all pixels, over the band, and over the bands of a trimap curve."""

    def __init__(
        self, num_classes: int, ignore: int, absent: Absent, band: int, curve: TrimapTally | None
    ) -> None:
        self.all = ConfusionMatrix(num_classes, ignore, absent=absent)
        self.edges = ConfusionMatrix(num_classes, ignore, absent=absent)
        self.band, self.curve = band, curve

    def add(self, truth: Tensor, labels: np.ndarray) -> None:
        """Count the labels [H, W] of a picture."""
        predicted = torch.from_numpy(labels).long()
        near = boundary_band(truth, self.band)
        self.all.update(truth, predicted)
        self.edges.update(truth[near], predicted[near])
        if self.curve is not None:
            self.curve.add(truth, predicted)

    def all_reduce(self) -> None:
        for counts in (self.all, self.edges, self.curve):
            if counts is not None:
                counts.all_reduce()

    def scores(self, names: Sequence[str]) -> Scores:
        band_miou = self.edges.miou() if bool(self.edges.matrix.any()) else math.nan
        return _scores(self.all, names, band_miou)


class _MaskTally:
    """The counts of the masks of a multi-label model."""

    def __init__(self, num_classes: int, ignore: int, absent: Absent) -> None:
        self.all = MaskCounts(num_classes, ignore, absent=absent)

    def add(self, truth: Tensor, masks: np.ndarray) -> None:
        """Count the masks [C, H, W] of a picture."""
        self.all.update(truth, masks)

    def all_reduce(self) -> None:
        self.all.all_reduce()

    def scores(self, names: Sequence[str]) -> Scores:
        return _scores(self.all, names, math.nan)


def _scores(counts: ConfusionMatrix | MaskCounts, names: Sequence[str], band_miou: float) -> Scores:
    iou = counts.iou().tolist()
    return Scores(
        miou=counts.miou(),
        pixel_accuracy=counts.pixel_accuracy(),
        mean_accuracy=counts.mean_accuracy(),
        band_miou=None if band_miou != band_miou else band_miou,
        iou={n: None if v != v else v for n, v in zip(names, iou, strict=True)},
    )


def _check(model: DeepLab, dataset: LabelledImages, names: Sequence[str], band: int) -> None:
    if len(dataset) == 0:
        raise ValueError("dataset must have at least one picture, not an empty data set")
    if len(names) != model.num_classes:
        raise ValueError(
            f"class_names must be {model.num_classes} names, as the model has classes, "
            f"not {len(names)}"
        )
    if model.crf is not None:
        raise ValueError(
            "model: has a CRF layer of its own; evaluate the network without it and pass the layer "
            "as crf=, so that both are scored"
        )
    if band < 1:
        raise ValueError(f"band must be a half-width of at least 1 pixel, not {band}")


def progress_bar(shown: bool) -> Progress:
    """A bar with counts and the time left, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
