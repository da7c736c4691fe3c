"""The dense CRF on its own: scribbles or anyone's probabilities, refined on the photograph.

    energy:   E(x) = sum_i -log P(x_i) + sum_{i<j} [x_i != x_j] (w1 k_bilateral + w2 k_gaussian)
    answer:   argmax of the mean-field marginals

Probabilities come from a network. Scribbles are labels for some pixels: there, P = gt_prob for the
label and the rest shared by the others; elsewhere, "unsure", all labels are equally likely. This is
the flow of pydensecrf's example `inference.py`, down to the order of the features (y, x, r, g, b),
so that the same files give the same labels. `deeplab.data.annotations` reads the files.

Sources: Krähenbühl and Koltun, NIPS 2011; DeepLab v2, section 3.3; the pydensecrf examples.
"""

from __future__ import annotations

import numpy as np
import torch

import crf
from crf.pydensecrf import densecrf
from crf.pydensecrf import utils as crf_utils
from deeplab.crf_settings import CRFSettings
from deeplab.data.annotations import Annotation
from deeplab.errors import InputError
from deeplab.predict import Prediction, as_batch

CLIP = 1e-5  # least probability, so that no label is ruled out for good

SCRIBBLES = CRFSettings(5, crf.Gaussian(3.0, 3.0), crf.Bilateral(10.0, 80.0, 13.0))
"""pydensecrf's example: strong and wide, because most pixels start without an opinion."""


def refine_probabilities(
    probabilities: np.ndarray, image: np.ndarray, settings: CRFSettings | None = None
) -> Prediction:
    """Refine class probabilities on the picture they belong to.

    probabilities: float32 `[C, H, W]`, summing to 1 over the classes; image: RGB, uint8
    `[H, W, 3]`. Values below 1e-5 are raised to it, as pydensecrf's `unary_from_softmax` does.
    """
    layer = (settings or CRFSettings()).layer(len(probabilities))
    logits = torch.from_numpy(np.log(np.clip(probabilities, CLIP, 1.0)))[None]
    with torch.no_grad():
        marginals = layer(logits, as_batch(image).float())
    return Prediction.of(marginals[0].numpy())


def refine_scribbles(
    annotation: Annotation,
    image: np.ndarray,
    settings: CRFSettings = SCRIBBLES,
    gt_prob: float = 0.7,
) -> Prediction:
    """Spread an annotation over the whole picture.

    image: RGB, uint8 `[H, W, 3]`. gt_prob: the probability of a label where there is one.
    """
    height, width = annotation.labels.shape
    count = annotation.num_labels
    if settings.compatibility is not None:
        raise InputError(
            "CRF compatibility: scribbles have labels of their own, for which no penalties are "
            "known; leave it out"
        )
    if not 1 / count < gt_prob < 1:
        raise InputError(
            f"gt_prob must be more than 1/labels = {1 / count:.3g}, so that the annotation "
            f"counts for something, and less than 1, not {gt_prob:g}"
        )
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
    marginals = np.array(model.inference(settings.iterations), dtype=np.float32)
    return Prediction.of(marginals.reshape(count, height, width))
