"""Reading pictures: what is converted, what is said about it, what is refused and how."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from picture_files import png, save, turned
from PIL import Image

from deeplab.data import outputs
from deeplab.data.conversions import Conversion
from deeplab.data.images import find_images, read_image
from deeplab.errors import InputError
from kernels import memory


def gradient(height: int = 6, width: int = 9) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([25 * x, 40 * y, 10 * (x + y)], axis=-1).astype(np.uint8)


def texts(conversions: list[Conversion]) -> list[str]:
    return [conversion.text for conversion in conversions]


def test_plain_rgb_is_read_as_it_is_without_a_note(tmp_path):
    image, notes = read_image(save(tmp_path / "a.png", gradient()))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert np.array_equal(image, gradient())
    assert notes == []


def test_alpha_is_laid_on_white_and_said(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = [0, 255, 51]  # transparent, opaque, a fifth
    image, notes = read_image(save(tmp_path / "a.png", rgba))
    assert image[0].tolist() == [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    assert len(notes) == 1
    assert "transparency" in notes[0].text


GREY = gradient()[..., 0]
DEEP_NOTE = "16-bit grey converted to 8-bit RGB (value / 257)"  # over its full range
DEEP = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
PALETTE = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
PALETTE.putpalette([9, 8, 7, 10, 20, 30, 0, 255, 0])
COLOURS = [[[9, 8, 7], [10, 20, 30]], [[0, 255, 0], [10, 20, 30]]]
CYAN = Image.new("CMYK", (4, 3), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("name", "picture", "pixels", "note"),
    [
        ("a.png", Image.fromarray(GREY), np.stack([GREY] * 3, -1), "grey converted to RGB"),
        ("a.png", PALETTE, COLOURS, "palette converted to RGB"),
        ("a.tif", CYAN, np.full((3, 4, 3), (0, 255, 255)), "CMYK converted to RGB"),
        *(
            (name, Image.fromarray(DEEP), np.array([[[0], [0], [1], [1], [128], [255]]]), DEEP_NOTE)
            for name in ("a.png", "a.tif", "a.pgm")
        ),
    ],
)
def test_other_kinds_of_pictures_become_rgb_and_it_is_said(tmp_path, name, picture, pixels, note):
    picture.save(tmp_path / name)
    image, notes = read_image(tmp_path / name)
    np.testing.assert_array_equal(image, np.broadcast_to(pixels, image.shape))
    assert texts(notes) == [note]


def test_16_bits_a_channel_are_reduced_and_said(tmp_path):
    raw = b"\0" + struct.pack(">6H", 65535, 0x8000, 0, 0x1234, 0x0100, 0xFF00)
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, raw))
    image, notes = read_image(tmp_path / "a.png")
    assert image[0].tolist() == [[255, 128, 0], [0x12, 1, 255]]
    assert texts(notes) == ["16 bits a channel reduced to 8"]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied_and_said(tmp_path, orientation, upright):
    path = save(tmp_path / "a.png", gradient(), exif=turned(orientation))
    image, notes = read_image(path)
    assert np.array_equal(image, upright(gradient()))
    assert [str(note) for note in notes] == [
        f"{path}: turned upright, as its EXIF orientation ({orientation}) says; labels have to fit "
        "the turned picture"
    ]


def test_the_first_frame_of_an_animation_is_taken_and_said(tmp_path):
    red, blue = Image.new("RGB", (5, 4), "red"), Image.new("RGB", (5, 4), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue, red])
    image, notes = read_image(tmp_path / "a.gif")
    assert (image == [255, 0, 0]).all()
    assert notes[0].text == "the first of 3 frames is used"


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "bmp", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=f"cut.{suffix}: .*(truncated or damaged|no picture)"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "no picture could be recognised"),
        (png(0, 5, 8, 2, b""), "zero size"),
        (png(4, 0, 8, 2, b""), "zero size"),
        (b"P6 0 5 255\n", "zero size"),
    ],
    ids=["empty", "text", "no width", "no height", "ppm without width"],
)
def test_files_without_pixels_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"bad.png: .*{message}"):
        read_image(path)


def test_postscript_is_refused_and_no_other_program_runs(tmp_path, monkeypatch):
    def run(*args: object, **options: object) -> None:
        raise AssertionError("another program")

    monkeypatch.setattr("subprocess.check_call", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    path = save(tmp_path / "a.eps", gradient()).rename(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: PostScript, not a picture"):
        read_image(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be opened"):
        read_image(tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="cannot be opened"):
        read_image("a\0b.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2), 0.5, np.float32), "floating-point"),
        (np.full((2, 2), 70000, np.int32), "32-bit integer"),
    ],
)
def test_pixels_without_a_fixed_range_are_refused(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        read_image(save(tmp_path / "a.tif", array))


@pytest.mark.parametrize("side", [10_001, 15_000, 40_000], ids=["100", "225", "1600 megapixels"])
def test_the_size_is_checked_before_decoding(tmp_path, side, monkeypatch):
    """The file holds no pixel data at all; Pillow's own guard would warn, then raise, of these."""
    path = tmp_path / "huge.png"
    path.write_bytes(png(side, side, 8, 2, b""))
    pixels = side * side
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(memory, "available", lambda device: 7 * pixels)
        with pytest.raises(InputError, match=f"huge.png: {side} x {side} .*--max-megapixels"):
            read_image(path, 100)
        with pytest.raises(InputError, match=r"huge.png: .*truncated or damaged"):
            read_image(path)
        monkeypatch.setattr(memory, "available", lambda device: 7 * pixels - 1)
        message = f"huge.png: {side} x {side} pixels take at least {7 * pixels / 1e9:.1f} GB"
        with pytest.raises(InputError, match=message):
            read_image(path)


