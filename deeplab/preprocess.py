"""From an RGB picture to the input that a model's weights expect.

The released DeepLab networks were trained with Caffe on BGR images in 0-255 with the mean of
ImageNet subtracted and no division by a standard deviation:

    x = image[BGR] - (104.008, 116.669, 122.675)

Source: the `mean_value` entries and the BGR order of the released DeepLab v1 and v2 prototxts.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

MEAN_BGR = (104.008, 116.669, 122.675)  # grey levels, 0-255


def preprocess(image: np.ndarray | Tensor) -> Tensor:
    """RGB in 0-255 -> the network's input: BGR, mean subtracted, `[B, 3, H, W]` float32.

    image: a NumPy array `[H, W, 3]`, or a tensor `[3, H, W]` or `[B, 3, H, W]`; uint8 or floating
        point, RGB, 0-255. The result stays on the tensor's device.

    Raises TypeError for another type or dtype and ValueError for another shape or an empty image.
    Warns when a floating point image on the CPU has no value above 1: it is most likely in 0-1.
    """
    batch = _as_batch(image)
    if batch.is_floating_point() and batch.device.type == "cpu":
        peak = batch.max().item()
        if 0 < peak <= 1:
            warnings.warn(
                f"image: no value is above 1 (the largest is {peak:g}), but RGB 0-255 is expected; "
                "if it is in 0-1, multiply it by 255",
                stacklevel=2,
            )
    mean = torch.tensor(MEAN_BGR, dtype=torch.float32, device=batch.device)
    return batch.to(torch.float32).flip(1) - mean.view(1, 3, 1, 1)


def _as_batch(image: np.ndarray | Tensor) -> Tensor:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image: expected a NumPy array [H, W, 3] (RGB), got shape {list(image.shape)}; "
                "convert grey or RGBA pictures first, for example with PIL's image.convert('RGB')"
            )
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise TypeError(_dtype_message(image.dtype))
        batch = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3:
            raise ValueError(
                "image: expected a tensor [3, H, W] or [B, 3, H, W] (RGB), "
                f"got shape {list(image.shape)}; channels come first in tensors"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(_dtype_message(image.dtype))
        batch = image if image.ndim == 4 else image[None]
    else:
        raise TypeError(
            "image: expected a NumPy array [H, W, 3] or a tensor [B, 3, H, W], got "
            f"{type(image).__name__}; for a PIL image pass numpy.asarray(image.convert('RGB'))"
        )
    if batch.numel() == 0:
        raise ValueError(f"image: expected at least one pixel, got shape {list(image.shape)}")
    return batch


def _dtype_message(dtype: object) -> str:
    return f"image: expected uint8 or floating point values in 0-255, got {dtype}; convert it first"
