"""Results as Cloud Optimized GeoTIFFs: what GDAL reads of them, and whole files or none."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from geotiffs import NORTH_UP, PLACE, geotiff, needs_rasterio, noise

from deeplab.data.cog import cog
from deeplab.data.geotiff import UNOBSERVED, LabelMap, Scene
from deeplab.data.outputs import NamedPalette, full_palette
from deeplab.data.polygons import write_geojson, write_geojson_of_scene
from deeplab.errors import OutputError

FILL = (0.0,)
NAMES = ["Wasser & Eis", "Straße", "background"]
PALETTE = full_palette([(1, 2, 3), (200, 100, 0), (9, 9, 9)])


@pytest.fixture(autouse=True)
def rasterio():
    return needs_rasterio()


@pytest.fixture
def labels() -> np.ndarray:
    found = np.random.default_rng(1).integers(0, 3, (7, 10)).repeat(3, 0).repeat(3, 1)[:20]
    found = found.astype(np.uint8)
    found[4:9, 3:20] = UNOBSERVED
    found[11, 4] = 1 - found[11, 4] % 2  # a hole in something
    return found


def written(path: Path, source: Path, labels: np.ndarray) -> Path:
    """The label map of a scene, written in two parts."""
    with Scene(source, FILL) as scene, cog(path, scene, "uint8", 255, NAMES, PALETTE) as maps:
        for rows in ((0, 13), (13, 20)):
            maps.write(labels[slice(*rows)], 1, window=(rows, (0, 30)))
    return path


def scene_file(path: Path, **place) -> Path:
    return geotiff(path, noise(20, 30, 1), **place)


def places(rasterio) -> dict[str, dict]:
    point = rasterio.control.GroundControlPoint
    corners = [point(0, 0, 15, 45), point(0, 30, 16, 45), point(20, 0, 15, 44)]
    return {
        "UTM": PLACE,
        "degrees": {"crs": "EPSG:4326", "transform": (1e-5, 0, 15, 0, -1e-5, 45)},
        "turned": PLACE | {"transform": (8, 2, 500_000, 2, -8, 5_000_000)},
        "south up": PLACE | {"transform": (10, 0, 500_000, 0, 10, 5_000_000)},
        "no reference system": {"transform": NORTH_UP},
        "no transform": {"crs": "EPSG:32633"},
        "of points": {
            "crs": "EPSG:32633",
            "transform": NORTH_UP,
            "tags": {"AREA_OR_POINT": "Point"},
        },
        "own projection": PLACE | {"crs": "+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80 +units=m"},
        "control points": {"crs": "EPSG:4326", "gcps": corners},
        "control points, of points": {
            "crs": "EPSG:4326",
            "gcps": corners,
            "tags": {"AREA_OR_POINT": "Point"},
        },
    }


def test_place_and_meaning_are_read_again(tmp_path, rasterio, labels):
    for name, place in places(rasterio).items():
        source = scene_file(tmp_path / "scene.tif", **place)
        path = written(tmp_path / "labels.tif", source, labels)
        with rasterio.open(source) as given, rasterio.open(path) as found:
            assert found.crs == given.crs, name
            assert found.transform == given.transform, name
            assert [p.asdict() | {"id": 0} for p in found.gcps[0]] == [
                p.asdict() | {"id": 0} for p in given.gcps[0]
            ], name
            assert found.gcps[1] == given.gcps[1], name
            assert found.nodata == UNOBSERVED
            assert found.dtypes == ("uint8",)
            assert np.array_equal(found.read(1), labels)
            colours = [found.colormap(1)[i][:3] for i in range(3)]
            assert np.array_equal(colours, PALETTE[:3])
            assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert json.loads(found.tags()["class_names"]) == NAMES
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "labels.tif",
        "labels.tif.aux.xml",
        "scene.tif",
    ]


def test_rational_polynomials_are_kept(tmp_path, rasterio, labels):
    one, x, y = ([*[0.0] * i, 1.0, *[0.0] * (19 - i)] for i in range(3))
    # row = 10 - 10 (latitude - 45), column = 15 + 15 (longitude - 15), of middles of pixels
    y[2] = -1.0
    rpcs = rasterio.rpc.RPC(
        0, 100, 45, 1, one, y, 10, 10, 15, 1, one, x, 15, 15, err_bias=None, err_rand=None
    )
    source = scene_file(tmp_path / "scene.tif", rpcs=rpcs)
    path = written(tmp_path / "labels.tif", source, labels)
    with rasterio.open(source) as given, rasterio.open(path) as found:
        assert given.rpcs.to_dict()["lat_off"] == 45
        assert found.rpcs.to_dict() == given.rpcs.to_dict()
    with LabelMap(path) as found:
        corners = found.lon_lat(np.array([[0, 0], [30, 0], [15, 20]]))
    half = [0.5 / 15, 0.5 / 10]  # of a pixel, as programs differ in
    assert (np.abs(corners - [[14, 46], [16, 46], [15, 44]]) < 1.1 * np.array(half)).all()
    both = scene_file(tmp_path / "both.tif", **PLACE, rpcs=rpcs)  # of a scene put right since
    with LabelMap(both) as found:
        expected = rasterio.warp.transform(PLACE["crs"], "EPSG:4326", [500_000], [5_000_000])
        np.testing.assert_allclose(found.lon_lat(np.zeros((1, 2))).T, expected, atol=1e-9)


def test_class_names_are_categories_of_gdal(tmp_path, rasterio, labels):
    path = written(tmp_path / "labels.tif", scene_file(tmp_path / "scene.tif"), labels)
    rasterio.shutil.copy(path, tmp_path / "labels.vrt", driver="VRT")  # GDAL's own description
    text = (tmp_path / "labels.vrt").read_text()
    assert [
        line.split(">")[1].split("<")[0] for line in text.splitlines() if "<Category>" in line
    ] == [
        "Wasser &amp; Eis",
        "Straße",
        "background",
    ]


def test_overviews_of_labels_are_labels(tmp_path, rasterio):
    source = geotiff(tmp_path / "scene.tif", np.zeros((520, 600, 1), np.uint8))
    labels = np.where(noise(520, 600, 1)[..., 0] < 128, 0, 2).astype(np.uint8)
    with Scene(source, FILL) as scene:
        with cog(tmp_path / "a.tif", scene, "uint8", 255, NAMES, PALETTE) as maps:
            maps.write(labels, 1)
        with cog(tmp_path / "p.tif", scene, "float32", np.nan, NAMES) as likely:
            likely.write(np.broadcast_to(labels.astype(np.float32) / 2, (3, 520, 600)))
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.overviews(1)
        smaller = found.read(1, out_shape=(260, 300))
        assert set(np.unique(smaller)) == {0, 2}
        assert 0.4 < (smaller == 2).mean() < 0.6
    with rasterio.open(tmp_path / "p.tif") as found:
        assert found.descriptions == tuple(NAMES)
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert np.isnan(found.nodata)
        assert np.array_equal(found.read(2), labels / np.float32(2))
        whole = (labels / np.float32(2)).reshape(260, 2, 300, 2).mean((1, 3))
        np.testing.assert_allclose(found.read(1, out_shape=(260, 300)), whole, atol=1e-6)


def test_an_error_leaves_what_was_there(tmp_path, labels):
    source = scene_file(tmp_path / "scene.tif")
    path = written(tmp_path / "labels.tif", source, labels)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    with (
        Scene(source, FILL) as scene,
        pytest.raises(ValueError, match="shape"),
        cog(path, scene, "uint8", 255, NAMES, PALETTE) as maps,
    ):
        maps.write(np.stack([labels, labels]))
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_what_lay_beside_an_older_file_goes_and_so_does_what_a_killed_process_left(
    tmp_path, labels
):
    source = scene_file(tmp_path / "scene.tif")
    first = written(tmp_path / "labels.tif", source, labels).read_bytes()
    names = (tmp_path / "labels.tif.aux.xml").read_bytes()
    for beside in ("labels.tif.aux.xml", "labels.tif.ovr", "labels.tif.msk", ".labels.tif.part"):
        (tmp_path / beside).write_text("of another file")
    (tmp_path / ".labels.tif.work").mkdir()
    (tmp_path / ".labels.tif.work" / "plain.tif").write_text("half")
    assert written(tmp_path / "labels.tif", source, labels).read_bytes() == first
    assert (tmp_path / "labels.tif.aux.xml").read_bytes() == names
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("most", [2**14, 2**20])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, most):
    """As far as a limit of the process is one: of the plain file's size, and of the COG's."""
    values = noise(1100, 1100, 1)
    source = geotiff(tmp_path / "scene.tif", values)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Scene(source, FILL) as scene:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
            with (
                pytest.raises(OutputError, match=r"labels.tif: cannot be written \(.*another out"),
                cog(tmp_path / "labels.tif", scene, "uint8", 255, NAMES, PALETTE) as maps,
            ):
                maps.write(values[..., 0], 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.name for each in tmp_path.iterdir()] == ["scene.tif"]


def test_areas_are_counts_of_observed_pixels(tmp_path, labels):
    source = scene_file(tmp_path / "scene.tif")
    with LabelMap(written(tmp_path / "labels.tif", source, labels)) as found:
        areas, pixels = found.areas(4)
    assert areas.tolist() == [*((labels == i).sum() for i in range(3)), 0]
    assert pixels == (labels != UNOBSERVED).sum()
    masks = np.stack([labels == 0, labels != 2]).astype(np.uint8)
    masks[:, labels == UNOBSERVED] = UNOBSERVED
    with (
        Scene(source, FILL) as scene,
        cog(tmp_path / "m.tif", scene, "uint8", 255, NAMES[:2]) as to,
    ):
        to.write(masks)
    with LabelMap(tmp_path / "m.tif", masks=True) as found:
        areas, pixels = found.areas(2)
        assert np.array_equal(found.read(slice(3, 9), slice(0, 5)), masks[:, 3:9, :5])
    assert areas.tolist() == [(labels == 0).sum(), (labels <= 1).sum()]
    assert pixels == (labels != UNOBSERVED).sum()


def test_polygons_are_those_in_pixels_at_longitude_and_latitude(tmp_path, rasterio, labels):
    classes = NamedPalette(PALETTE, NAMES)
    shown = np.where(labels == UNOBSERVED, 2, labels)  # as little a polygon as the background
    write_geojson(tmp_path / "pixels.json", shown, classes)
    pixels = json.loads((tmp_path / "pixels.json").read_text())["features"]
    for name, place in places(rasterio).items():
        source = scene_file(tmp_path / "scene.tif", **place)
        with LabelMap(written(tmp_path / "labels.tif", source, labels)) as found:
            write_geojson_of_scene(tmp_path / "a.json", found, classes)
        features = json.loads((tmp_path / "a.json").read_text())["features"]
        assert [one["properties"] for one in features] == [one["properties"] for one in pixels]
        with rasterio.open(source) as given:
            transform, system = given.transform, given.crs
            if given.gcps[0]:
                transform, system = rasterio.transform.from_gcps(given.gcps[0]), given.gcps[1]
        for mine, theirs in zip(features, pixels, strict=True):
            rings = mine["geometry"]["coordinates"]
            for ring, corners in zip(rings, theirs["geometry"]["coordinates"], strict=True):
                assert ring[0] == ring[-1]
                x, y = np.reshape(transform[:6], (2, 3)) @ [
                    *np.transpose(corners),
                    [1] * len(corners),
                ]
                if system is not None:
                    x, y = rasterio.warp.transform(system, "OGC:CRS84", x, y)
                placed = {(round(a, 9), round(b, 9)) for a, b in zip(x, y, strict=True)}
                flat = np.array(sorted(placed)), np.array(sorted({tuple(each) for each in ring}))
                np.testing.assert_allclose(*flat, rtol=1e-12, atol=2e-9, err_msg=name)
            turns = [signed(ring) for ring in rings]
            assert turns[0] > 0, name  # counterclockwise, holes the other way round
            assert all(turn < 0 for turn in turns[1:]), name


def signed(ring: list) -> float:
    x, y = np.transpose(np.array(ring) - ring[0])
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
