"""From a picture to the input that a model's weights expect.

The released DeepLab networks were trained with Caffe on BGR images in 0-255 with the mean of
ImageNet subtracted and no division by a standard deviation; torchvision's on RGB images in 0-1,
whitened channel by channel:

    caffe           x = image[BGR] - (104.008, 116.669, 122.675)
    torchvision     x = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    given           x = (image - mean) / deviation

Style "smp" has torchvision's. The last is for pictures of any number of bands and any range of
values: mean and deviation are in the picture's own units, a number for each band, in its order.

Sources: the `mean_value` entries and the BGR order of the released DeepLab v1 and v2 prototxts; the
transforms of torchvision's weights.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deeplab.model.styles import STYLES, Style, check

MEAN_BGR = (104.008, 116.669, 122.675)  # grey levels, 0-255
MEAN_RGB = (0.485, 0.456, 0.406)  # of 1
DEVIATION_RGB = (0.229, 0.224, 0.225)
Bands = Sequence[int] | Literal["all"] | None  # of a picture, see Preprocessing.levels
NOT_DEEP = (
    "image must be RGB in 0-255 for a model without a mean and deviation of its own, not uint16; "
    "convert it first"
)


@dataclass(frozen=True)
class Preprocessing:
    """What is done with a picture before a network sees it.

    mean, deviation: a number for each band, as `checked_statistics` lets them pass; None for those
        of the style.
    """

    style: Style = "caffe"
    in_channels: int = 3
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """That of the model with this `DeepLab.config`."""
        mean, deviation = config.get("mean"), config.get("deviation")
        return cls(
            config.get("style", "caffe"),
            config.get("in_channels", 3),
            None if mean is None else tuple(mean),
            None if deviation is None else tuple(deviation),
        )

    def __call__(self, image: np.ndarray | Tensor) -> Tensor:
        """`[B, C, H, W]` float32 of NumPy `[H, W, C]`, or of a tensor `[C, H, W]`, `[B, C, H, W]`.

        Raises as the function `preprocess`, uint16 apart, which is welcome with a given mean.
        """
        batch = _as_batch(image, self.in_channels, deep=self.mean is not None)
        if self.mean is None:
            _warn_of_fractions(batch)
        x = batch.to(torch.float32)
        if self.mean is not None and self.deviation is not None:
            return (x - _channels(self.mean, x)) / _channels(self.deviation, x)
        if self.style == "caffe":
            return x.flip(1) - _channels(MEAN_BGR, x)
        return (x / 255 - _channels(MEAN_RGB, x)) / _channels(DEVIATION_RGB, x)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What stored pictures may be of: any values are for models with a mean of their own."""
        return ("uint8",) if self.mean is None else ("uint8", "uint16", "float32")

    @property
    def unscaled(self) -> bool:
        """Whether the network sees grey levels in 0-255, less their mean."""
        return self.mean is None and self.style == "caffe"

    def mean_colour(self) -> tuple[float, ...]:
        """The picture's values, band by band, that become zero: what lies beyond a picture."""
        if self.mean is not None:
            return self.mean
        if self.unscaled:
            return MEAN_BGR[::-1]
        return tuple(255 * level for level in MEAN_RGB)

    def levels(self, images: Tensor, bands: Bands = None) -> Tensor:
        """Some bands as levels in 0-255, `[B, len(bands), H, W]`: for a CRF and for the eye.

        images: `[B, C, H, W]` as they are before preprocessing. bands: which, from 0 on, such as
        three for red, green and blue; "all"; None: the first three, the last again where there are
        fewer. uint8 and pictures of a model without a mean of its own stay as they are; of others
        mean - 3 deviation becomes 0, mean + 3 deviation 255, and what lies beyond is clamped.

        Raises ValueError for bands that are not there.
        """
        if bands == "all":
            bands = range(self.in_channels)
        elif bands is None:
            bands = [min(band, self.in_channels - 1) for band in range(3)]
        if not all(0 <= band < self.in_channels for band in bands):
            raise ValueError(
                f"bands must be from 0 to {self.in_channels - 1} each, not {list(bands)}"
            )
        shown = images if list(bands) == list(range(images.shape[1])) else images[:, list(bands)]
        if images.dtype == torch.uint8 or self.mean is None or self.deviation is None:
            return shown
        mean = _channels(tuple(self.mean[band] for band in bands), shown)
        deviation = _channels(tuple(self.deviation[band] for band in bands), shown)
        return (((shown.float() - mean) / deviation + 3) * (255 / 6)).clamp(0, 255)

    def described(self) -> dict[str, Any]:
        """The same for other programs:

        x = (picture[channels] * scale - mean) / deviation

        channels: "BGR" or "RGB" of an RGB picture; of other bands how many, in the picture's order.
        """
        scale = 1.0 if self.unscaled or self.mean is not None else 1 / 255
        mean, deviation = self.mean, self.deviation
        if mean is None or deviation is None:
            mean = MEAN_BGR if self.unscaled else MEAN_RGB
            deviation = (1.0, 1.0, 1.0) if self.unscaled else DEVIATION_RGB
        three = "BGR" if self.unscaled else "RGB"
        return {
            "channels": three if self.in_channels == 3 else self.in_channels,
            "scale": scale,
            "mean": list(mean),
            "deviation": list(deviation),
        }


