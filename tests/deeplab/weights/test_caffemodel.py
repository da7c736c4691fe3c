"""The reader of .caffemodel files: every form of a blob, and no file that fills the memory."""

import struct

import pytest
import torch
from checkpoints import field, varint
from several_processes import Started
from weights_files import refused

from deeplab.model import build
from deeplab.weights import caffemodel as reader
from deeplab.weights import names

MB = 2**20
ONES = struct.pack("<3f", 1, 2, 3)
SHAPE_3 = field(7, field(1, varint(3)))


def layer(name, *contents):
    blobs = b"".join(field(7, content) for content in contents)
    return field(100, field(1, name.encode()) + blobs)


@pytest.mark.parametrize(
    "content",
    [
        field(5, ONES) + SHAPE_3,
        field(5, ONES[:4]) + field(5, ONES[4:]) + SHAPE_3,
        field(6, bytes(12)) + field(5, ONES) + SHAPE_3,
        field(8, struct.pack("<3d", 1, 2, 3)) + SHAPE_3,
        field(5, ONES) + b"\x08\x01\x10\x01\x18\x01\x20\x03",
        field(7, b"\x08\x03") + field(5, ONES),
    ],
    ids=["packed", "in two runs", "with diff", "double", "four sizes", "shape unpacked"],
)
def test_every_form_of_a_blob_gives_its_numbers(path, content):
    path.write_bytes(layer("a", content))
    (tensor,) = reader.read(path)["a"]
    assert tensor.dtype == torch.float32
    assert tensor.flatten().tolist() == [1, 2, 3]
    assert tensor.shape[-1] == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (layer("a", field(5, ONES[:-1]) + SHAPE_3), "do not fill the shape"),
        (layer("a", field(5, ONES[:5]) + field(5, ONES[5:]) + SHAPE_3), "half a number"),
        (layer("a", field(5, ONES) + field(7, field(1, varint(1) * 80))), "do not fill the shape"),
        (layer("a", field(5, ONES) + field(7, field(1, varint(2**64 - 3)))), "do not fill"),
        (layer("a", field(5, ONES) + SHAPE_3)[:-1], "reaches beyond its end"),
        (field(2, field(1, field(1, b"a") + field(50, ONES))), "upgrade_net_proto_binary"),
        (field(100, b"\x0b"), "begins no field"),
        (field(100, b"\x0a"), "ends within a field"),
        (b"\xff" * 11, "more than ten bytes"),
        (field(1, b"a net") + layer("data"), "no layer in it has any"),
        (b"", "no layer in it has any"),
        (field(100, field(1, b"\xff\xfe") + field(7, field(5, ONES) + SHAPE_3)), "name is no text"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, content, said):
    path.write_bytes(content)
    message = refused(reader.read, path)
    assert message.startswith(f"{path}: ")
    assert said in message


HOSTILE = {
    "layers": field(2, b"") * (2 * MB),
    "blobs": field(100, field(1, b"conv1") + field(7, b"") * (2 * MB)),
    "runs of numbers": layer("conv1", field(5, b"") * (2 * MB)),
    "axes": layer("conv1", field(7, field(1, bytes(4 * MB)))),
    "claimed length": b"\xa2\x06" + varint(2**40) + b"abc",
    "claimed shape": layer("conv1", field(7, field(1, varint(2**40)))),
}
MEASURE = """
import resource, sys
from pathlib import Path
from deeplab.errors import InputError
from deeplab.weights import caffemodel
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        caffemodel.read(path)
    except InputError:
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(path.name, (now - before) // 1024, sep=": ")
"""


def test_a_file_of_empty_messages_or_huge_claims_costs_no_memory(tmp_path):
    """Parsed whole, 4 MB of empty blobs take 140 MB and of empty layers all that there is."""
    for name, content in HOSTILE.items():
        (tmp_path / name).write_bytes(content)
    out, err = Started(("-c", MEASURE, str(tmp_path))).communicate()
    grown = dict(line.split(": ") for line in out.splitlines())
    assert grown.keys() == HOSTILE.keys(), err
    assert all(int(megabytes) < 40 for megabytes in grown.values()), grown


# What the names of the DeepLab networks mean


def weights_of(module):
    return [module.weight.detach(), module.bias.detach()]


def test_the_taps_of_msc_find_their_places(path):
    """Names of the released MSc prototxts: data_conv, data_fc, data_ms, pool1_conv, ..."""
    theirs = build("deeplab_v1_msc_largefov", num_classes=2)
    layers = {
        name: weights_of(module)
        for name, module in theirs.backbone.named_children()
        if name.startswith("conv")
    }
    head = {"fc6": "fc6", "fc7": "fc7", "classifier": "fc8_voc12"}
    layers |= {name: weights_of(getattr(theirs.head, ours)) for ours, name in head.items()}
    for ours, tap in theirs.taps.named_children():
        name = "data" if ours == "image" else ours
        layers[f"{name}_conv"] = weights_of(tap.conv1)
        layers[f"{name}_fc"] = weights_of(tap.conv2)
        layers[f"{name}_ms"] = weights_of(tap.classifier)
    found = names.from_caffe(layers)
    expected = theirs.state_dict()
    assert not found.unknown
    assert not found.dropped
    assert found.tensors.keys() == expected.keys()
    for name, tensor in found.tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_missing_branch_is_listed():
    pair = [torch.ones(2, 3, 3, 3), torch.ones(2)]
    found = names.from_caffe({"fc1_voc12_c0": pair, "fc1_voc12_c2": pair})
    assert "head.classifier.weight (only the branches 0, 2)" in found.unknown


def test_the_projections_of_old_files_of_kazuto1011_are_called_proj():
    one = torch.ones(1)
    found = names.from_kazuto1011(
        {
            "scale.layer3.block1.proj.conv.weight": one,
            "scale.layer3.block1.proj.bn.running_var": one,
        }
    )
    assert found.tensors.keys() == {
        "backbone.layer2.0.downsample.0.weight",
        "backbone.layer2.0.downsample.1.running_var",
    }