@pytest.mark.parametrize("height", [1, 7, 8, 9, 20])
def test_pixels_are_those_of_the_file_however_many_rows_are_copied_at_a_time(
    tmp_path, height, monkeypatch
):
    expected = np.random.default_rng(0).integers(0, 256, (height, 5, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", expected)
    monkeypatch.setattr("deeplab.data.images.ROWS", 8)
    found, changed = read_image(path)
    np.testing.assert_array_equal(found, expected)
    assert not changed


def test_the_limit_can_be_raised_beyond_pillows_own(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((30, 40), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # so that 1200 pixels are a "bomb"
    assert read_image(path)[0].shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(InputError, match=r"above the limit of 0.001"):
        read_image(path, max_megapixels=0.001)
    assert read_image(path, max_megapixels=0.0012)[0].shape == (30, 40, 3)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_allows_nothing_or_everything_is_refused(tmp_path, limit):
    path = save(tmp_path / "a.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match="max_megapixels must be a number above 0"):
        read_image(path, max_megapixels=limit)


def test_folders_and_patterns_are_expanded_in_order_each_file_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt", "sub/c.png"):
        (tmp_path / name).write_bytes(b"")
    a, b, c = tmp_path / "a.jpg", tmp_path / "b.PNG", tmp_path / "sub/c.png"
    assert find_images([str(tmp_path)]) == [a, b]
    assert find_images([str(tmp_path / "**" / "*.[pP]*")]) == [b, c]
    assert find_images([b, tmp_path, str(tmp_path / "*.jpg")]) == [b, a]
    assert find_images([tmp_path / "missing.png"]) == [tmp_path / "missing.png"]


def test_a_name_with_pattern_characters_that_exists_is_that_file(tmp_path):
    file = tmp_path / "a[1].png"
    file.write_bytes(b"")
    assert find_images([str(file)]) == [file]


def test_inputs_that_give_no_file_are_refused(tmp_path):
    for given, message in (
        ([tmp_path], "holds no picture"),
        ([str(tmp_path / "*.png")], "no file matches"),
        ([], "no image given"),
        ([tmp_path / ("x" * 300)], "cannot be opened .File name too long"),
    ):
        with pytest.raises(InputError, match=message):
            find_images(given)


def test_voc_palette_has_the_known_colours():
    palette = outputs.voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 255: (224, 224, 192)}
    assert {k: tuple(palette[k].tolist()) for k in known} == known
    assert len(np.unique(palette, axis=0)) == 256


def test_label_maps_keep_indices_and_colours(tmp_path):
    labels = np.array([[0, 1], [255, 7]])
    palette = outputs.full_palette([[1, 2, 3], [4, 5, 6]])
    outputs.write_labels(tmp_path / "a.png", labels, palette)
    picture = Image.open(tmp_path / "a.png")
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), labels)
    colours = np.asarray(picture.convert("RGB"))
    assert colours[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.array_equal(colours[1], outputs.voc_palette()[[255, 7]])


@pytest.mark.parametrize("index", [-1, 256])
def test_a_class_index_that_does_not_fit_8_bits_is_refused(tmp_path, index):
    with pytest.raises(InputError, match=f"class index {index} "):
        outputs.write_labels(tmp_path / "a.png", np.array([[3, index]]), outputs.voc_palette())
    assert list(tmp_path.iterdir()) == []


def test_overlay_mixes_colours_and_leaves_black_classes_alone():
    image = np.full((5, 5, 3), 100, np.uint8)
    labels = np.zeros((5, 5), np.uint8)
    labels[:, 3:] = 1
    mixed = outputs.overlay(image, labels, outputs.full_palette([[0, 0, 0], [200, 0, 50]]))
    assert mixed[2, 0].tolist() == [100, 100, 100]
    assert mixed[2, 3].tolist() == [202, 152, 165]  # half white
    assert mixed[2, 4].tolist() == [150, 50, 75]


def test_overlay_draws_no_edges_around_specks():
    image, palette = np.zeros((9, 12, 3), np.uint8), outputs.full_palette([[0, 0, 0], [80, 80, 80]])
    labels = np.zeros((9, 12), np.uint8)
    labels[:, 6:] = 1
    labels[4, 2], labels[4, 9] = 1, 0
    mixed = outputs.overlay(image, labels, palette)
    expected = np.where(labels[..., None] == 1, 40, image)
    expected[:, 6] = 147
    assert np.array_equal(mixed, expected)


def test_edges_of_an_overlay_are_wider_on_a_large_picture():
    labels = np.zeros((1000, 1000), np.uint8)
    labels[:, 500:] = 1
    image, palette = np.zeros((1000, 1000, 3), np.uint8), outputs.full_palette([[0] * 3, [0] * 3])
    for size, wide in ((999, [500]), (1000, [500, 501])):
        mixed = outputs.overlay(image[:size, :size], labels[:size, :size], palette)
        assert np.flatnonzero(mixed[7, :, 0]).tolist() == wide


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    outputs.write_arrays(path, {"a": np.ones((1, 2, 2), np.float32)})
    before = path.read_bytes()

    def full_disk(file, **arrays) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(InputError, match=r"a.npz: cannot be written .No space left"):
        outputs.write_arrays(path, {"a": np.zeros((1, 2, 2), np.float32)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        yield b"half of it"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outputs.write_parts(tmp_path / "a.png", interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 5), (8, 6)])
def test_a_picture_that_is_written_is_a_png_of_these_pixels(tmp_path, monkeypatch, size):
    monkeypatch.setattr(outputs, "ROWS", 4)  # so that the largest takes two pieces
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    outputs.write_picture(path, pixels)
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        picture.verify()  # checksums
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    assert path.read_bytes() == outputs.picture_png(pixels[:, ::-1][:, ::-1])


def test_output_folders_are_tried_out_without_a_trace(tmp_path):
    outputs.check_writable(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="output folder"):
            outputs.check_writable(folder)


@pytest.mark.parametrize("name", ["kernels", "crf", "deeplab"])
def test_a_new_folder_that_would_hide_a_package_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (Path(name), tmp_path / name):
        with pytest.raises(InputError, match=f"the package {name} .*such as out/{name}"):
            outputs.check_writable(folder)
    with pytest.raises(InputError, match=f"the package {name}"):
        outputs.check_writable_file(Path(name) / "x.json")
    with pytest.raises(InputError, match=f"would take {name} for the package {name}"):
        outputs.check_writable(Path(name) / "deep" / "er")
    outputs.check_writable(Path("out") / name)
    (tmp_path / name).mkdir()  # of an earlier run, which goes on; or the checkout's own
    outputs.check_writable(Path(name))
    outputs.check_writable(Path(name) / "deep")


def test_an_output_file_must_not_be_a_folder(tmp_path):
    outputs.check_writable_file(tmp_path / "new" / "a.json")
    with pytest.raises(InputError, match="is a folder"):
        outputs.check_writable_file(tmp_path)
    with pytest.raises(InputError, match="File name too long"):
        outputs.check_writable_file(tmp_path / ("x" * 300) / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.jpg", "a/y.jpg"], ["x", "y"]),
        (["a/x.jpg", "b/x.jpg", "b/y.jpg"], ["a-x", "b-x", "y"]),
        (["1/x.png", "2/x.png", "1/x.bmp"], ["1-x-png", "2-x", "1-x-bmp"]),
        (["a/b/x.jpg", "a/x.jpg"], ["b-x", "x"]),
        (["x.jpg", "x.png"], ["x-jpg", "x-png"]),
        (["x.jpg", "X.jpg"], ["x-jpg", "X-jpg-2"]),
        (["a/b-x.png", "a/b/x.png", "c/x.png"], ["b-x", "a-b-x", "c-x"]),
        (["a-b/x.png", "a/b/x.png", "a/b-x.png"], ["a-b-x-png", "a-b-x-png-2", "b-x"]),
    ],
)
def test_output_names_are_short_and_never_collide(files, names):
    assert outputs.output_names([Path(file) for file in files]) == names
