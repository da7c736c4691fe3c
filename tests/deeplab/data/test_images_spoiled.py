"""Pictures of which little would be left: few bits of 16, alpha that hides, odd bands."""

import numpy as np
import pytest
from picture_files import deep_png, save, tiff
from PIL import Image

from deeplab.data.conversions import (
    BANDS,
    INVISIBLE,
    NEAR_ZERO,
    SPOILING,
    TRANSPARENT,
    VEILED,
    Conversion,
)
from deeplab.data.images import load_picture, read_image
from deeplab.errors import InputError


def of_bits(bits: int, channels: int) -> np.ndarray:
    """Values of so many bits, the highest among them, uint16 `[6, 8, channels]`."""
    values = np.random.default_rng(0).integers(0, 1 << bits, (6, 8, channels), dtype=np.uint16)
    values[0, 0] = (1 << bits) - 1
    return values


def kinds(conversions: list[Conversion]) -> list[str]:
    return [conversion.kind for conversion in conversions]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("bits", "factor"), [(8, 256), (10, 64), (12, 16)])
def test_few_bits_in_a_picture_of_16_are_said_with_the_factor_that_mends_them(
    tmp_path, bits, factor, channels
):
    values, path = of_bits(bits, channels), tmp_path / "a.png"
    if channels in (2, 4):
        values[..., -1] = 65535  # alpha: not a colour
    save(path, values[..., 0]) if channels == 1 else deep_png(path, values)
    image, found = read_image(path)
    (note,) = [conversion for conversion in found if conversion.kind == NEAR_ZERO]
    assert f"lie below {1 << bits} of 65536" in note.text
    assert note.text.endswith(f"multiply them by {factor}")
    colours = values[..., :1] if channels < 3 else values[..., :3]
    assert np.abs(image - colours / 257.0).max() < 1  # nothing is stretched


@pytest.mark.parametrize("channels", [1, 3])
def test_values_that_use_more_than_12_bits_are_not_called_few(tmp_path, channels):
    values = of_bits(12, channels)
    values[3, 3] = 4096
    path = tmp_path / "a.png"
    save(path, values[..., 0]) if channels == 1 else deep_png(path, values)
    assert NEAR_ZERO not in kinds(read_image(path)[1])


def test_a_tiff_of_12_bits_declares_its_range_and_is_scaled_by_it(tmp_path):
    values = of_bits(12, 1)
    first, second = values.ravel()[::2].astype(int), values.ravel()[1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1)
    path = tiff(tmp_path / "a.tif", values, 1, raw=packed.astype(np.uint8).tobytes(), bits=12)
    image, found = read_image(path)
    assert np.array_equal(image[..., 0], np.round(values[..., 0] * (255 / 4095)))
    assert [note.text for note in found] == [
        "12-bit grey converted to 8-bit RGB (value / 4095 * 255)"
    ]


def rgba(alpha: object) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 4), dtype=np.uint8)
    values[..., 3] = alpha
    return values


def test_alpha_of_0_everywhere_is_said(tmp_path):
    image, found = read_image(save(tmp_path / "a.png", rgba(0)))
    assert (image == 255).all()
    assert kinds(found) == [INVISIBLE]
    assert found[0].text.startswith("alpha is 0 everywhere, so that all of it is white; save")


def test_a_band_that_is_hardly_alpha_is_said(tmp_path):
    path = save(tmp_path / "a.png", rgba(np.arange(48).reshape(6, 8) * 5))
    assert kinds(read_image(path)[1]) == [VEILED]
    sky = rgba(255)
    sky[:2, :, 3] = 0
    assert kinds(read_image(save(path, sky))[1]) == [TRANSPARENT]
    assert not {TRANSPARENT} & set(SPOILING)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_that_hides_nothing_changes_nothing(tmp_path, mode):
    picture = Image.fromarray(rgba(255)).convert(mode)
    picture.save(tmp_path / "a.tif")
    image, found = read_image(tmp_path / "a.tif")
    assert np.array_equal(image, np.asarray(picture.convert("RGB")))
    assert len(found) == 1
    assert found[0].text.endswith("converted to RGB")


@pytest.mark.parametrize(
    ("count", "extra", "bits"),
    [(4, None, 8), (4, [0], 8), (5, [0, 0], 8), (6, [0, 0, 0], 8), (4, None, 16), (4, [0], 16)],
    ids=str,
)
def test_bands_that_a_tiff_does_not_declare_as_alpha_are_left_out(tmp_path, count, extra, bits):
    values = np.random.default_rng(0).integers(0, 1 << bits, (6, 8, count))
    values = values.astype(np.uint8 if bits == 8 else np.uint16)
    image, found = read_image(tiff(tmp_path / "a.tif", values, extra=extra, bits=bits))
    assert np.array_equal(image, (values[..., :3] >> (bits - 8)).astype(np.uint8))
    (note,) = [conversion for conversion in found if conversion.kind == BANDS]
    assert "not being declared as alpha" in note.text
    assert load_picture(tmp_path / "a.tif")[0].mode == "RGB"  # for label maps and annotations too


@pytest.mark.parametrize("extra", [1, 2], ids=["premultiplied", "straight"])
@pytest.mark.parametrize("count", [2, 4], ids=["grey", "RGB"])
def test_bands_that_a_tiff_declares_as_alpha_are_laid_on_white(tmp_path, count, extra):
    values = np.zeros((6, 8, count), np.uint8)
    values[3:, :, -1] = 255  # black below, nothing above
    path = tiff(tmp_path / "a.tif", values, 1 if count == 2 else 2, extra=[extra])
    image, found = read_image(path)
    assert (image[:3] == 255).all()
    assert not image[3:].any()
    assert kinds(found) == [TRANSPARENT]


def test_a_band_beside_grey_and_cmyk_is_left_out(tmp_path):
    for photometric, colours in ((1, 1), (5, 4)):
        values = np.random.default_rng(0).integers(0, 256, (6, 8, colours + 1), dtype=np.uint8)
        image, found = read_image(tiff(tmp_path / "a.tif", values, photometric, [0]))
        plain = values[..., 0] if colours == 1 else values[..., :4]
        expected = Image.fromarray(plain, mode="L" if colours == 1 else "CMYK").convert("RGB")
        assert np.array_equal(image, np.asarray(expected))
        assert BANDS in kinds(found)


@pytest.mark.parametrize("extra", [None, [0], [1], [2]], ids=str)
def test_a_damaged_tiff_is_one_clear_error_whatever_is_damaged(tmp_path, extra):
    path = tiff(tmp_path / "a.tif", rgba(100), extra=extra)
    content, random = path.read_bytes(), np.random.default_rng(0)
    read, refused = [], []
    for _ in range(80):
        damaged = bytearray(content)
        for place in random.integers(len(content) - 160, len(content), 2):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read.append(read_image(path)[0])
        except InputError as error:
            refused.append(str(error))
    assert min(len(read), len(refused)) > 5
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in read)
    assert all(message.startswith(f"{path}: ") for message in refused)


def test_the_library_below_prints_nothing_of_its_own(tmp_path, capfd):
    path = tmp_path / "a.tif"
    Image.new("RGB", (50, 50)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(byte ^ 0x5A for byte in content[20:60])
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tif: the image is truncated or damaged"):
        read_image(path)
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match="decoder error"), Image.open(path) as image:
        image.load()
    assert capfd.readouterr().err != ""  # others hear it as before
