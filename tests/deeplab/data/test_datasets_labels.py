"""Label maps in files: what their values are, what is refused, what is named."""

import numpy as np
import pytest
from campaign.rasters import png
from dataset_files import label_map, own_data
from PIL import Image

from deeplab.data.datasets import IGNORE, open_dataset
from deeplab.data.datasets.labels import UnknownLabels
from deeplab.errors import InputError


@pytest.fixture
def own(tmp_path):
    return own_data(tmp_path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_small_grey_pngs_hold_indices_too(own, bits):
    """Decoders stretch grey PNGs of 2 and 4 bits to 0-255: label 1 of 2 bits becomes 85."""
    top = min(2**bits - 1, 2)
    values = np.resize(np.arange(top + 1), (20, 24))
    path = own / "labels" / "d.png"
    path.write_bytes(png(values[..., None], 0, bits))
    data = open_dataset("folder", own, "all")
    assert np.array_equal(data[data.names.index("d")][1], values)


def test_label_files_that_hold_no_indices_are_refused(own):
    path = own / "labels" / "d.png"
    data = open_dataset("folder", own, "all")
    index = data.names.index("d")
    for wrong, message in (
        (Image.new("RGB", (24, 20)), "a picture in colours.*classes.toml"),
        (Image.new("LA", (24, 20)), "pixels of type LA"),
        (Image.fromarray(np.full((20, 24), 1000, np.uint16)), "values from 1000 to 1000"),
    ):
        wrong.save(path)
        with pytest.raises(InputError, match=f"d.png: {message}"):
            data[index]
    Image.fromarray(np.full((20, 24), 2, np.uint16)).save(path)
    assert (data[index][1] == 2).all()
    path.unlink()
    Image.new("L", (24, 20)).save(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"d.jpg: a label map as JPEG has lost its values"):
        open_dataset("folder", own, "all")[index]


def test_values_that_are_no_class_are_named_with_their_place(own):
    values = np.zeros((20, 24), np.uint8)
    values[4, 7:9], values[9, 9] = 77, 200
    label_map(own / "labels" / "d.png", values)
    data = open_dataset("folder", own, "all")
    message = r"d.png: label 77 in 2 pixels, first at row 4, column 7, also 200; expected 0-2, 255"
    with pytest.raises(UnknownLabels, match=message) as caught:
        data[data.names.index("d")]
    assert caught.value.labels[4, 7] == IGNORE
    assert caught.value.unknown == 3
