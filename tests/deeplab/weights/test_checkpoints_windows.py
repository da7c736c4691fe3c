"""Rates, strides and poolings that a .caffemodel says: no shape tells them, and they must agree."""

import pytest
import torch
from checkpoints import (
    BLOCKS,
    caffe_v2,
    caffemodel,
    field,
    resnet_windows,
    small_network,
    varint,
    vgg_windows,
)

from deeplab.errors import InputError
from deeplab.model import build
from deeplab.weights import caffemodel as reader
from deeplab.weights import load_weights, loading

BRANCHES = {f"fc6_{i}": (3, rate) for i, rate in enumerate((6, 12, 18, 24), 1)}
SMALL = {f"fc6_{i}": (3, rate) for i, rate in enumerate((2, 4, 8, 12), 1)}
SMALL_WINDOWS = {name: (3, 1, rate, rate) for name, (_kernel, rate) in SMALL.items()}
ASPP_L = {f"fc1_voc12_c{i}": rate for i, rate in enumerate((6, 12, 18, 24))}
RELEASED = {  # in each: what the authors' network of that name has
    "deeplab_v1_largefov": vgg_windows({"fc6": (3, 12)}, pool5a=True),
    "deeplab_v1_msc": vgg_windows({"fc6": (4, 4)}, pool5a=False),
    "deeplab_v1_msc_largefov": vgg_windows({"fc6": (3, 12)}, pool5a=True),
    "deeplab_v2_vgg16_largefov": vgg_windows({"fc6": (3, 12)}, pool5a=False),
    "deeplab_v2_vgg16_aspp_s": vgg_windows(SMALL, pool5a=False),
    "deeplab_v2_vgg16": vgg_windows(BRANCHES, pool5a=False),
    "deeplab_v2_resnet50": resnet_windows((3, 4, 6, 3), ASPP_L),
}


def check(path, name, windows, *, old=False, taken=None, **options):
    """Hold a file of these windows and no weights against the model, all of which it would fill."""
    path.write_bytes(caffemodel({}, old, windows))
    with torch.device("meta"):
        model = build(name, **options)
    filled = model.state_dict() if taken is None else taken
    loading._check_windows(model, reader.windows(path), filled, path)


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
def test_every_length_is_read_from_either_form(path, old):
    path.write_bytes(caffemodel({}, old, RELEASED["deeplab_v1_largefov"]))
    found = reader.windows(path)
    assert found["conv5_1"] == reader.Window(3, 1, 2, rate=2)
    assert found["fc6"] == reader.Window(3, 1, 12, rate=12)
    assert found["pool3"] == reader.Window(3, 2, 1)
    assert "data" not in found


@pytest.mark.parametrize("switch", [0, 1])
def test_the_switch_that_today_has_the_number_of_hole_is_no_rate(path, switch):
    said = {4: 3, 17: switch}
    content = b"".join(varint(number << 3) + varint(value) for number, value in said.items())
    path.write_bytes(field(100, field(1, b"conv1_1") + field(106, content)))
    assert reader.windows(path) == {"conv1_1": reader.Window(3, 1, 0, rate=1)}


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_networks_move_as_the_models_do(path, name, old):
    check(path, name, RELEASED[name], old=old)


def changed(name, **windows):
    return {n: w for n, w in (RELEASED[name] | windows).items() if w is not None}


