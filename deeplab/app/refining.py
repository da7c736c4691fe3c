"""The CRF of the page: on a photograph whole or reduced, at the end or after each iteration.

On the lattice it is what `deeplab refine` computes, scribbles by `deeplab.refine.refine_scribbles`
and probabilities by `refine_probabilities`; other methods are those of `crf.DenseCRF`, on the same
unary energies.

A reduced photograph has k pixels a side in one. Distances in pixels shrink with it: both sigma_xy
are divided by k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

import crf
from crf.layer import Method
from crf.pydensecrf.utils import unary_from_labels
from deeplab.app.inputs import VALUES
from deeplab.crf_settings import CRFSettings
from deeplab.data.annotations import GT_PROB, UNSURE_INDEX, Annotation
from deeplab.data.large import factor
from deeplab.errors import InputError
from deeplab.predict import Prediction, as_batch
from deeplab.refine import CLIP, refine_probabilities, refine_scribbles

PREVIEW = 64_000  # pixels of the picture that is refined while a slider moves
SLOW = {"exact": 3_000}  # pixels that a CPU does in a second or two
METHODS = ("permutohedral", *SLOW)  # separable takes longer than exact on a CPU
WORK = {  # pixels * classes * updates, at most: about a minute of two cores
    "permutohedral": 1_000_000_000,
    "exact": 40_000_000,
}
WEIGHT, SIGMA = (0, 1_000_000), (0.01, 1_000_000)  # float32 holds what the CRF makes of them
NUMBERS = {  # of CRFSettings, which the page has sliders for: least and most
    "iterations": (0, 50),
    "gaussian_weight": WEIGHT,
    "gaussian_sigma_xy": SIGMA,
    "bilateral_weight": WEIGHT,
    "bilateral_sigma_xy": SIGMA,
    "bilateral_sigma_rgb": SIGMA,
}
TRUST = (1e-6, 1 - 1e-6)  # of gt_prob: 0 and 1 have infinite energies


@dataclass(frozen=True)
class Wish:
    """What is to be computed.

    Attributes:
        settings: of the CRF, in pixels of the whole photograph.
        method: how to filter, as of `crf.DenseCRF`.
        gt_prob: how far a scribble is to be trusted.
    """

    settings: CRFSettings
    method: Method = "permutohedral"
    gt_prob: float = GT_PROB

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wish:
        """A wish as the page states it: `NUMBERS`, method and gt_prob by name.

        Raises InputError for a number that is out of its range in `NUMBERS` or `TRUST`, and for an
        unknown method.
        """
        method, gt_prob = given.get("method", "permutohedral"), given.get("gt_prob", GT_PROB)
        _check_number("gt_prob", gt_prob, *TRUST)
        changes = {name: given[name] for name in NUMBERS if given.get(name) is not None}
        for name, value in changes.items():
            _check_number(name, value, *NUMBERS[name])
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, not {method!r:.80}")
        return cls(CRFSettings().changed(changes), method, float(gt_prob))

    def reduced(self, k: int) -> Wish:
        """The same for a photograph of which k pixels a side have become one."""
        gaussian, bilateral = self.settings.gaussian, self.settings.bilateral
        assert gaussian is not None  # the default has both, and no change takes one away
        assert bilateral is not None
        return replace(
            self,
            settings=replace(
                self.settings,
                gaussian=crf.Gaussian(gaussian.weight, _divided(gaussian.sigmas, k)),
                bilateral=crf.Bilateral(
                    bilateral.weight, _divided(bilateral.sigmas[:2], k), bilateral.sigma_rgb
                ),
            ),
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """What the CRF is given.

    Attributes:
        image: RGB, uint8 `[H, W, 3]`.
        marks: uint8 `[H, W]`, the class of a scribble, 255 where there is none.
        probabilities: float32 `[C, H, W]` of a network, which count instead of scribbles; or None.
    """

    image: np.ndarray
    marks: np.ndarray
    probabilities: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.marks.shape[0], self.marks.shape[1]

    @property
    def classes(self) -> np.ndarray:
        """The classes that take part, rising: all of a network's, or those with a scribble."""
        if self.probabilities is not None:
            return np.arange(len(self.probabilities), dtype=np.uint8)
        counts = np.bincount(self.marks.ravel(), minlength=UNSURE_INDEX + 1)
        return np.flatnonzero(counts[:UNSURE_INDEX]).astype(np.uint8)

    @property
    def annotation(self) -> Annotation:
        """The scribbles, with the classes that take part counted from 0 on."""
        classes = self.classes
        table = np.zeros(UNSURE_INDEX + 1, np.int64)
        table[classes] = np.arange(1, len(classes) + 1)
        return Annotation(table[self.marks], len(classes))

    def reduced(self, k: int) -> Problem:
        """k pixels a side as one, their mean; marked where any of them is.

        Up to k - 1 at the right and lower edge are left out, but for their marks: these go to the
        last block.
        """
        if k == 1:
            return self
        rows, columns = (min(k, side) for side in self.size)  # of thin pictures
        height, width = self.size[0] // rows, self.size[1] // columns
        blocks = (height, rows, width, columns)
        whole = self.image[: height * rows, : width * columns]
        image = np.array(Image.fromarray(whole).reduce((columns, rows)))
        tops, lefts = np.arange(height) * rows, np.arange(width) * columns
        marks = np.minimum.reduceat(self.marks, tops, axis=0)  # 255, unmarked, is the highest
        marks = np.minimum.reduceat(marks, lefts, axis=1)
        if self.probabilities is None:
            return Problem(image, marks)
        values = self.probabilities[:, : height * rows, : width * columns]
        means = values.reshape(-1, *blocks).mean((2, 4), dtype=np.float32)
        return Problem(image, marks, means)


