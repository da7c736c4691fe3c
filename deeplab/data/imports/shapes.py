"""What every format of annotations becomes: pictures, and shapes or a label map for each.

Coordinates are (x, y) in pixels of the upright picture, pixel i covering [i, i + 1): the corner of
the picture is (0, 0), the middle of its first pixel (0.5, 0.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

UNLABELLED = -1
"""In a picture's label map: a pixel of which the annotations say nothing."""

_FARTHEST = 1_000_000  # pixels from the corner of a picture that a mask may be

BOXES = "boxes without an outline"
LINES = "lines and points, which have no area"
CORNERS = "outlines of fewer than three corners"
CROWDS = "crowds"
TINY = "shapes that cover the middle of no pixel"


@dataclass(frozen=True)
class Class:
    """A class as the annotations declare it; `colour` is (R, G, B), None where they have none."""

    name: str
    colour: tuple[int, int, int] | None = None


@dataclass(frozen=True, eq=False)
class Polygon:
    """What lies in any of the parts and in none of the holes, each an outline `[N, 2]`.

    relative: coordinates are shares of the picture's width and height.
    """

    parts: tuple[Points, ...]
    holes: tuple[Points, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class Bitmap:
    """A mask whose first pixel lies at (left, top) of the picture.

    read: gives the mask, bool `[h, w]`, for a picture of (height, width); ValueError where the
        stored mask makes no sense.
    """

    left: int
    top: int
    read: Callable[[int, int], Mask]

    def __post_init__(self) -> None:
        if max(abs(self.left), abs(self.top)) > _FARTHEST:
            raise ValueError("a mask a million pixels away")


@dataclass(frozen=True)
class Shape:
    """An area of one class.

    Attributes:
        name: what to call it in a message, such as "annotation 17".
        layer: shapes of a higher layer lie above.
        crowd: marks many objects roughly, as COCO's iscrowd does.
    """

    name: str
    label: str
    region: Polygon | Bitmap
    layer: int = 0
    crowd: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture and what is marked in it.

    Attributes:
        file: as the annotations name it: a path below one of `folders`, or of another machine, of
            which the last part counts then.
        folders: where it may lie.
        source: the file that annotates it, for messages.
        size: (height, width) as annotated; None where the format says nothing.
        split: train, val, test or a name of the source's own; empty for none.
        label_map: gives indices of the classes, int16 `[H, W]`, 255 for ignored and `UNLABELLED`;
            None where shapes are all that there is.
    """

    file: str
    folders: tuple[Path, ...]
    source: Path
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] | None = None
    split: str = ""
    label_map: Callable[[], npt.NDArray[np.int16]] | None = None

    @property
    def path(self) -> str:
        """`file` with slashes, whichever system it was annotated on."""
        return self.file.replace("\\", "/")


@dataclass
class Annotations:
    """All that a source says.

    Attributes:
        classes: in the order of their indices.
        ignored: labels that the format itself gives to what does not count.
        dropped: how many shapes of each kind were left out in reading.
    """

    classes: list[Class]
    pictures: list[Picture]
    ignored: tuple[str, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
