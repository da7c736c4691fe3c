"""Other projects' checkpoints: each layout gives the same network, a misfit one clear error."""

import pytest
import torch
from checkpoints import (
    caffe_resnet,
    caffe_v2,
    caffemodel,
    filled,
    isht7,
    kazuto1011,
    kazuto1011_name,
    output,
    refused,
    renamed,
    small_network,
)
from networks import assert_same_outputs, randomise

from deeplab.errors import InputError
from deeplab.model import build
from deeplab.weights import Loaded, load_model, load_weights, loading, names, save_weights
from deeplab.weights import caffemodel as reader
from deeplab.weights.sources import read_checkpoint

# Each layout


@pytest.mark.processors
@pytest.mark.parametrize(
    ("old", "letters"),
    [(False, True), (True, True), (False, False)],
    ids=["layer", "layers", "numbered blocks, as of ResNet-101"],
)
def test_a_caffemodel_gives_the_same_network(theirs, path, old, letters):
    ours, loaded = filled(path, caffemodel(caffe_v2(theirs, letters=letters), old))
    assert loaded.source == "caffemodel"
    assert loaded.skipped == ()
    # f * mean / f is not mean to the last bit.
    torch.testing.assert_close(output(ours), output(theirs), rtol=1e-5, atol=1e-5)


def test_caffe_copies_for_other_scales_are_left_out_and_said(theirs, path):
    layers = caffe_v2(theirs)
    copies = {f"{name}_res075": [torch.zeros(1)] for name in layers if "fc1" not in name}
    copies["fc1_voc12_res05_c0"] = [torch.zeros(1), torch.zeros(1)]
    _, loaded = filled(path, caffemodel(layers | copies))
    assert set(loaded.dropped) == set(copies)


@pytest.mark.processors
def test_a_bias_in_front_of_a_batch_normalisation_goes_into_its_mean(theirs, path):
    layers = caffe_v2(theirs)
    bias = torch.linspace(-1, 1, 4)
    layers["conv1"].append(bias)
    ours, _ = filled(path, caffemodel(layers))
    mean = theirs.backbone.bn1.running_mean - bias
    torch.testing.assert_close(ours.backbone.bn1.running_mean, mean)


@pytest.mark.processors
@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 999.98])
def test_statistics_are_divided_by_their_factor(path, old, factor):
    ones = torch.ones(4)
    kept = factor or 1.0
    blobs = [2 * kept * ones, 3 * kept * ones, torch.tensor([factor])]
    path.write_bytes(caffemodel({"bn_conv1": blobs}, old))
    found = names.from_caffe(reader.read(path)).tensors
    torch.testing.assert_close(found["backbone.bn1.running_mean"], 2 * ones)
    torch.testing.assert_close(found["backbone.bn1.running_var"], 3 * ones)


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", ["deeplab_v1_largefov", "deeplab_v2_vgg16"])
def test_every_layer_of_vgg_in_caffe_finds_its_place(name, old, path):
    """One number for each output, so that the file stays small; shapes are held elsewhere."""
    with torch.device("meta"):
        model = build(name)
    expected, count = model.state_dict(), len(model.config["rates"])
    numbered = [""] if count == 1 else [f"_{i}" for i in range(1, count + 1)]
    convolutions = {n.split(".")[1] for n in expected if n.startswith("backbone.")}
    layers = {conv: [torch.rand(1, 1, 1, 1), torch.rand(1)] for conv in convolutions}
    heads = {"fc6": "head.fc6", "fc7": "head.fc7", "fc8_voc12": "head.classifier"}
    for head in heads:
        for k, tail in enumerate(numbered):
            layers[head + tail] = [torch.full((2, 1, 1, 1), float(k)), torch.full((2,), float(k))]
    path.write_bytes(caffemodel(layers, old))
    found = names.from_caffe(reader.read(path))
    assert found.tensors.keys() == expected.keys()
    assert not found.unknown
    in_order = torch.arange(count).repeat_interleave(2).float()
    for layer in heads.values():
        assert torch.equal(found.tensors[f"{layer}.bias"], in_order)
        assert torch.equal(found.tensors[f"{layer}.weight"].flatten(), in_order)


