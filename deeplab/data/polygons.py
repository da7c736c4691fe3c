"""Label maps as polygons: COCO's JSON of instances, and GeoJSON.

A polygon is a region: pixels of one class that hang together by their sides. Corners lie on the
corners of pixels, x to the right and y down from the top left of the picture: pixel (column, row)
covers column to column + 1 and row to row + 1. Nothing is smoothed, so that areas are counts of
pixels and the polygons drawn again are the label map. A class called background has no polygons:
it is where there are none.

rasterio finds them (GDAL's polygonize), an optional package: pip install 'deeplab-triton[geo]'.
Sources: https://cocodataset.org/#format-data; RFC 7946 (GeoJSON).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.geotiff import UNOBSERVED, LabelMap, transformed
from deeplab.data.outputs import NamedPalette, write_parts
from deeplab.errors import InputError

BACKGROUND = ("background", "__background__")
TOGETHER = 1000  # regions whose corners are transformed at once
DECIMALS = 9  # of degrees: a tenth of a millimetre


@dataclass(frozen=True)
class Region:
    """Pixels of one class that hang together.

    Attributes:
        label: their class.
        rings: corners (x, y), int64 `[N, 2]`, each ring once round: the outline, then the holes. By
            the shoelace formula the area of the outline is positive, those of holes are negative.
    """

    label: int
    rings: tuple[np.ndarray, ...]

    @property
    def area(self) -> int:
        """How many pixels it has."""
        return round(sum(_area(ring) for ring in self.rings))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height."""
        (left, top), (right, bottom) = self.rings[0].min(0), self.rings[0].max(0)
        return int(left), int(top), int(right - left), int(bottom - top)


def require_rasterio() -> Any:
    """rasterio.features; InputError where it does not import."""
    try:
        return importlib.import_module("rasterio.features")
    except ImportError as error:
        raise InputError(
            f"polygons need the package rasterio, which does not import ({error}): "
            "pip install 'deeplab-triton[geo]'"
        ) from error


def regions(labels: np.ndarray, classes: NamedPalette) -> Iterator[Region]:
    """The regions of a label map `[H, W]`, below 256, other than of a class called background."""
    labels = np.ascontiguousarray(labels, np.uint8)
    named = [classes.name(label) in BACKGROUND for label in range(int(labels.max()) + 1)]
    wanted = ~np.array(named)[labels]
    yield from _found(require_rasterio().shapes(labels, mask=wanted, connectivity=4))


def regions_of_scene(labels: LabelMap, classes: NamedPalette) -> Iterator[Region]:
    """The same of the label map of a scene, which is not read as a whole; the regions found are in
    memory together. Ground that was not observed has none."""
    features, band = require_rasterio(), importlib.import_module("rasterio").band
    # Of a dataset GDAL gives corners on Earth, whatever transform it is told.
    pixels = ~labels.dataset.transform
    for region in _found(features.shapes(band(labels.dataset, 1), connectivity=4), pixels):
        if region.label != UNOBSERVED and classes.name(region.label) not in BACKGROUND:
            yield region


def _found(shapes: Iterable[tuple[Any, float]], pixels: Any = None) -> Iterator[Region]:
    """pixels: an affine transform of the shapes' corners to those of pixels, if they are not."""
    for shape, label in shapes:
        rings = [np.array(ring[:0:-1], np.float64) for ring in shape["coordinates"]]
        if pixels is not None:
            rings = [transformed(pixels, ring) for ring in rings]
        yield Region(int(label), tuple(ring.round().astype(np.int64) for ring in rings))


def write_geojson_of_scene(path: Path, labels: LabelMap, classes: NamedPalette) -> None:
    """As `write_geojson`, with corners in longitude and latitude of WGS 84, as RFC 7946 has them.

    Of a scene without a reference system in the units of its transform. `area` is in pixels.
    """
    write_parts(path, _geojson(regions_of_scene(labels, classes), classes, labels.lon_lat))


def write_geojson(path: Path, labels: np.ndarray, classes: NamedPalette) -> None:
    """A label map as a collection of features, a polygon each, in pixels.

    A feature's properties are the `class` as its index, its `name`, `fill` (the class's colour, as
    #rrggbb) and `area` in pixels. Outlines go round as RFC 7946 has them (its right-hand rule).
    """
    write_parts(path, _geojson(regions(labels, classes), classes))


