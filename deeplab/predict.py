"""From a picture to class probabilities: the network, and a dense CRF where one is wanted.

    P = softmax(network(preprocess(image)))          or          Q = CRF(logits, image)

Source: DeepLab v2 (TPAMI 2018), section 3 and figure 1: the network's scores are brought to the
picture's size before the fully connected CRF refines them.

At test time a network may look at several views of the picture, at other scales and mirrored; their
probabilities are averaged, and the CRF refines the logarithm of the average. The papers' MSC, which
takes the maximum of the scores, belongs to the model (`scales=` of its builder).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from crf import DenseCRF
from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.model.preprocess import Bands
from kernels import memory

if TYPE_CHECKING:
    from deeplab.crf_settings import AllBandsCRF


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        labels: `[H, W]`, the most probable class of each pixel, or of two the one that a threshold
            says; uint8, or int64 above 256 classes. Of a multi-label model masks `[C, H, W]`, uint8
            of 0 and 1.
        probabilities: float32 `[C, H, W]`, summing to 1 over the classes unless the model is
            multi-label; a CRF's marginals if one was used.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(
        cls, probabilities: np.ndarray, threshold: float | None = None, multilabel: bool = False
    ) -> Prediction:
        """The prediction with these probabilities `[C, H, W]`; threshold: as of `predict`."""
        if multilabel or threshold is not None:
            found = decided(torch.from_numpy(probabilities), threshold, multilabel)
            return cls(found.byte().numpy(), probabilities)
        dtype = np.uint8 if len(probabilities) <= 256 else np.int64
        return cls(probabilities.argmax(axis=0).astype(dtype), probabilities)


def predict(
    model: DeepLab,
    image: np.ndarray,
    crf: DenseCRF | AllBandsCRF | None = None,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    bands: Bands = None,
    threshold: float | None = None,
) -> Prediction:
    """Segment one picture of any size, on the model's device.

    image: RGB, uint8 `[H, W, 3]`, or `[H, W, in_channels]` as the model takes it. crf: refines the
    network's scores on the picture; None leaves them as they are (a model that ends in its own CRF
    layer refines in any case). scales, flip: the views whose probabilities are averaged, see
    `network_scores`. bands: which the CRF sees of a picture, see `as_levels`.
    threshold: of two classes, from which probability on a pixel is the second; None takes the more
    probable. Of a multi-label model from which probability on a class holds; None: 0.5.

    The whole picture is processed at once, its views one after another. `deeplab_v2_small` takes
    about 130 bytes for each pixel of the largest view, and 8 for each class and pixel of the
    picture, 12 with several views. With a CRF and 11 classes it was 640 to 770 bytes a pixel on
    photographs and 1900 on noise.

    Raises InputError if the model gives NaN or Inf, or if the memory runs out (where the system
    tells how much is free, before any work); ValueError if both the model and the call have a CRF,
    or the call has one and the model is multi-label, for a scale that is not between 0.1 and 4, a
    threshold that is not between 0 and 1 or of a model of one label and other than two classes,
    bands that are not there, or (from `model.preprocess`) if the image is not RGB `[H, W, 3]`, or
    of the model's bands.
    """
    if crf is not None and model.crf is not None:
        raise ValueError("crf: the model ends in a CRF layer of its own; pass crf=None to use that")
    layer = model.crf if crf is None else crf
    if model.multilabel and layer is not None:
        raise ValueError("crf must be None with a multi-label model: a CRF gives a pixel one class")
    check_scales(scales)
    check_threshold(threshold, model)
    with torch.no_grad(), enough_memory(model, image, scales, flip, refines=layer is not None):
        logits = network_scores(model, image, scales, flip)
        if not bool(torch.isfinite(logits).all()):
            raise InputError(
                "the network's output has NaN or Inf; its weights are damaged or come from a "
                "training that diverged: load other weights, or train with a lower learning rate"
            )
        if layer is None:
            probabilities = model.probabilities(logits)
        else:
            probabilities = layer(logits, as_levels(model, image, bands).to(logits))
        found = probabilities[0].float().cpu().numpy()
        return Prediction.of(found, threshold, model.multilabel)


def network_scores(
    model: DeepLab, image: np.ndarray, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """What the network alone says about a picture: logits `[1, C, H, W]`, float32.

    The probabilities that they stand for are the mean over the views: the picture at each of
    `scales`, and with `flip` each of these mirrored too. A CRF layer of the model is left out.
    """
    check_scales(scales)
    x = model.preprocess(image)
    size = (int(x.shape[2]), int(x.shape[3]))
    total: Tensor | None = None  # of the views, one after another: no two are kept
    with _network_alone(model):
        for scale in scales:
            view = _resize(x, [max(1, round((n - 1) * scale) + 1) for n in size])
            for mirrored in (False, True) if flip else (False,):
                scores = model(view.flip(3) if mirrored else view, upsample=False).float()
                scores = model.upsample(scores, size)
                if len(scales) == 1 and not flip:
                    return scores
                seen = _log_probabilities(model, scores.flip(3) if mirrored else scores)
                del scores
                # the log of the sum of probabilities, without a logarithm of zero
                total = seen if total is None else total.logaddexp(seen)
                del seen
    assert total is not None  # check_scales has seen to it
    if model.multilabel:
        return total[1] - total[0]  # log P - log (1 - P), of means
    return total - math.log(len(scales) * (1 + flip))


def check_scales(scales: Sequence[float]) -> None:
    """ValueError unless there is at least one scale, each between 0.1 and 4."""
    if not scales or not all(0.1 <= scale <= 4 for scale in scales):
        raise ValueError(
            "scales must be at least one number, each from 0.1 to 4, such as 0.5, 0.75, 1, not "
            f"{list(scales)}"
        )


def decided(probabilities: Tensor, threshold: float | None, multilabel: bool = False) -> Tensor:
    """Labels of `predict`, int64 `[H, W]`, of probabilities `[C, H, W]`; or masks `[C, H, W]`.

    Without a threshold labels are those of logits too.
    """
    if multilabel:
        return (probabilities >= (0.5 if threshold is None else threshold)).long()
    if threshold is not None:
        return (probabilities[1] >= threshold).long()
    return probabilities.argmax(0)


def check_threshold(threshold: float | None, model: DeepLab) -> None:
    """ValueError for a threshold that is not between 0 and 1, or where the model has no use for it.

    It is for models of two classes, and for multi-label ones.
    """
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be a number between 0 and 1, not {threshold}")
    if model.num_classes != 2 and not model.multilabel:
        raise ValueError(
            f"threshold must be left out with {model.num_classes} classes; it is for two"
        )


def as_levels(model: DeepLab, image: np.ndarray, bands: Bands = None) -> Tensor:
    """A picture `[H, W, in_channels]` as a CRF takes pictures, `[1, 3, H, W]` in 0-255.

    bands: other than the first three, or "all", and ValueError, as in
    `deeplab.model.preprocess.Preprocessing.levels`.
    """
    return model.preprocessing.levels(as_batch(image), bands)


def as_batch(image: np.ndarray) -> Tensor:
    """`[H, W, C]` as a batch `[1, C, H, W]`."""
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def _log_probabilities(model: DeepLab, scores: Tensor) -> Tensor:
    """log P of scores; of a multi-label model log (1 - P) and log P, one behind the other."""
    if model.multilabel:
        return torch.stack([F.logsigmoid(-scores), F.logsigmoid(scores)])
    return scores.log_softmax(1)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


@contextmanager
def _network_alone(model: DeepLab) -> Iterator[None]:
    """The model in evaluation mode, without its CRF layer."""
    training, layer = model.training, model.crf
    model.eval()
    model.crf = None
    try:
        yield
    finally:
        model.crf = layer
        model.train(training)


def _require_memory(
    model: DeepLab, image: np.ndarray, scales: Sequence[float], flip: bool, refines: bool
) -> None:
    classes, area = model.num_classes, max(scales) ** 2
    several = 4 * classes if len(scales) > 1 or flip else 0  # the sum of the views so far
    a_pixel = max(  # in the network, after it, in the CRF: less than any measured need
        130 * area + several,
        80 * min(1.0, area) + 8 * classes + several,
        300 + 16 * classes if refines else 0,
    )
    device = next(model.parameters()).device
    if device.type == "cpu":
        needed = round(image.shape[0] * image.shape[1] * a_pixel)
        memory.require(needed, device, "the network", "make the picture smaller")


@contextmanager
def enough_memory(
    model: DeepLab, image: np.ndarray, scales: Sequence[float], flip: bool, refines: bool
) -> Iterator[None]:
    """Memory that cannot be enough, or runs out, for a picture's views and a CRF: InputError.

    A picture that cannot fit on the CPU is refused before any work: Linux would grant the memory,
    and then end the process.
    """
    try:
        _require_memory(model, image, scales, flip, refines)
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        height, width = image.shape[:2]
        raise InputError(
            f"not enough memory for {width} x {height} pixels; make the picture smaller, or cut it "
            "into overlapping parts"
        ) from error
