"""Polygons of label maps: drawn again they are the label map, in GeoJSON and in COCO's JSON."""

import json
import sys

import numpy as np
import pytest

from deeplab.data.outputs import NamedPalette, full_palette
from deeplab.data.polygons import Region, regions, require_rasterio, write_coco, write_geojson
from deeplab.data.scenes import CLASSES, PALETTE, scene
from deeplab.errors import InputError

NOTHING = -1  # where no polygon is
CLASSES_OF_SCENES = NamedPalette(full_palette(PALETTE), CLASSES)


def maps() -> dict[str, np.ndarray]:
    """Label maps by what is hard about them."""
    ring = np.zeros((9, 8), np.uint8)
    ring[1:8, 1:7], ring[3:6, 3:5], ring[4, 3] = 1, 2, 1
    corners = np.zeros((5, 6), np.uint8)
    corners[1, 1] = corners[2, 2] = corners[1, 3] = corners[3, 3] = 1  # holes that touch at corners
    return {
        "noise": np.random.default_rng(0).integers(0, 3, (30, 41)).astype(np.uint8),
        "holes in holes": ring,
        "corners": corners,
        "one pixel": np.full((1, 1), 3, np.uint8),
        "one class": np.full((4, 7), 255, np.uint8),
        "frame": np.pad(np.zeros((5, 6), np.uint8), 1, constant_values=2),
        "scene": scene(3, (60, 80)).labels,
        "wide integers": np.arange(12).reshape(3, 4),
    }


@pytest.fixture(params=maps())
def labels(request: pytest.FixtureRequest) -> np.ndarray:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    return maps()[request.param]


def filled(rings: list, height: int, width: int) -> np.ndarray:
    """The pixels bool `[H, W]` whose middle lies within an odd number of rings of corners."""
    crossed = np.zeros((height, width + 1), bool)
    for ring in rings:
        for (x, y), (to_x, to_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
            assert x == to_x or y == to_y  # along the borders of pixels
            if x == to_x:
                crossed[min(y, to_y) : max(y, to_y), x] ^= True
    return np.logical_xor.accumulate(crossed[:, :width], axis=1)


def drawn(shapes: list, labels: np.ndarray) -> np.ndarray:
    """The label map of (class, its pixels), none of which may be painted twice."""
    page = np.full(labels.shape, NOTHING, np.int64)
    for label, mask in shapes:
        assert mask.any()
        assert (page[mask] == NOTHING).all()
        page[mask] = label
    return page


def unnamed() -> NamedPalette:
    return NamedPalette(full_palette(None))


def test_geojson_drawn_again_is_the_label_map_and_areas_are_counts_of_pixels(tmp_path, labels):
    path = tmp_path / "a.geojson"
    write_geojson(path, labels, unnamed())
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    shapes = []
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in rings)
        mask = filled([ring[:-1] for ring in rings], *labels.shape)
        assert feature["properties"]["area"] == mask.sum()
        shapes.append((feature["properties"]["class"], mask))
    assert np.array_equal(drawn(shapes, labels), labels)


def test_outlines_and_holes_go_round_as_geojson_has_them(labels):
    for region in regions(labels, unnamed()):
        turns = []
        for ring in region.rings:
            x, y = np.transpose([*ring, ring[0]])
            turns.append(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        assert turns[0] > 0
        assert all(turn < 0 for turn in turns[1:])
        (left, top), (right, bottom) = region.rings[0].min(0), region.rings[0].max(0)
        assert region.box == (left, top, right - left, bottom - top)


def test_cocos_own_reader_draws_the_label_map_from_the_file(tmp_path, labels):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    path, other = tmp_path / "coco.json", np.full((5, 3), 1)
    write_coco(path, iter([("b/a.png", labels), ("c.png", other)]), unnamed(), 256)
    read = coco.COCO(path)
    for number, (name, truth) in enumerate([("b/a.png", labels), ("c.png", other)], 1):
        height, width = truth.shape
        picture = {"id": number, "file_name": name, "height": height, "width": width}
        assert read.imgs[number] == picture
        shapes = []
        for one in read.loadAnns(read.getAnnIds(imgIds=[number])):
            mask = read.annToMask(one).astype(bool)
            rows, columns = np.nonzero(mask)
            size = [np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["bbox"] == [columns.min(), rows.min(), *size]
            assert one["area"] == mask.sum()
            assert one["iscrowd"] == 0
            shapes.append((one["category_id"], mask))
        assert np.array_equal(drawn(shapes, truth), truth)


def test_regions_hang_together_by_sides_and_those_of_coco_with_holes_are_run_lengths(tmp_path):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    assert [region.area for region in regions(labels, unnamed())] == [1, 1, 1, 1]
    write_coco(tmp_path / "a.json", [("a.png", maps()["frame"])], unnamed(), 3)
    content = json.loads((tmp_path / "a.json").read_text())
    inner, frame = sorted(content["annotations"], key=lambda one: one["category_id"])
    assert sorted(np.reshape(inner["segmentation"], (4, 2)).tolist()) == [
        [1, 1],
        [1, 6],
        [7, 1],
        [7, 6],
    ]
    down = [0, 8, 5, 2, 5, 2, 5, 2, 5, 2, 5, 2, 5, 8]  # zeros, ones, zeros, ... by columns
    assert frame["segmentation"] == {"size": [7, 8], "counts": down}


def test_a_class_called_background_has_no_polygons_and_others_their_names(tmp_path):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    labels = np.array([[0, 0, 1], [2, 2, 1]], np.uint8)
    classes = NamedPalette(full_palette([[0, 0, 0], [255, 0, 9]]), ["background", "Straße", "car"])
    write_geojson(tmp_path / "a.geojson", labels, classes)
    content = json.loads((tmp_path / "a.geojson").read_text())
    found = {tuple(feature["properties"].values()) for feature in content["features"]}
    assert found == {(1, "Straße", "#ff0009", 2), (2, "car", "#008000", 2)}
    write_coco(tmp_path / "a.json", [("a.png", labels)], classes, 3)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["categories"] == [
        {"id": 1, "name": "Straße", "color": [255, 0, 9]},
        {"id": 2, "name": "car", "color": [0, 128, 0]},
    ]
    assert {one["category_id"] for one in content["annotations"]} == {1, 2}


def test_an_empty_label_map_has_no_features(tmp_path):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    write_geojson(
        tmp_path / "a", np.zeros((2, 3)), NamedPalette(full_palette(None), ["background"])
    )
    assert json.loads((tmp_path / "a").read_text())["features"] == []


def test_a_region_without_rasterio_knows_its_area_and_box():
    outline, hole = [[2, 1], [7, 1], [7, 5], [2, 5]], [[3, 2], [3, 3], [5, 3], [5, 2]]
    region = Region(4, (np.array(outline), np.array(hole)))
    assert region.area == 20 - 2
    assert region.box == (2, 1, 5, 4)


def test_polygons_without_rasterio_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.delitem(sys.modules, "rasterio.features", raising=False)
    with pytest.raises(
        InputError, match=r"package rasterio, .*: pip install 'deeplab-triton.geo.'"
    ):
        require_rasterio()
