"""Predictions as files: as a data set's evaluation server takes them, or in the set's own values.

    voc2012      DIR/results/VOC2012/Segmentation/comp6_<split>_cls/<name>.png, DIR/results.tgz
    cityscapes   DIR/results/<city>_<sequence>_<frame>_labelIds.png, DIR/results.zip
    any          DIR/<name>.png, label maps that the set's own labels can be compared with

Each at its picture's own size. VOC's hold class indices in VOC's colours, and comp6 is the
competition for methods that were trained on more than VOC's own pictures, such as an ImageNet
backbone; Cityscapes' hold its label ids.

Sources: the VOC2012 development kit, section "results" of its documentation;
evalPixelLevelSemanticLabeling.py of cityscapesScripts.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from deeplab.data import outputs
from deeplab.data.datasets import PredictionLayout, SegmentationData
from deeplab.errors import InputError


class PredictionFiles:
    """The predictions of a split, written one by one and packed at the end.

    split: its name, for layouts that have it in a path; layout: `data.server`, or None for label
    maps in the set's own values.

    Raises InputError: a folder that cannot be written, a name that leads out of it, and files that
    would replace the set's own.
    """

    def __init__(
        self,
        folder: Path,
        data: SegmentationData,
        split: str,
        layout: PredictionLayout | None = None,
    ) -> None:
        layout = layout or PredictionLayout(data.stored_values())
        if "{split}" in layout.folder and not re.fullmatch(r"[\w.-]+", split):
            raise InputError(f"split {split!r}: cannot be part of a folder's name")
        self.folder, self.layout = folder, layout
        self.inside = Path(layout.folder.format(split=split))
        self.palette = _colours(layout, data.palette) if layout.coloured else None
        self.files = [self._file(name) for name in data.names]
        keep_the_sets_own(self.files, data)
        outputs.check_writable(folder)

    def _file(self, name: str) -> Path:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{name}: the name of a picture would lead out of {self.folder}")
        return self.folder / self.inside / f"{name}{self.layout.ending}"

    def write(self, index: int, labels: np.ndarray) -> None:
        """The labels `[H, W]` of one picture, class indices, at its own size."""
        outputs.write_labels(self.files[index], self.layout.values[labels], self.palette)

    def pack(self) -> Path:
        """The files of all pictures in the layout's archive, in order of names; or their folder.

        InputError where one is not there, such as one that another machine wrote to its own disk.
        """
        if not self.layout.archive:
            return self.folder
        start = self.folder / self.inside if self.layout.flat else self.folder
        target = self.folder / self.layout.archive
        content = io.BytesIO()
        with _archive(target, content) as add:
            for path in sorted(set(self.files)):
                try:
                    add(path, path.relative_to(start).as_posix())
                except OSError as error:
                    raise InputError(
                        f"{path}: cannot be packed ({error.strerror or error}); all processes must "
                        "write to one folder"
                    ) from error
        outputs.write_bytes(target, content.getvalue())
        return target


def _colours(layout: PredictionLayout, palette: np.ndarray) -> np.ndarray:
    """256 colours: each class's at its value."""
    colours = outputs.voc_palette()
    colours[layout.values] = palette
    return colours


def keep_the_sets_own(files: list[Path], data: SegmentationData) -> None:
    """InputError where a file would replace a picture or label map of the set or lie among them."""
    real = cache(Path.resolve)  # of folders: there are few
    own = {real(path.parent) / path.name for i in range(len(data)) for path in data.files(i)}
    folders = {path.parent for path in own}
    for path in files:
        place = real(path.parent)
        if place / path.name in own:
            raise InputError(
                f"{path}: belongs to {data.name}, and a prediction would overwrite it; choose "
                "another folder"
            )
        if not folders.isdisjoint((place, *place.parents)):
            raise InputError(
                f"{path}: would lie among the files of {data.name}, and be taken for one of them; "
                "choose another folder"
            )


@contextmanager
def _archive(target: Path, content: io.BytesIO) -> Iterator[Callable[[Path, str], object]]:
    """A function that adds a file under a name; .tgz, or .zip without compression: PNGs have it."""
    if target.suffix == ".tgz":
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            yield lambda path, name: tar.add(path, name, filter=_without_owner)
    else:
        with zipfile.ZipFile(content, "w") as archive:
            yield archive.write


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The server need not know who made the file."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
