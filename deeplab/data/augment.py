"""Augmentation as in the papers: a random scale, a random crop, a mirror image of every other one.

    mode          scale                            window
    continuous    uniform in [low, high]           anywhere that it covers the picture or lies in it
    discrete      one of a list, CAFFE_SCALES      anywhere in the picture; a picture smaller than
                                                   the window is padded at the bottom and the right

The first is the paper's text, the second what its released Caffe layer does. Beyond the picture an
image has the mean colour, which preprocessing turns into zero, and a label map 255. Images are
resized bilinearly (smoothed where they shrink), labels take the nearest pixel. Images may have any
number of bands, of uint8, uint16 or float32.

Sources: Chen et al., DeepLab v2, section 4.1; the transformer of its Caffe data layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from deeplab.data.datasets.labels import IGNORE
from deeplab.model.preprocess import MEAN_BGR

Picture = npt.NDArray[Any]
Labels = npt.NDArray[Any]

CAFFE_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""The scales of the released Caffe training networks, for mode "discrete"."""

MEAN_RGB = (MEAN_BGR[2], MEAN_BGR[1], MEAN_BGR[0])


def augment(
    image: Picture,
    labels: Labels,
    *,
    crop: int,
    scales: Sequence[float],
    mode: Literal["continuous", "discrete"] = "continuous",
    mirror: bool = True,
    rng: np.random.Generator,
    fill: Sequence[float] = MEAN_RGB,
) -> tuple[Picture, npt.NDArray[np.int64]]:
    """A random sample of a picture: image [crop, crop, bands], labels int64 [..., crop, crop].

    Args:
        image: uint8 [H, W, 3] RGB, or uint8, uint16 or float32 [H, W, bands].
        labels: [H, W], values 0-255, 255 ignored, or [C, H, W], a mask of each class.
        crop: side of the sample in pixels; networks of output stride 8 like 8k + 1, such as 321.
        scales: (smallest, largest) in mode "continuous", the list to draw from in "discrete".
        mode: see the file's docstring.
        mirror: flip half of the samples left to right.
        fill: value of each band beyond the picture, rounded where pictures have whole numbers.

    Raises ValueError: sizes of image and labels differ, scales or mode make no sense.
    """
    if image.shape[:2] != labels.shape[-2:]:
        raise ValueError(
            f"image, labels must have one size, not {image.shape[:2]} and {labels.shape[-2:]}"
        )
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, not {scales}")
    if mode == "continuous":
        scaled, target = _scaled_window(image, labels, crop, scales, rng, fill)
    elif mode == "discrete":
        scale = scales[int(rng.integers(len(scales)))]
        height, width = (max(1, int(side * scale)) for side in image.shape[:2])  # Caffe rounds down
        image, labels = _to_size(image, labels.astype(np.uint8), (height, width))
        top = int(rng.integers(max(0, height - crop) + 1))
        left = int(rng.integers(max(0, width - crop) + 1))
        scaled, target = _cut(image, labels, top, left, crop, fill)
    else:
        raise ValueError(f"mode must be 'continuous' or 'discrete', not {mode!r}")
    if mirror and rng.random() < 0.5:
        scaled, target = scaled[:, ::-1].copy(), target[..., ::-1].copy()
    return scaled, target.astype(np.int64)


def shrink_labels(labels: Any, stride: int = 8) -> Any:
    """Labels at a network's output stride, every `stride`-th pixel: [..., H, W] -> [..., h, w].

    What Caffe's Interp layer does to a label map of 8k + 1 pixels a side, where align_corners puts
    the k + 1 scores of a side on every eighth pixel exactly. Takes NumPy arrays and tensors.

    Raises ValueError where a side is not stride * k + 1 pixels: the grids would not meet there.
    """
    height, width = labels.shape[-2:]
    if (height - 1) % stride or (width - 1) % stride:
        raise ValueError(
            f"labels must have sides of {stride}k + 1 pixels, not {height} x {width}; choose such "
            "a crop (321, 513), or a loss at full size"
        )
    return labels[..., ::stride, ::stride]


def _scaled_window(
    image: Picture,
    labels: Labels,
    crop: int,
    scales: Sequence[float],
    rng: np.random.Generator,
    fill: Sequence[float],
) -> tuple[Picture, Labels]:
    """A window of crop / scale pixels brought to crop x crop.

    It is the scaled picture cropped, at the cost of the crop.
    """
    if len(scales) != 2 or scales[0] > scales[1]:
        raise ValueError(f"scales must be (smallest, largest), not {scales}")
    side = max(1, round(crop / rng.uniform(scales[0], scales[1])))
    height, width = image.shape[:2]
    top = int(rng.integers(min(0, height - side), max(0, height - side) + 1))
    left = int(rng.integers(min(0, width - side), max(0, width - side) + 1))
    canvas, truth = _cut(image, labels, top, left, side, fill)
    return _to_size(canvas, truth, (crop, crop))


def _cut(
    image: Picture, labels: Labels, top: int, left: int, side: int, fill: Sequence[float]
) -> tuple[Picture, Labels]:
    """The window [side, side] whose corner is at (top, left), which may lie outside."""
    height, width = image.shape[:2]
    canvas = np.empty((side, side, image.shape[2]), image.dtype)
    canvas[:] = _in_range(np.asarray(fill, np.float64), image.dtype)
    truth = np.full((*labels.shape[:-2], side, side), IGNORE, np.uint8)
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    canvas[inside], truth[..., *inside] = image[y0:y1, x0:x1], labels[..., y0:y1, x0:x1]
    return canvas, truth


def _to_size(image: Picture, labels: Labels, size: tuple[int, int]) -> tuple[Picture, Labels]:
    """Both at size (height, width): image bilinear, labels nearest."""
    if size == image.shape[:2]:
        return image, labels
    shape = size[::-1]  # Pillow's order
    return _resized(image, shape), of_planes(
        labels, lambda plane: plane.resize(shape, Image.Resampling.NEAREST)
    )


def of_planes(labels: Labels, change: Callable[[Image.Image], Image.Image]) -> Labels:
    """A label map `[H, W]`, or each mask of `[C, H, W]`, changed as a picture of uint8."""
    planes = labels.astype(np.uint8, copy=False).reshape(-1, *labels.shape[-2:])
    changed = [np.array(change(Image.fromarray(plane))) for plane in planes]
    return np.stack(changed) if labels.ndim == 3 else changed[0]


def _resized(image: Picture, shape: tuple[int, int]) -> Picture:
    """Bilinear; Pillow takes RGB whole, and other bands one by one."""
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
    kind = np.uint8 if image.dtype == np.uint8 else np.float32  # the latter holds 16 bits whole
    planes = [np.ascontiguousarray(plane, kind) for plane in np.moveaxis(image, 2, 0)]
    scaled = [Image.fromarray(plane).resize(shape, Image.Resampling.BILINEAR) for plane in planes]
    return _in_range(np.stack([np.asarray(plane) for plane in scaled], axis=2), image.dtype)


def _in_range(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As `dtype`: rounded and kept in its range where it is one of whole numbers."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.clip(np.round(values), 0, np.iinfo(dtype).max).astype(dtype)
