"""From an RGB picture to the input that a model's weights expect.

The released DeepLab networks were trained with Caffe on BGR images in 0-255 with the mean of
ImageNet subtracted and no division by a standard deviation; torchvision's on RGB images in 0-1,
whitened channel by channel:

    caffe           x = image[BGR] - (104.008, 116.669, 122.675)
    torchvision     x = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)

Sources: the `mean_value` entries and the BGR order of the released DeepLab v1 and v2 prototxts; the
transforms of torchvision's weights.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from deeplab.model.styles import STYLES, Style, check

MEAN_BGR = (104.008, 116.669, 122.675)  # grey levels, 0-255
MEAN_RGB = (0.485, 0.456, 0.406)  # of 1
DEVIATION_RGB = (0.229, 0.224, 0.225)


def preprocess(image: np.ndarray | Tensor, style: Style = "caffe") -> Tensor:
    """RGB in 0-255 -> the input of a network of that style, `[B, 3, H, W]` float32.

    image: a NumPy array `[H, W, 3]`, or a tensor `[3, H, W]` or `[B, 3, H, W]`; uint8 or floating
        point, RGB, 0-255, whatever the style. The result stays on the tensor's device.

    Raises TypeError for another type or dtype and ValueError for another shape or style, or an
    empty image.
    Warns when a floating point image on the CPU has no value above 1: it is most likely in 0-1.
    """
    check("style", style, STYLES)
    batch = _as_batch(image)
    if batch.is_floating_point() and batch.device.type == "cpu":
        peak = batch.max().item()
        if 0 < peak <= 1:
            warnings.warn(
                f"image: no value is above 1 (the largest is {peak:g}), but RGB 0-255 is expected; "
                "if it is in 0-1, multiply it by 255",
                stacklevel=2,
            )
    if style == "caffe":
        return batch.to(torch.float32).flip(1) - _channels(MEAN_BGR, batch)
    scaled = batch.to(torch.float32) / 255
    return (scaled - _channels(MEAN_RGB, batch)) / _channels(DEVIATION_RGB, batch)


def mean_colour(style: Style) -> tuple[float, float, float]:
    """The colour, RGB in 0-255, that `preprocess` turns into zero."""
    if style == "torchvision":
        return (255 * MEAN_RGB[0], 255 * MEAN_RGB[1], 255 * MEAN_RGB[2])
    return (MEAN_BGR[2], MEAN_BGR[1], MEAN_BGR[0])


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, 3, 1, 1)


def _as_batch(image: np.ndarray | Tensor) -> Tensor:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image must be a NumPy array [H, W, 3] (RGB), not shape {list(image.shape)}; "
                "convert grey or RGBA pictures first, for example with PIL's image.convert('RGB')"
            )
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise TypeError(_dtype_message(image.dtype))
        batch = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(
                "image must be a tensor [3, H, W] or [B, 3, H, W] (RGB), "
                f"not shape {list(image.shape)}; channels come first in tensors"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(_dtype_message(image.dtype))
        batch = image if image.ndim == 4 else image[None]
    else:
        raise TypeError(
            "image must be a NumPy array [H, W, 3] or a tensor [B, 3, H, W], not "
            f"{type(image).__name__}; for a PIL image pass numpy.asarray(image.convert('RGB'))"
        )
    if batch.numel() == 0:
        raise ValueError(f"image must have at least one pixel, not shape {list(image.shape)}")
    return batch


def _dtype_message(dtype: object) -> str:
    return f"image must be uint8 or floating point values in 0-255, not {dtype}; convert it first"
