"""Files that are no checkpoint, or a damaged or hostile one: one clear error, nothing runs."""

import contextlib
import io
import pickle
import random
import resource
import warnings

import pytest
import torch
from checkpoints import (
    CLASSES,
    caffe_v2,
    caffemodel,
    field,
    isht7,
    kazuto1011,
    refused,
    small_network,
    varint,
)

from deeplab.errors import InputError
from deeplab.weights import load_weights


@pytest.fixture
def theirs():
    return small_network(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint"


class Dangerous:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


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
        (small_network(0).state_dict(), None),
    ],
)
def test_a_checkpoint_that_is_no_known_state_dict_is_named(path, content, said):
    torch.save(content, path)
    if said is None:  # backbone.conv1 is torchvision's name too, and heads differ
        assert "1 missing" in refused(path) or "style" in refused(path) or "unexp" in refused(path)
    else:
        assert said in refused(path)


def test_a_text_and_an_empty_file_are_no_caffemodel(path):
    for content in (b"", b'layer { name: "conv1" }\n' * 9, field(1, b"a net without weights")):
        path.write_bytes(content)
        assert ".caffemodel" in refused(path)


def test_branches_that_do_not_fit_each_other_are_listed(theirs, path):
    layers = caffe_v2(theirs)
    layers["fc1_voc12_c2"][0] = torch.zeros(CLASSES, 7, 3, 3)
    path.write_bytes(caffemodel(layers))
    assert "head.classifier.weight (branches of the shapes" in refused(path)


def test_a_blob_that_claims_more_than_it_holds_allocates_nothing(path):
    huge = field(5, b"\0" * 8) + field(7, field(1, varint(2**62) + varint(2)))
    path.write_bytes(field(100, field(1, b"conv1") + field(7, huge)))
    assert "2 numbers do not fill the shape" in refused(path)


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
