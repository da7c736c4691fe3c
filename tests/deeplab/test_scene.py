"""Scenes through a predictor, window by window: what arrays of the same values give."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from geotiffs import damage, geotiff, needs_rasterio, noise

import crf
from deeplab.data.geotiff import UNOBSERVED, Scene
from deeplab.data.outputs import NamedPalette, full_palette
from deeplab.data.scenes import scene
from deeplab.errors import InputError
from deeplab.model import DeepLab, build, deeplab_v2_small
from deeplab.predict import Predictor
from deeplab.predict.scene import open_scene, segment_scene

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "geotiff.md"
CLASSES = NamedPalette(full_palette(None), ["a", "b", "c", "d"])
TILES = {"tile": 65, "overlap": 16}


@pytest.fixture(scope="module", autouse=True)
def rasterio():
    return needs_rasterio()


@pytest.fixture(scope="module")
def small() -> DeepLab:
    torch.manual_seed(0)
    return deeplab_v2_small(num_classes=4).eval()


def layer() -> crf.DenseCRF:
    return crf.DenseCRF(
        4, gaussian=crf.Gaussian(3, 3), bilateral=crf.Bilateral(4, 20, 5), iterations=2
    )


def segmented(predictor: Predictor, file: Path, bands=None) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[H, W]`, or masks, and probabilities `[C, H, W]`, as rasterio reads them."""
    labels, likely = file.with_name("labels.tif"), file.with_name("likely.tif")
    with open_scene(predictor, file, bands) as opened:
        segment_scene(predictor, opened, labels, CLASSES, likely)
    with needs_rasterio().open(labels) as found, needs_rasterio().open(likely) as values:
        maps = found.read()
        return maps if predictor.model.multilabel else maps[0], values.read()


def test_a_scene_has_the_labels_and_probabilities_of_an_array_of_its_values(tmp_path, small):
    image = noise(70, 150)
    file = geotiff(tmp_path / "scene.tif", image)
    for options in ({"flip": True, **TILES}, {"crf": layer(), **TILES}, {}):
        predictor = Predictor(small, **options)
        assert predictor.in_tiles(image.shape) is bool(options)  # else it is no larger than one
        labels, likely = segmented(predictor, file)
        expected = predictor(image)
        assert np.array_equal(labels, expected.labels)
        assert np.array_equal(likely, expected.probabilities)


def test_bands_of_any_values_are_those_of_an_array(tmp_path):
    torch.manual_seed(0)
    about = {"mean": [3e4, 3e4, 500, 9], "deviation": [2e4, 2e4, 300, 9.0]}
    model = build("deeplab_v2_small", 4, in_channels=4, **about).eval()
    predictor = Predictor(model, **TILES)
    for dtype in ("uint16", "float32", "uint8"):
        image = noise(40, 80, 6, dtype)
        file = geotiff(tmp_path / f"{dtype}.tif", image)
        chosen = np.ascontiguousarray(image[..., [5, 0, 0, 2]])
        assert np.array_equal(segmented(predictor, file, [6, 1, 1, 3])[0], predictor(chosen).labels)


def test_masks_of_several_labels_a_pixel_are_a_band_each(tmp_path):
    torch.manual_seed(0)
    model = deeplab_v2_small(num_classes=4, multilabel=True).eval()
    image = noise(40, 80)
    image[10:20, 10:30] = 0
    file = geotiff(tmp_path / "scene.tif", image, nodata=0)
    predictor = Predictor(model, threshold=0.4, tile=65, overlap=16)
    with open_scene(predictor, file) as opened:
        filled, observed = opened.read(slice(0, 40), slice(0, 80))
    expected = predictor(filled)
    masks, likely = segmented(predictor, file)
    assert np.array_equal(masks[:, observed], expected.labels[:, observed])
    assert (masks[:, ~observed] == UNOBSERVED).all()
    assert np.array_equal(likely[:, observed], expected.probabilities[:, observed])
    assert np.isnan(likely[:, ~observed]).all()


