"""From a picture to class probabilities: the network, and a dense CRF where one is wanted.

    P = softmax(network(preprocess(image)))          or          Q = CRF(logits, image)

Source: DeepLab v2 (TPAMI 2018), section 3 and figure 1: the network's scores are brought to the
picture's size before the fully connected CRF refines them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crf import DenseCRF
from deeplab.errors import InputError
from deeplab.model import DeepLab
from kernels import memory


@dataclass(frozen=True)
class Prediction:
    """What the model says about one picture.

    Attributes:
        labels: `[H, W]`, the most probable class of each pixel; uint8, or int64 above 256 classes.
        probabilities: float32 `[C, H, W]`, summing to 1 over the classes; a CRF's marginals if one
            was used.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Prediction:
        """The prediction with these probabilities `[C, H, W]`."""
        dtype = np.uint8 if len(probabilities) <= 256 else np.int64
        return cls(probabilities.argmax(axis=0).astype(dtype), probabilities)


def predict(model: DeepLab, image: np.ndarray, crf: DenseCRF | None = None) -> Prediction:
    """Segment one picture of any size, on the model's device.

    image: RGB, uint8 `[H, W, 3]`. crf: refines the network's scores on the picture; None leaves
    them as they are (a model that ends in its own CRF layer refines in any case).

    The whole picture is processed at once. `deeplab_v2_small` takes about 130 bytes a pixel and 8
    for each class; with a CRF and 11 classes it was 640 to 770 on photographs, whose pixels share
    lattice points, and 1900 on noise. Larger networks need more.

    The model runs in evaluation mode and is left in the mode that it came in.
    Raises InputError if the model gives NaN or Inf, or if the memory runs out (where the system
    tells how much is free, before any work); ValueError if both the model and the call have a CRF,
    or (from `model.preprocess`) if the image is not RGB `[H, W, 3]`.
    """
    if crf is not None and model.crf is not None:
        raise ValueError("crf: the model ends in a CRF layer of its own; pass crf=None to use that")
    with torch.no_grad(), _memory_errors_of(image):
        _require_memory(model, image, refines=crf is not None or model.crf is not None)
        x = model.preprocess(image)
        rgb = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(x)
        logits = _logits(model, x, rgb)
        if not bool(torch.isfinite(logits).all()):
            raise InputError(
                "the network's output has NaN or Inf; its weights are damaged or come from a "
                "training that diverged: load other weights, or train with a lower learning rate"
            )
        probabilities = logits.softmax(dim=1) if crf is None else crf(logits, rgb)
        return Prediction.of(probabilities[0].float().cpu().numpy())


def _logits(model: DeepLab, x: Tensor, rgb: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        return model(x) if model.crf is None else model(x, image=rgb)
    finally:
        model.train(training)


def _require_memory(model: DeepLab, image: np.ndarray, refines: bool) -> None:
    """Refuse a picture that cannot fit: Linux would grant the memory, and then end the process."""
    a_pixel = 130 + 8 * model.num_classes + (300 + 8 * model.num_classes if refines else 0)
    device = next(model.parameters()).device
    if device.type == "cpu":  # less than any measured need: see the docstring of `predict`
        needed = image.shape[0] * image.shape[1] * a_pixel
        memory.require(needed, device, "the network", "make the picture smaller")


@contextmanager
def _memory_errors_of(image: np.ndarray) -> Iterator[None]:
    """Memory that runs out, which PyTorch reports as a RuntimeError on a CPU, as InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        height, width = image.shape[:2]
        raise InputError(
            f"not enough memory for {width} x {height} pixels; make the picture smaller, or cut it "
            "into overlapping parts"
        ) from error
