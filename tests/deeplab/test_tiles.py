"""Large pictures in tiles: the blend itself, and what network and CRF give in tiles and whole."""

import errno
import itertools
import os
import tempfile

import numpy as np
import pytest
import torch
from commands import done
from PIL import Image

import crf
from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import scene
from deeplab.errors import InputError
from deeplab.model import DeepLab, build, deeplab_v2_small
from deeplab.predict import Predictor, as_levels, tiles
from deeplab.predict.tiles import Tiling, blended
from deeplab.weights import SHIPPED, load_model

SEAMS = 0.995  # of the labels must be those of the picture taken whole


@pytest.fixture(scope="module")
def small() -> DeepLab:
    torch.manual_seed(0)
    return deeplab_v2_small(num_classes=4).eval()


@pytest.fixture(scope="module")
def shipped() -> DeepLab:
    return load_model(SHIPPED)


def layer() -> crf.DenseCRF:
    return crf.DenseCRF(
        4, gaussian=crf.Gaussian(3, 3), bilateral=crf.Bilateral(4, 20, 5), iterations=2
    )


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("overlap", [0, 1, 8, 20, 32])
@pytest.mark.parametrize(("unit", "extra"), [(8, 1), (32, 0)])
def test_tiles_lie_on_the_grid_share_the_overlap_and_their_weights_sum_to_one(
    overlap: int, unit: int, extra: int
) -> None:
    tile = 64 + extra
    tiling = Tiling(tile, overlap, unit, extra)
    for length in (*range(1, 3 * tile), 1000, 1001, 1007):
        spans = tiling.spans(length)
        assert spans[0].start == 0
        assert spans[-1].stop == spans[-1].done == length
        total = torch.zeros(length)
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            assert span.start % unit == 0
            assert span.stop - span.start <= tile
            total[span.start : span.stop] += span.weight
            if following is not None:
                assert span.stop - span.start == tile
                assert span.done == following.start <= span.stop - overlap
        torch.testing.assert_close(total, torch.ones(length), atol=1e-6, rtol=0)


def test_the_outermost_three_eighths_of_an_overlap_count_nothing() -> None:
    first, second = Tiling(65, 33, 8, 1).spans(97)
    assert (first.stop, second.start) == (65, 32)
    assert not second.weight[:12].any()
    assert not first.weight[-12:].any()
    assert bool((first.weight[: 32 + 12] == 1).all())
    assert bool((second.weight[21:] == 1).all())
    assert bool((second.weight[12:21].diff() > 0).all())


