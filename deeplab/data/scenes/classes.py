"""The classes of the scenes, their indices and their palette."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_COLOURS = {
    "sky": (70, 130, 180),
    "grass": (107, 142, 35),
    "road": (128, 64, 128),
    "building": (190, 153, 153),
    "tree": (0, 100, 30),
    "pole": (220, 220, 0),
    "fence": (250, 170, 30),
    "cart": (220, 20, 60),
    "chair": (119, 11, 132),
    "animal": (160, 82, 45),
    "ball": (0, 220, 220),
}
CLASSES: tuple[str, ...] = tuple(_COLOURS)
PALETTE: npt.NDArray[np.uint8] = np.zeros((256, 3), np.uint8)
PALETTE[: len(_COLOURS)] = list(_COLOURS.values())
PALETTE.flags.writeable = False

SKY, GRASS, ROAD, BUILDING, TREE, POLE, FENCE, CART, CHAIR, ANIMAL, BALL = range(11)