@dataclass(frozen=True, eq=False)
class Refined:
    """What the CRF makes of a problem.

    Attributes:
        labels: uint8 `[H, W]`, classes as the page numbers them.
        marginals: float32 `[K, H, W]`, of the classes that take part.
        classes: uint8 `[K]`, these.
    """

    labels: np.ndarray
    marginals: np.ndarray
    classes: np.ndarray

    def heat(self, label: int) -> np.ndarray:
        """The marginals of a class as uint8 `[H, W]`, 255 for 1; zeros if it takes no part."""
        (found,) = np.nonzero(self.classes == label)
        if not len(found):
            return np.zeros(self.labels.shape, np.uint8)
        return (self.marginals[found[0]] * 255).round().astype(np.uint8)


def refined(problem: Problem, wish: Wish) -> Refined:
    """The whole problem.

    Raises InputError for scribbles of fewer than two classes, more values than VALUES, more work
    than a minute's, a method that is too slow for this many pixels, and numbers that the CRF cannot
    compute with; MemoryError where it does not fit.
    """
    classes = problem.classes
    _check(problem, wish, len(classes))
    _check_work(problem, wish, len(classes), each=False)
    try:
        compute = _on_lattice if wish.method == "permutohedral" else _by_layer
        prediction = compute(problem, wish)
    except InputError:
        raise
    except ValueError as error:  # a sigma that no lattice can hold
        raise InputError(str(error)) from error
    return Refined(classes[prediction.labels].astype(np.uint8), prediction.probabilities, classes)


def reduction(problem: Problem, wish: Wish, preview: bool) -> int:
    """How many pixels a side become one: for a preview, or a method that is slow on a CPU."""
    most = SLOW.get(wish.method, PREVIEW if preview else problem.marks.size)
    k, (short, long) = factor(problem.size, most), sorted(problem.size)
    return k if short >= k else max(k, math.ceil(long / most))  # a thin one becomes a line


def steps(problem: Problem, wish: Wish) -> Iterator[Refined]:
    """The problem after 0, 1, ... and all iterations, each computed from the start.

    So that each is what `refined` makes of so many, to the last bit. Raises as `refined` does, for
    the work of all of them together.
    """
    _check_work(problem, wish, len(problem.classes), each=True)
    for count in range(wish.settings.iterations + 1):
        yield refined(problem, replace(wish, settings=replace(wish.settings, iterations=count)))


def _check(problem: Problem, wish: Wish, classes: int) -> None:
    if classes < 2:
        raise InputError(
            f"scribbles must be of at least two classes, not {classes}: paint a stroke in each "
            "class, one of them for the background"
        )
    pixels = problem.marks.size
    most = SLOW.get(wish.method)
    if most is not None and pixels > most:
        height, width = problem.size
        raise InputError(
            f"method {wish.method}: a CPU is too slow for all {width} x {height} pixels, so that "
            "it is shown on a reduced photograph alone; choose permutohedral, which is the lattice"
        )
    if pixels * classes > VALUES:
        raise InputError(
            f"scribbles of {classes} classes on {pixels} pixels are {pixels * classes / 1e6:.0f} "
            f"million values, at most {VALUES / 1e6:.0f} million are possible; use fewer classes "
            "or a smaller photograph"
        )


def _check_work(problem: Problem, wish: Wish, classes: int, each: bool) -> None:
    """InputError for more updates than a minute's; each: for 0, 1, ... and all iterations."""
    pixels, iterations = problem.marks.size, wish.settings.iterations
    most = WORK[wish.method] // max(1, pixels * classes)  # updates
    if each:  # 1 + 2 + ... + n of them
        most = (math.isqrt(8 * most + 1) - 1) // 2
    if iterations > most:
        where = " where each is shown" if each else ""
        raise InputError(
            f"iterations must be at most {most} for {classes} classes on {pixels} pixels{where}, "
            f"not {iterations}: more take over a minute"
        )


def _on_lattice(problem: Problem, wish: Wish) -> Prediction:
    if problem.probabilities is not None:
        return refine_probabilities(problem.probabilities, problem.image, wish.settings)
    return refine_scribbles(problem.annotation, problem.image, wish.settings, wish.gt_prob)


def _by_layer(problem: Problem, wish: Wish) -> Prediction:
    """As `refine_probabilities`, and for scribbles, with another method."""
    count = len(problem.classes)
    if problem.probabilities is None:
        unary = unary_from_labels(problem.annotation.labels, count, wish.gt_prob)
        logits = torch.from_numpy(-unary).reshape(count, *problem.size)
    else:
        logits = torch.from_numpy(np.log(np.clip(problem.probabilities, CLIP, 1.0)))
    settings = wish.settings
    layer = crf.DenseCRF(
        count,
        gaussian=settings.gaussian,
        bilateral=settings.bilateral,
        iterations=settings.iterations,
        method=wish.method,
    )
    with torch.no_grad():
        marginals: torch.Tensor = layer(logits[None], as_batch(problem.image).float())
    return Prediction.of(marginals[0].numpy())


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    """InputError for what is no number, or none between these; NaN is between no two."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise InputError(f"{name} must be a number from {least} to {most}, not {value!r:.40}")


def _divided(sigmas: tuple[float, ...], k: int) -> Any:
    return tuple(sigma / k for sigma in sigmas)