@pytest.mark.processors
def test_fully_connected_layers_of_vgg_become_convolutions_in_both_forms():
    weight = torch.rand(6, 512 * 49, dtype=torch.float64)  # sums of 25,088 terms
    bias, inner = torch.rand(6, dtype=torch.float64), torch.rand(6, 6, dtype=torch.float64)
    for lead in ((), (1, 1)):  # files before 2014-12 have four sizes
        fc6, fc7 = weight.view(*lead, *weight.shape), inner.view(*lead, *inner.shape)
        layers = {"fc6": [fc6, bias], "fc7": [fc7, bias]}
        found = names.from_caffe(layers).tensors
        # y = W x on the flattened 512 x 7 x 7 map is a 7x7 convolution.
        x = torch.rand(1, 512, 7, 7, dtype=torch.float64)
        y = torch.nn.functional.conv2d(x, found["head.fc6.weight"], found["head.fc6.bias"])
        torch.testing.assert_close(y.flatten(), weight @ x.flatten() + bias, rtol=1e-12, atol=0)
        assert found["head.fc7.weight"].shape == (6, 6, 1, 1)


@pytest.mark.processors
@pytest.mark.parametrize(
    ("prefix", "aspp"),
    [("base.", "aspp.c"), ("scale.", "aspp.stages.c"), ("module.base.", "aspp.c")],
)
def test_a_checkpoint_of_kazuto1011_gives_the_same_network(theirs, path, prefix, aspp):
    ours, loaded = filled(path, kazuto1011(theirs, prefix, aspp))
    assert loaded == Loaded(
        "kazuto1011",
        tuple(n for n in ours.state_dict() if not n.endswith("num_batches_tracked")),
        (),
        {n.removeprefix("module."): "counter" for n in kazuto1011(theirs, prefix) if "num_b" in n},
        (1.0, 0.75, 0.5),
        "torch",
    )
    assert torch.equal(output(ours), output(theirs))


@pytest.mark.processors
def test_the_coco_weights_of_kazuto1011_have_a_1x1_classifier_and_no_prefix(path):
    theirs = small_network(1, head="pointwise")
    state = renamed(theirs.state_dict(), kazuto1011_name)
    for kind in ("weight", "bias"):
        state[f"fc.{kind}"] = theirs.state_dict()[f"head.classifier.{kind}"]
    ours, loaded = filled(path, state, head="pointwise")
    assert loaded.skipped == ()
    assert torch.equal(output(ours), output(theirs))
    with pytest.warns(UserWarning, match=r"no weights for head.classifier.weight, head"):
        skipped = load_weights(small_network(2), path).skipped  # a pyramid: its head starts afresh
    assert skipped == ("head.classifier.weight", "head.classifier.bias")


@pytest.mark.processors
def test_a_checkpoint_of_isht7_gives_the_same_network(theirs, path):
    ours, loaded = filled(path, {"state_dict": isht7(theirs)})
    assert loaded.source == "isht7"
    assert torch.equal(output(ours), output(theirs))


def test_torchvision_imagenet_weights_fill_the_body_and_leave_the_head(path, torchvision):
    body = torchvision.resnet.resnet18(weights=None)
    torch.save(body.state_dict(), path)
    ours = build("deeplab_v2_resnet18", num_classes=5, style="torchvision").eval()
    head = ours.head.classifier.weight.clone()
    with pytest.warns(UserWarning, match=r"stay as they are; train them"):
        loaded = load_weights(ours, path)
    assert loaded.source == "torchvision"
    assert loaded.skipped == ("head.classifier.weight", "head.classifier.bias")
    assert torch.equal(ours.head.classifier.weight, head)
    state = body.state_dict()
    for name, tensor in ours.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(
    ("name", "made_by"),
    [
        pytest.param("deeplab_v3_resnet50", "deeplabv3_resnet50", marks=pytest.mark.slow),
        ("deeplab_v3_mobilenet", "deeplabv3_mobilenet_v3_large"),
    ],
)
def test_torchvisions_deeplabv3_gives_torchvisions_output(path, torchvision, name, made_by):
    make = getattr(torchvision.deeplabv3, made_by)
    theirs = randomise(make(weights=None, weights_backbone=None, num_classes=7, aux_loss=True))
    torch.save(theirs.state_dict(), path)
    ours = build(name, num_classes=7).double().eval()
    loaded = load_weights(ours, path)
    assert loaded.skipped == ()
    assert "auxiliary classifier" in loaded.dropped.values()
    assert_same_outputs(ours, theirs, (33, 41), (32, 47), (1, 7))


