"""Weights of convolutions that see a picture, from three bands to any number.

    one band    w' = sum over RGB of w
    n bands     w'[i] = w[i mod 3] * 3 / n

so that alike bands of unit deviation excite a layer as RGB did. Source: timm's `adapt_input_conv`.

Bands come in the picture's order, RGB where they are three, and are divided by their deviation.
Weights of style "caffe" see BGR in grey levels: they are turned, and multiplied by the deviation
that photographs have, about 57 levels, so that they see whitened bands as they saw pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from deeplab.model import DeepLab
from deeplab.model.preprocess import DEVIATION_RGB

Shapes = Mapping[str, Sequence[int]]


def adapted(weight: Tensor, bands: int, grey_levels: bool) -> Tensor:
    """`[O, 3, kh, kw]` -> `[O, bands, kh, kw]`, in float32 at least.

    grey_levels: the weights are for the input of style "caffe".
    """
    weight = weight.double() if weight.itemsize == 8 else weight.float()
    if grey_levels:
        levels = [255 * deviation for deviation in DEVIATION_RGB]
        weight = weight.flip(1) * weight.new_tensor(levels).view(1, 3, 1, 1)
    if bands == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-bands // 3), 1, 1)[:, :bands] * (3 / bands)


def to_adapt(model: DeepLab, expected: Shapes, stored: Shapes, grey_levels: bool) -> list[str]:
    """The names of the stored weights that have to be adapted to a model with a mean of its own.

    expected, stored: shapes of the model's tensors and of the file's, by name.
    """
    layers = [
        name
        for name in image_weights(expected, model.in_channels)
        if name in stored and list(stored[name]) == [expected[name][0], 3, *expected[name][2:]]
    ]
    turned = grey_levels and model.preprocessing.mean is not None
    return layers if model.in_channels != 3 or turned else []


def image_weights(shapes: Shapes, in_channels: int) -> Iterable[str]:
    """The weights of layers that see the picture itself: of the body, and of the tap on it."""
    of_body = [name for name in shapes if name.startswith("backbone.") and len(shapes[name]) == 4]
    for name in [*of_body[:1], "taps.image.conv1.weight"]:
        if name in shapes and shapes[name][1] == in_channels:
            yield name


def note(model: DeepLab, names: Sequence[str]) -> str:
    """What to say of adapted weights; empty where there are none."""
    if not names:
        return ""
    return (
        f"{', '.join(names)} of three channels adapted to {model.in_channels} bands of another "
        "mean; train the model before use"
    )