def write_coco(
    path: Path, pictures: Iterable[tuple[str, np.ndarray]], classes: NamedPalette, count: int
) -> None:
    """Label maps of many pictures as one file of instances, a region each.

    A region without holes is a polygon; COCO's polygons have no holes, so that one with holes is a
    run-length code. Ids of categories are the class indices of the label maps.

    pictures: file names and their label maps, which are taken one after another. count: of classes.
    """
    write_parts(path, _coco(pictures, classes, count))


def _geojson(
    found: Iterable[Region],
    classes: NamedPalette,
    place: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[bytes]:
    """place: gives corners `[N, 2]` of pixels their coordinates; None leaves them."""
    yield b'{"type": "FeatureCollection", "features": [\n'
    rings = ((region, region.rings) for region in found) if place is None else _placed(found, place)
    yield from _joined(_feature(region, corners, classes) for region, corners in rings)
    yield b"\n]}\n"


def _placed(
    found: Iterable[Region], place: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Region, tuple[np.ndarray, ...]]]:
    """Regions with their rings in coordinates, rounded; outlines go round counterclockwise."""
    source = iter(found)
    while some := list(islice(source, TOGETHER)):
        every = [ring for region in some for ring in region.rings]
        corners = place(np.concatenate(every)).round(DECIMALS)
        rings = iter(np.split(corners, np.cumsum([len(ring) for ring in every])[:-1]))
        for region in some:
            mine = tuple(islice(rings, len(region.rings)))
            # Not from 0: of a small region far from there nothing would be left of the difference.
            turned = _area(mine[0] - mine[0][0]) < 0
            yield region, tuple(ring[::-1] for ring in mine) if turned else mine


def _feature(
    region: Region, rings: tuple[np.ndarray, ...], classes: NamedPalette
) -> dict[str, Any]:
    red, green, blue = classes.palette[region.label].tolist()
    about = {
        "class": region.label,
        "name": classes.name(region.label),
        "fill": f"#{red:02x}{green:02x}{blue:02x}",
        "area": region.area,
    }
    return {
        "type": "Feature",
        "properties": about,
        "geometry": {"type": "Polygon", "coordinates": _closed(rings)},
    }


def _closed(rings: Iterable[np.ndarray]) -> list[list[list[float]]]:
    """Rings whose last corner is the first again."""
    return [[*ring.tolist(), ring[0].tolist()] for ring in rings]


def _coco(
    pictures: Iterable[tuple[str, np.ndarray]], classes: NamedPalette, count: int
) -> Iterator[bytes]:
    images: list[dict[str, Any]] = []

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for name, labels in pictures:
            height, width = labels.shape
            about = {"id": len(images) + 1, "file_name": name, "height": height, "width": width}
            images.append(about)
            for region in regions(labels, classes):
                number += 1
                yield {
                    "id": number,
                    "image_id": about["id"],
                    "category_id": region.label,
                    "segmentation": _segmentation(region, height, width),
                    "area": region.area,
                    "bbox": region.box,
                    "iscrowd": 0,
                }

    yield b'{"info": {"description": "regions of label maps"}, "licenses": [],\n"annotations": [\n'
    yield from _joined(annotations())
    yield b'\n],\n"images": [\n'
    yield from _joined(images)
    yield b'\n],\n"categories": [\n'
    yield from _joined(
        {"id": index, "name": classes.name(index), "color": classes.palette[index].tolist()}
        for index in range(count)
        if classes.name(index) not in BACKGROUND
    )
    yield b"\n]}\n"


def _segmentation(region: Region, height: int, width: int) -> list[list[int]] | dict[str, Any]:
    if len(region.rings) == 1:
        return [region.rings[0].ravel().tolist()]
    left, _, wide, _ = region.box
    rings = [ring - [left, 0] for ring in region.rings]
    shape = {"type": "Polygon", "coordinates": _closed(rings)}
    mask = require_rasterio().rasterize([shape], out_shape=(height, wide), dtype="uint8")
    # Run lengths go down the columns of the whole picture, zeros and ones in turn.
    turns = np.flatnonzero(np.diff(mask.ravel(order="F") != 0, prepend=False, append=False))
    turns, size = turns + left * height, height * width
    counts = np.diff([0, *turns[turns < size].tolist(), size])
    return {"size": [height, width], "counts": counts.tolist()}


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _joined(items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """The items as JSON, each on a line of its own."""
    separator = b""
    for item in items:
        yield separator + json.dumps(item).encode()
        separator = b",\n"
