"""The CRF alone: what annotations and softmax files mean, and that pydensecrf's example is met."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.data.images import read_image
from deeplab.engine.annotations import (
    Annotation,
    read_colours,
    read_indices,
    read_probabilities,
)
from deeplab.engine.refine import (
    SCRIBBLES,
    CRFSettings,
    refine_probabilities,
    refine_scribbles,
)
from deeplab.errors import InputError

EXAMPLES = Path(__file__).parents[3] / "shared" / "data" / "pydensecrf"
SMALL = CRFSettings(4, 3.0, 2.0, 5.0, 12.0, 10.0)


def two_halves(height: int = 24, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture, dark on the left and bright on the right, and its labels."""
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 + 3 :] = 1
    noise = np.random.default_rng(1).normal(0, 6, (height, width, 3))
    image = np.where(labels[..., None] == 1, 190, 60) + noise
    return image.clip(0, 255).astype(np.uint8), labels


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(array, mode).save(path)
    return path


def reference_example(image: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """What pydensecrf's examples/inference.py does with a picture and an annotation, both RGB."""
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf.utils import (
        create_pairwise_bilateral,
        create_pairwise_gaussian,
        unary_from_labels,
    )

    wide = annotation.astype(np.uint32)
    codes = wide[..., 0] + (wide[..., 1] << 8) + (wide[..., 2] << 16)
    colours, labels = np.unique(codes, return_inverse=True)
    unsure = 0 in colours
    colours = colours[1:] if unsure else colours
    height, width = codes.shape
    model = dcrf.DenseCRF(height * width, len(colours))
    unary = unary_from_labels(labels.ravel(), len(colours), gt_prob=0.7, zero_unsure=unsure)
    model.setUnaryEnergy(unary)
    model.addPairwiseEnergy(create_pairwise_gaussian((3, 3), (height, width)), compat=3)
    features = create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2)
    model.addPairwiseEnergy(features, compat=10)
    best = np.argmax(model.inference(5), axis=0)
    rgb = np.stack([colours & 255, (colours >> 8) & 255, colours >> 16], axis=1)
    return rgb.astype(np.uint8)[best].reshape(height, width, 3)


@pytest.mark.parametrize("number", [1, 3])
def test_scribbles_on_photographs_give_the_labels_of_pydensecrfs_example(number: int) -> None:
    photo, marks = EXAMPLES / f"im{number}.png", EXAMPLES / f"anno{number}.png"
    if not photo.is_file():
        pytest.skip(f"{photo} is not there: the example photographs are not part of this project")
    image, _ = read_image(photo)
    expected = reference_example(image, np.asarray(Image.open(marks).convert("RGB")))
    annotation = read_colours(marks, image.shape[:2])
    found = refine_scribbles(annotation, image)
    assert np.array_equal(annotation.colours[found.labels], expected)


@pytest.mark.parametrize("unsure", [True, False], ids=["with unsure pixels", "all marked"])
def test_scribbles_on_a_generated_picture_give_the_labels_of_the_example(
    tmp_path: Path, unsure: bool
) -> None:
    image, truth = two_halves()
    marks = np.array([[0, 60, 200], [250, 1, 0]], np.uint8)[truth]
    marks[5:9, 5:25] = marks[5:9, 24:4:-1]  # some are wrong
    if unsure:
        marks[10:, 3:28] = 0
    expected = reference_example(image, marks)
    annotation = read_colours(save(tmp_path / "a.png", marks), image.shape[:2])
    found = refine_scribbles(annotation, image)
    assert np.array_equal(annotation.colours[found.labels], expected)
    assert np.array_equal(np.unique(found.labels), [0, 1])


def test_scribbles_spread_to_the_edges_of_the_picture_they_lie_on() -> None:
    image, truth = two_halves()
    marks = np.zeros_like(truth)
    marks[12, 2:6], marks[12, 24:28] = 1, 2
    found = refine_scribbles(Annotation(marks, 2), image, SMALL)
    assert np.array_equal(found.labels, truth)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_a_higher_gt_prob_holds_marks_against_the_picture() -> None:
    image, truth = two_halves()
    marks = truth + 1
    marks[10:12, 4:6] = 2  # a mistake on the dark side
    trusting = refine_scribbles(Annotation(marks, 2), image, SMALL, gt_prob=0.999999)
    doubting = refine_scribbles(Annotation(marks, 2), image, SMALL, gt_prob=0.6)
    assert (trusting.labels[10:12, 4:6] == 1).all()
    assert (doubting.labels[10:12, 4:6] == 0).all()


@pytest.mark.parametrize("gt_prob", [0.5, 1.0, 0.2, float("nan")])
def test_a_gt_prob_that_says_nothing_is_refused(gt_prob: float) -> None:
    image, truth = two_halves()
    with pytest.raises(InputError, match="gt_prob"):
        refine_scribbles(Annotation(truth + 1, 2), image, SMALL, gt_prob)


