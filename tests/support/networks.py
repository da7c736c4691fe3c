"""Networks in small, weights that matter, and what layers give: for tests of deeplab.model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deeplab.model.heads import ASPP, DeepLabV3Head
from deeplab.model.network import DeepLab, Head
from deeplab.model.resnet import ResNet
from deeplab.model.styles import Style

SCALES = (1.0, 0.75, 0.5)


def tiny(
    kind: str = "plain",
    *,
    stages: int = 4,
    frozen_bn: bool = False,
    crf: Any = None,
    **options: Any,
) -> DeepLab:
    """The layout of the small model at width 4 with one block a stage: quick to compile.

    kind: "plain", "msc" (several scales) or "v3".
    stages: those that the backbone keeps. Its strides are in the first two; the others are more of
        the same at a larger rate.
    """
    torch.manual_seed(0)
    style: Style = "torchvision" if kind == "v3" else "caffe"
    backbone = ResNet((1, 1, 1, 1), width=4, frozen_bn=frozen_bn, style=style)
    for left_out in range(stages + 1, 5):
        setattr(backbone, f"layer{left_out}", nn.Identity())
    channels = 8 * 2**stages
    head: Head = ASPP(channels, 3, (2, 3))
    if kind == "v3":
        head = DeepLabV3Head(channels, 3, (2, 3), frozen_bn=frozen_bn, channels=8)
    if kind == "msc":
        options = {"scales": SCALES, **options}
    config = {"model": "tiny", "num_classes": 3, "style": style, **options}
    return DeepLab(backbone, head, config=config, crf=crf).eval()


def two_convolutions(style: Style = "caffe", **options: Any) -> DeepLab:
    """A convolution as backbone and one as head: for what is the same with any layers."""
    torch.manual_seed(0)
    config = {"model": "two convolutions", "num_classes": 2, "style": style, **options}
    return DeepLab(nn.Conv2d(3, 4, 3, 8, 1), nn.Conv2d(4, 2, 1), config=config).eval()


def randomise(model: Any, seed: int = 0) -> Any:
    """In float64 and evaluation: He weights; statistics, scales and shifts of every norm away from
    0 and 1; no dropout."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", ".weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.1, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double().eval()


def picture(*shape: int) -> Tensor:
    """Noise in float64, the same for all."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def set_rate(conv: Any, rate: int) -> None:
    conv.dilation = conv.padding = (rate, rate)


def set_strides(block: Any, first: int, second: int) -> None:
    """Of the 1x1 in front of a bottleneck and of its 3x3."""
    block.conv1.stride, block.conv2.stride = (first, first), (second, second)


def layer_outputs(model: nn.Module, names: Iterable[str], x: Tensor) -> dict[str, Tensor]:
    """What the modules of these names give; that of the name "" is the model itself."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, y, name=name: found.__setitem__(name, y.clone())
        )
        for name in names
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def assert_equal(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Within rounding: float64 sums of at most 2**13 terms in two orders, layer after layer."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        error = (mine - theirs).abs().max()
        assert error <= 2**13 * torch.finfo(torch.float64).eps * theirs.abs().max()


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, *sizes: tuple[int, int]) -> None:
    """Logits of pictures of these sizes: equal in float64; in float32 within the error budget.

    That is at most twice their error against float64, and one rounding.
    """
    pictures = [picture(1, 3, *size) for size in sizes]
    exact = [_logits(theirs.double(), x) for x in pictures]
    assert_equal([_logits(ours.double(), x) for x in pictures], exact)
    eps = torch.finfo(torch.float32).eps
    ours, theirs = ours.float(), theirs.float()
    for x, reference in zip(pictures, exact, strict=True):
        errors = [(_logits(m, x.float()) - reference).abs().max() for m in (ours, theirs)]
        allowed = 2 * errors[1] + eps * reference.abs().max()
        assert errors[0] <= allowed, f"{list(x.shape)}: error {errors[0]:.3g} of {allowed:.3g}"


def _logits(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(x)
    return found["out"] if isinstance(found, dict) else found  # torchvision's gives a dict
