"""Files of data sets, as tests lay them out: pictures, label maps, lists, data of one's own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from deeplab.data.outputs import voc_palette


def picture(path: Path, size: tuple[int, int] = (20, 24)) -> Path:
    """A JPEG or PNG picture of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.indices(size)
    Image.fromarray(np.stack([y * 9, x * 9, y * x], -1).astype(np.uint8)).save(path)
    return path


def label_map(
    path: Path, values: npt.ArrayLike | Sequence[int] | range, palette: bool = False
) -> npt.NDArray[np.uint8]:
    """A label map, grey or with VOC's palette; `values` is an array, or one row of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.asarray(values, np.uint8)
    if stored.ndim == 1:
        stored = np.resize(stored, (20, 24))
    image = Image.fromarray(stored)
    if palette:
        image.putpalette(voc_palette().tobytes())
    image.save(path)
    return stored


def listing(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def own_data(root: Path) -> Path:
    """Four pictures, two of them in split train and one in val, labels 0 to 2, three classes."""
    for name in ("train/a", "train/b", "val/c", "d"):
        picture(root / "images" / f"{name}.jpg")
        label_map(root / "labels" / f"{name}.png", [0, 1, 2])
    (root / "images" / "._d.jpg").write_bytes(b"left by another system")
    (root / "classes.txt").write_text("ground\nold tree\nwater\n")
    return root
