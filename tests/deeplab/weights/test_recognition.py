"""Which model a foreign file is of: its tensors tell, or one line says what to choose."""

from pathlib import Path

import pytest
import torch
import weights_files
from checkpoints import (
    branches,
    caffe_resnet,
    caffemodel,
    isht7,
    kazuto1011,
    kazuto1011_name,
    renamed,
    resnet_windows,
    vgg_windows,
)
from safetensors.torch import save_file

from deeplab.errors import InputError
from deeplab.model import build
from deeplab.model import table as models
from deeplab.model.backbones import ResNetBody
from deeplab.model.table import ASPP_L, ASPP_S, V2
from deeplab.weights import load_checkpoint, recognition, save_weights
from deeplab.weights.caffemodel import Window
from deeplab.weights.names import TRANSLATIONS
from deeplab.weights.sources import Checkpoint

MSC = (1.0, 0.75, 0.5)


def shapes(name, classes, **options):
    """A state dict without memory."""
    with torch.device("meta"):
        return build(name, classes, **options)


def recognised(source, content, windows=None, model=None):
    windows = {name: Window(*numbers) for name, numbers in (windows or {}).items()}
    checkpoint = Checkpoint(Path("file"), source, TRANSLATIONS[source](content), windows)
    fit = recognition._fit(checkpoint, model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models.DeepLab, "to_empty", lambda self, device: self)  # no memory
        return recognition._built(checkpoint, fit).config


def refused(source, content, model=None):
    return weights_files.refused(recognised, source, content, None, model)


def assert_config(found, name, classes, scales=None, resize="caffe", **others):
    expected = shapes(name, classes, scales=scales, resize=resize, **others).config
    assert found == expected


@pytest.mark.parametrize("classes", [21, 182])
def test_his_releases_are_resnet_101_with_aspp_and_msc_by_areas(classes):
    model = shapes("deeplab_v2_resnet101", classes)
    found = recognised("kazuto1011", kazuto1011(model))
    assert_config(found, "deeplab_v2_resnet101", classes, scales=MSC, resize="torch")
    old = recognised("kazuto1011", kazuto1011(model, "scale.", "aspp.stages.c"))
    assert old == found
    alone = recognised("kazuto1011", kazuto1011(model, ""))
    assert_config(alone, "deeplab_v2_resnet101", classes)


def test_his_coco_weights_are_resnet_101_with_a_1x1_classifier_of_one_scale():
    model = shapes("deeplab_v2_resnet101_base", 91)
    state = renamed(model.state_dict(), kazuto1011_name)
    for kind in ("weight", "bias"):
        state[f"fc.{kind}"] = model.state_dict()[f"head.classifier.{kind}"]
    assert_config(recognised("kazuto1011", state), "deeplab_v2_resnet101_base", 91)


def test_isht7s_release_has_msc_as_caffe_resizes():
    found = recognised("isht7", isht7(shapes("deeplab_v2_resnet101", 21)))
    assert_config(found, "deeplab_v2_resnet101", 21, scales=MSC)


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        ("deeplab_v3_resnet101", "deeplabv3_resnet101"),
        ("deeplab_v3_resnet50", "deeplabv3_resnet50"),
        ("deeplab_v3_mobilenet", "deeplabv3_mobilenet_v3_large"),
    ],
)
def test_torchvisions_deeplabv3_has_its_own_style(name, made_by, torchvision):
    make = getattr(torchvision.deeplabv3, made_by)
    with torch.device("meta"):
        theirs = make(weights=None, weights_backbone=None, num_classes=7, aux_loss=True)
    found = recognised("torchvision", theirs.state_dict())
    assert_config(found, name, 7, style="torchvision")


# Caffe


def of_resnet101(head, rows=21):
    """Layers with one number each, but for the shapes that tell: of conv1, and of the head."""
    state = {n: torch.ones(1) for n in shapes("deeplab_v2_resnet101", 21).state_dict()}
    layers = caffe_resnet(state, (3, 4, 23, 3), letters=False)
    layers["conv1"] = [torch.ones(64, 3, 7, 7)]
    kernel = 1 if head == ["fc1_coco"] else 3
    weight = torch.empty(rows, 2048, kernel, kernel, device="meta")
    return layers | {name: [weight, torch.empty(rows, device="meta")] for name in head}


C0_TO_C3 = [f"fc1_voc12_c{i}" for i in range(4)]


def test_copies_for_other_scales_say_that_a_caffemodel_has_msc():
    layers = of_resnet101(C0_TO_C3)
    found = recognised("caffemodel", layers)
    assert_config(found, "deeplab_v2_resnet101", 21)
    for scales, tails in ((MSC, ("_res075", "_res05")), ((1.0, 0.5), ("_res05",))):
        copies = {f"conv1{tail}": [torch.ones(1)] for tail in tails}
        assert_config(recognised("caffemodel", layers | copies), "deeplab_v2_resnet101", 21, scales)


