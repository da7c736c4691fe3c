"""Shapes as label maps: which pixels, in which order, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from deeplab.data.datasets import IGNORE
from deeplab.data.imports import drawing
from deeplab.data.imports.drawing import Values, draw
from deeplab.data.imports.shapes import CORNERS, CROWDS, TINY, Bitmap, Picture, Polygon, Shape
from deeplab.errors import InputError

VALUES = Values({"a": 0, "b": 1, "void": IGNORE}, np.arange(2, dtype=np.uint8))


def polygon(*outlines, holes=(), relative=False):
    def points(one):
        return np.array(one, np.float64).reshape(-1, 2)

    return Polygon(tuple(map(points, outlines)), tuple(map(points, holes)), relative)


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def drawn(*shapes, size=(10, 12), order="largest", values=VALUES, label_map=None):
    named = (Shape(f"shape {i}", *shape) for i, shape in enumerate(shapes, 1))
    picture = Picture("a.png", (), Path("a.json"), tuple(named), label_map=label_map)
    return draw(picture, size, values, order)


def middles_inside(points, height, width):
    """The pixels whose middle lies in an outline, by the even-odd rule, in exact arithmetic."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def distances(points, pixels):
    """How far the middle of each of the pixels, a mask, is from an outline."""
    middles = np.argwhere(pixels)[:, None, ::-1] + 0.5
    start, way = points, np.roll(points, -1, 0) - points
    along = ((middles - start) * way).sum(-1) / (way**2).sum(-1).clip(1e-9)
    nearest = start + along.clip(0, 1)[..., None] * way
    return np.hypot(*np.moveaxis(nearest - middles, -1, 0)).min(-1)


def test_a_pixel_belongs_to_a_shape_that_covers_its_middle():
    labels = drawn(("a", polygon(box(2, 3, 5, 7)))).labels
    assert (labels[3:7, 2:5] == 0).all()
    assert (labels == 0).sum() == 12
    half = drawn(("a", polygon(box(2.3, 3.3, 5.3, 7.3)))).labels
    assert np.array_equal(half, labels)
    next_one = drawn(("a", polygon(box(2.7, 3.7, 5.7, 7.7)))).labels
    assert np.array_equal(next_one[1:, 1:], labels[:-1, :-1])


@pytest.mark.parametrize("strip", [drawing._STRIP, 4000])
def test_outlines_are_those_of_the_even_odd_rule_to_an_eighth_of_a_pixel(strip, monkeypatch):
    monkeypatch.setattr(drawing, "_STRIP", strip)
    generator = np.random.default_rng(0)
    size = (50, 64)
    for _ in range(30):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 9))
        radius = generator.uniform(8, 26, 9)
        points = np.stack([32 + radius * np.cos(angles), 25 + radius * np.sin(angles)], 1)
        ours = drawn(("a", Polygon((points,))), size=size).labels == 0
        fine = np.rint(points * 4) / 4
        differ = ours != middles_inside(fine, *size)
        # Corners are rounded to quarters of a pixel before, ends of spans by Pillow.
        assert (distances(fine, differ) <= 1 / 8).all()


def test_outlines_agree_with_pycocotools():
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    generator = np.random.default_rng(1)
    for _ in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 7))
        points = np.stack([30 + 20 * np.cos(angles), 25 + 18 * np.sin(angles)], 1)
        ours = drawn(("a", Polygon((points,))), size=(50, 64)).labels == 0
        theirs = mask.decode(mask.frPyObjects([points.ravel().tolist()], 50, 64))[..., 0] > 0
        # Theirs rounds corners to fifths of a pixel and follows edges from pixel to pixel.
        assert (distances(points, ours != theirs) <= 0.5).all()


def test_parts_are_joined_and_holes_left_out():
    shape = polygon(box(0, 0, 6, 6), box(4, 0, 10, 6), holes=[box(1, 1, 3, 3)])
    labels = drawn(("a", shape)).labels
    assert (labels[:6, 4:10] == 0).all()  # where the parts overlap too
    assert (labels[1:3, 1:3] == IGNORE).all()
    assert (labels == 0).sum() == 60 - 4


def test_relative_outlines_are_shares_of_the_picture():
    labels = drawn(("a", polygon(box(0.25, 0.5, 0.5, 1), relative=True)), size=(8, 16)).labels
    assert (labels[4:, 4:8] == 0).all()
    assert (labels == 0).sum() == 16


