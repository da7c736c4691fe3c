"""Scenes: what is one, and what its windows hold."""

import sys

import numpy as np
import pytest
from geotiffs import PLACE, damage, geotiff, needs_rasterio, noise
from PIL import Image

from deeplab.data.conversions import BANDS, DEEP, NEAR_ZERO
from deeplab.data.geotiff import EMPTY, Scene, is_georeferenced
from deeplab.errors import InputError

FILL = (100.4, 50.0, 7.0)
ALL = slice(0, 20), slice(0, 30)
EIGHT_BITS = ("uint8",)


@pytest.fixture(autouse=True)
def rasterio():
    return needs_rasterio()


def read(path, fill=FILL, dtypes=("uint8", "uint16", "float32"), bands=None):
    """All values and where they were observed, read in windows of some pixels."""
    with Scene(path, fill, dtypes, bands) as scene:
        values = np.empty(scene.shape, scene.dtype)
        observed = np.empty(scene.shape[:2], bool)
        for top in range(0, scene.height, 7):
            for left in range(0, scene.width, 11):
                at = (
                    slice(top, min(top + 7, scene.height)),
                    slice(left, min(left + 11, scene.width)),
                )
                values[at], observed[at] = scene.read(*at)
                assert np.array_equal(scene.observed(*at), observed[at])
        return values, observed, scene.check()


def said(conversions) -> list[str]:
    return [each.kind for each in conversions]


def points(rasterio, *corners):
    return [rasterio.control.GroundControlPoint(*corner) for corner in corners]


def rpcs(rasterio):
    numbers = [0.0, 1.0, *[0.0] * 18]
    one = [1.0, *[0.0] * 19]
    return rasterio.rpc.RPC(
        height_off=0, height_scale=100, lat_off=45, lat_scale=1, line_den_coeff=one,
        line_num_coeff=numbers, line_off=10, line_scale=10, long_off=15, long_scale=1,
        samp_den_coeff=one, samp_num_coeff=numbers, samp_off=15, samp_scale=15, err_bias=None,
        err_rand=None,
    )  # fmt: skip


def test_a_tiff_that_says_where_it_is_is_georeferenced(tmp_path, rasterio):
    values = noise(20, 30)
    some = points(rasterio, (0, 0, 15, 45), (0, 30, 16, 45), (20, 0, 15, 44))
    for i, place in enumerate(
        [
            PLACE,
            {"crs": "EPSG:32633"},
            {"transform": (10, 2, 5, 2, -10, 7)},
            {"gcps": some, "crs": "EPSG:4326"},
            {"rpcs": rpcs(rasterio)},
            PLACE | {"BIGTIFF": "YES"},
        ]
    ):
        assert is_georeferenced(geotiff(tmp_path / f"{i}.TIF", values, **place)), place
    Image.fromarray(values).save(tmp_path / "world.tif")
    assert not is_georeferenced(tmp_path / "world.tif")
    (tmp_path / "world.tfw").write_text("10\n0\n0\n-10\n500000\n5000000\n")
    assert is_georeferenced(tmp_path / "world.tif")


def test_other_files_are_not_georeferenced(tmp_path):
    picture = Image.fromarray(noise(20, 30))
    picture.save(tmp_path / "plain.tif")
    assert not is_georeferenced(tmp_path / "plain.tif")
    (tmp_path / "plain.tif.aux.xml").write_text("<PAMDataset/>")  # statistics may lie there
    assert not is_georeferenced(tmp_path / "plain.tif")
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text("1\n0\n0\n-1\n5\n7\n")
    (tmp_path / "text.tif").write_text("no TIFF at all")
    (tmp_path / "folder.tif").mkdir()
    for name in ("a.png", "text.tif", "folder.tif", "missing.tif"):
        assert not is_georeferenced(tmp_path / name), name