def test_every_tensor_of_torchvisions_vgg16_finds_its_place(torchvision):
    with torch.device("meta"):
        theirs = torchvision.vgg.vgg16(weights=None).state_dict()
        ours = build("deeplab_v1_7x7", num_classes=1000, style="torchvision").state_dict()
    found = names.from_torchvision(theirs)
    assert not found.unknown
    assert {n: t.shape for n, t in found.tensors.items()} == {n: t.shape for n, t in ours.items()}


@pytest.mark.parametrize("name", ["deeplab_v2_resnet101", "deeplab_v2_resnet50"])
def test_every_tensor_of_the_real_networks_has_a_name_in_caffe(name):
    with torch.device("meta"):
        state = build(name).state_dict()
    blocks = {"deeplab_v2_resnet101": (3, 4, 23, 3), "deeplab_v2_resnet50": (3, 4, 6, 3)}[name]
    one = {n: torch.ones(1) for n in state}
    layers = caffe_resnet(one, blocks, letters=name.endswith("50"))
    layers |= {f"fc1_voc12_c{i}": [torch.ones(1), torch.ones(1)] for i in range(4)}
    if name.endswith("101"):  # as the released file is: res2 and res5 have letters
        layers = {n.replace("2b1", "2b").replace("2b2", "2c"): v for n, v in layers.items()}
        layers = {n.replace("5b1", "5b").replace("5b2", "5c"): v for n, v in layers.items()}
    found = names.from_caffe(layers)
    assert not found.unknown
    wanted = {n for n in state if not n.endswith("num_batches_tracked")}
    assert found.tensors.keys() == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_is_converted_to_the_models(theirs, path, dtype):
    state = {n: t.to(dtype) if t.ndim else t for n, t in kazuto1011(theirs).items()}
    ours, loaded = filled(path, state)
    assert loaded.skipped == ()
    for name, tensor in ours.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, theirs.state_dict()[name].to(dtype).float()), name
    half = small_network(2).bfloat16()
    load_weights(half, path)
    assert half.backbone.conv1.weight.dtype == torch.bfloat16


# Body and head


def test_a_head_for_other_classes_stays_and_is_named(theirs, path):
    torch.save(kazuto1011(theirs), path)
    ours = small_network(2, classes=5)
    before = ours.head.classifier.weight.clone()
    with pytest.warns(UserWarning, match=r"head.classifier.weight, head.classifier.bias of this"):
        loaded = load_weights(ours, path)
    assert loaded.skipped == ("head.classifier.weight", "head.classifier.bias")
    left_out = {name for name, why in loaded.dropped.items() if why.startswith("of a head")}
    assert left_out == set(loaded.skipped)
    assert torch.equal(ours.head.classifier.weight, before)
    assert torch.equal(ours.backbone.conv1.weight, theirs.backbone.conv1.weight)


def test_one_branch_for_many_classes_is_not_taken_for_many_branches(theirs, path):
    """As many rows, and another network."""
    layers = {n: blobs for n, blobs in caffe_v2(theirs).items() if not n.startswith("fc1")}
    layers["fc1_voc12_c0"] = [theirs.head.classifier.weight, theirs.head.classifier.bias]
    with pytest.warns(UserWarning, match=r"head.classifier.weight, head.classifier.bias of this"):
        filled(path, caffemodel(layers))


