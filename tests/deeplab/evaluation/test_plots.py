"""The confusion matrix as a picture: what its cells and labels say; the formats of a curve."""

import numpy as np
import pytest
from PIL import Image

from deeplab.evaluation import plots
from deeplab.evaluation.plots import CELLS, plot_confusion, plot_trimap
from deeplab.evaluation.trimap import TrimapCurve


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    found, save = [], plots._save

    def noted(figure, path, dpi):
        found.append(figure)
        if dpi * max(figure.get_size_inches()) < 1000:  # labels of hundreds take seconds
            save(figure, path, dpi)

    monkeypatch.setattr(plots, "_save", noted)
    return found


def test_rows_are_shares_of_the_true_classes(tmp_path, figures):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [1, 0, 999]])
    plot_confusion(tmp_path / "c.png", matrix, ["$a", "b" * 30, "c"])
    axes = figures[0].axes[0]
    shares = axes.images[0].get_array()
    nan = np.nan
    expected = [[75, 25, 0], [nan, nan, nan], [0.1, 0, 99.9]]
    np.testing.assert_allclose(np.ma.filled(shares, nan), expected)
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "75"),
        ((1, 0), "25"),
        ((2, 2), "100"),
    }  # (column, row); nothing below half a percent
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [label.get_text() for label in axes.get_xticklabels()]
    assert names == [r"\$a", "b" * 23 + "…", "c"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    with Image.open(tmp_path / "c.png") as picture:
        picture.load()


def test_many_classes_have_colours_alone_and_a_figure_of_bounded_size(tmp_path, figures):
    classes = CELLS + 80
    plot_confusion(tmp_path / "c.png", np.eye(classes), [str(i) for i in range(classes)])
    assert not figures[0].axes[0].texts
    assert max(figures[0].get_size_inches()) <= 25


def test_a_curve_is_svg_where_its_name_says_so(tmp_path):
    curves = {"a": TrimapCurve("boundary", (1, 2), (0.25, None), (0.5, None))}
    plot_trimap(tmp_path / "c.svg", curves)
    assert "<svg" in (tmp_path / "c.svg").read_text()
    plot_trimap(tmp_path / "c.png", curves)
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"
