"""DeepLab v3+, and ResNets of other output strides, against constructions of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import assert_equal, assert_same_outputs, picture, randomise
from torch import Tensor, nn

from deeplab.errors import InputError
from deeplab.model import build
from deeplab.weights import load_checkpoint, load_weights


def separable(inputs: int, outputs: int, rate: int = 1) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))


def normed(conv: nn.Module, channels: int = 256) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


class Smp(nn.Module):
    """DeepLabV3Plus on ResNet-18 under the names of segmentation_models_pytorch, layer by layer."""

    def __init__(self, torchvision: Any, output_stride: int, of_pyramid: Any) -> None:
        super().__init__()
        self.encoder = torchvision.resnet.resnet18(weights=None)
        del self.encoder.fc
        rates = {8: {"layer3": 2, "layer4": 4}, 16: {"layer4": 2}, 32: {}}[output_stride]
        for name, rate in rates.items():
            for conv in self.encoder.get_submodule(name).modules():
                if isinstance(conv, nn.Conv2d):
                    conv.stride, conv.dilation = (1, 1), (rate, rate)
                    conv.padding = (conv.kernel_size[0] // 2 * rate,) * 2
        self.decoder = nn.Module()
        aspp = nn.Module()
        aspp.convs = nn.ModuleList(
            [
                normed(nn.Conv2d(512, 256, 1, bias=False)),
                *(normed(of_pyramid(512, 256, rate)) for rate in (12, 24, 36)),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), *normed(nn.Conv2d(512, 256, 1, bias=False))),
            ]
        )
        aspp.project = normed(nn.Conv2d(1280, 256, 1, bias=False)).append(nn.Dropout(0.5))
        self.decoder.aspp = nn.Sequential(aspp, separable(256, 256), nn.BatchNorm2d(256))
        self.decoder.block1 = normed(nn.Conv2d(64, 48, 1, bias=False), 48)
        self.decoder.block2 = normed(separable(304, 256))
        self.segmentation_head = nn.Sequential(nn.Conv2d(256, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        e, d = self.encoder, self.decoder
        low = e.layer1(e.maxpool(F.relu(e.bn1(e.conv1(x)))))
        high = e.layer4(e.layer3(e.layer2(low)))
        branches = [conv(high) for conv in d.aspp[0].convs]
        branches[-1] = branches[-1].expand_as(branches[0])
        context = d.aspp[0].project(torch.cat(branches, 1))
        context = F.relu(d.aspp[2](d.aspp[1](context)))
        context = F.interpolate(context, low.shape[2:], mode="bilinear", align_corners=True)
        scores = self.segmentation_head(d.block2(torch.cat([context, d.block1(low)], 1)))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)


@pytest.mark.usefixtures("torchvision")
def test_a_model_of_one_class_of_smp_tells_two_apart_by_its_sigmoid(tmp_path: Path) -> None:
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="smp is not installed, which writes such files"
    )
    theirs = randomise(smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=1))
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    opened = load_checkpoint(tmp_path / "smp.pth")
    ours = opened.model.double()
    assert ours.config["sigmoid"] is True
    assert ours.num_classes == 2
    assert "2 classes by the sigmoid of one score" in opened.taken_for()
    x = picture(1, 3, 32, 48)
    with torch.no_grad():
        score, scores = theirs(x), ours(x)
    torch.testing.assert_close(scores.softmax(1)[:, 1:], score.sigmoid())
    assert load_checkpoint(tmp_path / "smp.pth", num_classes=2).model.num_classes == 2
    with pytest.raises(InputError, match="weights for 2 classes, not for 1"):
        load_checkpoint(tmp_path / "smp.pth", num_classes=1)


def dense(inputs: int, outputs: int, rate: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate, bias=False)


@pytest.mark.parametrize(
    ("output_stride", "of_pyramid"), [(16, separable), (8, dense), (32, separable)]
)
def test_weights_of_smp_give_the_outputs_of_smps_layers(
    tmp_path: Path, torchvision: Any, output_stride: int, of_pyramid: Any
) -> None:
    theirs = randomise(Smp(torchvision, output_stride, of_pyramid))
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    opened = load_checkpoint(tmp_path / "smp.pth")
    assert opened.loaded.source == "smp"
    assert opened.model.config["model"] == "deeplab_v3plus_resnet18"
    ours = build("deeplab_v3plus_resnet18", 5, **_options(opened.model, output_stride))
    assert load_weights(ours.double().eval(), tmp_path / "smp.pth").skipped == ()
    for shape in ((1, 3, 64, 32), (2, 3, 33, 41)):
        x = picture(*shape)
        with torch.no_grad():
            assert_equal([ours(x)], [theirs(x)])


def _options(model: Any, output_stride: int) -> dict[str, Any]:
    return {"separable": model.config["separable"], "output_stride": output_stride}


@pytest.mark.parametrize(
    ("encoder", "options"),
    [
        ("resnet18", {"encoder_output_stride": 8, "decoder_aspp_separable": False}),
        ("resnet50", {}),
    ],
)
def test_smps_own_network_gives_its_outputs(
    tmp_path: Path, smp: Any, encoder: str, options: dict[str, Any]
) -> None:
    theirs = randomise(smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=3, **options))
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    found = load_checkpoint(tmp_path / "smp.pth").model
    assert found.config["model"] == f"deeplab_v3plus_{encoder}"
    ours = build(
        f"deeplab_v3plus_{encoder}",
        3,
        **_options(found, options.get("encoder_output_stride", 16)),
    )
    assert load_weights(ours.double().eval(), tmp_path / "smp.pth").skipped == ()
    assert_same_outputs(ours, theirs, (32, 48), (16, 16))


def test_smps_network_on_a_resnet_without_a_name_of_its_own_gives_its_outputs(
    tmp_path: Path, torchvision: Any
) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="smp is not installed")
    theirs = randomise(smp.DeepLabV3Plus("resnet34", encoder_weights=None, classes=3))
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours = load_checkpoint(tmp_path / "smp.pth").model.double()
    assert ours.config["backbone"] == "resnet34"
    x = picture(1, 3, 64, 32)
    with torch.no_grad():
        assert_equal([ours(x)], [theirs(x)])


@pytest.mark.parametrize(("output_stride", "size"), [(8, 5), (16, 3), (32, 2)])
@pytest.mark.parametrize("style", ["caffe", "torchvision", "smp"])
def test_the_last_map_has_the_output_stride(output_stride: int, size: int, style: str) -> None:
    model = build("deeplab_v2_resnet18", 2, output_stride=output_stride, style=style).eval()
    assert model.output_stride == output_stride
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 33, 33), upsample=False).shape[2:] == (size, size)


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_output_strides_share_their_weights_and_agree_where_nothing_strides(style: str) -> None:
    """A map at stride 8 holds that of stride 16 at every second place, if rates undo the stride."""
    models = [
        randomise(build("deeplab_v2_resnet18", 2, output_stride=s, style=style)) for s in (8, 16)
    ]
    models[1].load_state_dict(models[0].state_dict())
    x = picture(1, 3, 65, 65)
    with torch.no_grad():
        fine, coarse = (model.backbone(x) for model in models)
    if style == "torchvision":  # which keeps the rate before where the stride was
        assert_equal([fine[:, :, ::2, ::2]], [coarse])
    else:
        assert fine[:, :, ::2, ::2].shape == coarse.shape


@pytest.mark.parametrize("value", [4, "16", None, 8.5])
def test_another_output_stride_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, not"):
        build("deeplab_v2_resnet18", 2, output_stride=value)


def test_v3plus_trains_and_its_low_features_count() -> None:
    model = build("deeplab_v3plus_resnet18", 3).train()
    x = torch.randn(2, 3, 33, 33)
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        before = model(x)
        model.head.low.weight.zero_()
        assert not torch.equal(before, model(x))