def test_a_coco_caffemodel_has_one_scale_and_its_own_classes():
    found = recognised("caffemodel", of_resnet101(["fc1_coco"], 91))
    assert_config(found, "deeplab_v2_resnet101_base", 91)


@pytest.mark.parametrize(
    ("rates", "name", "options"),
    [
        (ASPP_L, "deeplab_v2_resnet101", {}),
        (ASPP_S, "deeplab_v2_resnet101_aspp_s", {}),
        ((3, 6, 9, 12), "deeplab_v2_resnet101", {"rates": (3, 6, 9, 12)}),
        ((4, 8), "deeplab_v2_resnet101", {"rates": (4, 8)}),
    ],
)
def test_rates_that_a_caffemodel_says_are_the_models(rates, name, options):
    head = C0_TO_C3[: len(rates)]
    windows = resnet_windows((3, 4, 6, 3), dict(zip(head, rates, strict=True)))
    found = recognised("caffemodel", of_resnet101(head), windows)
    assert_config(found, name, 21, **options)


def of_vgg16(fc6, kernel=3, taps=()):
    width = 1024 if kernel == 3 else 4096
    sizes = {"fc6": (width, 512, kernel), "fc7": (width, width, 1), "fc8_voc12": (21, width, 1)}
    layers = {}
    for tail in fc6:
        for name, (rows, columns, side) in sizes.items():
            weight = torch.empty(rows, columns, side, side, device="meta")
            layers[name + tail] = [weight, torch.empty(rows, device="meta")]
    for tap, columns in taps:
        for kind, rows, inputs, side in (("conv", 128, columns, 3), ("fc", 128, 128, 1)):
            weight = torch.empty(rows, inputs, side, side, device="meta")
            layers[f"{tap}_{kind}"] = [weight, torch.empty(rows, device="meta")]
        weight = torch.empty(21, 128, 1, 1, device="meta")
        layers[f"{tap}_ms"] = [weight, torch.empty(21, device="meta")]
    return layers | {"conv1_1": [torch.ones(64, 3, 3, 3), torch.ones(64)]}


BRANCHES = ("_1", "_2", "_3", "_4")
TAPS = (("data", 3), ("pool1", 64), ("pool2", 128), ("pool3", 256), ("pool4", 512))