def preprocess(image: np.ndarray | Tensor, style: Style = "caffe") -> Tensor:
    """RGB in 0-255 -> the input of a network of that style, `[B, 3, H, W]` float32.

    image: a NumPy array `[H, W, 3]`, or a tensor `[3, H, W]` or `[B, 3, H, W]`; uint8 or floating
        point, RGB, 0-255, whatever the style. The result stays on the tensor's device.

    Raises TypeError for another type or dtype and ValueError for another shape or style, or an
    empty image.
    Warns when a floating point image on the CPU has no value above 1: it is most likely in 0-1.
    """
    check("style", style, STYLES)
    return Preprocessing(style)(image)


def checked_statistics(in_channels: Any, mean: Any, deviation: Any) -> dict[str, Any]:
    """The three options as JSON-able values; ValueError where they make no preprocessing."""
    if not isinstance(in_channels, int) or isinstance(in_channels, bool) or in_channels < 1:
        raise ValueError(f"in_channels must be an integer from 1 up, not {in_channels!r}")
    if mean is None and deviation is None:
        if in_channels != 3:
            raise ValueError(
                f"mean, deviation must be given where in_channels is {in_channels}, a number for "
                "each band in the pictures' own units; deeplab data check prints a data set's"
            )
        return {"in_channels": in_channels, "mean": None, "deviation": None}
    if mean is None or deviation is None:
        raise ValueError("mean, deviation must both be given, or neither")
    checked: dict[str, Any] = {"in_channels": in_channels}
    for name, values in (("mean", mean), ("deviation", deviation)):
        listed = list(values) if isinstance(values, Iterable) else []
        numbers = all(_is_number(value) and (name == "mean" or value > 0) for value in listed)
        if len(listed) != in_channels or not numbers:
            kind = "numbers" if name == "mean" else "positive numbers"
            raise ValueError(
                f"{name} must be {in_channels} {kind}, one for each of in_channels, not {values!r}"
            )
        checked[name] = [float(value) for value in listed]
    return checked


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


def _warn_of_fractions(batch: Tensor) -> None:
    if batch.is_floating_point() and batch.device.type == "cpu":
        peak = batch.max().item()
        if 0 < peak <= 1:
            warnings.warn(
                f"image: no value is above 1 (the largest is {peak:g}), but RGB 0-255 is expected; "
                "if it is in 0-1, multiply it by 255",
                stacklevel=4,
            )


def _as_batch(image: np.ndarray | Tensor, channels: int, deep: bool) -> Tensor:
    colours = " (RGB)" if channels == 3 else ""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != channels:
            mend = (
                "convert grey or RGBA pictures first, for example with PIL's image.convert('RGB')"
                if channels == 3
                else "the model takes that many bands, which a folder's option bands reads"
            )
            raise ValueError(
                f"image must be a NumPy array [H, W, {channels}]{colours}, not shape "
                f"{list(image.shape)}; {mend}"
            )
        whole = image.dtype == np.uint8 or (deep and image.dtype == np.uint16)
        if image.dtype == np.uint16 and not deep:
            raise ValueError(NOT_DEEP)
        if not whole and not np.issubdtype(image.dtype, np.floating):
            raise TypeError(_dtype_message(image.dtype, deep))
        batch = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != channels:
            raise ValueError(
                f"image must be a tensor [{channels}, H, W] or [B, {channels}, H, W]{colours}, "
                f"not shape {list(image.shape)}; channels come first in tensors"
            )
        whole = image.dtype == torch.uint8 or (deep and image.dtype == torch.uint16)
        if image.dtype == torch.uint16 and not deep:
            raise ValueError(NOT_DEEP)
        if not whole and not image.is_floating_point():
            raise TypeError(_dtype_message(image.dtype, deep))
        batch = image if image.ndim == 4 else image[None]
    else:
        raise TypeError(
            f"image must be a NumPy array [H, W, {channels}] or a tensor [B, {channels}, H, W], "
            f"not {type(image).__name__}; for a PIL image pass numpy.asarray(image.convert('RGB'))"
        )
    if batch.numel() == 0:
        raise ValueError(f"image must have at least one pixel, not shape {list(image.shape)}")
    return batch


def _dtype_message(dtype: object, deep: bool) -> str:
    wanted = (
        "uint8, uint16 or floating point" if deep else "uint8 or floating point values in 0-255"
    )
    return f"image must be {wanted}, not {dtype}; convert it first"
