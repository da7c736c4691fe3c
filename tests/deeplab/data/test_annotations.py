"""What the CRF alone is given: colours, masks, indices and probabilities, and what is refused."""

import numpy as np
import pytest
from picture_files import save, soft_drawing
from PIL import Image

from deeplab.data.annotations import read_colours, read_indices, read_probabilities
from deeplab.errors import InputError


def test_colours_are_labels_in_the_order_of_blue_green_red_and_black_is_unsure(tmp_path):
    marks = np.array([[[0, 0, 0], [9, 0, 1], [200, 0, 0]], [[0, 5, 0], [9, 0, 1], [0, 0, 0]]])
    found = read_colours(save(tmp_path / "a.png", marks.astype(np.uint8)), (2, 3))
    assert found.num_labels == 3
    assert found.colours.tolist() == [[200, 0, 0], [0, 5, 0], [9, 0, 1]]
    assert found.labels.tolist() == [[0, 3, 1], [2, 3, 0]]


def test_a_palette_annotation_counts_by_its_colours_not_its_indices(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    picture.putpalette([64, 128, 0, 0, 64, 0, 0, 0, 0, 64, 128, 0])
    picture.save(tmp_path / "a.png")
    found = read_colours(tmp_path / "a.png", (1, 4))
    assert found.colours.tolist() == [[0, 64, 0], [64, 128, 0]]
    assert found.labels.tolist() == [[2, 1, 0, 2]]


def test_transparent_pixels_of_an_annotation_are_unsure(tmp_path):
    marks = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 255, 255]]], np.uint8)
    assert read_colours(save(tmp_path / "a.png", marks), (1, 3)).labels.tolist() == [[0, 1, 2]]


def test_without_black_every_pixel_of_an_annotation_is_marked(tmp_path):
    marks = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    assert read_colours(save(tmp_path / "a.png", marks), (1, 2)).labels.tolist() == [[1, 2]]


def test_indices_are_classes_and_255_is_unsure(tmp_path):
    marks = np.array([[0, 3, 255]], np.uint8)
    path = save(tmp_path / "a.png", marks)
    found = read_indices(path, (1, 3))
    assert found.labels.tolist() == [[1, 4, 0]]
    assert (found.num_labels, found.colours) == (4, None)
    assert read_indices(path, (1, 3), num_classes=21).num_labels == 21


def test_a_class_index_out_of_range_is_refused_with_its_place(tmp_path):
    marks = np.zeros((4, 5), np.uint8)
    marks[2, 3] = 7
    with pytest.raises(InputError, match=r"a.png: class index 7 at row 2, column 3 .*0 to 4,"):
        read_indices(save(tmp_path / "a.png", marks), (4, 5), num_classes=5)


def many_colours() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (many_colours(), "400 colours, at most 255"),
        (np.zeros((20, 20, 3), np.uint8), "0 label"),
        (np.full((20, 20, 3), 7, np.uint8), r"1 label \(colours other than black"),
        (np.full((20, 20), 255, np.uint8), "1 label"),
        (np.eye(20, dtype=np.uint8), "1 label .* or read its values as class indices"),
        (np.full((20, 20), 700, np.uint16), "colours of an annotation are 8-bit"),
        (np.zeros((20, 21, 3), np.uint8), "the annotation is 21 x 20 pixels, the image 20 x 20"),
    ],
)
def test_annotations_by_colour_that_cannot_be_meant_are_refused(tmp_path, marks, message):
    with pytest.raises(InputError, match=f"a.png: {message}"):
        read_colours(save(tmp_path / "a.png", marks), (20, 20))


@pytest.mark.parametrize(
    ("marks", "classes", "message"),
    [
        (many_colours(), None, "class indices need an 8-bit grey or palette picture"),
        (np.full((20, 20), 255, np.uint8), 5, "every pixel is unsure"),
        (np.zeros((20, 20), np.uint8), None, "1 class, expected 2 to 255"),
        (255 * np.eye(20, dtype=np.uint8), None, ".*a mask of 0 and 255 is read without --indices"),
        (np.zeros((20, 20), np.uint8), 256, "256 classes, expected 2 to 255"),
        (np.zeros((21, 20), np.uint8), 3, "the annotation is 20 x 21 pixels"),
    ],
)
def test_annotations_by_index_that_cannot_be_meant_are_refused(tmp_path, marks, classes, message):
    with pytest.raises(InputError, match=f"a.png: {message}"):
        read_indices(save(tmp_path / "a.png", marks), (20, 20), classes)


