"""SBD's MATLAB files: read as the format says, named where damaged, used for VOC's trainaug."""

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from dataset_files import label_map, listing, picture

from deeplab.data.datasets import available_splits, open_dataset
from deeplab.data.datasets.sbd import read_segmentation
from deeplab.errors import InputError


def element(kind, content, order="<"):
    """An element of MATLAB's level 5; up to four bytes go into its tag, as MATLAB itself does."""
    if len(content) <= 4:
        return struct.pack(f"{order}I", len(content) << 16 | kind) + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def array(name, values, order="<", flags=9):
    """Numbers, or for a dictionary a struct of arrays."""
    if isinstance(values, dict):
        names = b"".join(key.encode().ljust(32, b"\0") for key in values)
        parts = element(5, struct.pack(f"{order}i", 32), order) + element(1, names, order)
        parts += b"".join(array("", value, order) for value in values.values())
        shape, flags = (1, 1), 2
    else:
        stored = np.asarray(values)
        kind = {"uint8": 2, "int32": 5, "float64": 9}[stored.dtype.name]
        parts = element(kind, stored.astype(stored.dtype.newbyteorder(order)).tobytes("F"), order)
        shape = stored.shape
    head = element(6, struct.pack(f"{order}II", flags, 0), order)
    head += element(5, struct.pack(f"{order}ii", *shape), order) + element(1, name.encode(), order)
    return element(14, head + parts, order)


def matlab_file(path, arrays, order="<", compressed=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100)
    content += b"IM" if order == "<" else b"MI"
    for one in arrays:
        packed = zlib.compress(one)
        content += struct.pack(f"{order}II", 15, len(packed)) + packed if compressed else one
    path.write_bytes(content)
    return path


def sbd_file(path, segmentation, **options):
    order = options.get("order", "<")
    outline = np.arange(6, dtype=np.int32).reshape(2, 3)
    fields = {"Boundaries": outline, "Segmentation": segmentation, "CategoriesPresent": outline}
    arrays = [array("other", outline, order), array("GTcls", fields, order)]
    return matlab_file(path, arrays, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(7, 12), (1, 3), (5, 1)])
def test_segmentations_are_read_column_by_column(tmp_path, dtype, order, compressed, shape):
    labels = np.random.default_rng(0).integers(0, 21, shape)
    path = tmp_path / "a.mat"
    sbd_file(path, labels.astype(dtype), order=order, compressed=compressed)
    found = read_segmentation(path)
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_files_are_named_and_nothing_else_happens(tmp_path, compressed):
    labels = np.random.default_rng(0).integers(0, 21, (20, 24)).astype(np.uint8)
    whole = sbd_file(tmp_path / "whole.mat", labels, compressed=compressed).read_bytes()
    path, rng = tmp_path / "bad.mat", np.random.default_rng(1)
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"bad.mat: not one of SBD's label maps, or damaged"):
        read_segmentation(path)
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged[: rng.integers(1, 2 * len(whole))]))
        with suppress(InputError):
            assert read_segmentation(path).dtype == np.uint8


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([], "no struct GTcls"),
        ([array("GTinst", {"Segmentation": np.zeros((2, 2), np.uint8)})], "no struct GTcls"),
        ([array("GTcls", {"Categories": np.zeros((2, 2), np.uint8)})], "no field Segmentation"),
        ([array("GTcls", {"Segmentation": np.zeros((0, 2), np.uint8)})], r"an array of \[0, 2\]"),
        ([array("GTcls", {"Segmentation": np.full((2, 2), 0.5)})], "values that are no labels"),
        ([array("GTcls", {"Segmentation": np.full((2, 2), 300.0)})], "values that are no labels"),
        ([array("GTcls", {"Segmentation": np.full((2, 2), np.nan)})], "values that are no labels"),
    ],
)
def test_other_contents_are_refused_by_name(tmp_path, arrays, message):
    path = matlab_file(tmp_path / "a.mat", arrays)
    with pytest.raises(InputError, match=f"a.mat: .*{message}.*unpack SBD again"):
        read_segmentation(path)


def test_a_file_that_unpacks_to_more_than_a_label_map_is_refused(tmp_path):
    path = matlab_file(tmp_path / "a.mat", [bytes(1 << 27)])
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"a.mat: .*unpacks to more than a label map"):
        read_segmentation(path)
    path.write_bytes(b"text")
    with pytest.raises(InputError, match=r"a.mat: .*no MATLAB file of level 5"):
        read_segmentation(path)
    with pytest.raises(InputError, match=r"b.mat: no such file"):
        read_segmentation(tmp_path / "b.mat")


@pytest.fixture
def voc(tmp_path):
    """VOC with one picture in train and one in val; SBD has both of them and a third one."""
    base = tmp_path / "VOC2012"
    for name in ("2007_000001", "2007_000002", "2008_000003"):
        picture(base / "JPEGImages" / f"{name}.jpg")
        labels = np.full((20, 24), 15, np.uint8)
        sbd_file(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{name}.mat", labels)
    for name in ("2007_000001", "2007_000002"):
        label_map(base / "SegmentationClass" / f"{name}.png", [0, 20, 255], palette=True)
    listing(base / "ImageSets" / "Segmentation" / "train.txt", "2007_000001")
    listing(base / "ImageSets" / "Segmentation" / "val.txt", "2007_000002")
    return base


@pytest.mark.parametrize("below", ["benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_trainaug_is_train_and_sbd_without_val_and_needs_no_list(voc, below):
    sbd = str(voc.parent / below)
    assert available_splits("voc2012", voc, sbd=sbd) == ["trainaug", "train", "val", "all"]
    data = open_dataset("voc2012", voc, "trainaug", sbd=sbd)
    assert data.names == ["2007_000001", "2008_000003"]
    assert np.unique(data[0][1]).tolist() == [0, 20, 255]  # VOC's own, where it has one
    assert np.unique(data[1][1]).tolist() == [15]
    assert open_dataset("voc2012", voc, "val", sbd=sbd).names == ["2007_000002"]


def test_a_list_of_trainaug_is_followed_with_sbds_files_too(voc):
    listing(voc / "ImageSets" / "Segmentation" / "trainaug.txt", "2008_000003")
    data = open_dataset("voc2012", voc, "trainaug", sbd=voc.parent / "benchmark_RELEASE")
    assert data.names == ["2008_000003"]
    assert np.unique(data[0][1]).tolist() == [15]


def test_without_vocs_lists_or_sbds_folder_trainaug_is_refused(voc):
    sbd = voc.parent / "benchmark_RELEASE"
    with pytest.raises(InputError, match=r"sbd: .*VOC2012: not the folder of SBD; expected"):
        open_dataset("voc2012", voc, "trainaug", sbd=voc)
    made = r"no split 'trainaug'.*; trainaug is made with SBD's labels"
    with pytest.raises(InputError, match=made):
        open_dataset("voc2012", voc, "trainaug")
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"no list of split 'val' in ImageSets/Segmentation"):
        open_dataset("voc2012", voc, "trainaug", sbd=sbd)
