"""The files that a prediction is written to, and the lines printed about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from deeplab.data import images, outputs
from deeplab.data.folders import area_shares
from deeplab.data.large import class_areas
from deeplab.data.legend import drawn
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Prediction


class PictureFiles:
    """The files that one picture's prediction is written to; its name may have subfolders.

    masks: names of the folders in labels/ that those of a multi-label model go to, one a class, as
    a data set of several labels a pixel has them; empty for one label map.
    """

    def __init__(self, folder: Path, name: str, masks: Sequence[str] = ()) -> None:
        self.labels = folder / ("labels" if masks else f"{name}_labels.png")
        self.masks = [self.labels / mask / f"{name}.png" for mask in masks]
        self.overlay = folder / f"{name}_overlay.png"
        self.probabilities = folder / f"{name}_probabilities.npz"
        self.polygons = folder / f"{name}_polygons.geojson"

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

    def are_there(self, probabilities: bool, overlay: bool = True) -> bool:
        """Whether those wanted are on disk; each is whole or not there at all."""
        wanted = [*(self.masks or [self.labels])]
        wanted += [self.overlay] if overlay else []
        wanted += [self.probabilities] if probabilities else []
        return all(file.exists() for file in wanted)

    def read_labels(self, max_megapixels: float | None = None) -> np.ndarray:
        """The labels `[H, W]`, or masks `[C, H, W]`, that were written; InputError as of images."""
        files = self.masks or [self.labels]
        maps = [np.asarray(images.load_picture(file, max_megapixels)[0]) for file in files]
        return np.stack(maps) if self.masks else maps[0]

    def write(
        self,
        image: np.ndarray,
        prediction: Prediction,
        classes: outputs.NamedPalette,
        *,
        probabilities: bool = False,
        overlay: bool = True,
        legend: bool = True,
    ) -> None:
        """Labels, and the overlay, and the probabilities if wanted."""
        labels, palette = prediction.labels, classes.palette
        if self.masks:
            for path, mask, colour in zip(self.masks, labels, palette, strict=False):
                outputs.write_labels(path, mask, outputs.full_palette([(0, 0, 0), colour]))
        else:
            outputs.write_labels(self.labels, labels, palette)
        if overlay:
            outputs.write_picture(self.overlay, drawn(image, labels, classes, legend))
        if probabilities:
            arrays = {"probabilities": prediction.probabilities}
            arrays |= classes.arrays(len(prediction.probabilities))
            outputs.write_arrays(self.probabilities, arrays)


def refuse_to_overwrite(files: Iterable[Path], results: Iterable[PictureFiles]) -> None:
    """Raises InputError if a result would go where one of the files is, or what it is a link to."""
    # Folders by their true names, of which there are few: a result replaces a link, not its target.
    folder = cache(Path.resolve)
    inputs = {(folder(file.parent), file.name) for file in files}
    inputs |= {
        (to.parent, to.name) for file in files if file.is_symlink() for to in [file.resolve()]
    }
    for result in results:
        for target in (result.labels, *result.masks, result.overlay, result.probabilities):
            if (folder(target.parent), target.name) in inputs:
                raise InputError(
                    f"{target}: is an input, and a result would overwrite it; choose another "
                    "output folder with --out"
                )


def refuse_among_inputs(out: Path, folder: Path) -> None:
    """Raises InputError if results would be among the pictures of a folder."""
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(
            f"--out {out} must be a folder outside of {folder}, whose files results could "
            "overwrite or be taken for"
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
    classes: outputs.NamedPalette,
    result: PictureFiles,
    seconds: float,
) -> None:
    """Print `result_line`."""
    typer.echo(result_line(file, prediction, classes, result, seconds))


def result_line(
    file: Path,
    prediction: Prediction,
    classes: outputs.NamedPalette,
    result: PictureFiles,
    seconds: float,
) -> str:
    """The file, its size, its classes by area, where the result is."""
    height, width = prediction.labels.shape[-2:]
    areas, pixels = class_areas(prediction.labels), height * width
    return areas_line(file, (width, height), areas, pixels, classes, result, seconds)


def areas_line(
    file: Path,
    size: tuple[int, int],
    areas: np.ndarray,
    pixels: int,
    classes: outputs.NamedPalette,
    result: PictureFiles,
    seconds: float,
) -> str:
    """The same of areas, int64 `[C]`, as shares of so many pixels."""
    names = [classes.name(label) for label in range(len(areas))]
    shares = [
        f"{name} {100 * share:.1f}%" for name, share in area_shares(areas, pixels, names).items()
    ]
    more = f" and {len(shares) - 4} more" if len(shares) > 4 else ""
    found = f"{', '.join(shares[:4])}{more}" if pixels else "nothing observed"
    return f"{file}: {size[0]} x {size[1]}, {found}; {seconds:.1f} s -> {result.labels}"


def print_notes(notes: Iterable[str]) -> None:
    """Remarks that are no errors, on standard error: only once nothing can be wrong any more."""
    for note in notes:
        typer.echo(f"Note: {note}", err=True)
