"""Encoders of timm as backbones: features are timm's, options and files as for all others."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from networks import picture, randomise
from tiny_training import SHORT, run, tiny_pictures
from torch import nn
from weights_files import assert_same_state, refused

from deeplab.errors import InputError
from deeplab.model import DeepLab, build
from deeplab.model.batch_norm import FrozenBatchNorm2d
from deeplab.training import setup
from deeplab.training.config import TrainConfig
from deeplab.training.losses import segmentation_loss
from deeplab.weights import load_model, load_weights, save_weights

TINY = "timm:test_resnet"  # 32 channels at stride 4, 96 at the last
OTHERS = ("timm:test_efficientnet", "timm:test_byobnet", "timm:test_nfnet", "timm:test_convnext")
FAMILIES = ("deeplab_v2", "deeplab_v3", "deeplab_v3plus")


def tiny(num_classes: int = 3, family: str = "deeplab_v3plus", **options: Any) -> Any:
    torch.manual_seed(0)
    return build(family, num_classes, **{"backbone": TINY, "output_stride": 16} | options).eval()


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", [TINY, *OTHERS])
def test_the_maps_are_those_of_timms_own_encoder(timm: Any, backbone: str, stride: int) -> None:
    model = randomise(tiny(backbone=backbone, output_stride=stride))
    body = model.backbone
    theirs = timm.create_model(
        backbone.removeprefix("timm:"), features_only=True, output_stride=stride
    )
    strides = theirs.feature_info.reduction()
    theirs = theirs.double().eval()
    # In full it has maps that ours does not compute: of those, weights of its own.
    theirs.load_state_dict(body.encoder.state_dict(), strict=False)
    x = picture(2, 3, 65, 97)
    with torch.no_grad():
        low, high = body.low_and_high(x)
        maps = theirs(x)
        assert torch.equal(low, maps[strides.index(4)])
        assert torch.equal(high, maps[-1])
        assert torch.equal(body(x), high)
    assert (low.shape[1], high.shape[1]) == (body.low_channels, body.out_channels)
    assert strides[-1] == stride == body.output_stride


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_sits_on_an_encoder_for_odd_sizes(timm: Any, family: str) -> None:
    model = tiny(family=family, output_stride=8)
    apart = 4 if family == "deeplab_v3plus" else 8
    x = torch.randn(1, 3, 33, 41)
    assert model(x).shape == (1, 3, 33, 41)
    assert model(x, upsample=False).shape[2:] == (32 // apart + 1, 40 // apart + 1)
    assert model.style == "torchvision"
    assert not model.aligned


def test_pictures_are_whitened_as_the_encoders_weights_have_it(timm: Any) -> None:
    assert timm.get_pretrained_cfg("test_resnet").mean == (0.5, 0.5, 0.5)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    expected = torch.tensor((image / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    torch.testing.assert_close(tiny().preprocess(image).double(), expected, rtol=0, atol=1e-6)
    given = tiny(mean=(1.0, 2.0, 3.0), deviation=(4.0, 4.0, 4.0))
    assert given.config["mean"] == [1.0, 2.0, 3.0]


def test_other_bands_need_a_mean_of_their_own(timm: Any) -> None:
    with pytest.raises(ValueError, match="mean, deviation must be given where in_channels is 5"):
        tiny(in_channels=5)
    model = tiny(in_channels=5, mean=[0.0] * 5, deviation=[1.0] * 5)
    assert model(torch.randn(1, 5, 33, 33)).shape == (1, 3, 33, 33)


@pytest.mark.parametrize("frozen_bn", [False, True])
@pytest.mark.parametrize("backbone", [TINY, "timm:test_efficientnet"])
def test_frozen_norms_are_constants_and_compute_the_same(
    timm: Any, backbone: str, frozen_bn: bool
) -> None:
    """Those of the second end in an activation."""
    trained = randomise(tiny(backbone=backbone))
    model = tiny(backbone=backbone, frozen_bn=frozen_bn).double()
    model.load_state_dict(trained.state_dict())
    x = picture(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(model(x), trained(x))
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    frozen = [m for m in model.backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert bool(frozen) is frozen_bn
    assert bool(norms) is not frozen_bn
    model.train()
    before = {n: b.clone() for n, b in model.backbone.named_buffers()}
    model.backbone(x)
    same = [torch.equal(b, before[n]) for n, b in model.backbone.named_buffers()]
    assert all(same) is frozen_bn


def test_freezing_keeps_what_timm_starts_norms_with(timm: Any) -> None:
    """The last of a block starts at 0."""
    torch.manual_seed(0)
    trained = tiny().backbone.state_dict()
    frozen = tiny(frozen_bn=True).backbone.state_dict()
    assert any(not t.any() for n, t in trained.items() if n.endswith("weight"))
    assert all(torch.equal(frozen[name], tensor) for name, tensor in trained.items())


@pytest.mark.parametrize("backbone", [TINY, *OTHERS])
def test_every_trained_parameter_is_in_one_group(timm: Any, backbone: str) -> None:
    model = tiny(backbone=backbone)
    groups = {group["name"]: group["params"] for group in model.param_groups(0.1)}
    listed = [id(p) for params in groups.values() for p in params]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    of_layers = {id(layer.weight) for layer in layers if layer is not model.head.classifier}
    assert of_layers == {id(p) for p in groups["body_weight"]}  # nothing else decays
    biases = {id(layer.bias) for layer in layers if layer.bias is not None}
    of_groups = groups.get("body_bias", []) + groups["head_bias"]
    assert {id(p) for p in of_groups} == biases


def test_a_frozen_encoder_leaves_its_norms_out_of_the_groups(timm: Any) -> None:
    model = tiny(frozen_bn=True, family="deeplab_v2")
    assert "body_norm" not in {group["name"] for group in model.param_groups(0.1)}


def test_it_trains(timm: Any) -> None:
    model = tiny().train()
    model(torch.randn(2, 3, 33, 33)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_is_exported_whole(timm: Any) -> None:
    model, x = tiny(family="deeplab_v3"), torch.randn(1, 3, 65, 97)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


def test_a_run_trains_it_and_writes_weights_that_make_it_again(timm: Any, tmp_path: Path) -> None:
    options = {"backbone": TINY, "output_stride": 16}
    config = replace(SHORT, model="deeplab_v3plus", model_options=options)
    result = run(config, tiny_pictures(), tmp_path / "run.safetensors")
    assert result.steps == config.steps
    loaded = load_model(tmp_path / "run.safetensors")
    assert loaded.config["backbone"] == TINY
    assert loaded.config["mean"] == [127.5] * 3


def test_a_timm_that_cannot_be_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        ImportError, match=r"\(operator torchvision::nms .*; install the build of torchvision"
    ):
        tiny()


# Files


@pytest.mark.parametrize("backbone", [TINY, "timm:test_efficientnet.r160_in1k"])
def test_a_weights_file_gives_the_model_again(timm: Any, tmp_path: Path, backbone: str) -> None:
    model = tiny(backbone=backbone, separable=False)
    save_weights(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert_same_state(loaded, model)
    other = tiny(backbone=backbone, separable=False)
    other.backbone.encoder.requires_grad_(False)
    assert load_weights(other, tmp_path / "model.safetensors").skipped == ()


def test_constants_that_timm_does_not_store_are_there_in_a_loaded_model(
    timm: Any, tmp_path: Path
) -> None:
    model = tiny(backbone="timm:resnetblur18", family="deeplab_v2")
    named = dict(model.named_buffers())
    assert not named.keys() <= model.state_dict().keys()
    save_weights(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, named[name]), name
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_a_saved_folder_gives_the_model_and_its_preprocessing(timm: Any, tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    again = DeepLab.from_pretrained(tmp_path)
    assert again.config == model.config
    assert_same_state(again, model)
    how = json.loads((tmp_path / "config.json").read_text())["preprocessing"]
    assert (how["mean"], how["deviation"]) == ([127.5] * 3, [127.5] * 3)


def test_weights_of_timm_fit_under_timms_names(timm: Any) -> None:
    model = tiny(backbone="timm:test_efficientnet")
    classifier = timm.create_model("test_efficientnet")
    missing, unexpected = model.backbone.encoder.load_state_dict(
        classifier.state_dict(), strict=False
    )
    assert missing == []
    assert {name.partition(".")[0] for name in unexpected} == {"conv_head", "bn2", "classifier"}


def test_files_of_another_encoder_are_refused(timm: Any, tmp_path: Path) -> None:
    save_weights(tiny(), tmp_path / "model.safetensors")
    other = tiny(backbone="timm:test_efficientnet")
    said = refused(load_weights, other, tmp_path / "model.safetensors")
    assert f"has backbone {TINY}, this model has backbone timm:test_efficientnet" in said


# What is refused


@pytest.mark.parametrize(
    ("backbone", "stride", "said"),
    [
        ("timm:dla34", 8, "output_stride must be 32 for timm:dla34, not 8"),
        ("timm:test_vit", 16, "backbone must be an encoder that gives maps .* not timm:test_vit"),
        ("timm:swin_tiny_patch4_window7_224", 32, "backbone must be an encoder that gives maps of"),
        ("timm:no_such", 32, "backbone must be timm: and a name of timm.list_models.*no_such"),
        ("timm:", 32, "backbone must be timm: and a name of timm.list_models"),
        ("timm:hf-hub:timm/resnet18", 32, "backbone must be timm: and a name of"),
        ("timm:local-dir:/tmp", 32, "backbone must be timm: and a name of"),
    ],
)
def test_encoders_without_these_maps_and_unknown_names_are_refused(
    timm: Any, backbone: str, stride: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        tiny(backbone=backbone, output_stride=stride)


def test_the_style_is_one(timm: Any) -> None:
    with pytest.raises(ValueError, match="style must be torchvision for timm:test_resnet, not smp"):
        tiny(style="smp")


def test_without_timm_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    said = r"backbone timm:test_resnet needs timm: pip install 'deeplab-triton\[timm\]'"
    with pytest.raises(ImportError, match=said):
        tiny()
    config = TrainConfig(model="deeplab_v3", model_options={"backbone": TINY})
    with pytest.raises(InputError, match=f"model_options: {said}"):
        setup._make_model(config, 3, {}, SimpleNamespace(), resumed=True)  # type: ignore[arg-type]
    save_weights(build("deeplab_v2_small", 2), tmp_path / "model.safetensors")
    about = {"model": "deeplab_v3", "num_classes": 2, "options": {"backbone": TINY}}
    weights = importlib.import_module("deeplab.weights.file")
    with pytest.raises(InputError, match=said):
        weights._build(about, tmp_path / "model.safetensors")


def test_layers_that_torch_cannot_synchronise_are_not_synchronised(timm: Any) -> None:
    """nn.SyncBatchNorm in their place would leave out their activation."""
    backbone = "timm:test_efficientnet"
    config = TrainConfig(model="deeplab_v3", model_options={"backbone": backbone}, sync_bn=True)
    said = f"sync_bn must be false for {backbone}, whose layers BatchNormAct2d cannot be synchro"
    with pytest.raises(InputError, match=said):
        setup.check_sync_bn(config, tiny(backbone=backbone))
    for other in (tiny(backbone=backbone, frozen_bn=True), tiny()):
        setup.check_sync_bn(config, other)


def test_the_loss_is_on_the_grid_of_the_scores_only_where_an_encoder_has_them(timm: Any) -> None:
    """convnext's stem gives k for a side of 8k + 1."""
    options = {"backbone": "timm:test_convnext", "output_stride": 8}
    config = TrainConfig(model="deeplab_v3", model_options=options, loss_stride=8, crop=65)
    model = tiny(family="deeplab_v3", **options)
    said = "loss_stride must be 1 to train timm:test_convnext, which gives 8 scores .* 65 pixels"
    with pytest.raises(InputError, match=said):
        setup.check_grid(config, model)
    setup.check_grid(replace(config, loss_stride=1), model)
    model.set_scales((1.0, 0.5))
    setup.check_grid(replace(config, loss_stride=1), model)
    resnet = tiny(family="deeplab_v3", output_stride=8)
    setup.check_grid(config, resnet)
    rgb, labels = torch.rand(2, 3, 65, 65) * 255, torch.randint(0, 3, (2, 65, 65))
    assert segmentation_loss(resnet.train(), rgb, labels, 8).isfinite()


def test_weights_for_rgb_are_adapted_to_an_encoder_of_other_bands(
    timm: Any, tmp_path: Path
) -> None:
    save_weights(tiny(), tmp_path / "model.safetensors")
    other = tiny(in_channels=6, mean=[0.0] * 6, deviation=[1.0] * 6)
    with pytest.warns(UserWarning, match="adapted to 6 bands|trained with mean"):
        load_weights(other, tmp_path / "model.safetensors")
    first, *_ = other.backbone.encoder.parameters()
    theirs, *_ = tiny().backbone.encoder.parameters()
    torch.testing.assert_close(first, torch.cat([theirs, theirs], 1) / 2)
