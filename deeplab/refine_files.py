"""The CRF alone on files: a picture, and what is known of it, however that is stored.

    annotation   scribbles by colours, or class indices (`deeplab.data.annotations`)
    softmax      probabilities in an .npy or .npz
    CAMs         class activation maps in an .npy or .npz (`deeplab.data.cams`)

`deeplab.refine` has what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplab import refine
from deeplab.crf_settings import CRFSettings
from deeplab.data import cams, images, outputs
from deeplab.data.annotations import (
    FOREGROUND,
    GT_PROB,
    UNSURE_INDEX,
    read_colours,
    read_indices,
    read_probabilities,
)
from deeplab.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deeplab.data.conversions import Conversion
    from deeplab.predict import Prediction

ARRAYS = (".npy", ".npz")
LEAST = 100  # bytes a pixel: less than any CRF takes, more than to read labels
NAMES_WITH_UNSURE = (*(f"class {k}" for k in range(UNSURE_INDEX)), "unsure")

COLOURS, INDICES = "an annotation by colours", "class indices (--indices)"
MAPS, PROBABILITIES = "activation maps", "probabilities"
COUNTS_WITH = {  # each option, and the kinds of files that it counts with
    "colours": (COLOURS,),
    "indices": (INDICES,),
    "classes": (INDICES, MAPS),
    "gt_prob": (COLOURS, INDICES, MAPS),
    "background": (MAPS,),
}


@dataclass(frozen=True)
class Refined:
    """A picture with its refined labels.

    Attributes:
        image: uint8 `[H, W, 3]`.
        prediction: the labels and probabilities.
        classes: how the labels look and what they are called.
        conversions: what reading changed in the picture.
        notes: on how the other file was read.
        own_colours: whether labels are numbered by the colours of that file.
    """

    image: np.ndarray
    prediction: Prediction
    classes: outputs.NamedPalette
    conversions: Sequence[Conversion]
    notes: Sequence[str]
    own_colours: bool = False


@dataclass(frozen=True)
class FileRefiner:
    """How files are read and refined.

    Attributes:
        change_crf: what makes the settings of the CRF from the default ones of a kind of file.
        indices: annotations are class indices, not colours.
        classes: how many, of class indices and of CAMs; None: the highest + 1.
        colours: as of `read_colours`.
        gt_prob: how far labels are to be trusted; None: 0.7.
        background: of CAMs; None where there are none.
        max_megapixels: as of `images.read_image`.
    """

    change_crf: Callable[[CRFSettings], CRFSettings]
    indices: bool = False
    classes: int | None = None
    colours: int | None = None
    gt_prob: float | None = None
    background: refine.Background | None = None
    max_megapixels: float | None = None

    def __post_init__(self) -> None:
        """InputError for --gt-prob where there are no labels to trust."""
        power = self.background is not None and self.background.by == "power"
        if power and self.gt_prob is not None:
            raise InputError(
                f"--gt-prob {self.gt_prob:g}: only counts with labels, and --background-power "
                "makes none; leave it out"
            )

    def __call__(self, image_file: Path, given: Path) -> Refined:
        """The picture refined by what the other file says of it.

        Raises InputError: a file that cannot be read or does not fit, options that do not count
        with what it holds, or memory that runs out.
        """
        self._check_kind(given)
        image, conversions = images.read_image(image_file, self.max_megapixels)
        size = (image.shape[0], image.shape[1])
        images.check_size(image_file, size[::-1], None, LEAST, "refine")
        with _named_errors(given):
            if given.suffix.lower() not in ARRAYS:
                return self._annotated(given, image, conversions)
            notes: Sequence[str] = ()
            colours = None
            if self.background is not None:
                names = self.names_of_any
                prediction = refine.refine_cams(
                    cams.read_cams(given, size),
                    image,
                    self.background,
                    self.change_crf(self.background.settings),
                    gt_prob=self._trust,
                    num_classes=self.classes,
                )
            else:
                read = read_probabilities(given, size)
                settings = self.change_crf(CRFSettings())
                prediction = refine.refine_probabilities(read.values, image, settings)
                notes, names, colours = read.notes, read.names, read.colours
        classes = outputs.NamedPalette(outputs.full_palette(colours), names)
        return Refined(image, prediction, classes, conversions, notes)

    @property
    def names_of_any(self) -> Sequence[str] | None:
        """Names of the labels that do not depend on a file."""
        unsure = self.background is not None and len(self.background.numbers) > 1
        return NAMES_WITH_UNSURE if unsure else None

    @property
    def _trust(self) -> float:
        return GT_PROB if self.gt_prob is None else self.gt_prob

    def _annotated(
        self, given: Path, image: np.ndarray, conversions: Sequence[Conversion]
    ) -> Refined:
        size, most = (image.shape[0], image.shape[1]), self.max_megapixels
        if self.indices:
            read = read_indices(given, size, self.classes, most)
        else:
            read = read_colours(given, size, most, self.colours)
        settings = self.change_crf(refine.SCRIBBLES)
        prediction = refine.refine_scribbles(read, image, settings, self._trust)
        classes = outputs.NamedPalette(outputs.full_palette(read.colours), read.names)
        own = not self.indices and read.names != FOREGROUND
        return Refined(image, prediction, classes, conversions, read.notes, own)

    def _check_kind(self, given: Path) -> None:
        """Refuse options that do not count with what the file holds, and CAMs without theirs."""
        kind = self._kind(given)
        for name, kinds in COUNTS_WITH.items():
            value = getattr(self, name)
            if value is None or value is False or kind in kinds:
                continue
            option = name.replace("_", "-") + ("" if value is True else f" {value}")
            if isinstance(value, refine.Background):
                option = f"background-{value.by}"
            raise InputError(
                f"--{option}: only counts with {' and '.join(kinds)}, and {given} holds {kind}; "
                "leave it out"
            )
        if kind == MAPS and self.background is None:
            raise InputError(
                f"{given}: holds activation maps, which have no background: give it a score with "
                "--background-threshold 0.3 or --background-power 16 (two numbers with a comma: "
                "unsure in between)"
            )

    def _kind(self, given: Path) -> str:
        if given.suffix.lower() in ARRAYS:
            is_maps = self.background is not None or cams.holds_cams(given)
            return MAPS if is_maps else PROBABILITIES
        return INDICES if self.indices else COLOURS


@contextmanager
def _named_errors(given: Path) -> Iterator[None]:
    """What the CRF refuses, and memory that runs out, as an InputError that begins with a name."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(given)):
            raise
        raise InputError(f"{given}: {error}") from error
    except ValueError as error:
        raise InputError(f"{given}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise InputError(
            f"{given}: not enough memory to refine it; make the picture smaller, or work on fewer "
            "at a time"
        ) from error
