"""Splits of pictures into training and validation, drawn by lot."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deeplab.data.imports.shapes import Picture
from deeplab.errors import InputError


def split_pictures(
    pictures: Sequence[Picture], share: float, group: str | None = None, seed: int = 0
) -> list[Picture]:
    """The pictures in the splits train, of about that share of them, and val.

    group: a regular expression that is searched in each picture's file name, without folders;
        pictures for which it finds the same (its first group in brackets, where it has one) stay
        together, such as those of one place or one film.

    Raises InputError: a share outside 0 to 1, a pattern that is none or not found in a name, groups
    that leave one of the splits empty.
    """
    if not 0 < share < 1:
        raise InputError(f"--split {share:g} must be above 0 and below 1, such as 0.8")
    groups: dict[str, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        groups[_key(picture, group)].append(index)
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    training: set[int] = set()
    wanted = share * len(pictures)
    for key in keys:
        if abs(len(training) + len(groups[key]) - wanted) < abs(len(training) - wanted):
            training.update(groups[key])
    if not 0 < len(training) < len(pictures):
        what = "picture" if group is None else "group of pictures"
        raise InputError(
            f"--split {share:g}: {len(keys)} {what}{'s' if len(keys) != 1 else ''} cannot be "
            "divided so; give another share" + (" or a finer --group" if group else "")
        )
    return [
        replace(picture, split="train" if index in training else "val")
        for index, picture in enumerate(pictures)
    ]


def _key(picture: Picture, group: str | None) -> str:
    if group is None:
        return picture.file
    name = Path(picture.path).name
    try:
        match = re.search(group, name)
    except re.error as error:
        raise InputError(f"--group {group} must be a regular expression ({error})") from error
    if match is None:
        raise InputError(
            f"--group {group}: not found in {name}; every name needs it, such as '^[^_]+' for what "
            "comes before the first _"
        )
    return match[1] or "" if match.re.groups else match[0]