def test_the_largest_lies_at_the_bottom_or_the_first_of_the_file():
    shapes = [("a", polygon(box(2, 2, 4, 4))), ("b", polygon(box(0, 0, 9, 9)))]
    assert drawn(*shapes).labels[3, 3] == 0
    assert drawn(*shapes, order="file").labels[3, 3] == 1
    void = [*shapes, ("void", polygon(box(3, 3, 4, 4)))]
    assert drawn(*void).labels[3, 3] == IGNORE
    equal = [("a", polygon(box(0, 0, 4, 4))), ("b", polygon(box(2, 2, 6, 6)))]
    assert drawn(*equal).labels[3, 3] == 1  # the later one of two as large


def test_layers_come_before_sizes():
    shapes = [("a", polygon(box(2, 2, 4, 4)), 0), ("b", polygon(box(0, 0, 9, 9)), 1)]
    for order in drawing.ORDERS:
        assert drawn(*shapes, order=order).labels[3, 3] == 1


def test_crowds_are_ignored_below_everything_or_left_out():
    shapes = [("a", polygon(box(2, 2, 4, 4))), ("b", polygon(box(3, 3, 5, 5)), 9, True)]
    ignored = drawn(*shapes, values=Values(VALUES.labels, VALUES.classes, 1))
    assert (ignored.labels[3, 3], ignored.labels[4, 4], ignored.labels[8, 8]) == (0, IGNORE, 1)
    out = drawn(*shapes, values=Values(VALUES.labels, VALUES.classes, 1, crowds=False))
    assert (out.labels[3, 3], out.labels[4, 4]) == (0, 1)
    assert (out.shapes, out.dropped) == ({"a": 1}, {CROWDS: 1})


def test_a_label_map_lies_below_shapes():
    own = np.full((10, 12), -1, np.int16)
    own[:5], own[0, 0] = 1, 255
    labels = drawn(
        ("a", polygon(box(2, 2, 4, 4))),
        label_map=lambda: own,
        values=Values(VALUES.labels, np.array([0, 1], np.uint8), unlabelled=1),
    ).labels
    assert (labels[0, 0], labels[1, 1], labels[3, 3], labels[8, 8]) == (IGNORE, 1, 0, 1)
    with pytest.raises(InputError, match=r"12 x 10 pixels, but the picture a.png has 11 x 10"):
        drawn(label_map=lambda: own, size=(10, 11))


def test_what_reaches_beyond_the_picture_is_cut_and_counted():
    mask = Bitmap(-2, 8, lambda height, width: np.ones((4, 6), bool))
    result = drawn(("a", polygon(box(-3, -3, 2, 2))), ("b", mask))
    assert (result.labels[:2, :2] == 0).all()
    assert (result.labels[8:, :4] == 1).all()
    assert ((result.labels == IGNORE).sum(), result.cut) == (120 - 4 - 8, 2)
    rounded = drawn(("a", polygon(box(-0.4, -0.4, 12.4, 10.4))))
    assert ((rounded.labels == 0).all(), rounded.cut) == (True, 0)


def test_shapes_without_pixels_are_dropped_and_counted():
    line, speck = polygon([1, 1, 4, 4]), polygon(box(2.1, 2.1, 2.3, 2.3))
    result = drawn(("a", line), ("a", speck))
    assert (result.dropped, result.shapes) == ({CORNERS: 1, TINY: 1}, {})
    assert (result.labels == IGNORE).all()


def test_shapes_outside_and_unknown_labels_are_refused_by_name():
    for shape, message in (
        (("a", polygon(box(12, 2, 15, 4))), "shape 1 of a.png: lies outside, at x 12, y 2"),
        (("a", polygon(box(-9, -9, 0, 0))), "lies outside"),
        (("a", polygon(box(0, 0, 1e300, 5))), "reaches far outside"),
        (("a", polygon(box(0, 0, 5, 21))), "reaches far outside"),
        (("a", polygon(box(-13, 0, 5, 5))), "reaches far outside"),
        (("a", polygon(box(0, -11, 5, 5))), "reaches far outside"),
        (("c", polygon(box(0, 0, 5, 5))), "no class is called 'c'; there are a, b, void"),
    ):
        with pytest.raises(InputError, match=rf"^a.json: .*{message}"):
            drawn(shape)


def test_a_mask_that_makes_no_sense_is_refused_by_name():
    def damaged(height, width):
        raise ValueError("a mask of another size")

    with pytest.raises(InputError, match=r"a.json: shape 1 of a.png: a mask of another size"):
        drawn(("a", Bitmap(0, 0, damaged)))
