"""The classes of the scenes, their indices and their palette."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CLASSES: tuple[str, ...] = (
    "sky",
    "grass",
    "road",
    "building",
    "tree",
    "pole",
    "fence",
    "cart",
    "chair",
    "animal",
    "ball",
)

_COLOURS = (
    (70, 130, 180),
    (107, 142, 35),
    (128, 64, 128),
    (190, 153, 153),
    (0, 100, 30),
    (220, 220, 0),
    (250, 170, 30),
    (220, 20, 60),
    (119, 11, 132),
    (160, 82, 45),
    (0, 220, 220),
)
PALETTE: npt.NDArray[np.uint8] = np.zeros((256, 3), np.uint8)
PALETTE[: len(_COLOURS)] = _COLOURS
PALETTE.flags.writeable = False

SKY, GRASS, ROAD, BUILDING, TREE, POLE, FENCE, CART, CHAIR, ANIMAL, BALL = range(11)
