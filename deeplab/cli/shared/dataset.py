"""The data set that a command scores on, and whether the network's classes are the set's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from deeplab.cli.shared.options import DataOptions
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.data.datasets import SegmentationData
    from deeplab.model import DeepLab


def open_data(
    data: DataOptions,
    split: str | None,
    scenes: int | None,
    usual: str,
    labelled: bool = True,
) -> tuple[SegmentationData, str]:
    """The split of the data set that the options name, and the split's name.

    scenes: how many of the generated ones, which have `usual` for their split where none is given.
    Other sets have their only split then, or "val". labelled: whether labels are needed, which a
    test split may lack.
    """
    from deeplab.data.datasets import available_splits, open_dataset, open_pictures

    name, root, options = data.name, data.data_root, data.options
    if name == "scenes":
        from deeplab.data import scenes as generated

        most = generated.TEST_START - generated.VALIDATION_START
        if scenes is not None and not 1 <= scenes <= most:
            raise InputError(f"--scenes must be 1 to {most}, not {scenes}")
        options |= {} if scenes is None else {"length": scenes}
        split = {"validation": "val"}.get(split or usual, split or usual)
    elif scenes is not None:
        raise InputError(f"--scenes {scenes}: only counts with the generated scenes, not {name}")
    if split is None:
        there = available_splits(name, root, **options)
        split = there[0] if len(there) == 1 else "val"
    opened = open_dataset if labelled else open_pictures
    return opened(name, root, split, **options), split


def class_names(
    network: DeepLab, data: SegmentationData, metadata: dict[str, Any], weights: object
) -> list[str]:
    """Names for the network's classes: the set's.

    InputError unless both mean the same by class i, and both have one label a pixel or several.
    Other names, such as those of another language, are told on standard error.
    """
    from deeplab.data.agreement import Classes, compare_classes

    advice = (
        "give weights that were trained on these classes, another data set with --data, or bring "
        "the data set's classes into the order of the weights"
    )
    if network.multilabel != data.multilabel:
        kinds = ("one label a pixel", "several labels a pixel")
        raise InputError(
            f"{weights or 'the shipped weights'}: of {kinds[network.multilabel]}, {data.name} has "
            f"{kinds[data.multilabel]}; {advice}"
        )
    theirs = Classes.stored(weights or "the shipped weights", metadata, network.num_classes)
    if note := compare_classes(theirs, Classes.of(data.name, data.classes), advice):
        typer.echo(f"Note: {note}", err=True)
    return list(data.classes)
