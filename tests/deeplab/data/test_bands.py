"""Pictures of any number of bands: their values come as they lie, and what is refused how."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.data.bands import read_picture
from deeplab.data.images import find_images, read_image
from deeplab.errors import InputError


def picture(bands: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(0, 250, (6, 9, bands))
    return (values if dtype == "uint8" else 100 * values).astype(dtype)


def saved(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def refused(path: Path, bands: int = 5, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_picture(path, bands, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_an_array_comes_as_it_was_saved(tmp_path, bands, dtype):
    expected = picture(bands, dtype)
    found, changed = read_picture(saved(tmp_path / "a.npy", expected), bands)
    assert found.dtype == dtype
    assert np.array_equal(found, expected)
    assert changed == []


def test_an_array_in_another_order_of_bytes_or_axes_is_the_same(tmp_path):
    expected = picture(4)
    for values in (expected.astype(">u2"), np.asfortranarray(expected)):
        found, _ = read_picture(saved(tmp_path / "a.npy", values), 4)
        assert found.dtype == np.uint16
        assert found.flags.c_contiguous
        assert np.array_equal(found, expected)
    found, _ = read_picture(saved(tmp_path / "a.npy", expected[..., 0]), 1)
    assert np.array_equal(found, expected[..., :1])


def test_three_bands_are_rgb_but_for_arrays(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(picture(1, "uint8")[..., 0]).save(path)
    found, changed = read_picture(path)
    expected, said = read_image(path)
    assert np.array_equal(found, expected)
    assert changed == said


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_other_pictures_keep_their_bands(tmp_path, mode):
    bands = {"L": 1, "LA": 2, "RGBA": 4, "I;16": 1}[mode]
    expected = picture(bands, "uint16" if mode == "I;16" else "uint8")
    path = tmp_path / "a.png"
    Image.fromarray(expected[..., 0] if bands == 1 else expected).save(path)
    found, _ = read_picture(path, bands)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "layout",
    ["one band", "samples", "planes", "pages", "compressed", "two planes"],
)
def test_a_tiff_has_bands_as_samples_or_as_pages(tmp_path, layout, dtype):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    path, expected = tmp_path / "a.tif", picture(5, dtype)
    planes = np.moveaxis(expected, 2, 0)
    if layout == "one band":
        expected = expected[..., :1]
        tifffile.imwrite(path, expected[..., 0])
    elif layout == "two planes":
        expected = expected[..., :2]
        tifffile.imwrite(path, planes[:2], planarconfig="separate", photometric="minisblack")
    elif layout == "planes":
        tifffile.imwrite(path, planes, planarconfig="separate", photometric="minisblack")
    elif layout == "pages":
        tifffile.imwrite(path, planes, photometric="minisblack")
    else:
        compression = "deflate" if layout == "compressed" else None
        options = {"planarconfig": "contig", "photometric": "minisblack"}
        tifffile.imwrite(path, expected, compression=compression, **options)
    found, changed = read_picture(path, expected.shape[2])
    assert found.dtype == dtype
    assert np.array_equal(found, expected)
    assert changed == []
    assert "must have 7 bands" in refused(path, 7)
    assert "megapixels, above the limit" in refused(path, 5, max_megapixels=1e-6)


def test_a_tiff_of_several_pictures_gives_the_first_and_says_so(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    path, expected = tmp_path / "a.tif", picture(5)
    with tifffile.TiffWriter(path) as file:
        for values in (expected, expected[:3]):
            file.write(values, planarconfig="contig", photometric="minisblack")
    found, changed = read_picture(path, 5)
    assert np.array_equal(found, expected)
    assert [change.text for change in changed] == ["the first of 2 pictures in it is used"]


def test_a_tiff_that_cannot_be_read_is_refused_in_one_line(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    path = tmp_path / "a.tif"
    path.write_bytes(b"no picture")
    assert "damaged" in refused(path)
    tifffile.imwrite(path, picture(5), planarconfig="contig", photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-200])
    assert "damaged" in refused(path)
    tifffile.imwrite(path, np.zeros((2, 6, 9, 3), np.uint8), photometric="rgb")
    assert "must have height, width and bands" in refused(path, 6)


def test_without_tifffile_a_tiff_of_bands_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = tmp_path / "a.tif"
    Image.fromarray(picture(3, "uint8")).save(path)
    assert "pip install 'deeplab-triton[bands]'" in refused(path)
    assert read_picture(path, 3)[0].shape == (6, 9, 3)


def test_bad_arrays_are_refused_in_one_line(tmp_path):
    path = tmp_path / "a.npy"
    assert "no such file" in refused(path)
    path.write_bytes(b"")
    assert "the file is empty" in refused(path)
    path.write_bytes(b"\x93NUMPY\x01\x00")
    assert "not a readable .npy file" in refused(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    assert "not a readable .npy file" in refused(path)
    saved(path, picture(5))
    path.write_bytes(path.read_bytes()[:-1])
    assert "not a readable .npy file" in refused(path)
    with path.open("wb") as file:
        np.savez(file, a=picture(5))
    assert "one array of numpy.save" in refused(path)
    assert "must be an array [H, W, bands]" in refused(saved(path, np.zeros((2, 2, 2, 5), "u1")))
    assert "uint8, uint16, float32, not int64" in refused(saved(path, np.zeros((2, 2, 5), int)))
    assert "must have 5 bands" in refused(saved(path, picture(6)))
    assert "megapixels, above the limit" in refused(saved(path, picture(5)), max_megapixels=1e-6)
    assert "zero size" in refused(saved(path, np.zeros((3, 1, 5), "u1")[:, :0].copy()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_counted(tmp_path, value):
    values = picture(5, "float32")
    values[0, :2, 3] = value
    assert "NaN or Inf in 2 of 270 values" in refused(saved(tmp_path / "a.npy", values))


def test_pictures_of_indices_have_no_bands(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(1, "uint8")[..., 0]).convert("P").save(path)
    assert "palette" in refused(path, 1)


def test_a_folder_of_arrays_alone_gives_them(tmp_path):
    saved(tmp_path / "b.npy", picture(1))
    saved(tmp_path / "a.npy", picture(1))
    assert [path.name for path in find_images([tmp_path])] == ["a.npy", "b.npy"]
    Image.fromarray(picture(3, "uint8")).save(tmp_path / "c.png")
    assert [path.name for path in find_images([tmp_path])] == ["c.png"]
