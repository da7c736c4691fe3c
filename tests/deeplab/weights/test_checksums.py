"""Files with checksums: what a bad disk or copy has changed in them is no picture and no weight."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab.data.images import find_images, read_image
from deeplab.errors import InputError
from deeplab.training.checkpoint import read_state, write_state
from deeplab.weights.pickled import read


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def of_record(path: Path, name: str) -> int:
    """Where the bytes of a record of an archive lie."""
    with zipfile.ZipFile(path) as archive:
        (info,) = [info for info in archive.infolist() if info.filename.endswith(name)]
        with archive.open(info) as record:
            record.read(1)
        header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    return (
        info.header_offset + 30 + sum(int.from_bytes(header[k : k + 2], "little") for k in (26, 28))
    )


@pytest.mark.parametrize("place", ["pixels", "checksum"])
def test_a_png_whose_checksum_is_wrong_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)  # a flipped bit is another pixel there
    np.testing.assert_array_equal(read_image(path)[0], noise)
    end = len(path.read_bytes()) - 12  # behind IDAT, of which the checksum is the last
    flipped(path, end - 50 if place == "pixels" else end - 1)
    with pytest.raises(InputError, match=r"a\.png: the image is truncated or damaged"):
        read_image(path)


def test_a_flipped_bit_in_a_checkpoint_or_a_training_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a.weight": torch.ones(1000)}, path)
    assert read(path)["a.weight"].sum() == 1000
    flipped(path, of_record(path, "data/0") + 99)
    with pytest.raises(InputError, match=r"a\.pth: damaged: the checksum of its record .*data/0"):
        read(path)
    state = tmp_path / "w.state"
    write_state(state, {"model": torch.ones(1000)})
    assert read_state(state)["model"].sum() == 1000
    flipped(state, of_record(state, "data/0") + 99)
    with pytest.raises(InputError, match=r"w\.state: not a readable training state"):
        read_state(state)


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(InputError, match=r"a\.png: (cannot be opened|no such file)"):
        read_image(find_images([tmp_path / "a.png"])[0])
