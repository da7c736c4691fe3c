"""The files that a prediction is written to, and the lines printed about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from deeplab.data import images, outputs
from deeplab.data.large import class_areas, reduced
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Prediction


class PictureFiles:
    """The files that one picture's prediction is written to."""

    def __init__(self, folder: Path, name: str) -> None:
        self.labels = folder / f"{name}_labels.png"
        self.overlay = folder / f"{name}_overlay.png"
        self.probabilities = folder / f"{name}_probabilities.npz"

    @classmethod
    def at(cls, place: Path, name: str) -> PictureFiles:
        """In a folder, under that name; or where the label map's own name is given."""
        if place.suffix.lower() != ".png" or place.is_dir():
            if place.suffix.lower() in images.SUFFIXES and not place.is_dir():
                raise InputError(
                    f"{place}: a label map is a PNG, other formats would change its values or lose "
                    "its palette; name it .png, or give a folder"
                )
            return cls(place, name)
        result = cls(place.parent, place.stem)
        result.labels = place
        return result

    def write(
        self, image: np.ndarray, prediction: Prediction, palette: np.ndarray, everything: bool
    ) -> None:
        """Labels and overlay, a `reduced` one if need be; with `everything` the probabilities."""
        outputs.write_labels(self.labels, prediction.labels, palette)
        shown, labels = reduced(image, prediction.labels)
        outputs.write_picture(self.overlay, outputs.overlay(shown, labels, palette))
        if everything:
            outputs.write_arrays(self.probabilities, {"probabilities": prediction.probabilities})


def refuse_to_overwrite(files: Iterable[Path], results: Iterable[PictureFiles]) -> None:
    """Raises InputError if a result would go where one of the files is."""
    inputs = {file.resolve(): file for file in files}
    for result in results:
        for target in (result.labels, result.overlay, result.probabilities):
            if target.resolve() in inputs:
                raise InputError(
                    f"{target}: is an input, and a result would overwrite it; choose another "
                    "output folder with --out"
                )


@contextmanager
def named_errors(what: object) -> Iterator[None]:
    """A ValueError of the CRF or the network as an InputError that begins with a name."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error


def print_result(
    file: Path,
    prediction: Prediction,
    names: Sequence[str] | None,
    result: PictureFiles,
    seconds: float,
) -> None:
    """One line: the file, its size, its classes by area, where the result is."""
    height, width = prediction.labels.shape
    areas = Counter(dict(enumerate(class_areas(prediction.labels).tolist()))).most_common()
    shares = [
        f"{names[label] if names else f'class {label}'} {100 * area / (height * width):.1f}%"
        for label, area in areas
        if area
    ]
    more = f" and {len(shares) - 4} more" if len(shares) > 4 else ""
    typer.echo(
        f"{file}: {width} x {height}, {', '.join(shares[:4])}{more}; {seconds:.1f} s "
        f"-> {result.labels}"
    )


def print_notes(notes: Iterable[str]) -> None:
    """Remarks that are no errors, on standard error: only once nothing can be wrong any more."""
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
