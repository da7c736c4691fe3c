"""Several labels a pixel: a mask of each class, in a folder of its own.

    labels/CLASS/a.png     for images/a.jpg and every class: 0 not it, 1 it, 255 ignored

A class's value in its masks may be another than 1, such as 255 in masks of black and white. A mask
that is missing is an error and no mask of zeros, which would teach that nothing is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeplab.data.datasets.base import (
    LABEL_SUFFIXES,
    Labels,
    Pair,
    PairedFiles,
    files_by_name,
)
from deeplab.data.datasets.labels import LabelReader, UnknownLabels
from deeplab.errors import InputError


class MaskFiles(PairedFiles):
    """A data set of pictures and masks `[C, H, W]`.

    readers: of each class's masks, to 0, 1 and 255. folder: where those of the classes are. inside:
    what the names of the pictures begin with whose masks are looked for; None where a list names
    them, so that no mask is too many.
    """

    multilabel = True

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        palette: npt.ArrayLike,
        readers: Sequence[LabelReader],
        folder: Path,
        inside: str | None,
        unlabelled: str = "",
        bands: int = 3,
    ) -> None:
        super().__init__(
            name, pairs, classes, palette, readers[0], unlabelled=unlabelled, bands=bands
        )
        self.readers, self.folder = list(readers), folder
        self.masks = [_masks_in(folder / name) for name in self.classes]
        known = set(self.names)
        if inside is not None:
            self._unpaired = [
                path
                for masks in self.masks
                for name, path in masks.items()
                if name.startswith(inside) and name not in known
            ]

    def labels(self, index: int) -> Labels:
        if self.unlabelled:
            raise InputError(self.unlabelled)
        first, *others = paths = self.files(index)[1:]
        masks: list[Labels] = []
        unknown: list[UnknownLabels] = []
        for reader, path in zip(self.readers, paths, strict=True):
            try:
                masks.append(reader.read(path))
            except UnknownLabels as error:
                if error.labels is None:
                    raise
                unknown.append(error)
                masks.append(error.labels)
        for mask, path in zip(masks[1:], others, strict=True):
            if mask.shape != masks[0].shape:
                (height, width), (rows, columns) = masks[0].shape, mask.shape
                raise InputError(
                    f"{path}: {columns} x {rows} pixels, {first} has {width} x {height}; the masks "
                    "of a picture must be of one size"
                )
        if unknown:
            pixels = sum(error.unknown for error in unknown)
            raise UnknownLabels(str(unknown[0]), np.stack(masks), pixels)
        return np.stack(masks)

    def files(self, index: int) -> tuple[Path, ...]:
        """The picture, then the mask of each class, which need not exist."""
        name = self.names[index]
        named = zip(self.classes, self.masks, strict=True)
        paths = (masks.get(name, self.folder / c / f"{name}.png") for c, masks in named)
        return (self.pairs[index].image, *paths)

    def stored_values(self) -> npt.NDArray[np.uint8]:
        """The value of each class in its own masks."""
        return np.array([np.flatnonzero(reader.table == 1)[0] for reader in self.readers], np.uint8)


def _masks_in(folder: Path) -> dict[str, Path]:
    return files_by_name(folder, LABEL_SUFFIXES) if folder.is_dir() else {}