def test_what_nodata_is_changes_no_label_and_has_none(tmp_path):
    torch.manual_seed(0)
    model = build("deeplab_v2_small", 4, in_channels=3, mean=[500] * 3, deviation=[300] * 3).eval()
    image, found = 1 + noise(70, 150, 3, "float32"), []
    there = np.ones((70, 150), bool)
    there[20:60, 40:100] = False
    for i, nodata in enumerate((-9999, 3e38, np.nan, 0)):
        image[~there] = nodata
        file = geotiff(tmp_path / f"{i}.tif", image, nodata=nodata)
        found.append(segmented(Predictor(model, **TILES), file))
        assert (found[-1][0][~there] == UNOBSERVED).all()
        assert (found[-1][0][there] != UNOBSERVED).all()
        assert np.isnan(found[-1][1][:, ~there]).all()
    for labels, likely in found[1:]:
        assert np.array_equal(labels, found[0][0])
        assert np.array_equal(likely, found[0][1], equal_nan=True)
    image[~there] = 500  # what the network takes for nothing
    plain = geotiff(tmp_path / "plain.tif", image)
    assert np.array_equal(segmented(Predictor(model, **TILES), plain)[0][there], found[0][0][there])


def test_windows_are_read_and_tiles_of_nothing_spared(tmp_path, small, monkeypatch):
    image = noise(200, 300)
    image[:, 120:] = 0
    file = geotiff(tmp_path / "scene.tif", image, nodata=0)
    read, output = Scene.read, Predictor.output
    windows, tiles = [], []

    def reading(self, rows, columns):
        windows.append((rows.stop - rows.start, columns.stop - columns.start))
        return read(self, rows, columns)

    def computing(self, images):
        tiles.append(images[0].shape)
        return output(self, images)

    monkeypatch.setattr(Scene, "read", reading)
    monkeypatch.setattr(Predictor, "output", computing)
    labels = segmented(Predictor(small, **TILES), file)[0]
    assert max(map(max, windows)) == 65
    assert len(tiles) == 4 * 3  # of four columns and six rows, those that see the first 120 columns
    monkeypatch.undo()
    image[:, 120:] = np.rint(small.preprocessing.mean_colour())
    expected = Predictor(small, **TILES)(image).labels[:, :120]
    assert np.array_equal(labels[:, :120], expected)


def test_two_runs_give_the_same_bytes(tmp_path, small):
    file, predictor = geotiff(tmp_path / "scene.tif", noise(40, 80)), Predictor(small, **TILES)
    runs = []
    for _ in range(2):
        segmented(predictor, file)
        runs.append([path.read_bytes() for path in sorted(tmp_path.glob("l*"))])
    assert len(runs[0]) == 3  # labels, their categories, probabilities
    assert runs[0] == runs[1]


def test_damage_midway_leaves_no_file(tmp_path, small):
    blocks = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    file = geotiff(tmp_path / "scene.tif", noise(70, 300), **blocks)
    damage(file, 7)
    with pytest.raises(InputError, match=r"scene.tif: the TIFF is damaged"):
        segmented(Predictor(small, **TILES), file)
    assert [each.name for each in tmp_path.iterdir()] == ["scene.tif"]


def test_the_example_of_the_documents_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    file = geotiff(tmp_path / "scene.tif", scene(0, (60, 90)).image)
    exec(compile(block, str(DOCUMENT), "exec"), {})
    with needs_rasterio().open(tmp_path / "labels.tif") as found:
        assert str(found.read(1)[:4, :4]) in capsys.readouterr().out
        with needs_rasterio().open(file) as given:
            assert found.crs == given.crs


def test_classes_that_leave_no_value_for_nodata_are_refused(tmp_path):
    file, predictor = (
        geotiff(tmp_path / "scene.tif", noise(20, 30)),
        Predictor(deeplab_v2_small(256)),
    )
    with pytest.raises(InputError, match="256 classes leave no value for ground"):
        open_scene(predictor, file)
