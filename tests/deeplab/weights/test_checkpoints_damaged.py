"""Files that are no checkpoint, or a damaged or hostile one: one clear error, nothing runs."""

import contextlib
import gzip
import io
import pickle
import random
import re
import resource
import warnings
import zipfile

import pytest
import torch
from checkpoints import (
    CLASSES,
    caffe_v2,
    caffemodel,
    field,
    filled,
    isht7,
    kazuto1011,
    refused,
    small_network,
)
from PIL import Image
from weights_files import Dangerous

from deeplab.errors import InputError
from deeplab.weights import load_checkpoint, load_weights

MB = 2**20


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(path, tmp_path, zipped):
    marker = tmp_path / "executed"
    torch.save({"x": Dangerous(marker)}, path, _use_new_zipfile_serialization=zipped)
    assert "it holds more than tensors, which could run code" in refused(path)
    with path.open("wb") as file:
        pickle.dump(Dangerous(marker), file)
    refused(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds list, expected a state dict"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"some.weight": torch.ones(1)}, "of unknown origin, with tensors such as some.weight"),
        (
            {f"{wrapper}some.weight": torch.ones(1) for wrapper in ("module.", "model.net.", "")},
            "of unknown origin, with tensors such as module.some.weight, model.net.some.weight",
        ),
    ],
)
def test_a_checkpoint_that_is_no_known_state_dict_is_named(path, content, said):
    torch.save(content, path)
    assert said in refused(path)


def picture(form):
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, form)
    return content.getvalue()


def zipped(name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"weights")
    return content.getvalue()


NO_WEIGHTS = {
    "empty": (b"", "must be weights, not an empty file"),
    "jpeg": (picture("JPEG"), "must be weights, not a JPEG picture"),
    "png": (picture("PNG"), "must be weights, not a PNG picture"),
    "prototxt": (b'layer { name: "conv1" }\n' * 99, "must be weights, not a text; a .prototxt"),
    "letters of two bytes": ("network é ".encode() * 99, "must be weights, not a text"),
    "short text": (b"layer: { name: 1 }", "must be weights, not a text"),
    "{ where a header begins": (b"network {}", "not a readable safetensors file but a text"),
    "web page": (b"\n<!DOCTYPE html><html>gone</html>", "not a web page in place of the file"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "not a pointer of Git LFS"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "not an HDF5 file; load a .caffemodel.h5 in Caffe"),
    "gzip": (gzip.compress(b"weights" * 99), "not a gzip archive; unpack it first"),
    "tar": (b"w.pth".ljust(257, b"\0") + b"ustar" + bytes(250), "not a tar archive; unpack"),
    "zip": (zipped("w.pth"), "a zip archive without a PyTorch checkpoint in it; unpack it"),
    "caffemodel": (field(1, b"a net without weights"), "no layer in it has any"),
}


@pytest.mark.parametrize(("content", "said"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_what_holds_no_weights_is_called_by_its_name(path, content, said):
    path.write_bytes(content)
    assert said in refused(path)
    if said.startswith(("must be", "not")):
        with pytest.raises(InputError, match=re.escape(said)):
            load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_program_is_called_by_its_name(path):
    torch.jit.script(torch.nn.ReLU()).save(path)
    assert "a TorchScript program" in refused(path)


def test_a_caffemodel_is_never_taken_for_a_text(path, theirs):
    """Though it may begin with a name of many letters."""
    name = b"a network with a name that is as long as this sentence, and some letters longer"
    _, loaded = filled(path, field(1, name) + caffemodel(caffe_v2(theirs)))
    assert loaded.source == "caffemodel"


def test_branches_that_do_not_fit_each_other_are_listed(theirs, path):
    layers = caffe_v2(theirs)
    layers["fc1_voc12_c2"][0] = torch.zeros(CLASSES, 7, 3, 3)
    path.write_bytes(caffemodel(layers))
    assert "head.classifier.weight (branches of the shapes" in refused(path)


def test_an_archive_of_compressed_records_is_refused_before_they_are_unpacked(path):
    """This one would take 256 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as record,
    ):
        for _ in range(256):
            record.write(bytes(MB))
    assert "its records are compressed, which torch.save never does" in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def layouts(theirs):
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save(kazuto1011(theirs), zipped)
    torch.save(isht7(theirs), legacy, _use_new_zipfile_serialization=False)
    return {
        "layer": caffemodel(caffe_v2(theirs)),
        "layers": caffemodel(caffe_v2(theirs), old=True),
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
    }


@pytest.mark.parametrize("layout", ["layer", "layers", "zip", "legacy"])
def test_damaged_files_raise_a_clear_error_in_bounded_memory(theirs, path, layout):
    """A flipped bit in a weight may go unseen; nothing else may, and no size is believed."""
    whole = layouts(theirs)[layout]
    rng = random.Random(layout)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = small_network(2)
    for attempt in range(200):
        if attempt % 2:
            damaged = whole[: rng.randrange(len(whole))]
        else:
            damaged = bytearray(whole)
            for _ in range(rng.choice((1, 1, 8))):
                # Headers and names are few bytes among many: half of the flips go there.
                at = rng.randrange(len(whole) if attempt % 4 else 4096)
                damaged[at % len(whole)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(InputError):
                load_weights(model, path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB
