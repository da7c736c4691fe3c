"""What a network says about pictures that it sees in several views.

    logits = log( mean over the views of softmax(network(view)) )

The views are the picture at other scales and mirrored. The papers' MSC, which takes the maximum of
the scores, belongs to the model (`scales=` of its builder) and takes place within each view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplab.model import DeepLab
from deeplab.model.preprocess import Bands

ROWS = 1024  # of a picture at a time


def network_scores(
    model: DeepLab,
    images: np.ndarray | Tensor,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: torch.dtype = torch.float32,
    network: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What the network alone says about pictures: logits `[B, C, H, W]`, float32.

    The probabilities that they stand for are the mean over the views: the picture at each of
    `scales`, and with `flip` each of these mirrored too. A CRF layer of the model is left out.

    images: one picture `[H, W, in_channels]` (B = 1), or as `model.preprocess` takes tensors.
    precision: torch.bfloat16 and torch.float16 compute under autocast; torch.float32 leaves it to
    the dtype of the weights, and to autocast around the call. Scores are brought to the picture's
    size in float32.
    network: what gives `model(x, upsample=False)` in evaluation mode, without a CRF layer, in the
    place of the model.
    """
    check_scales(scales)
    x = model.preprocess(images)
    size = (int(x.shape[2]), int(x.shape[3]))
    total: Tensor | None = None  # of the views, one after another: no two are kept
    alone = _network_alone(model) if network is None else nullcontext()
    scores_of = partial(model, upsample=False) if network is None else network
    with alone:
        for scale in scales:
            view = at_scale(x, scale)
            for mirrored in (False, True) if flip else (False,):
                with _computing_in(precision, x.device):
                    scores = scores_of(view.flip(3) if mirrored else view)
                scores = model.upsample(scores.float(), size)
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


def at_scale(x: Tensor, scale: float) -> Tensor:
    """A batch `[B, C, H, W]` at another scale, corners on corners."""
    size = [max(1, round((n - 1) * scale) + 1) for n in x.shape[2:]]
    if size == list(x.shape[2:]):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def check_scales(scales: Sequence[float]) -> None:
    """ValueError unless there is at least one scale, each between 0.1 and 4."""
    if not scales or not all(0.1 <= scale <= 4 for scale in scales):
        raise ValueError(
            "scales must be at least one number, each from 0.1 to 4, such as 0.5, 0.75, 1, not "
            f"{list(scales)}"
        )


def as_levels(model: DeepLab, image: np.ndarray, bands: Bands = None) -> Tensor:
    """A picture `[H, W, in_channels]` as a CRF takes pictures, `[1, 3, H, W]` in 0-255.

    bands: other than the first three, or "all", and ValueError, as in
    `deeplab.model.preprocess.Preprocessing.levels`.
    """
    return model.preprocessing.levels(as_batch(image), bands)


def as_rgb(model: DeepLab, image: np.ndarray, bands: Sequence[int] | None = None) -> np.ndarray:
    """A picture `[H, W, in_channels]` for the eye: uint8 `[H, W, 3]`, itself where it is that.

    bands: which are red, green and blue, as of `as_levels`.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3 and bands is None:
        return image
    shown = np.empty((*image.shape[:2], 3), np.uint8)
    for top in range(0, len(image), ROWS):  # not all at once: levels may be float32
        levels = as_levels(model, image[top : top + ROWS], bands)[0]
        shown[top : top + ROWS] = levels.permute(1, 2, 0).round().byte().numpy()
    return shown


def as_batch(image: np.ndarray) -> Tensor:
    """`[H, W, C]` as a batch `[1, C, H, W]`."""
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def _log_probabilities(model: DeepLab, scores: Tensor) -> Tensor:
    """log P of scores; of a multi-label model log (1 - P) and log P, one behind the other."""
    if model.multilabel:
        return torch.stack([F.logsigmoid(-scores), F.logsigmoid(scores)])
    return scores.log_softmax(1)


def _computing_in(precision: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision)


@contextmanager
def _network_alone(model: DeepLab) -> Iterator[None]:
    """The model in evaluation mode, without its CRF layer.

    One that is like this is left as it is, so that several threads may use it.
    """
    if model.crf is None and not any(module.training for module in model.modules()):
        yield
        return
    training, layer = model.training, model.crf
    model.eval()
    model.crf = None
    try:
        yield
    finally:
        model.crf = layer
        model.train(training)