def test_a_file_of_another_format_leads_nowhere_by_its_content(tmp_path):
    other = geotiff(tmp_path / "other.tif", noise(20, 30))
    lead = tmp_path / "lead.tif"
    lead.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{other}</SourceFilename></SimpleSource></VRTRasterBand>"
        "</VRTDataset>"
    )
    (tmp_path / "lead.tfw").write_text("10\n0\n0\n-10\n500000\n5000000\n")
    assert not is_georeferenced(lead)
    with pytest.raises(InputError, match=r"lead.tif: the TIFF is damaged, or of a kind that GDAL"):
        Scene(lead, FILL)


def test_without_rasterio_a_georeferenced_file_is_refused_and_others_are_none(
    tmp_path, monkeypatch
):
    placed = geotiff(tmp_path / "a.tif", noise(20, 30))
    large = geotiff(tmp_path / "b.tif", noise(20, 30), BIGTIFF="YES")
    Image.fromarray(noise(20, 30)).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setitem(sys.modules, "rasterio.shutil", None)
    for path in (placed, large):
        with pytest.raises(
            InputError, match=r"tif: a georeferenced TIFF .*'deeplab-triton\[geo\]'"
        ):
            is_georeferenced(path)
    assert not is_georeferenced(tmp_path / "plain.tif")


KINDS = {
    "strips": {},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "lzw"},
    "planes": {"interleave": "band", "compress": "deflate"},
    "one strip": {"blockysize": 20},
    "BigTIFF": {"BIGTIFF": "YES"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_windows_hold_the_values_of_the_file(tmp_path, kind):
    for dtype in ("uint8", "uint16", "float32"):
        values = noise(20, 30, 4, dtype)
        path = geotiff(tmp_path / f"{dtype}.tif", values, **KINDS[kind])
        found, observed, conversions = read(path, (1, 2, 3, 4))
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)
        assert observed.all()
        assert not conversions


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (5000, 1), (700, 2500)])
def test_windows_cover_each_pixel_once_in_whole_blocks(tmp_path, monkeypatch, height, width):
    monkeypatch.setattr("deeplab.data.geotiff.PIXELS", 2**16)
    values = np.zeros((height, width, 1), np.uint8)
    for name, blocks in (("a", {}), ("b", {"tiled": True, "blockxsize": 256, "blockysize": 512})):
        with Scene(geotiff(tmp_path / f"{name}.tif", values, **blocks), (0,)) as scene:
            seen = np.zeros((height, width), np.uint8)
            for rows, columns in scene.windows():
                seen[rows, columns] += 1
                if blocks:
                    assert rows.start % 512 == columns.start % 256 == 0
                assert (rows.stop - rows.start) * (columns.stop - columns.start) <= 512 * 2048
            assert (seen == 1).all()


def test_lossless_wider_types_become_float32_and_others_are_refused(tmp_path):
    for dtype in ("int8", "int16", "float64"):
        values = noise(20, 30, 3, dtype) if dtype == "float64" else -noise(20, 30, 3, dtype)
        found, _, conversions = read(geotiff(tmp_path / f"{dtype}.tif", values))
        assert found.dtype == np.float32
        assert np.array_equal(found, values)
        assert not conversions
    for dtype in ("uint32", "int32"):
        path = geotiff(tmp_path / f"{dtype}.tif", noise(20, 30, 3, dtype))
        with pytest.raises(InputError, match=rf"uint8, uint16, float32 .*, not {dtype}; convert"):
            Scene(path, FILL)
    path = geotiff(tmp_path / "float32.tif", noise(20, 30, 3, "float32"))
    with pytest.raises(InputError, match="of uint8 for this model, not float32; scale it to 0-255"):
        Scene(path, FILL, EIGHT_BITS)