MASK = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "LA"])
def test_a_mask_of_black_and_white_is_background_and_foreground(tmp_path, mode):
    Image.fromarray(MASK).convert(mode).save(tmp_path / "a.png")
    found = read_colours(tmp_path / "a.png", (2, 3))
    assert found.labels.tolist() == [[1, 2, 2], [1, 1, 2]]
    assert (found.num_labels, found.names) == (2, ("background", "foreground"))
    assert found.colours.tolist() == [[0, 0, 0], [255, 255, 255]]
    assert len(found.notes) == 1
    assert "read as a mask of two labels" in found.notes[0]


def test_transparent_pixels_of_a_mask_stay_unsure_and_without_black_it_is_none(tmp_path):
    rgba = np.stack([MASK] * 3 + [np.full((2, 3), 255, np.uint8)], axis=-1)
    rgba[0, :2, 3] = 0
    found = read_colours(save(tmp_path / "a.png", rgba), (2, 3))
    assert found.labels.tolist() == [[0, 0, 2], [1, 1, 2]]
    rgba[..., 3] = MASK  # white strokes on nothing: one label, no background
    with pytest.raises(InputError, match=r"a.png: 1 label"):
        read_colours(save(tmp_path / "a.png", rgba), (2, 3))


def test_white_beside_other_colours_is_a_label_and_black_unsure(tmp_path):
    marks = np.array([[[0, 0, 0], [255, 255, 255], [9, 0, 0]]], np.uint8)
    found = read_colours(save(tmp_path / "a.png", marks), (1, 3))
    assert found.labels.tolist() == [[0, 2, 1]]
    assert found.notes == ()


COLOURS = [(255, 0, 0), (0, 200, 0), (0, 0, 255)]  # in the order of their labels


@pytest.mark.parametrize(("width", "times"), [(3, 4), (8, 4), (4, 2)])
def test_soft_edges_are_said_and_the_number_of_colours_mends_them(tmp_path, width, times):
    drawn, inside = soft_drawing(COLOURS, width, times)
    path = save(tmp_path / "a.png", drawn)
    soft = read_colours(path, (90, 120))
    assert soft.num_labels > 3 + 3 * (times * times - 2) / 2
    assert len(soft.notes) == 1
    assert "soft edges (antialiasing)" in soft.notes[0]
    assert soft.notes[0].endswith("--colours 3")
    mended = read_colours(path, (90, 120), colours=3)
    assert (mended.num_labels, mended.notes) == (3, ())
    assert mended.colours.tolist() == [list(colour) for colour in COLOURS]
    assert np.array_equal(mended.labels, inside)


def test_colours_are_kept_by_the_area_they_fill_not_by_their_number_of_pixels(tmp_path):
    marks = np.zeros((20, 60, 3), np.uint8)
    marks[3:6], marks[6], marks[12:16, 7:11] = (255, 0, 0), (128, 0, 0), (0, 0, 255)
    found = read_colours(save(tmp_path / "a.png", marks), (20, 60), colours=2)
    assert found.colours.tolist() == [[255, 0, 0], [0, 0, 255]]
    assert not found.labels[6].any()  # the soft edge of 60 pixels; the blue dot has 16


def test_a_soft_mask_is_mended_to_background_and_foreground_with_unsure_edges(tmp_path):
    drawn, inside = soft_drawing([(255, 255, 255)], 9)
    grey = save(tmp_path / "a.png", drawn[..., 0])
    assert read_colours(grey, (90, 120)).notes[-1].endswith("--colours 1")
    found = read_colours(grey, (90, 120), colours=1)
    assert found.names == ("background", "foreground")
    soft = (drawn[..., 0] > 0) & (drawn[..., 0] < 255)
    assert soft.any()
    assert np.array_equal(found.labels, np.where(soft, 0, inside + 1))


def test_hard_edges_thin_lines_and_dots_are_not_taken_for_soft_ones(tmp_path):
    marks = np.zeros((60, 80, 3), np.uint8)
    shades = np.array([[64 * (k & 3), 64 * (k >> 2 & 3), 64 * (k >> 4)] for k in range(1, 20)])
    for number, shade in enumerate(shades):  # many on a line between others, and black
        marks[3 * number : 3 * number + 2, 5:60] = shade
    assert read_colours(save(tmp_path / "a.png", marks), (60, 80)).notes == ()
    dots = np.zeros((60, 80, 3), np.uint8)
    for number, shade in enumerate(shades):
        dots[3 * number, 8 : 20 if number % 2 else 9] = shade
    dots[30:, 40:] = shades[-1]
    assert read_colours(save(tmp_path / "a.png", dots), (60, 80)).notes == ()


