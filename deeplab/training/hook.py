"""One's own augmentation of samples: `augment = "package.module:function"` in a recipe.

    def function(image, labels, rng):
        # image: uint8 RGB [crop, crop, 3]; labels: uint8 [crop, crop], 255 ignored,
        # or of several labels a pixel masks [C, crop, crop] of 0, 1 and 255
        return image, labels             # of the same kind

It is called for each sample when all else has been done to it, and may hold transforms of
torchvision or albumentations. rng is the sample's NumPy generator, which depends on the run's seed
and the sample's number alone: a hook that draws all its chance from it, or seeds others with it,
gives the same samples in any number of workers and in a resumed run.

    def function(image, labels, rng):
        torch.manual_seed(int(rng.integers(2**63)))          # for transforms of torchvision
        ...

The module is looked for where Python looks, and in the working directory.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from deeplab.data.augment import Labels, Picture
from deeplab.data.datasets import IGNORE
from deeplab.errors import InputError

Hook = Callable[[Picture, Labels, np.random.Generator], tuple[Any, Any]]


@functools.cache
def load_hook(place: str) -> Hook:
    """The function at "package.module:function".

    Raises InputError where there is none. What the module itself raises is left as it is.
    """
    module, _, name = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there hides an installed package
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of an import inside the module
        raise InputError(
            f"augment must be package.module:function, not {place!r}: there is no module "
            f"{error.name}; put it into the working directory, or on PYTHONPATH"
        ) from error
    hook = getattr(found, name, None)
    if not callable(hook):
        raise InputError(
            f"augment must be package.module:function, not {place!r}: {module} has no function "
            f"{name}"
        )
    return hook


def augmented(
    place: str, image: Picture, labels: Labels, rng: np.random.Generator, classes: int
) -> tuple[Picture, Labels]:
    """What the function at `place` makes of a sample: uint8 `[H, W, 3]` and labels.

    Raises InputError where it gives back another size or dtype, or labels that are neither 255 nor
    below `classes`.
    """
    given = load_hook(place)(image.copy(), labels.astype(np.uint8), rng)
    wanted = f"uint8 {list(image.shape)} and integers {list(labels.shape)}"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InputError(f"augment: {place} must return {wanted}, not {type(given).__name__}")
    picture, truth = (np.asarray(part) for part in given)
    integer = np.issubdtype(truth.dtype, np.integer)
    if (
        (picture.dtype, picture.shape) != (np.dtype(np.uint8), image.shape)
        or not integer
        or truth.shape != labels.shape
    ):
        got = f"{picture.dtype} {list(picture.shape)} and {truth.dtype} {list(truth.shape)}"
        raise InputError(f"augment: {place} must return {wanted}, not {got}")
    values = classes if labels.ndim == 2 else 2
    outside = truth[(truth != IGNORE) & ((truth < 0) | (truth >= values))]
    if outside.size:
        raise InputError(
            f"augment: {place} must return labels from 0 to {values - 1}, or {IGNORE} where a "
            f"pixel does not count, not {outside[0]}"
        )
    return picture, truth
