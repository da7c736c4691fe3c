"""`deeplab segment` of georeferenced TIFFs: windows in, Cloud Optimized GeoTIFFs out."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deeplab.cli.shared.many import Done
from deeplab.cli.shared.results import PictureFiles, areas_line
from deeplab.data import geotiff, outputs, polygons
from deeplab.data.conversions import Conversion
from deeplab.data.folders import Outcome, area_shares
from deeplab.data.large import factor, shrunk
from deeplab.data.legend import drawn_small
from deeplab.errors import InputError

if TYPE_CHECKING:
    from deeplab.predict import Predictor


class SceneFiles(PictureFiles):
    """The files that a scene's prediction is written to."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.labels = folder / f"{name}_labels.tif"
        self.probabilities = folder / f"{name}_probabilities.tif"


def scenes_among(files: Iterable[Path], bands: bool, coco: bool) -> Collection[Path]:
    """Those that are georeferenced.

    bands, coco: whether --bands is given, or --polygons coco; InputError where it does not fit.
    """
    found = set()
    for file in files:
        if geotiff.is_georeferenced(file):
            found.add(file)
            if coco:
                raise InputError(
                    f"--polygons must be geojson for GeoTIFFs such as {file}, not coco"
                )
        elif bands:
            raise InputError(f"--bands must be left out with {file}, which is no GeoTIFF")
    return found


@dataclass(frozen=True)
class Scenes:
    """How scenes are segmented, as the command's options say.

    Attributes:
        files: which files are scenes.
        predictor, classes: as of pictures.
        bands: of --bands, from 1 on.
        max_megapixels, probabilities, legend: the options of that name.
        polygons: whether to write GeoJSON.
        said: what checks have found.
    """

    files: Collection[Path]
    predictor: Predictor
    classes: outputs.NamedPalette
    bands: Sequence[int] | None
    max_megapixels: float | None
    probabilities: bool
    legend: bool
    polygons: bool
    said: dict[Path, list[Conversion]] = field(default_factory=dict)

    def __contains__(self, file: Path) -> bool:
        return file in self.files

    def check(self, file: Path) -> list[Conversion]:
        """What there is to say of a scene, all of which is read; InputError where it cannot be."""
        with self._open(file) as scene:
            self.said[file] = scene.check()
        return self.said[file]

    def work(self, file: Path, result: PictureFiles, told: bool) -> Done:
        """Segment one; told: whether it has been said what there is to say of it."""
        from deeplab.predict.scene import segment_scene

        start = time.perf_counter()
        said = self.said[file] if file in self.said else self.check(file)
        likely = result.probabilities if self.probabilities else None
        with self._open(file) as scene:
            try:
                segment_scene(self.predictor, scene, result.labels, self.classes, likely)
            except InputError:
                raise
            except FloatingPointError as error:
                raise InputError(f"{file}: {error}; load other weights") from error
            except ValueError as error:
                raise InputError(f"{file}: {error}") from error
            with self._labels(result) as labels:
                if self.polygons:
                    polygons.write_geojson_of_scene(result.polygons, labels, self.classes)
                areas, pixels = labels.areas(len(self.names))
                self._write_overlay(scene, labels, result, areas)
        seconds = time.perf_counter() - start
        size = (scene.width, scene.height)
        line = areas_line(file, size, areas, pixels, self.classes, result, seconds)
        outcome = self._outcome(file, size, areas, pixels, said, seconds)
        return Done(outcome, line, () if told else said)

    def found(self, file: Path, result: PictureFiles) -> Outcome:
        """What was written of one before."""
        with self._labels(result) as labels:
            areas, pixels = labels.areas(len(self.names))
            return self._outcome(file, (labels.width, labels.height), areas, pixels)

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return [self.classes.name(i) for i in range(self.predictor.model.num_classes)]

    def _open(self, file: Path) -> geotiff.Scene:
        from deeplab.predict.scene import open_scene

        return open_scene(self.predictor, file, self.bands, self.max_megapixels)

    def _labels(self, result: PictureFiles) -> geotiff.LabelMap:
        return geotiff.LabelMap(result.labels, self.predictor.model.multilabel)

    def _outcome(
        self,
        file: Path,
        size: tuple[int, int],
        areas: np.ndarray,
        pixels: int,
        said: Sequence[Conversion] = (),
        seconds: float | None = None,
    ) -> Outcome:
        notes = [each.text for each in said]
        if share := 1 - pixels / (size[0] * size[1]):
            notes.append(f"{100 * share:.1f}% not observed")
        if seconds is None:
            notes.append("there before")
        shares = area_shares(areas, pixels, self.names)
        return Outcome(str(file), size, shares, seconds, tuple(notes))

    def _write_overlay(
        self,
        scene: geotiff.Scene,
        labels: geotiff.LabelMap,
        result: PictureFiles,
        areas: np.ndarray,
    ) -> None:
        """That of pictures; ground that was not observed is white."""
        from deeplab.predict import as_rgb

        bands = None if self.predictor.bands == "all" else self.predictor.bands
        k = factor(scene.shape)
        rows, pieces = k * max(1, geotiff.PIXELS // (k * scene.width)), []
        for top in range(0, scene.height, rows):
            window = slice(top, min(top + rows, scene.height)), slice(0, scene.width)
            if top and window[0].stop - top < k:
                break  # what is left over below, as `shrunk` leaves it out
            image, observed = scene.read(*window)
            picture, found = as_rgb(self.predictor.model, image, bands), labels.read(*window)
            picture[~observed] = 255
            if labels.masks:
                found[:, ~observed] = 0
            pieces.append(shrunk(picture, found, k))
        image = np.concatenate([piece[0] for piece in pieces])
        small = np.concatenate([piece[1] for piece in pieces], axis=-2)
        palette = self.classes.palette.copy()
        palette[geotiff.UNOBSERVED] = 0  # leaves the picture's own white
        classes = outputs.NamedPalette(palette, self.classes.names)
        shown = drawn_small(image, small, areas if self.legend else None, classes)
        outputs.write_picture(result.overlay, shown)
