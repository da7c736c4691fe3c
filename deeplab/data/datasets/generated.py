"""The generated scenes as a data set beside the others; nothing is read from a disk."""

from __future__ import annotations

from deeplab.data.datasets.base import Image, Labels, SegmentationData, unknown_split
from deeplab.errors import InputError

_DEFAULT_LENGTHS = {"train": 4000, "val": 50, "test": 50}


class GeneratedScenes(SegmentationData):
    """Scenes of one split, the first `length` of them, `size` pixels square."""

    def __init__(self, split: str, length: int, size: int) -> None:
        from deeplab.data import scenes

        starts = (scenes.TRAIN_START, scenes.VALIDATION_START, scenes.TEST_START)
        first = dict(zip(_DEFAULT_LENGTHS, starts, strict=True))[split]
        self._scenes = scenes.ScenesDataset(first, length, size)
        names = [f"scene_{first + i}" for i in range(length)]
        super().__init__(f"scenes {split}", names, scenes.CLASSES, scenes.PALETTE)

    def __getitem__(self, index: int) -> tuple[Image, Labels]:
        return self._scenes[index]  # one drawing for both

    def picture(self, index: int) -> tuple[Image, tuple[()]]:
        return self._scenes[index].image, ()

    def labels(self, index: int) -> Labels:
        return self._scenes[index].labels

    def file(self, index: int) -> str:
        return self.names[index]


def open_scenes(
    root: object, split: str, length: int | None = None, size: int = 321
) -> GeneratedScenes:
    """Generated scenes; `root` is ignored.

    length: how many, 4000 in "train" and 50 in "val" and "test" by default; size: their side.
    """
    from deeplab.data import scenes

    if split not in _DEFAULT_LENGTHS:
        raise unknown_split("scenes", split, _DEFAULT_LENGTHS)
    length = _DEFAULT_LENGTHS[split] if length is None else length
    most = scenes.TEST_START - scenes.VALIDATION_START  # the splits are ranges of seeds
    if not 1 <= length <= most:
        raise InputError(f"length must be 1 to {most} scenes, not {length}")
    if size < scenes.MIN_SIZE:
        raise InputError(f"size must be at least {scenes.MIN_SIZE} pixels, not {size}")
    return GeneratedScenes(split, length, size)


def scenes_splits(root: object, length: int | None = None, size: int = 321) -> list[str]:
    return list(_DEFAULT_LENGTHS)