@pytest.mark.parametrize("old", [False, True], ids=["layer", "layers"])
@pytest.mark.parametrize(
    ("name", "of_file", "said"),
    [
        ("deeplab_v1_largefov", {"fc6": (3, 1, 4, 4)}, "fc6 has rate 4 instead of 12"),
        ("deeplab_v1_largefov", {"fc6": (3, 1, 1, 1)}, "fc6 has rate 1 instead of 12"),
        ("deeplab_v1_largefov", {"fc6": (3, 1, 0, 12)}, "fc6 has padding 0 instead of 12"),
        ("deeplab_v1_largefov", {"conv5_2": (3, 1, 1, 1)}, "conv5_2 has rate 1 instead of 2"),
        ("deeplab_v1_largefov", {"pool2": (2, 2, 1, 1)}, "pool2 has kernel 2 instead of 3"),
        ("deeplab_v1_largefov", {"pool4": (3, 2, 1, 1)}, "pool4 has stride 2 instead of 1"),
        ("deeplab_v1_largefov", {"pool5a": None}, "it has no pool5a"),
        ("deeplab_v2_vgg16_largefov", {"pool5a": (3, 1, 1, 1)}, "it has pool5a, and this model"),
        ("deeplab_v2_vgg16", SMALL_WINDOWS, "fc6_1 has rate 2 instead of 6, fc6_2 has rate 4 inst"),
        ("deeplab_v2_resnet50", {"res5b_branch2b": (3, 1, 8, 8)}, "has rate 8 instead of 4"),
        ("deeplab_v2_resnet50", {"res4a_branch2a": (1, 2, 0, 1)}, "has stride 2 instead of 1"),
        ("deeplab_v2_resnet50", {"fc1_voc12_c3": (3, 1, 12, 12)}, "c3 has rate 12 instead of 24"),
    ],
)
def test_a_network_that_moves_otherwise_is_refused_with_both_values(path, name, of_file, said, old):
    with pytest.raises(InputError) as caught:
        check(path, name, changed(name, **of_file), old=old)
    assert str(caught.value).startswith(f"{path}: of another network than {name}")
    assert said in str(caught.value)


def test_copies_for_other_scales_hide_no_difference(path):
    """Of the released network of three scales each layer comes three times."""
    once = RELEASED["deeplab_v2_resnet50"]
    copies = {}
    for name, window in once.items():
        for scale in ("res05", "res075"):
            at = name.find("_c") if name.startswith("fc1") else len(name)
            copies[f"{name[:at]}_{scale}{name[at:]}"] = window
    assert "fc1_voc12_res05_c0" in copies
    assert "res5c_branch2b_res075" in copies
    check(path, "deeplab_v2_resnet50", once | copies)
    with pytest.raises(InputError, match="fc1_voc12_c0 has rate 3 instead of 6;"):
        check(path, "deeplab_v2_resnet50", once | copies | {"fc1_voc12_c0": (3, 1, 3, 3)})


def test_the_authors_network_of_2x2_poolings_is_not_taken_for_ours(path):
    """The first of DeepLab v1, whose map lies beside that of the others by a pixel."""
    pools = {f"pool{i}": (2, 2 if i < 4 else 1, int(i < 4), 1) for i in range(1, 5)}
    with pytest.raises(InputError, match="pool1 has kernel 2 instead of 3, pool2 has kernel"):
        check(path, "deeplab_v1_4x4", RELEASED["deeplab_v1_msc"] | pools)


def test_a_model_with_the_rates_of_the_file_is_filled(path):
    check(path, "deeplab_v2_vgg16", RELEASED["deeplab_v2_vgg16_aspp_s"], rates=(2, 4, 8, 12))


def test_a_classifiers_body_gets_its_rates_by_being_loaded(path):
    flat = {
        n: (k, s, (k - 1) // 2, 1) for n, (k, s, _p, _r) in RELEASED["deeplab_v2_vgg16"].items()
    }
    check(path, "deeplab_v2_vgg16", flat | {"pool1": (2, 2, 0, 1), "fc6_1": (3, 1, 4, 4)})


def test_a_body_to_start_from_may_come_from_another_network(path):
    with torch.device("meta"):
        body = [n for n in build("deeplab_v2_vgg16").state_dict() if n.startswith("backbone.")]
    check(path, "deeplab_v2_vgg16", RELEASED["deeplab_v1_msc"], taken=body)


def test_the_taps_of_msc_may_stride_as_in_caffes_test_network(path):
    taps = {"data_conv": (3, 1, 1, 1), "pool1_conv": (3, 1, 1, 1)}
    check(path, "deeplab_v1_msc", RELEASED["deeplab_v1_msc"] | taps)


def test_load_weights_refuses_them_and_leaves_the_model_as_it_was(path):
    theirs, ours = small_network(1), small_network(2)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    rates = {f"fc1_voc12_c{i}": rate for i, rate in enumerate((1, 12, 3, 4))}
    layers, windows = caffe_v2(theirs), resnet_windows(BLOCKS, rates)
    path.write_bytes(caffemodel(layers, windows=windows))
    with pytest.raises(InputError, match="fc1_voc12_c1 has rate 12 instead of 2;"):
        load_weights(ours, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    path.write_bytes(caffemodel(layers, windows=windows | {"fc1_voc12_c1": (3, 1, 2, 2)}))
    assert load_weights(ours, path).skipped == ()
