"""A folder of pictures in which several classes may hold at a pixel, and what its masks say."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_training import tiny_pictures

CLASSES_TOML = """multilabel = true
ignore = [7]
[[class]]
name = "low"
colour = [200, 0, 0]
[[class]]
name = "high"
label = 255
"""


def masks_of(labels: np.ndarray) -> np.ndarray:
    """Two that overlap, uint8 `[2, H, W]`; the first rows of the first do not count."""
    masks = np.stack([labels < 5, labels > 2]).astype(np.uint8)
    masks[0, :3] = 255
    return masks


def masked_folder(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits train and val of two pictures each, `folder` of them; their pictures and masks."""
    pictures = [(image, masks_of(labels)) for image, labels in tiny_pictures(4)]
    (folder / "classes.toml").write_text(CLASSES_TOML)
    for i, (image, masks) in enumerate(pictures):
        split = "train" if i < 2 else "val"
        stored = [np.where(masks[0] == 255, 7, masks[0]), 255 * masks[1]]
        files = {folder / "images" / split / f"{i}.png": image}
        files |= {
            folder / "labels" / name / split / f"{i}.png": values.astype(np.uint8)
            for name, values in zip(("low", "high"), stored, strict=True)
        }
        for path, values in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return pictures
