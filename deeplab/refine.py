"""The dense CRF on its own: scribbles or anyone's probabilities, refined on the photograph.

    energy:   E(x) = sum_i -log P(x_i) + sum_{i<j} [x_i != x_j] (w1 k_bilateral + w2 k_gaussian)
    answer:   argmax of the mean-field marginals

Probabilities come from a network. Scribbles are labels for some pixels: there, P = gt_prob for the
label and the rest shared by the others; elsewhere, "unsure", all labels are equally likely. This is
the flow of pydensecrf's example `inference.py`, down to the order of the features (y, x, r, g, b),
so that the same files give the same labels. `deeplab.data.annotations` reads the files.

Class activation maps have no background. It gets a score of its own, in one of two ways:

    a threshold t:   labels = argmax(t, maps), which count as scribbles on every pixel
    a power a:       P ~ ((1 - max maps)^a, maps)

Two of them give labels of which one can be sure: a class where it wins against the stronger
background, background where that wins at its weaker, and unsure (255) elsewhere.

Sources: Krähenbühl and Koltun, NIPS 2011; DeepLab v2, section 3.3; the pydensecrf examples; Ahn and
Kwak, CVPR 2018 (a power; its code jiwoon-ahn/psa); Ahn et al., CVPR 2019 (a threshold, and two of
them; its code jiwoon-ahn/irn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

import crf
from crf.pydensecrf import densecrf
from crf.pydensecrf import utils as crf_utils
from deeplab.crf_settings import CRFSettings
from deeplab.data.annotations import GT_PROB, UNSURE_INDEX, Annotation
from deeplab.data.cams import CAMs
from deeplab.errors import InputError
from deeplab.predict import Prediction, as_batch
from deeplab.predict.labels import most_probable
from kernels import memory

CLIP = 1e-5  # least probability, so that no label is ruled out for good
A_CORNER, A_LABEL = 24, 16  # bytes of a pixel; together less than any measured need

SCRIBBLES = CRFSettings(5, crf.Gaussian(3.0, 3.0), crf.Bilateral(10.0, 80.0, 13.0))
"""pydensecrf's example: strong and wide, because most pixels start without an opinion."""

OF_THRESHOLD = CRFSettings(10, crf.Gaussian(3.0, 3.0), crf.Bilateral(10.0, 50.0, 5.0))
"""irn's, for labels of activation maps by a threshold."""

OF_POWER = CRFSettings(10, crf.Gaussian(3.0, 3.0), crf.Bilateral(10.0, 80.0, 13.0))
"""psa's, for activation maps with a background by a power."""


@dataclass(frozen=True)
class Background:
    """How the background of activation maps gets its score, and the one or two numbers of it.

    Raises InputError for other than one or two numbers, a threshold that is not between 0 and 1,
    or a power that is not above 0.
    """

    by: Literal["threshold", "power"]
    numbers: Sequence[float]

    def __post_init__(self) -> None:
        numbers = list(self.numbers)
        if len(set(numbers)) != len(numbers) or len(numbers) not in (1, 2):
            raise InputError(
                f"a {self.by} of the background must be one number, or two different ones for "
                f"labels of which one can be sure, not {numbers}"
            )
        if not all(0 < each < (1 if self.by == "threshold" else np.inf) for each in numbers):
            allowed = "between 0 and 1" if self.by == "threshold" else "above 0"
            raise InputError(f"a {self.by} of the background must be {allowed}, not {numbers}")

    @property
    def strong_first(self) -> list[float]:
        """The numbers, that of the stronger background first: the maps are at most 1."""
        return sorted(self.numbers, reverse=self.by == "threshold")

    @property
    def settings(self) -> CRFSettings:
        """Those of the pipeline that this comes from."""
        return OF_THRESHOLD if self.by == "threshold" else OF_POWER


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, settings: CRFSettings | None = None
) -> Prediction:
    """Refine class probabilities on the picture they belong to.

    probabilities: float32 `[C, H, W]`, summing to 1 over the classes; image: RGB, uint8
    `[H, W, 3]`. Values below 1e-5 are raised to it, as pydensecrf's `unary_from_softmax` does.

    Raises MemoryError where the CRF cannot fit.
    """
    layer = (settings or CRFSettings()).layer(len(probabilities))
    logits = torch.from_numpy(np.clip(probabilities, CLIP, 1.0)).log_()
    with torch.no_grad():
        marginals: torch.Tensor = layer(logits[None], as_batch(image).float())
    return Prediction.of(marginals[0].numpy())