def test_colours_are_labels_in_the_order_of_blue_green_red_and_black_is_unsure(
    tmp_path: Path,
) -> None:
    marks = np.array([[[0, 0, 0], [9, 0, 1], [200, 0, 0]], [[0, 5, 0], [9, 0, 1], [0, 0, 0]]])
    found = read_colours(save(tmp_path / "a.png", marks.astype(np.uint8)), (2, 3))
    assert found.num_labels == 3
    assert found.colours.tolist() == [[200, 0, 0], [0, 5, 0], [9, 0, 1]]
    assert found.labels.tolist() == [[0, 3, 1], [2, 3, 0]]


def test_a_palette_annotation_counts_by_its_colours_not_its_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    picture.putpalette([64, 128, 0, 0, 64, 0, 0, 0, 0, 64, 128, 0])
    picture.save(tmp_path / "a.png")
    found = read_colours(tmp_path / "a.png", (1, 4))
    assert found.colours.tolist() == [[0, 64, 0], [64, 128, 0]]
    assert found.labels.tolist() == [[2, 1, 0, 2]]


def test_transparent_pixels_of_an_annotation_are_unsure(tmp_path: Path) -> None:
    marks = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 255, 255]]], np.uint8)
    assert read_colours(save(tmp_path / "a.png", marks), (1, 3)).labels.tolist() == [[0, 1, 2]]


def test_without_black_every_pixel_of_an_annotation_is_marked(tmp_path: Path) -> None:
    marks = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    assert read_colours(save(tmp_path / "a.png", marks), (1, 2)).labels.tolist() == [[1, 2]]


def test_indices_are_classes_and_255_is_unsure(tmp_path: Path) -> None:
    marks = np.array([[0, 3, 255]], np.uint8)
    path = save(tmp_path / "a.png", marks)
    found = read_indices(path, (1, 3))
    assert found.labels.tolist() == [[1, 4, 0]]
    assert (found.num_labels, found.colours) == (4, None)
    assert read_indices(path, (1, 3), num_classes=21).num_labels == 21


def test_a_class_index_out_of_range_is_refused_with_its_place(tmp_path: Path) -> None:
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
        (np.full((20, 20, 3), 7, np.uint8), "1 label"),
        (np.full((20, 20), 700, np.uint16), "colours of an annotation are 8-bit"),
        (np.zeros((20, 21, 3), np.uint8), "the annotation is 21 x 20 pixels, the image 20 x 20"),
    ],
)
def test_annotations_by_colour_that_cannot_be_meant_are_refused(
    tmp_path: Path, marks: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.png: {message}"):
        read_colours(save(tmp_path / "a.png", marks), (20, 20))


@pytest.mark.parametrize(
    ("marks", "classes", "message"),
    [
        (many_colours(), None, "class indices need an 8-bit grey or palette picture"),
        (np.full((20, 20), 255, np.uint8), 5, "every pixel is unsure"),
        (np.zeros((20, 20), np.uint8), None, "1 classes; expected 2 to 255"),
        (np.zeros((20, 20), np.uint8), 256, "256 classes; expected 2 to 255"),
        (np.zeros((21, 20), np.uint8), 3, "the annotation is 20 x 21 pixels"),
    ],
)
def test_annotations_by_index_that_cannot_be_meant_are_refused(
    tmp_path: Path, marks: np.ndarray, classes: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=f"a.png: {message}"):
        read_indices(save(tmp_path / "a.png", marks), (20, 20), classes)


@pytest.mark.parametrize(
    "matrix", [[[0.0, 1.0]], [[0.0, np.nan], [1.0, 0.0]], "potts", [[1.0], [1.0, 2.0]], []]
)
def test_a_compatibility_that_is_no_square_matrix_is_named(matrix):
    with pytest.raises(InputError, match="CRF compatibility: expected a square matrix"):
        CRFSettings(compatibility=matrix)


def test_a_compatibility_for_other_classes_is_named():
    with pytest.raises(InputError, match="a row for each of 3 classes, got 2"):
        CRFSettings(compatibility=[[0.0, 1.0], [1.0, 0.0]]).layer(3)


def softmax(classes: int = 3, height: int = 4, width: int = 6) -> np.ndarray:
    values = np.random.default_rng(0).random((classes, height, width), dtype=np.float32)
    return values / values.sum(0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("last", [False, True], ids=["CHW", "HWC"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_probabilities_are_read_in_either_layout(
    tmp_path: Path, suffix: str, last: bool, dtype: type
) -> None:
    given = (np.moveaxis(softmax(), 0, -1) if last else softmax()).astype(dtype)
    path = tmp_path / f"p.{suffix}"
    np.save(path, given) if suffix == "npy" else np.savez(path, anything=given)
    found = read_probabilities(path, (4, 6)).values
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, softmax(), atol=1e-3 if dtype is np.float16 else 1e-7)


@pytest.mark.parametrize("last", [False, True], ids=["CHW", "HWC"])
def test_a_cube_of_probabilities_is_told_by_its_sums(tmp_path: Path, last: bool) -> None:
    cube = softmax(5, 5, 5)
    np.save(tmp_path / "p.npy", np.moveaxis(cube, 0, -1) if last else cube)
    np.testing.assert_array_equal(read_probabilities(tmp_path / "p.npy", (5, 5)).values, cube)


def test_probabilities_a_little_below_0_as_resizing_gives_them_count_as_0(tmp_path: Path) -> None:
    given = softmax()
    given[0, 0, 0], given[1, 0, 0] = -0.004, given[1, 0, 0] + given[0, 0, 0]
    np.save(tmp_path / "p.npy", given)
    np.testing.assert_array_equal(
        read_probabilities(tmp_path / "p.npy", (4, 6)).values, given.clip(0)
    )


def test_the_array_named_probabilities_is_taken_of_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", other=np.zeros(3), probabilities=softmax())
    np.testing.assert_array_equal(read_probabilities(tmp_path / "p.npz", (4, 6)).values, softmax())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (softmax(3, 6, 4), "shape .3, 6, 4. does not fit the image, 4 high and 6 wide"),
        (softmax()[None], "shape .1, 3, 4, 6. does not fit"),
        (softmax()[0], "shape .4, 6. does not fit"),
        (np.full((4, 4, 4), 0.25, np.float32), "does not fit"),
        (np.ones((1, 4, 6), np.float32), "1 class"),
        (np.full((300, 4, 6), 1 / 300, np.float32), "300 class"),
        (np.where(softmax() > 0.5, np.nan, softmax()), "values are NaN or Inf"),
        (np.where(softmax() > 0.5, np.inf, softmax()), "values are NaN or Inf"),
        (np.log(softmax()), "not probabilities: .* apply a softmax"),
        (softmax() * 255, "not probabilities"),
        (softmax() + np.array([0.5, -0.5, 0], np.float32)[:, None, None], "not probabilities"),
        ((softmax() * 255).astype(np.uint8), "expected floating point probabilities, got uint8"),
        (np.array([{"a": 1}], dtype=object), "cannot be read"),
    ],
)
def test_arrays_that_are_no_probabilities_of_the_image_are_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(InputError, match=f"p.npy: .*{message}"):
        read_probabilities(tmp_path / "p.npy", (4, 6))


def test_a_cube_whose_sums_do_not_tell_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.full((4, 4, 4), 0.25, np.float32))
    with pytest.raises(InputError, match=r"could be .C, H, W. or .H, W, C."):
        read_probabilities(tmp_path / "p.npy", (4, 4))


