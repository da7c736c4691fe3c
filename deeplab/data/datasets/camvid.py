"""CamVid as prepared for SegNet: 11 classes of street scenes, label 11 (void) ignored.

Sources: Brostow et al., 2009; Badrinarayanan et al., SegNet, whose tutorial made the 11 classes.
"""

from __future__ import annotations

from pathlib import Path

from deeplab.data.datasets.base import PairedFiles, missing_folder, pair_folders, unknown_split
from deeplab.data.datasets.classes import CAMVID, CAMVID_PALETTE, CAMVID_VOID
from deeplab.data.datasets.labels import LabelReader, label_table
from deeplab.errors import InputError


def open_camvid(root: Path, split: str) -> PairedFiles:
    """One split of CamVid, in either layout."""
    folders = _folders(root)
    if split not in folders:
        raise unknown_split(root, split, folders)
    images, labels = folders[split]
    pairs, unpaired = pair_folders(images, labels)
    reader = LabelReader(label_table(len(CAMVID), [CAMVID_VOID]))
    name, unlabelled = f"camvid {split}", missing_folder(labels)
    return PairedFiles(name, pairs, CAMVID, CAMVID_PALETTE, reader, unpaired, unlabelled)


def camvid_splits(root: Path) -> list[str]:
    return list(_folders(root))


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Split -> folder of images and folder of labels."""
    if (root / "images").is_dir():
        names = sorted(path.name for path in (root / "images").iterdir() if path.is_dir())
        return {name: (root / "images" / name, root / "labels" / name) for name in names}
    annotated = sorted(path.name for path in root.glob("*annot") if path.is_dir())
    if annotated:
        names = [name.removesuffix("annot") for name in annotated]
        return {name: (root / name, root / f"{name}annot") for name in names}
    raise InputError(
        f"{root}: no CamVid there; expected images/train and labels/train, or train and trainannot"
    )