def refine_cams(
    cams: CAMs,
    image: np.ndarray,
    background: Background,
    settings: CRFSettings | None = None,
    *,
    gt_prob: float = GT_PROB,
    num_classes: int | None = None,
) -> Prediction:
    """Labels of a picture from its class activation maps: 0 is background, k + 1 class k.

    image: RGB, uint8 `[H, W, 3]`. settings: None takes those of the background. gt_prob: with a
    threshold, the probability of the label that a pixel has. num_classes: how many labels, with the
    background; None takes the highest class that is there + 2.

    With two numbers of the background the labels are 255 where they do not agree, and the
    probabilities are those of the stronger background. Classes without a map have probability 0.

    Raises InputError for a compatibility in the settings, a gt_prob that is not more than
    1 / labels and less than 1, or a class that num_classes does not allow; MemoryError where the
    CRF cannot fit.
    """
    settings = settings or background.settings
    _refuse_compatibility(settings, "activation maps have only some of the classes")
    labels = np.array([0, *(cams.classes + 1)])
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.max() >= count:
        raise InputError(
            f"class {labels.max() - 1} is out of range for {count} classes with the background (0 "
            f"to {count - 2} without it); correct the file or the number of classes"
        )
    found = []
    model = _model(image, len(labels), settings) if len(labels) > 1 else None
    for number in background.strong_first:
        marginals = np.ones((1, *image.shape[:2]), np.float32)
        if model is not None:  # a picture without tags is all background
            scores = _with_background(cams.maps, background.by, number, gt_prob)
            model.setUnaryEnergy(crf_utils.unary_from_softmax(scores, clip=CLIP))
            marginals = model.inference(settings.iterations).reshape(scores.shape)
        found.append((labels.astype(np.uint8)[most_probable(marginals)], marginals))
    probabilities = np.zeros((count, *image.shape[:2]), np.float32)
    probabilities[labels] = found[0][1]
    sure, everywhere = found[0][0], sum(each != 0 for each, _ in found)
    unsure = (sure == 0) & (everywhere > 0)
    return Prediction(np.where(unsure, np.uint8(UNSURE_INDEX), sure), probabilities)


def refine_scribbles(
    annotation: Annotation,
    image: np.ndarray,
    settings: CRFSettings = SCRIBBLES,
    gt_prob: float = GT_PROB,
) -> Prediction:
    """Spread an annotation over the whole picture.

    image: RGB, uint8 `[H, W, 3]`. gt_prob: the probability of a label where there is one.

    Raises InputError for a compatibility in the settings, or a gt_prob as of `refine_cams`;
    MemoryError where the CRF cannot fit.
    """
    height, width = annotation.labels.shape
    count = annotation.num_labels
    _refuse_compatibility(settings, "scribbles have labels of their own")
    _check_gt_prob(gt_prob, count)
    _require_memory(height * width, count, settings)
    model = densecrf.DenseCRF(height * width, count)
    model.setUnaryEnergy(
        crf_utils.unary_from_labels(annotation.labels, count, gt_prob=gt_prob, zero_unsure=True)
    )
    if (gaussian := settings.gaussian) is not None:
        model.addPairwiseEnergy(
            crf_utils.create_pairwise_gaussian(gaussian.sigmas[::-1], (height, width)),
            compat=gaussian.weight,
        )
    if (bilateral := settings.bilateral) is not None:
        x, y, *sigma_rgb = bilateral.sigmas
        model.addPairwiseEnergy(
            crf_utils.create_pairwise_bilateral((y, x), sigma_rgb, image, chdim=2),
            compat=bilateral.weight,
        )
    marginals = model.inference(settings.iterations)
    return Prediction.of(marginals.reshape(count, height, width))


def _model(image: np.ndarray, labels: int, settings: CRFSettings) -> densecrf.DenseCRF2D:
    """The CRF over a picture, of which the lattices serve any number of unary energies."""
    height, width = image.shape[:2]
    _require_memory(height * width, labels, settings)
    model = densecrf.DenseCRF2D(width, height, labels)
    if (gaussian := settings.gaussian) is not None:
        model.addPairwiseGaussian(gaussian.sigmas, compat=gaussian.weight)
    if (bilateral := settings.bilateral) is not None:
        x, y, *sigma_rgb = bilateral.sigmas
        model.addPairwiseBilateral((x, y), sigma_rgb, image, compat=bilateral.weight)
    return model


def _require_memory(pixels: int, labels: int, settings: CRFSettings) -> None:
    """MemoryError where the CRF cannot fit: least are its corners of lattices, and its labels."""
    corners = 3 * (settings.gaussian is not None) + 6 * (settings.bilateral is not None)
    memory.require(
        pixels * (A_CORNER * corners + A_LABEL * labels),
        torch.device("cpu"),
        f"a CRF over {pixels} pixels with {labels} labels",
        "make the picture smaller",
    )


def _with_background(maps: np.ndarray, by: str, number: float, gt_prob: float) -> np.ndarray:
    """Scores `[K + 1, H, W]` of the background and of maps `[K, H, W]`."""
    if by == "power":
        return np.concatenate([(1 - maps.max(axis=0, keepdims=True)) ** number, maps])
    count = len(maps) + 1
    _check_gt_prob(gt_prob, count)
    level = np.full((1, *maps.shape[1:]), number, np.float32)
    winners = most_probable(np.concatenate([level, maps]))
    won = np.arange(count)[:, None, None] == winners
    return np.where(won, np.float32(gt_prob), np.float32((1 - gt_prob) / (count - 1)))


def _refuse_compatibility(settings: CRFSettings, why: str) -> None:
    if settings.compatibility is not None:
        raise InputError(
            f"CRF compatibility: {why}, for which no penalties are known; leave it out"
        )


def _check_gt_prob(gt_prob: float, count: int) -> None:
    if not 1 / count < gt_prob < 1:
        raise InputError(
            f"gt_prob must be more than 1/labels = {1 / count:.3g}, so that the annotation "
            f"counts for something, and less than 1, not {gt_prob:g}"
        )