def test_damaged_and_missing_files_of_probabilities_are_refused(tmp_path: Path) -> None:
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


def test_refined_probabilities_follow_the_edges_of_the_picture() -> None:
    image, truth = two_halves()
    blurred = np.clip((np.arange(30) - 14.5) / 16 + 0.5, 0, 1)  # the edge is off by 3, and soft
    ones = np.broadcast_to(blurred, truth.shape)
    given = np.stack([1 - ones, ones]).astype(np.float32)
    assert not np.array_equal(given.argmax(0), truth)
    found = refine_probabilities(given, image, SMALL)
    assert np.array_equal(found.labels, truth)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


def test_refining_probabilities_is_pydensecrfs_recipe_with_unary_from_softmax() -> None:
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf.utils import unary_from_softmax

    image, _ = two_halves()
    given = softmax(3, *image.shape[:2])
    given[:, 0, 0] = [1, 0, 0]  # a zero must not rule a label out
    height, width = image.shape[:2]
    model = dcrf.DenseCRF2D(width, height, 3)
    model.setUnaryEnergy(unary_from_softmax(given))
    model.addPairwiseGaussian(sxy=2.0, compat=3.0)
    model.addPairwiseBilateral(sxy=12.0, srgb=10.0, rgbim=image, compat=5.0)
    expected = np.array(model.inference(4)).reshape(3, height, width)
    found = refine_probabilities(given, image, SMALL)
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-3)


def test_settings_default_to_the_papers_and_to_the_examples() -> None:
    assert CRFSettings() == CRFSettings(10, 3, 3, 4, 49, 5)
    assert CRFSettings(5, 3, 3, 10, 80, 13) == SCRIBBLES


def test_settings_change_where_a_value_is_given() -> None:
    changed = CRFSettings().changed({"iterations": 3, "gaussian_weight": None})
    assert changed == CRFSettings(iterations=3)
    with pytest.raises(InputError, match="unknown sigma; expected iterations, "):
        CRFSettings().changed({"sigma": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", -1),
        ("gaussian_weight", -0.5),
        ("gaussian_weight", "much"),
        ("gaussian_sigma", 0.0),
        ("bilateral_weight", float("inf")),
        ("bilateral_sigma_xy", -3.0),
        ("bilateral_sigma_rgb", float("nan")),
    ],
)
def test_settings_without_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"CRF {name.replace('_', ' ')}: expected .*, got"):
        CRFSettings(**{name: value})


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
