"""Predictions in the layout that the PASCAL VOC evaluation server takes.

    DIR/results/VOC2012/Segmentation/comp6_<split>_cls/<name>.png     palette PNG, original size
    DIR/results.tgz                                                   the same, to be uploaded

Pixel values are class indices, colours VOC's. comp6 is the competition for methods that were
trained on more than VOC's own pictures, such as an ImageNet backbone.

Source: the VOC2012 development kit, section "results" of its documentation.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np

from deeplab.data import outputs
from deeplab.errors import InputError


class Submission:
    """The predictions of a split, written one by one and packed at the end."""

    def __init__(self, folder: Path, split: str, palette: np.ndarray | None = None) -> None:
        if not re.fullmatch(r"[\w.-]+", split):
            raise InputError(f"split {split!r}: cannot be part of a folder's name")
        self.folder = folder
        self.inside = Path("results", "VOC2012", "Segmentation", f"comp6_{split}_cls")
        self.palette = outputs.full_palette(palette)
        self.written: list[Path] = []
        outputs.check_writable(folder)

    def file(self, name: str) -> Path:
        """Where the prediction of that picture goes."""
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"{name}: the name of a picture would lead out of {self.folder}")
        return self.folder / self.inside / f"{name}.png"

    def add(self, name: str, labels: np.ndarray) -> None:
        """The labels `[H, W]` of one picture, at its own size."""
        path = self.file(name)
        outputs.write_labels(path, labels, self.palette)
        self.written.append(path)

    def pack(self) -> Path:
        """`results.tgz` of what was added, in order of names; earlier files are left out.

        InputError where a file is gone, such as one that another machine wrote to its own disk.
        """
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for path in sorted(self.written):
                name = path.relative_to(self.folder).as_posix()
                try:
                    archive.add(path, name, filter=_without_owner)
                except OSError as error:
                    raise InputError(
                        f"{path}: cannot be packed ({error.strerror or error}); all processes must "
                        "write to one folder"
                    ) from error
        target = self.folder / "results.tgz"
        outputs.write_bytes(target, content.getvalue())
        return target


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The server need not know who made the file."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
