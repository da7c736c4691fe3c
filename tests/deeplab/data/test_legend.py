"""The legend below an overlay: which classes it names, how, and in which size."""

import numpy as np
import pytest

from deeplab.data import legend
from deeplab.data.legend import with_legend
from deeplab.data.outputs import NamedPalette, full_palette

COLOURS = [[0, 0, 0], [200, 0, 50], [0, 90, 200], [40, 160, 40], [250, 200, 0]]
NAMES = ["background", "chair", "sky", "tree", "road"]
GREY = 100


def labelled(height: int = 60, width: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture, most of it class 2, less 0, least 4; 1 and 3 do not occur."""
    labels = np.full((height, width), 2)
    labels[: height // 3], labels[0, 0] = 0, 4
    return np.full((height, width, 3), GREY, np.uint8), labels


def strip_of(height: int = 60, width: int = 300, names: list[str] | None = NAMES) -> np.ndarray:
    """What is added below such a picture."""
    picture, labels = labelled(height, width)
    page = with_legend(
        picture, np.bincount(labels.ravel()), NamedPalette(full_palette(COLOURS), names)
    )
    assert np.array_equal(page[:height, :width], picture)
    assert (page[:height, width:] == 255).all()
    return page[height:]


def places(strip: np.ndarray, colour: list[int]) -> np.ndarray:
    """Rows and columns `[N, 2]` of a colour's pixels."""
    return np.argwhere((strip == colour).all(-1))


def test_the_classes_that_occur_have_their_colours_below_the_picture_the_largest_first():
    strip = strip_of()
    large, small = places(strip, COLOURS[2]), places(strip, COLOURS[4])
    assert len(large) == len(small) > 50
    assert large[:, 1].max() < small[:, 1].min()
    for index in (1, 3):
        assert not len(places(strip, COLOURS[index]))


def test_a_picture_without_classes_stays_as_it_is():
    picture, _ = labelled()
    page = with_legend(picture, np.zeros(5, np.int64), NamedPalette(full_palette(COLOURS), NAMES))
    assert np.array_equal(page, picture)


def test_a_class_that_is_not_painted_has_an_empty_box():
    picture, labels = labelled()
    dark = [[1, 0, 0], *COLOURS[1:]]
    painted = with_legend(
        picture, np.bincount(labels.ravel()), NamedPalette(full_palette(dark), NAMES)
    )[60:]
    box = places(painted, dark[0])
    assert len(box) == len(places(painted, COLOURS[2]))
    assert (strip_of()[box[:, 0], box[:, 1]] == 255).all()


def test_each_class_has_its_name_beside_its_box():
    strip = strip_of(names=NAMES)
    for index, other in ((2, "lake"), (4, "path")):
        changed = strip_of(names=[*NAMES[:index], other, *NAMES[index + 1 :]])
        differing = np.argwhere((strip != changed).any(-1))
        box = places(strip, COLOURS[index])
        assert differing[:, 1].min() > box[:, 1].max()
        assert abs(differing[:, 0].mean() - box[:, 0].mean()) < 3  # beside, not above or below
    assert (strip_of(names=None) != strip).any()


def test_the_legend_grows_with_the_picture_and_stays_readable_on_a_small_one():
    heights = []
    for size in ((9, 14), (60, 300), (1500, 2000)):
        box = places(strip_of(*size), COLOURS[2])
        heights.append(np.ptp(box[:, 0]) + 1)
    assert heights[0] == heights[1] >= 8
    assert heights[2] >= 3 * heights[1]


def test_names_that_do_not_fit_beside_each_other_get_lines_of_their_own():
    strip = strip_of(60, 100)
    left = [places(strip, COLOURS[index])[:, 1].min() for index in (2, 4)]
    top = [places(strip, COLOURS[index])[:, 0].min() for index in (2, 4)]
    assert left[0] == left[1]
    assert top[0] < top[1]
    assert strip.shape[1] >= 100
    assert strip_of(9, 14).shape[1] > 14  # wider than the picture, for the whole name to be seen


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tree", "tree"),
        ("Gebäude", "Gebaude"),
        ("two\nlines", "two lines"),
        ("道路", "class 1"),
        ("", "class 1"),
        ("x" * 50, "x" * 37 + "..."),
    ],
)
def test_names_are_shown_as_pillows_own_font_can_where_the_system_has_no_other(
    name, shown, monkeypatch
):
    monkeypatch.setattr(legend, "FONTS", ("no such font.ttf",))
    text, _ = legend._text(NamedPalette(full_palette(None), ["background", name]), 1, 12)
    assert text == shown


def test_names_beyond_ascii_are_written_in_a_font_of_the_system():
    font = legend._system_font("DejaVuSans.ttf", 12)
    if font is None:
        pytest.skip("DejaVu Sans is not installed")
    classes = NamedPalette(full_palette(None), ["Gebäude", "Дорога"])
    assert legend._text(classes, 0, 12) == ("Gebäude", font)
    assert legend._text(classes, 1, 12) == ("Дорога", font)
