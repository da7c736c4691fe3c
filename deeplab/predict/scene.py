"""Scenes on Earth to label maps on Earth: tiles of a GeoTIFF through a predictor, into GeoTIFFs.

    predictor = Predictor(network, crf)
    with open_scene(predictor, "scene.tif") as scene:
        segment_scene(predictor, scene, Path("labels.tif"), classes)

Neither the scene nor what is found of it is ever in memory as a whole: windows are read, and
finished parts of the blend (`tiles.py`) are written. So scenes always go in tiles, however much
memory there is; those that are no larger than one tile are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deeplab.data.cog import cog
from deeplab.data.geotiff import CLASSES, UNOBSERVED, Scene
from deeplab.data.outputs import NamedPalette
from deeplab.errors import InputError
from deeplab.predict.predictor import TILE, Predictor, decided
from deeplab.predict.tiles import Tiling, blended


def open_scene(
    predictor: Predictor,
    path: str | Path,
    bands: Sequence[int] | None = None,
    max_megapixels: float | None = None,
) -> Scene:
    """A GeoTIFF as the predictor's model takes it.

    bands: which, from 1 on. Raises InputError as `deeplab.data.geotiff.Scene`.
    """
    check_classes(predictor.model.num_classes)
    preprocessing = predictor.model.preprocessing
    fill, dtypes = preprocessing.mean_colour(), preprocessing.dtypes
    return Scene(path, fill, dtypes, bands, max_megapixels)


def segment_scene(
    predictor: Predictor,
    scene: Scene,
    labels: Path,
    classes: NamedPalette,
    probabilities: Path | None = None,
) -> None:
    """Write the label map of a scene, or its masks, and the probabilities where they are wanted.

    labels: a Cloud Optimized GeoTIFF of class indices, uint8, with the colours and names of the
        classes; of a multi-label model a band for each, 0 and 1. Nodata is UNOBSERVED.
    probabilities: another, float32, a band for each class; nodata is NaN.

    Both have the scene's reference system and transform, and are whole or not there. Tiles of which
    nothing was observed do not go through the network.

    Raises InputError for more classes than CLASSES, where the scene is damaged, or the memory does
    not suffice for a tile; OutputError where a file cannot be written; FloatingPointError if the
    model gives NaN or Inf.
    """
    model = predictor.model
    check_classes(model.num_classes)
    names = [classes.name(index) for index in range(model.num_classes)]
    tile = predictor.tile if isinstance(predictor.tile, int) else TILE
    tiling = Tiling.of(model, predictor.scales, tile, predictor.overlap)

    def of_tile(rows: slice, columns: slice) -> Tensor:
        image, observed = scene.read(rows, columns)
        if not observed.any():
            return torch.full((model.num_classes, *observed.shape), 1 / model.num_classes)
        return predictor.output([image]).probabilities[0]

    with ExitStack() as files:
        palette = None if model.multilabel else classes.palette
        maps = files.enter_context(cog(labels, scene, "uint8", UNOBSERVED, names, palette))
        if probabilities is not None:
            likely = files.enter_context(cog(probabilities, scene, "float32", np.nan, names))
        rows, columns = (tiling.spans(length) for length in scene.shape[:2])
        for part in blended(rows, columns, of_tile):
            observed = scene.observed(part.rows, part.columns)
            found = decided(part.values, predictor.threshold, model.multilabel)
            bounds = tuple((axis.start, axis.stop) for axis in (part.rows, part.columns))
            found[..., ~observed] = UNOBSERVED
            maps.write(found if model.multilabel else found[None], window=bounds)
            if probabilities is not None:
                values = part.values.numpy()
                values[:, ~observed] = np.nan
                likely.write(values, window=bounds)


def check_classes(count: int) -> None:
    """InputError where label maps have no value left for ground that was not observed."""
    if count > CLASSES:
        raise InputError(
            f"{count} classes leave no value for ground that was not observed; label maps of "
            f"scenes have {CLASSES} at most"
        )