def test_our_own_file_for_other_classes_gives_its_body(tmp_path):
    path = tmp_path / "own.safetensors"
    save_weights(build("deeplab_v2_small", num_classes=3), path)
    ours = build("deeplab_v2_small", num_classes=4)
    with pytest.warns(UserWarning, match="head.classifier.weight, head.classifier.bias"):
        loaded = load_weights(ours, path)
    assert loaded.source == "safetensors"
    assert loaded.skipped == ("head.classifier.weight", "head.classifier.bias")
    assert torch.equal(ours.backbone.conv1.weight, load_model(path).backbone.conv1.weight)


def test_layers_behind_one_that_does_not_fit_stay_too():
    """fc7 was trained on what fc6 gave."""
    with torch.device("meta"):
        model = build("deeplab_v1_4x4", num_classes=2)
        sizes = {"weight": (4096, 512, 7, 7), "bias": (4096,)}
        other = {f"head.fc6.{kind}": torch.zeros(size) for kind, size in sizes.items()}
    state = model.state_dict()
    given = {n: t for n, t in state.items() if not n.startswith("head.fc6")} | other
    fitting, skipped = loading._head(model, state, names.Translated(given), None)
    assert fitting == []
    assert skipped == [n for n in state if n.startswith("head.")]


CONV, NORM = "base.layer1.conv1.conv.weight", "base.layer1.conv1.bn.weight"
NAN = "NaN or Inf in 1 tensors: "


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({CONV: None}, "1 missing: backbone.conv1.weight"),
        ({"base.extra": torch.ones(1)}, "1 unexpected: base.extra"),
        (
            {"base.layer5.block9.reduce.conv.weight": torch.ones(1)},
            "1 unexpected: backbone.layer4.8.conv1.weight",
        ),
        ({CONV: torch.ones(4, 3, 3, 3)}, "conv1.weight [4, 3, 3, 3] instead of [4, 3, 7, 7]"),
        ({CONV: torch.full((4, 3, 7, 7), torch.nan)}, NAN + "backbone.conv1.weight"),
        ({NORM: torch.ones(4, dtype=torch.int32)}, "not int32 in backbone.bn1.weight"),
        ({NORM: torch.full((4,), 1e300, dtype=torch.float64)}, NAN + "backbone.bn1.weight"),
        (
            {NORM: torch.ones(4).to(torch.float8_e4m3fn)},
            "must be floating point of 16 to 64 bits, not float8_e4m3fn in backbone.bn1.weight",
        ),
        (
            {f"base.aspp.c{i}.bias": None for i in range(4)},
            "of head.classifier it has head.classifier.weight but not head.classifier.bias",
        ),
    ],
)
def test_every_other_mismatch_is_listed_and_changes_nothing(theirs, path, changes, said):
    """changes: tensors by their names, None for one that is left out."""
    state = kazuto1011(theirs) | changes
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    assert said in refused(path)


def test_weights_of_the_other_style_are_refused(theirs, path, torchvision):
    torch.save(kazuto1011(theirs), path)
    said = refused(path, small_network(2, style="torchvision"))
    assert "weights of style caffe (kazuto1011)" in said
    assert 'build the model with style="caffe"' in said
    torch.save(torchvision.resnet.resnet18(weights=None).state_dict(), path)
    assert 'style="torchvision"' in refused(path, build("deeplab_v2_resnet18", num_classes=2))


def test_a_named_source_must_be_the_right_one(theirs, path):
    torch.save(kazuto1011(theirs), path)
    said = "must be a file of source isht7, but it is one of kazuto1011"
    assert said in refused(path, source="isht7")
    with pytest.raises(InputError, match="source must be one of auto, safetensors, caffemodel"):
        load_weights(small_network(2), path, "keras")


@pytest.mark.parametrize("kind", ["caffe", "kazuto1011", "torchvision"])
def test_the_style_follows_from_the_file(theirs, path, kind):
    if kind == "caffe":
        path.write_bytes(caffemodel(caffe_v2(theirs)))
    elif kind == "kazuto1011":
        torch.save(kazuto1011(theirs), path)
    else:
        torch.save({"layer1.0.conv1.weight": torch.ones(1)}, path)
    assert read_checkpoint(path).style == ("torchvision" if kind == "torchvision" else "caffe")