@pytest.mark.parametrize(
    ("name", "content", "windows", "options"),
    [
        ("deeplab_v1_largefov", of_vgg16([""]), vgg_windows({"fc6": (3, 12)}, True), {}),
        ("deeplab_v2_vgg16_largefov", of_vgg16([""]), vgg_windows({"fc6": (3, 12)}, False), {}),
        ("deeplab_v1_4x4", of_vgg16([""], 4), vgg_windows({"fc6": (4, 8)}, False), {"rates": (8,)}),
        ("deeplab_v1_7x7", of_vgg16([""], 7), vgg_windows({"fc6": (7, 4)}, False), {}),
        ("deeplab_v1_msc", of_vgg16([""], 4, TAPS), {}, {}),
        ("deeplab_v1_msc_largefov", of_vgg16([""], 3, TAPS), {}, {}),
        ("deeplab_v2_vgg16", of_vgg16(BRANCHES), {}, {}),
        (
            "deeplab_v2_vgg16_aspp_s",
            of_vgg16(BRANCHES),
            vgg_windows({f"fc6{b}": (3, r) for b, r in zip(BRANCHES, ASPP_S, strict=True)}, False),
            {},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_heads_of_vgg16_tell_which_they_are(name, content, windows, options):
    assert_config(recognised("caffemodel", content, windows), name, 21, **options)


def test_what_no_tensor_tells_apart_is_asked_for():
    said = refused("caffemodel", of_vgg16([""]))  # pool5a has no weights
    assert "fits deeplab_v1_largefov, deeplab_v2_vgg16_largefov, which" in said
    assert "--model" in said
    named = recognised("caffemodel", of_vgg16([""]), model="deeplab_v1_largefov")
    assert_config(named, "deeplab_v1_largefov", 21)
    own = shapes("deeplab_v2_resnet101", 21).state_dict()
    assert "deeplab_v2_resnet101_aspp_s, deeplab_v2_resnet101, which" in refused("state_dict", own)
    named = recognised("state_dict", own, model="deeplab_v2_resnet101_largefov")
    assert_config(named, "deeplab_v2_resnet101_largefov", 84)


# Files that make no model


def test_networks_for_whole_pictures_make_no_model(torchvision):
    with torch.device("meta"):
        resnet = torchvision.resnet.resnet101(weights=None).state_dict()
        vgg = torchvision.vgg.vgg16(weights=None).state_dict()
    old = {"fc8": [torch.ones(1, 1, 1000, 4096, device="meta"), torch.ones(1000)]}
    for source, content in (
        ("torchvision", resnet),
        ("torchvision", vgg),
        ("caffemodel", of_resnet101([]) | {"fc1000": [torch.ones(1000, 2048), torch.ones(1000)]}),
        ("caffemodel", of_vgg16([""]) | old),
        ("kazuto1011", {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}),
    ):
        for model in (None, "deeplab_v2_resnet101_base"):
            said = refused(source, content, model=model)
            assert "a classifier of whole pictures" in said
            assert "deeplab train --weights file" in said


def test_bodies_without_head_and_unknown_networks_are_described(torchvision):
    assert "has no weights for the head" in refused("caffemodel", of_resnet101([]))
    with torch.device("meta"):
        body = torchvision.resnet.resnet50(weights=None).state_dict()
        fcn = {f"backbone.{n}": t for n, t in body.items() if not n.startswith("fc.")}
        fcn["classifier.0.weight"] = torch.empty(512, 2048, 3, 3)
        fcn |= {f"classifier.4.{n}": t for n, t in torch.nn.Conv2d(512, 21, 1).state_dict().items()}
    said = refused("torchvision", fcn)
    assert "fits no model of this package: it holds a ResNet of 3, 4, 6, 3 bottleneck" in said
    model = shapes("deeplab_v2_resnet101", 21)
    said = refused("kazuto1011", kazuto1011(model), model="deeplab_v2_vgg16")
    assert "has no weights for deeplab_v2_vgg16: it holds a ResNet of 3, 4, 23, 3" in said
    assert "it fits deeplab_v2_resnet101, or train" in said
    three = {n: t for n, t in kazuto1011(model).items() if "aspp.c3" not in n}
    assert "fits no model" in refused("kazuto1011", three)


# Whole files


@pytest.fixture
def little(monkeypatch):
    """A line of the table that is quick to build, of another width than all others."""
    monkeypatch.setitem(models.MODELS, "little", V2.on(ResNetBody((2, 1, 3, 1), width=4)))


def random_little(classes=5):
    torch.manual_seed(1)
    model = build("little", classes).eval()
    torch.nn.init.uniform_(model.backbone.bn1.running_mean)
    return model


def test_any_file_gives_its_model_and_says_what_it_was_taken_for(little, tmp_path):
    theirs, x = random_little(), torch.randn(1, 3, 40, 33)
    path = tmp_path / "his.pth"
    torch.save(kazuto1011(theirs), path)
    opened = load_checkpoint(path)
    assert opened.taken_for() == (
        f"{path}: of kazuto1011/deeplab-pytorch, taken for little with 5 classes, rates 6, 12, 18, "
        "24, style caffe, MSC at 1, 0.75, 0.5, resize torch"
    )
    assert opened.metadata == {}
    assert not opened.model.training
    opened.model.set_scales(None)
    assert "one scale" in opened.taken_for()
    opened.model.resize = "caffe"
    assert torch.equal(opened.model(x), theirs(x))
    with pytest.raises(InputError, match="weights for 5 classes, not for 21; leave the number"):
        load_checkpoint(path, num_classes=21)
    with pytest.raises(InputError, match="--model unet: unknown; expected one of"):
        load_checkpoint(path, "unet")
    with pytest.raises(InputError, match="must be a file of source isht7"):
        load_checkpoint(path, source="isht7")


def test_a_caffemodel_gives_the_rates_that_it_says(little, tmp_path):
    theirs, path = random_little(), tmp_path / "net.caffemodel"
    rates = dict(zip(C0_TO_C3, (1, 2, 3, 4), strict=True))
    layers = caffe_resnet(theirs.state_dict(), (2, 1, 3, 1))
    pairs = branches(theirs.state_dict(), "head.classifier", 4)
    layers |= dict(zip(C0_TO_C3, pairs, strict=True))
    path.write_bytes(caffemodel(layers, windows=resnet_windows((2, 1, 3, 1), rates)))
    opened = load_checkpoint(path)
    assert opened.model.config["rates"] == [1, 2, 3, 4]
    assert opened.loaded.source == "caffemodel"
    assert torch.equal(opened.model.head.classifier.bias, theirs.head.classifier.bias)
    with pytest.raises(InputError, match="of another network than little"):
        load_checkpoint(path, "little")


def test_our_own_files_say_it_themselves_or_fit_one_model(little, tmp_path):
    theirs, path = random_little(), tmp_path / "w.safetensors"
    theirs.set_scales(MSC)
    save_weights(theirs, path, {"miou": 0.5})
    opened = load_checkpoint(path)
    assert (opened.taken_for(), opened.metadata["miou"]) == ("", 0.5)
    assert opened.model.config == theirs.config
    with pytest.raises(InputError, match=r"of little, not of --model deeplab_v2_small; leave out"):
        load_checkpoint(path, "deeplab_v2_small")
    save_file(theirs.state_dict(), path)
    opened = load_checkpoint(path)
    assert "without metadata, taken for little with 5 classes" in opened.taken_for()
    assert torch.equal(opened.model.head.classifier.bias, theirs.head.classifier.bias)