@pytest.mark.parametrize("count", [0, -1, 4, 256])
def test_a_number_of_colours_that_are_not_there_is_refused(tmp_path, count):
    path = save(tmp_path / "a.png", soft_drawing(COLOURS, times=1)[0])
    with pytest.raises(InputError, match=f"a.png: --colours {count} must be 1 to 3"):
        read_colours(path, (90, 120), colours=count)


def test_too_many_colours_are_refused_with_the_number_that_fill_areas(tmp_path):
    drawn, inside = soft_drawing(COLOURS, 6)
    noise = np.random.default_rng(0).integers(1, 256, (12, 120, 3), dtype=np.uint8)
    noise[:, :, 0] = np.arange(120)
    drawn = np.concatenate([drawn, noise])
    path = save(tmp_path / "a.png", drawn)
    with pytest.raises(InputError, match=r"at most 255 labels .* with --colours \(3 of them fill"):
        read_colours(path, (102, 120))
    assert np.array_equal(read_colours(path, (102, 120), colours=3).labels[:90], inside)


def softmax(classes: int = 3, height: int = 4, width: int = 6) -> np.ndarray:
    values = np.random.default_rng(0).random((classes, height, width), dtype=np.float32)
    return values / values.sum(0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True], ids=["CHW", "HWC"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_probabilities_are_read_in_either_layout(tmp_path, suffix, last, dtype):
    given = (np.moveaxis(softmax(), 0, -1) if last else softmax()).astype(dtype)
    path = tmp_path / f"p.{suffix}"
    np.save(path, given) if suffix == "npy" else np.savez(path, anything=given)
    found = read_probabilities(path, (4, 6)).values
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, softmax(), atol=1e-3 if dtype is np.float16 else 1e-7)


@pytest.mark.parametrize("last", [False, True], ids=["CHW", "HWC"])
def test_a_cube_of_probabilities_is_told_by_its_sums(tmp_path, last):
    cube = softmax(5, 5, 5)
    np.save(tmp_path / "p.npy", np.moveaxis(cube, 0, -1) if last else cube)
    np.testing.assert_array_equal(read_probabilities(tmp_path / "p.npy", (5, 5)).values, cube)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (4, 6, 1)], ids=str)
def test_one_value_for_each_pixel_is_the_probability_of_foreground(tmp_path, shape, dtype):
    given = softmax()[0].astype(dtype)
    given[0, 0], given[0, 1] = -0.004, 1.004  # as resizing gives them
    np.savez(tmp_path / "p.npz", given.reshape(shape))
    found = read_probabilities(tmp_path / "p.npz", (4, 6))
    assert found.names == ("background", "foreground")
    assert "probability of foreground" in found.notes[0]
    assert found.values.dtype == np.float32
    np.testing.assert_allclose(found.values[1], given.clip(0, 1), atol=1e-7)
    np.testing.assert_allclose(found.values.sum(0), 1, atol=1e-6)


def test_probabilities_a_little_below_0_as_resizing_gives_them_count_as_0(tmp_path):
    given = softmax()
    given[0, 0, 0], given[1, 0, 0] = -0.004, given[1, 0, 0] + given[0, 0, 0]
    np.save(tmp_path / "p.npy", given)
    np.testing.assert_array_equal(
        read_probabilities(tmp_path / "p.npy", (4, 6)).values, given.clip(0)
    )


def test_the_array_named_probabilities_is_taken_of_several(tmp_path):
    np.savez(tmp_path / "p.npz", other=np.zeros(3), probabilities=softmax())
    found = read_probabilities(tmp_path / "p.npz", (4, 6))
    np.testing.assert_array_equal(found.values, softmax())
    assert found.names is None
    assert found.colours is None