def test_sixteen_bits_become_eight_where_a_model_takes_no_more(tmp_path):
    values = noise(20, 30, 3, "uint16")
    found, _, conversions = read(geotiff(tmp_path / "a.tif", values), dtypes=EIGHT_BITS)
    assert np.array_equal(found, np.rint(values / 257))
    assert said(conversions) == [DEEP]
    dark = geotiff(tmp_path / "b.tif", values // 32, nodata=65535)
    assert said(read(dark, dtypes=EIGHT_BITS)[2]) == [DEEP, NEAR_ZERO]
    assert said(read(geotiff(tmp_path / "d.tif", values // 16), dtypes=EIGHT_BITS)[2])[1:]
    declared = geotiff(tmp_path / "e.tif", values // 16, NBITS=12)
    found, _, conversions = read(declared, dtypes=EIGHT_BITS)
    assert np.array_equal(found, np.rint(values // 16 / 4095 * 255))
    assert [each.text[:7] for each in conversions] == ["12 bits"]
    spread = np.where(np.arange(30)[:, None] == 29, 65535, values // 32).astype(np.uint16)
    with Scene(geotiff(tmp_path / "c.tif", spread), FILL, EIGHT_BITS) as scene:
        assert said(scene.check()) == [DEEP]


def test_nodata_of_all_bands_is_not_observed_and_reads_as_the_fill(tmp_path):
    for dtype, nodata in (("uint8", 0), ("uint16", 65535), ("float32", -9999), ("int16", -5)):
        values = noise(20, 30, 3, dtype)
        values[3:9, 5:12] = nodata
        values[15, 20, 1] = nodata  # of one band only
        found, observed, _ = read(geotiff(tmp_path / f"{dtype}.tif", values, nodata=nodata))
        expected = values.astype(found.dtype)
        fill = np.rint(FILL) if found.dtype.kind == "u" else np.float32(FILL)
        expected[3:9, 5:12] = fill
        if dtype != "uint8":  # there it may be a colour
            missing = (values == nodata).nonzero()
            expected[missing] = np.asarray(fill)[missing[2]]
        assert np.array_equal(found, expected), dtype
        assert not observed[3:9, 5:12].any()
        assert observed[15, 20]
        assert observed.sum() >= 20 * 30 - 42 - 1


def test_nan_and_infinity_are_not_observed_whatever_the_file_says(tmp_path):
    values = noise(20, 30, 3, "float32")
    values[2, 3], values[4, 5], values[6, 7, 0] = np.nan, np.inf, np.nan
    for nodata in (None, np.nan, -1.0):
        found, observed, _ = read(geotiff(tmp_path / f"{nodata}.tif", values, nodata=nodata))
        assert np.argwhere(~observed).tolist() == [[2, 3], [4, 5]]
        np.testing.assert_array_equal(found[2, 3], np.float32(FILL))
        np.testing.assert_array_equal(found[6, 7], [np.float32(FILL[0]), *values[6, 7, 1:]])
        assert np.isfinite(found).all()
    wide = values.astype(np.float64)
    wide[8, 9] = 1e300  # beyond float32
    assert not read(geotiff(tmp_path / "wide.tif", wide))[1][8, 9]


def test_alpha_and_masks_say_what_was_observed(tmp_path):
    values, there = noise(20, 30), np.ones((20, 30), bool)
    there[:, 25:] = False
    rgba = np.dstack([values, np.where(there, 90, 0).astype(np.uint8)])
    colours = ("red", "green", "blue", "alpha")
    expected = np.where(there[..., None], values, np.rint(FILL)).astype(np.uint8)
    for path in (
        geotiff(tmp_path / "alpha.tif", rgba, colours),
        geotiff(tmp_path / "mask.tif", values, mask=there),
    ):
        found, observed, conversions = read(path)
        assert np.array_equal(observed, there)
        assert np.array_equal(found, expected)
        assert not conversions


def test_alpha_that_is_taken_as_a_band_is_no_mask(tmp_path):
    for dtype in ("uint8", "uint16"):
        values = noise(20, 30, 4, dtype)
        values[2, 3, 3] = 0
        path = geotiff(tmp_path / f"{dtype}.tif", values, ("red", "green", "blue", "alpha"))
        for fill, bands, chosen in (((9,) * 4, None, [0, 1, 2, 3]), (FILL, [4, 1, 2], [3, 0, 1])):
            found, observed, _ = read(path, fill, bands=bands)
            assert np.array_equal(found, values[..., chosen])
            assert observed.all()
        assert not read(path)[1][2, 3]


def test_a_scene_of_nothing_says_so(tmp_path):
    path = geotiff(tmp_path / "a.tif", np.zeros((20, 30, 3), np.uint8), nodata=0)
    _, observed, conversions = read(path)
    assert not observed.any()
    assert said(conversions) == [EMPTY]


def test_bands_are_chosen_by_number_or_by_what_the_file_declares(tmp_path):
    values = noise(20, 30, 5)
    colours = ("blue", "green", "red", "undefined", "undefined")
    path = geotiff(tmp_path / "a.tif", values, colours)
    found, _, conversions = read(path, bands=[5, 1, 1])
    assert np.array_equal(found, values[..., [4, 0, 0]])
    assert not conversions
    found, _, conversions = read(path)
    assert np.array_equal(found, values[..., [2, 1, 0]])
    assert said(conversions) == [BANDS]
    assert "bands 3, 2, 1 of 5, its red, green and blue, are taken" in str(conversions[0])
    assert np.array_equal(read(path, range(5))[0], values)
    assert np.array_equal(read(path, (1,), bands=[4])[0], values[..., 3:4])


def test_bands_that_do_not_fit_are_refused(tmp_path, rasterio):
    path = geotiff(tmp_path / "a.tif", noise(20, 30, 4), ("gray", *["undefined"] * 3))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("blue", "green", "red", None)
    message = r"a.tif must have 3 bands, as the model takes them, not 4 \(1 blue, 2 green, 3 red\)"
    with pytest.raises(InputError, match=message + r"; choose some, .* \(--bands 1,2,3\)"):
        Scene(path, FILL)
    for bands in ([1, 2], [0, 1, 2], [3, 4, 5]):
        listed = ",".join(map(str, bands))
        with pytest.raises(InputError, match=f"3 numbers from 1 to 4, .* file, not {listed}$"):
            Scene(path, FILL, bands=bands)
    with pytest.raises(InputError, match=r"must have 1 band, as .*, not 4"):
        Scene(path, (0,))


def test_grey_and_palettes_become_rgb(tmp_path):
    grey = noise(20, 30, 1)
    found, _, conversions = read(geotiff(tmp_path / "grey.tif", grey))
    assert np.array_equal(found, grey.repeat(3, 2))
    assert said(conversions) == ["grey converted to RGB"]
    table = noise(256, 1, 3, seed=1)[:, 0]
    palette = {i: (*colour, 255) for i, colour in enumerate(table.tolist())}
    path = geotiff(tmp_path / "palette.tif", grey, palette=palette, nodata=int(grey[0, 0, 0]))
    found, observed, conversions = read(path)
    there = grey[..., 0] != grey[0, 0, 0]
    assert np.array_equal(observed, there)
    assert np.array_equal(found[there], table[grey[..., 0]][there])
    assert said(conversions) == ["palette converted to RGB"]
    assert np.array_equal(read(path, (0,))[0][there], grey[there])


def test_a_damaged_block_is_one_error_that_names_the_file(tmp_path):
    path = geotiff(tmp_path / "a.tif", noise(300, 300), tiled=True, compress="deflate")
    damage(path, 3)
    with Scene(path, FILL) as scene:
        scene.read(slice(0, 10), slice(0, 10))
        with pytest.raises(InputError, match=r"a.tif: the TIFF is damaged, .*export it again"):
            scene.check()


def test_what_is_no_scene_is_refused_by_name(tmp_path):
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("no TIFF at all")
    for name, message in (
        ("missing.tif", "no such file"),
        ("empty.tif", "the file is empty"),
        ("text.tif", "the TIFF is damaged, or of a kind that GDAL cannot read"),
    ):
        with pytest.raises(InputError, match=rf"{name}: {message}"):
            Scene(tmp_path / name, FILL)
    path = geotiff(tmp_path / "a.tif", noise(20, 30))
    with pytest.raises(InputError, match=r"0.0 megapixels, above the limit of 0.0001"):
        Scene(path, FILL, max_megapixels=1e-4)
