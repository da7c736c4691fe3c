"""What the page computes is what the package computes elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from running_app import SETTINGS, halves, softmax

import crf
from crf.pydensecrf.utils import unary_from_labels
from deeplab.app import refining
from deeplab.app.inputs import open_example
from deeplab.app.refining import Problem, Wish, refined, steps
from deeplab.crf_settings import CRFSettings
from deeplab.data.annotations import Annotation
from deeplab.errors import InputError
from deeplab.refine import refine_probabilities, refine_scribbles


@pytest.fixture
def problem() -> Problem:
    return Problem(*halves())


@pytest.fixture
def wish() -> Wish:
    return Wish.of(SETTINGS)


def test_a_wish_is_settings_of_the_crf(wish: Wish) -> None:
    assert wish.settings == CRFSettings(3, crf.Gaussian(3, 3), crf.Bilateral(5, 20, 8))
    assert (wish.method, wish.gt_prob) == ("permutohedral", 0.7)
    assert Wish.of({}).settings == CRFSettings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"iterations": 51}, "iterations must be a number from 0 to 50, not 51"),
        ({"iterations": 2.5}, "iterations must be an integer"),
        ({"bilateral_sigma_xy": 0}, "sigma_xy must be a number from 0.01 to 1000000, not 0"),
        ({"bilateral_sigma_rgb": float("nan")}, "sigma_rgb must be a number from 0.01 to"),
        ({"gaussian_weight": "3"}, "gaussian_weight must be a number"),
        ({"gaussian_weight": -1}, "gaussian_weight must be a number from 0 to 1000000, not -1"),
        ({"gaussian_sigma_xy": [[1], 2]}, "gaussian_sigma_xy must be a number"),
        ({"method": "auto"}, "method must be one of permutohedral, exact, not 'auto'"),
        ({"method": []}, "method must be one of"),
        ({"gt_prob": "much"}, "gt_prob must be a number"),
        ({"gt_prob": 1}, "gt_prob must be a number from 1e-06 to 0.999999, not 1"),
    ],
)
def test_numbers_that_no_crf_has_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wish.of(given)


@pytest.mark.parametrize("method", refining.METHODS)
@pytest.mark.parametrize("network", [False, True])
def test_the_least_and_the_largest_numbers_are_computed_with(method: str, network: bool) -> None:
    problem = Problem(*halves(20, 32), softmax(20, 32, 2) if network else None)
    ends = {**refining.NUMBERS, "gt_prob": (0.51, refining.TRUST[1])}
    for name, numbers in ends.items():
        for number in numbers:
            given = Wish.of({**SETTINGS, name: number, "method": method})
            marginals = refined(problem, given).marginals
            np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5, err_msg=name)


def test_scribbles_are_refined_as_elsewhere(problem: Problem, wish: Wish) -> None:
    marks = problem.marks
    annotation = Annotation(np.where(marks == 255, 0, marks.astype(np.int64) + 1), 2)
    expected = refine_scribbles(annotation, problem.image, wish.settings, 0.7)
    found = refined(problem, wish)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.marginals, expected.probabilities)
    assert (found.labels == (np.arange(60) >= 30)).mean() > 0.98


def test_classes_without_scribbles_take_no_part(problem: Problem, wish: Wish) -> None:
    gaps = Problem(problem.image, np.where(problem.marks == 1, 7, problem.marks).astype(np.uint8))
    assert gaps.classes.tolist() == [0, 7]
    found = refined(gaps, wish)
    assert np.array_equal(found.labels, 7 * refined(problem, wish).labels)
    assert found.labels.dtype == np.uint8
    assert found.heat(7).max() > 200
    assert not found.heat(3).any()


def test_probabilities_are_refined_as_elsewhere(problem: Problem, wish: Wish) -> None:
    given = replace(problem, probabilities=softmax(40, 60, 3))
    assert given.probabilities is not None
    expected = refine_probabilities(given.probabilities, problem.image, wish.settings)
    found = refined(given, wish)
    assert np.array_equal(found.labels, expected.labels)
    assert found.classes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("network", [False, True])
def test_exact_is_that_of_the_layer(wish: Wish, network: bool) -> None:
    wish, problem = replace(wish, method="exact"), Problem(*halves(20, 32))
    if network:
        problem = replace(problem, probabilities=softmax(20, 32, 2))
        assert problem.probabilities is not None
        logits = np.log(problem.probabilities)
    else:
        logits = -unary_from_labels(problem.annotation.labels, 2, 0.7).reshape(2, 20, 32)
    layer = crf.DenseCRF(
        2,
        gaussian=crf.Gaussian(3, 3),
        bilateral=crf.Bilateral(5, 20, 8),
        iterations=3,
        method="exact",
    )
    picture = torch.from_numpy(problem.image).permute(2, 0, 1)[None]
    expected = layer(torch.from_numpy(logits)[None], picture.float())[0].numpy()
    assert np.array_equal(refined(problem, wish).marginals, expected)


def test_a_reduced_problem_keeps_every_stroke_and_shrinks_distances(wish: Wish) -> None:
    image, marks = halves(41, 61)
    marks[1, 20] = 1  # a single pixel
    small = Problem(image, marks, softmax(41, 61, 2)).reduced(3)
    means = image[:39, :60].reshape(13, 3, 20, 3, 3).mean((1, 3))
    np.testing.assert_allclose(small.image, means, atol=5.01 / 9)  # rounds (sum + 4) / 9 down
    assert small.size == (13, 20)
    assert small.marks[0, 6] == 1
    assert set(np.unique(small.marks)) == {0, 1, 255}
    assert small.probabilities is not None
    np.testing.assert_allclose(small.probabilities.sum(0), 1, atol=1e-6)
    settings = wish.reduced(3).settings
    assert settings.gaussian is not None
    assert settings.bilateral is not None
    assert settings.gaussian.sigmas == (1, 1)
    assert settings.bilateral.sigmas == pytest.approx((20 / 3, 20 / 3, 8, 8, 8))


def test_a_line_of_pixels_can_be_reduced() -> None:
    image, marks = np.zeros((1, 50, 3), np.uint8), np.full((1, 50), 255, np.uint8)
    marks[0, 7] = 4
    small = Problem(image, marks).reduced(5)
    assert small.marks.tolist() == [[255, 4, *[255] * 8]]


@pytest.mark.parametrize("size", [(11, 17), (2, 17), (11, 2)])
def test_strokes_on_the_rows_and_columns_that_are_left_out_are_kept(size: tuple[int, int]) -> None:
    for y, x in [(0, size[1] - 1), (size[0] - 1, 0), (size[0] - 1, size[1] - 1)]:
        marks = np.full(size, 255, np.uint8)
        marks[y, x] = 3
        small = Problem(np.zeros((*size, 3), np.uint8), marks).reduced(3).marks
        assert small.shape == (max(1, size[0] // 3), max(1, size[1] // 3))
        assert [*map(tuple, np.argwhere(small == 3))] == [
            (small.shape[0] - 1 if y else 0, small.shape[1] - 1 if x else 0)
        ]
        assert (small == 255).sum() == small.size - 1


def test_a_preview_is_of_fewer_pixels_and_exact_of_fewest(wish: Wish) -> None:
    large = Problem(np.zeros((375, 500, 3), np.uint8), np.zeros((375, 500), np.uint8))
    assert refining.reduction(large, wish, preview=False) == 1
    assert refining.reduction(large, wish, preview=True) == 2
    exact = replace(wish, method="exact")
    k = refining.reduction(large, exact, preview=False)
    assert (375 // k) * (500 // k) <= refining.SLOW["exact"]
    thin = Problem(np.zeros((2, 70_000, 3), np.uint8), np.zeros((2, 70_000), np.uint8))
    assert thin.reduced(refining.reduction(thin, wish, preview=True)).size == (1, 35_000)
    assert thin.reduced(refining.reduction(thin, exact, preview=False)).size == (1, 2916)


def test_steps_are_those_of_so_many_iterations(problem: Problem, wish: Wish) -> None:
    found = list(steps(problem, wish))
    assert len(found) == 4
    for count, step in enumerate(found):
        alone = replace(wish, settings=replace(wish.settings, iterations=count))
        assert np.array_equal(step.marginals, refined(problem, alone).marginals)
    assert not np.array_equal(found[0].labels, found[-1].labels)


@pytest.mark.parametrize("method", refining.METHODS)
def test_what_is_previewed_is_the_whole_but_for_its_pixels(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(refining.SLOW, "exact", 6000)
    example = open_example("chelsea")
    photograph = Problem(example.image, example.marks).reduced(5)
    asked = Wish.of({**SETTINGS, "iterations": 5, "gaussian_sigma_xy": 6, "method": method})
    whole = refined(photograph, asked).marginals
    preview = refined(photograph.reduced(2), asked.reduced(2)).marginals
    assert whole.shape[1:] == (60, 90)
    difference = np.abs(preview.repeat(2, 1).repeat(2, 2) - whole)
    assert difference.mean() < 0.016  # 0.02 with the whole's sigmas, 0.2 after one iteration


def test_what_cannot_be_computed_says_why(
    problem: Problem, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Problem(problem.image, np.where(problem.marks == 1, 0, problem.marks))
    with pytest.raises(InputError, match="of at least two classes, not 1: paint"):
        refined(one, wish)
    large = Problem(np.zeros((99, 99, 3), np.uint8), np.eye(99, dtype=np.uint8))
    with pytest.raises(InputError, match="too slow for all 99 x 99 pixels"):
        refined(large, replace(wish, method="exact"))
    with pytest.raises(InputError, match=r"gt_prob must be more than 1/labels = 0.5"):
        refined(problem, replace(wish, gt_prob=0.3))
    monkeypatch.setitem(refining.WORK, "permutohedral", 2 * 2400 * 2)
    with pytest.raises(InputError, match="iterations must be at most 2 for 2 classes on 2400"):
        refined(problem, wish)


def test_the_work_of_all_steps_together_is_bounded(
    problem: Problem, wish: Wish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(refining.WORK, "permutohedral", 6 * 2400 * 2)  # 1 + 2 + 3 updates
    assert len(list(steps(problem, wish))) == 4
    monkeypatch.setitem(refining.WORK, "permutohedral", 6 * 2400 * 2 - 1)
    refined(problem, wish)
    with pytest.raises(InputError, match="at most 2 for 2 classes on 2400 pixels where each is"):
        list(steps(problem, wish))
