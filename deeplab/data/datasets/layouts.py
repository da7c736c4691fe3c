"""How predictions are written for others to read: values, names and archive of the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PredictionLayout:
    """Files of predictions: a PNG of 8 bits for each picture, packed into one file if wanted.

    Attributes:
        values: uint8 `[C]`, the pixel value of each class.
        folder: where the files lie below the one that a user names; {split} stands for the split's
            name.
        ending: what follows a picture's name in its file's.
        coloured: whether the PNG has a palette, in which each value has its class's colour;
            otherwise it is grey.
        archive: the packed file's name, which ends in .tgz or .zip; empty for none.
        flat: whether the archive holds the files alone, without the folders that they lie in.
    """

    values: npt.NDArray[np.uint8]
    folder: str = ""
    ending: str = ".png"
    coloured: bool = True
    archive: str = ""
    flat: bool = False