@pytest.mark.parametrize("in_memory", [2**30, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("size", [(5, 200), (150, 7), (130, 171), (65, 65)])
def test_a_blend_of_what_every_tile_agrees_on_is_that(
    size: tuple[int, int], in_memory: int, monkeypatch
) -> None:
    monkeypatch.setattr(tiles, "IN_MEMORY", in_memory)
    tiling, expected = Tiling(65, 30, 8, 1), torch.rand(3, *size)
    spans = [tiling.spans(length) for length in size]
    found = torch.full((3, *size), torch.nan)
    for part in blended(*spans, lambda *at: expected[:, at[0], at[1]]):
        assert bool(found[:, part.rows, part.columns].isnan().all())  # no part twice
        found[:, part.rows, part.columns] = part.values
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_blend_weighs_the_tiles() -> None:
    """Of a first tile that says 0 and a second that says 1, along one axis: the second's weight."""
    rows, columns = Tiling(65, 33, 8, 1).spans(20), Tiling(65, 33, 8, 1).spans(97)
    parts = blended(rows, columns, lambda r, c: torch.full((1, 20, 65), float(c.start > 0)))
    found = torch.cat([part.values for part in parts], 2)[0]
    expected = torch.cat([torch.zeros(32), columns[1].weight])
    torch.testing.assert_close(found, expected.expand(20, 97))


def test_what_is_kept_of_a_picture_is_a_row_of_overlaps(monkeypatch) -> None:
    made: list[tuple[int, ...]] = []
    room = tiles.room
    monkeypatch.setattr(tiles, "room", lambda shape: made.append(shape) or room(shape))
    tiling = Tiling(65, 16, 8, 1)

    def ones(rows: slice, columns: slice) -> torch.Tensor:
        return torch.ones(2, rows.stop - rows.start, columns.stop - columns.start)

    list(blended(tiling.spans(2001), tiling.spans(300), ones))
    assert len(made) == len(tiling.spans(2001)) - 1
    assert {shape[::2] for shape in made} == {(2, 300)}
    assert max(shape[1] for shape in made) < 16 + 2 * 8


def test_nothing_is_left_on_the_disk_after_ctrl_c(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tiles, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spans, seen = Tiling(65, 16, 8, 1).spans(200), []

    def values(rows: slice, columns: slice) -> torch.Tensor:
        seen.append(list(tmp_path.iterdir()))
        if rows.start > 0:  # the overlap with the row above lies in a file
            raise KeyboardInterrupt
        return torch.ones(2, rows.stop - rows.start, columns.stop - columns.start)

    with pytest.raises(KeyboardInterrupt):
        list(blended(spans, spans, values))
    assert seen == [[]] * (len(spans) + 1)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tiles, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"1\.6 GB .*\(No space left on device\); have TMPDIR"):
        tiles.room((20_000, 20_000), np.float32)


def test_a_disk_that_reserves_nothing_is_written_to_as_it_is(tmp_path, monkeypatch) -> None:
    def unable(file: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(tiles, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    array = tiles.room((20, 30))
    array[:] = 1
    assert array.sum() == 600


GRIDS = [  # a model, scales, and the pixels to which its tiles have to keep
    ("deeplab_v2_small", {}, (1.0,), 8, 1),
    ("deeplab_v2_small", {}, (0.5, 0.75, 1.25), 32, 1),
    ("deeplab_v2_small", {"scales": (1.0, 0.75, 0.5)}, (1.0,), 32, 1),
    ("deeplab_v2_small", {}, (0.123,), 8, 1),
    ("deeplab_v3plus_resnet18", {}, (1.0,), 16, 1),
    ("deeplab_v3_mobilenet", {}, (1.0,), 16, 0),
]


@pytest.mark.parametrize(("name", "options", "scales", "unit", "extra"), GRIDS)
def test_tiles_keep_to_the_grid_of_the_network(name, options, scales, unit, extra) -> None:
    tiling = Tiling.of(build(name, num_classes=3, **options), scales, 200, 40)
    assert (tiling.unit, tiling.extra) == (unit, extra)
    assert tiling.tile == 200 - (200 - extra) % unit


@pytest.mark.parametrize(
    ("scales", "msc"), [((1.0,), None), ((0.5, 1.0), None), ((1.0,), (1.0, 0.75, 0.5))]
)
def test_a_tile_has_the_scores_that_the_whole_picture_has_where_no_edge_is_seen(
    scales: tuple[float, ...], msc: tuple[float, ...] | None
) -> None:
    """With a network of short reach: what the tiles' edges touch counts nothing in the blend."""
    torch.manual_seed(0)
    model = deeplab_v2_small(num_classes=4, rates=[1], scales=msc).eval()
    image = picture(65, 1153)
    whole = Predictor(model, scales=scales, tile=None)(image).probabilities
    predictor = Predictor(model, scales=scales, tile=1050, overlap=500)
    assert predictor.in_tiles(image.shape)
    found = predictor(image).probabilities
    # each of three resizings rounds a pixel's place by that, and no probability is steeper than 1
    np.testing.assert_allclose(found, whole, atol=3 * 1153 * torch.finfo(torch.float32).eps)


CASES = {  # of a model, how it is used, a picture's size, and the overlap of tiles of 65 pixels
    "a pixel larger than a tile": ({}, {}, (66, 65), 16),
    "a pixel high": ({}, {}, (1, 150), 16),
    "very thin": ({}, {}, (300, 5), 32),
    "no overlap": ({}, {}, (70, 150), 0),
    "several views": ({}, {"scales": (0.5, 1.0), "flip": True}, (70, 150), 16),
    "several labels a pixel": ({"multilabel": True}, {}, (70, 150), 16),
    "a CRF": ({}, {"crf": layer()}, (70, 150), 16),
    "a CRF of all bands": (
        {},
        {"crf": CRFSettings(2, bands="all").refiner(4), "bands": "all"},
        (70, 150),
        16,
    ),
    "bfloat16": ({}, {"precision": torch.bfloat16}, (33, 100), 16),
    "float16": ({}, {"precision": torch.float16}, (33, 100), 16),
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture_in_tiles_is_the_weighted_mean_of_what_each_tile_is_alone(case: str) -> None:
    about, options, size, overlap = CASES[case]
    torch.manual_seed(0)
    model = build("deeplab_v2_small", num_classes=4, **about).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(0.05)  # probabilities that are neither 0 nor 1
    image, tiling = picture(*size), Tiling.of(model, options.get("scales", ()), 65, overlap)
    alone = Predictor(model, tile=None, **options)
    expected, count = np.zeros((4, *size)), 0
    rows, columns = (tiling.spans(length) for length in size)
    for row, column in itertools.product(rows, columns):
        at = slice(row.start, row.stop), slice(column.start, column.stop)
        weight = np.outer(row.weight.double(), column.weight.double())
        output = alone.output([image[at]], (row.start, column.start))
        expected[:, *at] += weight * output.probabilities[0].numpy()
        count += 1
    predictor = Predictor(model, tile=65, overlap=overlap, **options)
    found = predictor(image)
    assert count > 1
    rounding = 8 * torch.finfo(torch.float32).eps  # weights, products and sums of four tiles
    np.testing.assert_allclose(found.probabilities, expected, atol=rounding)
    if model.multilabel:
        assert np.array_equal(found.labels, found.probabilities >= 0.5)
    else:
        assert np.array_equal(found.labels, found.probabilities.argmax(0))
    assert np.array_equal(predictor(image, probabilities=False).labels, found.labels)
    assert np.array_equal(predictor.labels(image)[1], found.labels)


@pytest.mark.parametrize("bands", [None, "all"])
def test_a_crf_counts_positions_in_the_whole_picture(small: DeepLab, bands) -> None:
    refiner, image = CRFSettings(2, bands=bands).refiner(4), picture(20, 30)
    predictor = Predictor(small, refiner, bands=bands)
    here, there = predictor.output([image]), predictor.output([image], (300, 17))
    expected = refiner(there.logits, as_levels(small, image, bands).float(), origin=(300, 17))
    assert torch.equal(there.marginals, expected)
    assert torch.equal(there.logits, here.logits)
    assert not torch.equal(there.marginals, here.marginals)


def test_a_crf_of_somebodys_own_takes_each_tile_as_a_picture(small: DeepLab) -> None:
    image = picture(70, 150)
    own = Predictor(small, lambda logits, levels: logits.softmax(1), tile=65, overlap=16)
    assert np.array_equal(own(image).labels, Predictor(small, tile=65, overlap=16)(image).labels)


def test_seams_change_few_labels(shipped: DeepLab) -> None:
    image, refiner = scene(10_000_003, (385, 897)).image, CRFSettings().refiner(11)
    whole = Predictor(shipped, refiner, tile=None).labels(image)
    found = Predictor(shipped, refiner, tile=513, overlap=128).labels(image)
    agreements = [float((a == b).mean()) for a, b in zip(found, whole, strict=True)]
    assert min(agreements) >= SEAMS, agreements
    assert max(agreements) < 1


def test_a_folder_of_pictures_goes_in_tiles(tmp_path) -> None:
    image, folder = picture(70, 150), tmp_path / "pictures"
    folder.mkdir()
    for name, each in {"a": image, "b": image[::-1]}.items():
        Image.fromarray(each).save(folder / f"{name}.png")
    options = ["--weights", SHIPPED, "--no-crf", "--tile", 65, "--overlap", 16, "--scales", "0.5,1"]
    done("segment", folder, *options, "--precision", "bfloat16", "--out", tmp_path / "out")
    predictor = Predictor(
        load_model(SHIPPED), scales=(0.5, 1), precision=torch.bfloat16, tile=65, overlap=16
    )
    for name, each in {"a": image, "b": image[::-1]}.items():
        with Image.open(tmp_path / "out" / f"{name}_labels.png") as labels:
            assert np.array_equal(np.asarray(labels), predictor(each).labels)


def test_labels_and_probabilities_of_tiles_are_of_one_blend(small: DeepLab) -> None:
    image = picture(70, 150)
    options = {"scales": (0.5, 1.0), "flip": True, "tile": 65, "overlap": 32}
    plain, refining = Predictor(small, **options), Predictor(small, layer(), **options)
    for predictor in (plain, refining):
        found = predictor(image)
        assert np.array_equal(found.labels, found.probabilities.argmax(0))
        alone = predictor(image, probabilities=False)
        assert np.array_equal(alone.labels, found.labels)
        assert alone.probabilities.shape == (0, 70, 150)
    before, after = refining.labels(image)
    assert np.array_equal(before, plain(image).labels)
    assert np.array_equal(after, refining(image).labels)
    assert not np.array_equal(before, after)
    assert all(np.array_equal(each, before) for each in plain.labels(image))


def test_a_threshold_counts_in_tiles(small: DeepLab) -> None:
    two = deeplab_v2_small(num_classes=2).eval()
    predictor = Predictor(two, threshold=0.6, tile=65, overlap=16)
    found = predictor(picture(70, 150))
    assert np.array_equal(found.labels, found.probabilities[1] >= 0.6)
    assert np.array_equal(predictor.labels(picture(70, 150))[0], found.labels)


def test_a_crf_layer_of_the_model_refines_each_tile(small: DeepLab) -> None:
    image = picture(70, 150)
    expected = Predictor(small, layer(), tile=65, overlap=16)(image)
    torch.manual_seed(0)
    own = deeplab_v2_small(num_classes=4).eval()
    own.crf = layer()
    found = Predictor(own, tile=65, overlap=16)(image)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_large_and_small_pictures_go_together(small: DeepLab) -> None:
    images = [picture(70, 150), picture(30, 40), picture(70, 150)]
    predictor = Predictor(small, tile=65, overlap=16)
    for image, found in zip(images, predictor(images), strict=True):
        np.testing.assert_allclose(found.probabilities, predictor(image).probabilities, atol=1e-6)
    assert [predictor.in_tiles(image.shape) for image in images] == [True, False, True]


def test_tiles_are_chosen_where_the_memory_is_short(small: DeepLab, monkeypatch) -> None:
    image = np.zeros((1100, 1030, 3), np.uint8)
    twice = 2 * 130 * 1100 * 1030
    for free, cut in ((None, False), (twice, False), (twice - 1, True)):
        monkeypatch.setattr("kernels.memory.available", lambda device, free=free: free)
        assert Predictor(small).in_tiles(image.shape) is cut
        assert not Predictor(small, tile=None).in_tiles(image.shape)
        assert not Predictor(small).in_tiles((1017, 1017))  # one tile would be all of it
        assert Predictor(small, tile=1025).in_tiles(image.shape)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        Predictor, "output", lambda self, images, origin: seen.append(images[0].shape) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        Predictor(small)(image)
    assert seen == [(1017, 1017, 3)]


def test_a_tile_that_does_not_fit_is_refused(small: DeepLab, monkeypatch) -> None:
    monkeypatch.setattr("kernels.memory.available", lambda device: 130 * 65 * 65 - 1)
    with pytest.raises(InputError, match=r"for 65 x 65 pixels; .* tiles, or in smaller ones"):
        Predictor(small, tile=65, overlap=16)(picture(70, 150))


def test_nan_in_a_tile_is_refused() -> None:
    broken = deeplab_v2_small(num_classes=4).eval()
    with torch.no_grad():
        broken.head.classifier.bias[2] = float("nan")
    with pytest.raises(InputError, match="NaN or Inf"):
        Predictor(broken, tile=65, overlap=16)(picture(70, 150))


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (8, 0, "tile must be at least 9 pixels for this model and an overlap of 0, not 8"),
        (100, 51, "overlap must be from 0 to half a tile, 50, not 51"),
        (100, -1, "overlap must be from 0"),
        (16, 8, "tile must be at least 17 pixels .* an overlap of 8, not 16"),
    ],
)
def test_tiles_that_make_no_sense_are_refused(small, tile, overlap, message) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(small, tile=tile, overlap=overlap)


def test_scales_that_are_no_simple_fractions_leave_the_grid_alone() -> None:
    assert [tiles._denominator(scale) for scale in (0.5, 0.75, 2.0, 1 / 3, 0.123)] == [
        2,
        4,
        1,
        3,
        1,
    ]