def test_names_and_colours_of_the_classes_are_read_from_an_npz(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 9], [1, 2, 3]])
    about = {"class_names": np.array(["sky", "tree", "Straße"]), "palette": colours}
    for name in ("probabilities", "softmax"):  # alone beside them it may have any name
        np.savez(tmp_path / "p.npz", **{name: softmax()}, **about)
        found = read_probabilities(tmp_path / "p.npz", (4, 6))
        np.testing.assert_array_equal(found.values, softmax())
        assert found.names == ("sky", "tree", "Straße")
        assert found.colours.dtype == np.uint8
        np.testing.assert_array_equal(found.colours, colours)
    np.savez(tmp_path / "p.npz", softmax()[0], class_names=["road", "car"])
    found = read_probabilities(tmp_path / "p.npz", (4, 6))
    assert found.names == ("road", "car")
    assert found.colours is None
    assert "probability of foreground" in found.notes[0]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"class_names": ["a", "b"]}, r"class_names must be 3 strings, .* not \[2\] of <U1"),
        ({"class_names": [1, 2, 3]}, r"class_names must be 3 strings, .* not \[3\] of int64"),
        ({"class_names": "abc"}, r"class_names must be 3 strings, .* not \[\] of <U3"),
        ({"palette": [[0, 0, 0]]}, r"palette must be whole numbers \[3, 3\] .* not \[1, 3\]"),
        ({"palette": np.zeros((3, 3))}, "palette must be .* not .3, 3. of float64"),
        ({"palette": np.full((3, 3), 256)}, "palette must be .* from 0 to 255"),
        ({"palette": np.full((3, 3), -1)}, "palette must be .* from 0 to 255"),
        ({"class_names": np.array(["a", None, "c"])}, "holds Python objects"),
    ],
    ids=str,
)
def test_names_and_colours_that_do_not_fit_the_classes_are_refused(tmp_path, about, message):
    np.savez(tmp_path / "p.npz", probabilities=softmax(), **about)
    with pytest.raises(InputError, match=f"p.npz: .*{message}"):
        read_probabilities(tmp_path / "p.npz", (4, 6))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (softmax(3, 6, 4), "shape .3, 6, 4. does not fit the image, 4 high and 6 wide"),
        (softmax()[None], "shape .1, 3, 4, 6. does not fit"),
        (softmax()[0, :, :5], "shape .4, 5. does not fit .* or .4, 6. for the foreground alone"),
        (np.full((4, 4, 4), 0.25, np.float32), "does not fit"),
        (softmax()[0].T, "shape .6, 4. does not fit the image, 4 high and 6 wide"),
        (softmax()[0] * 9 - 4, "probability of foreground, but they go from -.* apply a sigmoid"),
        (softmax()[0] + 0.4, "probability of foreground, but they go from .* expected 0 to 1"),
        (np.where(softmax()[0] > 0.5, np.nan, softmax()[0]), "values are NaN or Inf"),
        ((softmax()[0] > 0.5).astype(np.uint8), "must be floating point .*, not uint8"),
        (np.full((300, 4, 6), 1 / 300, np.float32), "300 class"),
        (np.where(softmax() > 0.5, np.nan, softmax()), "values are NaN or Inf"),
        (np.where(softmax() > 0.5, np.inf, softmax()), "values are NaN or Inf"),
        (np.where(softmax() > 0.5, -np.inf, softmax()), "values are NaN or Inf"),
        (np.zeros((0, 4, 6), np.float32), "0 class"),
        (np.zeros(0, np.float32), "does not fit"),
        (np.log(softmax()), "not probabilities: .* apply a softmax"),
        (softmax() * 255, "not probabilities"),
        (softmax() + np.array([0.5, -0.5, 0], np.float32)[:, None, None], "not probabilities"),
        ((softmax() * 255).astype(np.uint8), "must be floating point probabilities, not uint8"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
    ],
)
def test_arrays_that_are_no_probabilities_of_the_image_are_refused(tmp_path, array, message):
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(InputError, match=f"p.npy.*{message}"):
        read_probabilities(tmp_path / "p.npy", (4, 6))


def test_a_cube_whose_sums_do_not_tell_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.full((4, 4, 4), 0.25, np.float32))
    with pytest.raises(InputError, match=r"could be .C, H, W. or .H, W, C."):
        read_probabilities(tmp_path / "p.npy", (4, 4))


def test_damaged_and_missing_files_of_probabilities_are_refused(tmp_path):
    np.savez(tmp_path / "cut.npz", softmax())
    content = (tmp_path / "cut.npz").read_bytes()
    np.savez(tmp_path / "two.npz", a=softmax(), b=softmax())
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npz").write_bytes(content[:200])
    for name, message in {
        "cut.npz": "cannot be read",
        "two.npz": "expected one",
        "empty.npy": "is empty",
        "text.npy": "cannot be read",
        "none.npy": "no such file",
    }.items():
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            read_probabilities(tmp_path / name, (4, 6))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_damaged_probability_file_is_one_clear_error_whatever_is_damaged(tmp_path, suffix):
    good = tmp_path / f"good.{suffix}"
    save = np.savez_compressed if suffix == "npz" else np.save
    save(good, np.full((3, 8, 9), 1 / 3, np.float32))
    content, random = good.read_bytes(), np.random.default_rng(0)
    file = tmp_path / f"damaged.{suffix}"
    messages = []
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        file.write_bytes(damaged)
        try:
            read_probabilities(file, (8, 9))
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(said.startswith(f"{file}: ") and "\n" not in said for said in messages)
