"""DeepLab v2 on ResNet in plain PyTorch, as people write it by hand: a peer of deeplab.model.

Of torch alone, from the paper and the released prototxt of ResNet-101: output stride 8, the stride
of a stage on its first 1x1, rates 2 and 4 in the last two stages, constant batch normalisation,
pooling that rounds up, one 3x3 classifier a rate, summed. Its names are those of the common
checkpoints (`layer1.0.conv1`), its order that of deeplab's state, so `same_weights` pairs them.

Source: Chen et al., "DeepLab", TPAMI 2018, section 4.1; He et al., "Deep Residual Learning", 2015.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATES = (6, 12, 18, 24)
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
MEAN_BGR = (104.008, 116.669, 122.675)  # of the ImageNet models of Caffe


class Block(nn.Module):
    """1x1 (stride) - 3x3 at the rate - 1x1, added to the input or to its projection."""

    def __init__(self, inputs: int, width: int, stride: int, rate: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class PlainDeepLab(nn.Module):
    """DeepLab v2: a preprocessed batch `[B, 3, H, W]` -> scores `[B, classes, ~H/8, ~W/8]`."""

    def __init__(self, classes: int, blocks: Sequence[int] = BLOCKS["resnet101"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(64, 64, blocks[0], stride=1, rate=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2, rate=1)
        self.layer3 = _stage(512, 256, blocks[2], stride=1, rate=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=1, rate=4)
        self.aspp = nn.ModuleList(
            nn.Conv2d(2048, classes, 3, padding=rate, dilation=rate) for rate in RATES
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = sum(branch(x) for branch in self.aspp)
        return scores

    def train(self, mode: bool = True) -> "PlainDeepLab":
        """Training leaves the normalisation constant, as the paper does with its small batches."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, object]]:
        """The paper's: the classifier learns ten times as fast, its bias twenty, without decay."""
        body = [p for name, p in self.named_parameters() if "aspp" not in name and p.requires_grad]
        return [
            {"params": body, "lr": lr, "weight_decay": weight_decay},
            {
                "params": [branch.weight for branch in self.aspp],
                "lr": 10 * lr,
                "weight_decay": weight_decay,
            },
            {"params": [branch.bias for branch in self.aspp], "lr": 20 * lr, "weight_decay": 0.0},
        ]


def same_weights(ours: nn.Module, classes: int, blocks: Sequence[int]) -> PlainDeepLab:
    """The plain network with the weights of one of `deeplab.model`'s, to evaluate.

    Raises ValueError where the two have other layers.
    """
    with torch.device("meta"):  # no weights are drawn that would be replaced
        plain = PlainDeepLab(classes, blocks)
    state = plain.state_dict()
    stacked = {k: v for k, v in ours.state_dict().items() if k.startswith("head.")}
    body = [v for k, v in ours.state_dict().items() if not k.startswith("head.")]
    names = [name for name in state if not name.startswith("aspp.")]
    shapes = [state[name].shape for name in names]
    if shapes != [tensor.shape for tensor in body]:
        raise ValueError("ours must be DeepLab v2 on the same ResNet, which it is not")
    state |= dict(zip(names, body, strict=True))
    for kind in ("weight", "bias"):
        rows = stacked[f"head.classifier.{kind}"].chunk(len(RATES))
        state |= {f"aspp.{i}.{kind}": row for i, row in enumerate(rows)}
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    plain.load_state_dict(copies, assign=True)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return plain.eval()


def preprocess(images: Tensor) -> Tensor:
    """RGB `[B, 3, H, W]` in 0-255 -> BGR without the mean, float32 unless it is float64."""
    x = images.flip(1)
    x = x if x.is_floating_point() else x.float()
    return x - torch.tensor(MEAN_BGR).view(3, 1, 1)


def upsample(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores at the size of the picture, corners on corners."""
    return F.interpolate(scores, size=list(size), mode="bilinear", align_corners=True)


def _stage(inputs: int, width: int, blocks: int, stride: int, rate: int) -> nn.Sequential:
    first = Block(inputs, width, stride, rate)
    rest = [Block(4 * width, width, 1, rate) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
