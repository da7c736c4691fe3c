"""The new folder: pictures, label maps and the class file, all of them or nothing.

It grows beside its place under a hidden name and is renamed when it is complete, so that neither an
error nor Ctrl-C leaves a part of it where the whole is expected.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tomli_w

from deeplab.data import outputs
from deeplab.data.imports.shapes import Class
from deeplab.errors import InputError


class NewFolder:
    """A folder in the layout of `--data folder`, which is not there yet.

    Raises InputError where something is in its place already, or nothing can be written there.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: is there already; name a new folder, or remove it first")
        outputs.check_writable(out)
        self.out = out
        self._part = out

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """What is written in this block becomes the folder, unless it raises."""
        try:
            self.out.absolute().parent.mkdir(parents=True, exist_ok=True)
            beside = self.out.absolute().parent
            self._part = Path(tempfile.mkdtemp(".part", f".{self.out.name}.", beside))
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            yield
            self._part.chmod(0o777 & ~_mask())  # mkdtemp's folders are for their maker alone
            with suppress(FileNotFoundError):
                self.out.rmdir()  # an empty one, which not every system replaces
            self._part.rename(self.out)
        except OSError as error:
            raise self._unwritten(error) from error
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    @staticmethod
    def names(files: Sequence[Path], splits: Sequence[str]) -> list[str]:
        """The name of each picture in the folder, without suffix: train/a, or a without a split."""
        of_split: dict[str, list[int]] = defaultdict(list)
        for index, split in enumerate(splits):
            of_split[split].append(index)
        names = [""] * len(files)
        for split, indices in of_split.items():
            short = outputs.output_names([files[index] for index in indices])
            for index, name in zip(indices, short, strict=True):
                names[index] = f"{split}/{name}" if split else name
        return names

    def write_classes(self, classes: Sequence[Class]) -> None:
        """classes.toml, with a colour for each."""
        colours = palette_of(classes)[: len(classes)].tolist()
        entries = [
            {"name": one.name, "colour": colour}
            for one, colour in zip(classes, colours, strict=True)
        ]
        outputs.write_text(self._part / "classes.toml", tomli_w.dumps({"class": entries}))

    def write_picture(self, name: str, file: Path, link: bool) -> None:
        """The picture, copied, or as a symbolic link to where it lies."""
        target = self._part / "images" / f"{name}{file.suffix.lower()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(file.resolve())
            else:
                shutil.copyfile(file, target)
        except OSError as error:
            hint = "; copy it instead" if link else ""
            raise InputError(f"{file}: cannot be put into {self.out} ({error}){hint}") from error

    def write_labels(
        self, name: str, labels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]
    ) -> None:
        """A label map uint8 `[H, W]` as a palette PNG."""
        outputs.write_labels(self._part / "labels" / f"{name}.png", labels, palette)

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(f"{self.out}: cannot be written ({error.strerror or error})")


def palette_of(classes: Sequence[Class]) -> npt.NDArray[np.uint8]:
    """A colour for each class, uint8 `[256, 3]`: its own, unless an earlier class has it, or one of
    VOC's that no class has; 255, which is ignored, keeps VOC's."""
    voc = outputs.voc_palette()
    taken = {one.colour for one in classes}
    free = (colour for colour in map(tuple, voc[1:].tolist()) if colour not in taken)
    used: set[tuple[int, ...]] = set()
    for value, one in enumerate(classes):
        colour: tuple[int, ...] | None = one.colour
        if colour is None or colour in used:
            colour = next(free)
        used.add(colour)
        voc[value] = colour
    return voc


def _mask() -> int:
    """The permissions that this process keeps from new files; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
