"""The conventions that weights of the same shapes follow, and that must not be mixed.

                            "caffe"                     "torchvision"           "smp"
    input                   BGR 0-255 minus the mean    RGB 0-1, mean and deviation, both
    pooling                 rounds up                   rounds down             rounds down
    ResNet's stride         first 1x1 of a bottleneck   on its 3x3              on its 3x3
    first dilated block     rate of its stage           3x3 keeps the old rate  rate of its stage
    logits to the image     corners aligned (*)         corners not aligned     corners aligned

"caffe" are the released DeepLab networks, "smp" is segmentation_models_pytorch; all resize
bilinearly. Weights of one style load into a network of another without a word, and lose accuracy:
the style belongs to the weights. (*) With the option resize="torch" not aligned: see
`deeplab.model.multiscale`.

Sources: the released DeepLab prototxts; torchvision's `models.resnet`, `models.segmentation` and
the transforms of its weights; segmentation_models_pytorch's `encoders` and `decoders.deeplabv3`.
"""

from typing import Literal, get_args

Style = Literal["caffe", "torchvision", "smp"]
STYLES: tuple[Style, ...] = get_args(Style)
OutputStride = Literal[8, 16, 32]
OUTPUT_STRIDES: tuple[OutputStride, ...] = get_args(OutputStride)


def check(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless a convention is one of those that are known."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}, not {value!r}")
