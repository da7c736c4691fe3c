"""Bytes that have been read already are the same picture as the file that they are from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from picture_files import deep_png, png, save, tiff, turned

from deeplab.data.bands import Read, read_picture
from deeplab.errors import InputError

VALUES = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
RGB = VALUES[..., :3]


def array(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def cut(path: Path, bytes_left_out: int) -> Path:
    path.write_bytes(path.read_bytes()[:-bytes_left_out])
    return path


FILES: dict[str, tuple[int, Callable[[Path], Path]]] = {  # bands, what writes the file
    "rgb.png": (3, lambda path: save(path, RGB)),
    "turned.jpg": (3, lambda path: save(path, RGB, exif=turned(6))),
    "grey.bmp": (3, lambda path: save(path, VALUES[..., 0])),
    "alpha.webp": (3, lambda path: save(path, VALUES, lossless=True)),
    "palette.gif": (3, lambda path: save(path, VALUES[..., 0])),
    "deep.png": (3, lambda path: deep_png(path, RGB.astype(np.uint16) * 257)),
    "packed.tif": (3, lambda path: save(path, RGB, compression="tiff_lzw")),
    "beside.tiff": (3, lambda path: tiff(path, VALUES)),
    "grey.png": (1, lambda path: save(path, VALUES[..., 0])),
    "bands.npy": (4, lambda path: array(path, VALUES.astype(np.float32))),
    "bands.tif": (4, lambda path: tiff(path, VALUES, extra=[0])),
}
DAMAGED: dict[str, tuple[int, Callable[[Path], Path]]] = {
    "empty.png": (3, lambda path: (path.write_bytes(b""), path)[1]),
    "cut.png": (3, lambda path: cut(save(path, RGB), 20)),
    "cut.jpg": (3, lambda path: cut(save(path, RGB), 20)),
    "text.jpg": (3, lambda path: (path.write_text("no picture"), path)[1]),
    "no_pixels.png": (3, lambda path: (path.write_bytes(png(0, 3, 8, 2, b"")), path)[1]),
    "other_bands.npy": (3, lambda path: array(path, VALUES)),
    "cut.tif": (4, lambda path: cut(tiff(path, VALUES, extra=[0]), 20)),
}


def both(path: Path, bands: int) -> tuple[Callable[[], Read], Callable[[], Read]]:
    """Read the file; read its bytes where no file is."""
    content, away = path.read_bytes(), path.with_name("away") / path.name
    return lambda: read_picture(path, bands), lambda: read_picture(away, bands, content=content)


@pytest.mark.parametrize("name", FILES)
def test_bytes_are_the_picture_of_their_file(tmp_path: Path, name: str) -> None:
    bands, write = FILES[name]
    if bands == 4 and name.endswith(".tif"):
        pytest.importorskip("tifffile")
    file, content = both(write(tmp_path / name), bands)
    (expected, changed), (found, said) = file(), content()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert [(each.kind, each.text) for each in said] == [(each.kind, each.text) for each in changed]
    assert {each.file for each in said} <= {str(tmp_path / "away" / name)}


@pytest.mark.parametrize("name", DAMAGED)
def test_bytes_are_refused_as_their_file_is(tmp_path: Path, name: str) -> None:
    bands, write = DAMAGED[name]
    if name.endswith(".tif"):
        pytest.importorskip("tifffile")
    messages = []
    for read in both(write(tmp_path / name), bands):
        with pytest.raises(InputError) as caught:
            read()
        messages.append(str(caught.value))
    assert messages[1] == messages[0].replace(str(tmp_path), str(tmp_path / "away"))
    assert "\n" not in messages[1]
