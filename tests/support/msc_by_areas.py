"""DeepLab v2 with MSC as kazuto1011/deeplab-pytorch lays it out, in plain PyTorch.

Written from what its code computes, so that the names of its state dict are those of his files:
poolings round up, the stride lies on the first 1x1, all blocks of a stage have its rate, four 3x3
classifiers are summed; pictures and scores are resized without align_corners, the largest counts.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from checkpoints import with_statistics
from torch import Tensor, nn


def unit(rows: int, columns: int, kernel: int, stride: int = 1, rate: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation, padded to keep the size at stride 1."""
    padding = 3 if kernel == 7 else rate * (kernel // 2)
    conv = nn.Conv2d(rows, columns, kernel, stride, padding, rate, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(columns)))


class Block(nn.Module):
    def __init__(self, rows: int, columns: int, stride: int, rate: int, first: bool) -> None:
        super().__init__()
        self.reduce = unit(rows, columns // 4, 1, stride)
        self.conv3x3 = unit(columns // 4, columns // 4, 3, rate=rate)
        self.increase = unit(columns // 4, columns, 1)
        self.shortcut = unit(rows, columns, 1, stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(self.reduce(x).relu()).relu()
        return (self.increase(y) + self.shortcut(x)).relu()


class Base(nn.Module):
    """The network at one scale: x [B, 3, H, W] -> scores [B, classes, ~H/8, ~W/8]."""

    def __init__(
        self, blocks: Sequence[int], width: int, classes: int, rates: Sequence[int]
    ) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(OrderedDict(conv1=unit(3, width, 7, 2)))
        stages = zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        rows = width
        for number, (count, stride, rate) in enumerate(stages, 2):
            columns = 4 * width * 2 ** (number - 2)
            made = OrderedDict()
            for i in range(count):
                first = i == 0
                made[f"block{i + 1}"] = Block(rows, columns, stride if first else 1, rate, first)
                rows = columns
            setattr(self, f"layer{number}", nn.Sequential(made))
        heads = [nn.Conv2d(rows, classes, 3, padding=rate, dilation=rate) for rate in rates]
        self.aspp = nn.ModuleDict({f"c{i}": head for i, head in enumerate(heads)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.layer1(x).relu(), 3, 2, 1, ceil_mode=True)
        for stage in (self.layer2, self.layer3, self.layer4, self.layer5):
            x = stage(x)
        return torch.stack([head(x) for head in self.aspp.values()]).sum(0)


class MSC(nn.Module):
    """x [B, 3, H, W] -> the largest scores of the scales, at the size of scale 1."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        full = self.base(x)
        seen = [full]
        for scale in (0.5, 0.75):
            small = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            scores, size = self.base(small), full.shape[2:]
            seen.append(F.interpolate(scores, size, mode="bilinear", align_corners=False))
        return torch.stack(seen).amax(0)

    def published(self, x: Tensor) -> Tensor:
        """What his evaluation takes the largest of: the logits at the size of the picture."""
        return F.interpolate(self(x), x.shape[2:], mode="bilinear", align_corners=False)


def random_msc(
    blocks: Sequence[int] = (2, 1, 3, 1),
    width: int = 4,
    classes: int = 3,
    rates: Sequence[int] = (1, 2, 3, 4),
) -> MSC:
    """In evaluation, with statistics that matter."""
    torch.manual_seed(3)
    return with_statistics(MSC(Base(blocks, width, classes, rates)).eval())
