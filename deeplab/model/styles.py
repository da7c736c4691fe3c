"""The two conventions that weights of the same shapes follow, and that must not be mixed.

                            "caffe" (the released DeepLab networks)   "torchvision"
    input                   BGR 0-255 minus the mean                  RGB 0-1, mean and deviation
    pooling                 rounds up                                 rounds down
    ResNet's stride         on the first 1x1 of a bottleneck          on its 3x3
    first dilated block     has the rate of its stage                 first 3x3 keeps the old rate
    logits to the image     bilinear, corners aligned (*)             bilinear, corners not aligned

Weights of one style load into a network of the other without a word, and lose accuracy: the style
belongs to the weights. (*) With the option resize="torch" not aligned: see
`deeplab.model.multiscale`.

Sources: the released DeepLab prototxts; torchvision's `models.resnet`, `models.segmentation` and
the transforms of its weights.
"""

from typing import Literal, get_args

Style = Literal["caffe", "torchvision"]
STYLES: tuple[Style, ...] = get_args(Style)


def check(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless a convention is one of those that are known."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, not {value!r}")
