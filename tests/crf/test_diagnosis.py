"""What DenseCRF.diagnose says of the filters that a call runs."""

from typing import Any

import pytest
import torch
from torch import Tensor

import crf
import kernels
from crf.diagnosis import Diagnosis, TermDiagnosis
from kernels.dispatch import Choice
from kernels.meanfield import build
from kernels.meanfield.filters import reference_lattice


def problem(batch: int = 2, height: int = 12, width: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.full((batch, 3, height, width), 90.0)
    images[1:] = 255 * torch.rand(batch - 1, 3, height, width, generator=generator)
    return torch.randn(batch, 3, height, width, generator=generator), images


def layer(method: str, **options: Any) -> crf.DenseCRF:
    given = {"bilateral": crf.Bilateral(4.0, 5.0, 20.0), "method": method}
    return crf.DenseCRF(3, **given | options)


def test_lattices_are_told_by_their_vertices():
    logits, images = problem()
    model = layer("permutohedral")
    found = model.diagnose(logits, images)
    assert [(d.image, d.term) for d in found] == [
        (0, "gaussian"), (0, "bilateral"), (1, "gaussian"), (1, "bilateral"),
    ]  # fmt: skip
    assert {(d.method, d.reason, d.accuracy) for d in found} == {
        ("permutohedral", "asked for", "pydensecrf's")
    }
    assert model.gaussian
    assert model.bilateral
    smooth = reference_lattice(model.gaussian.features(images)[0]).num_vertices
    lattices = [reference_lattice(f).num_vertices for f in model.bilateral.features(images)]
    assert [d.vertices for d in found] == [smooth, lattices[0], smooth, lattices[1]]
    assert lattices[1] > lattices[0]


def test_exact_is_told_by_the_pairs_it_keeps_and_its_bound():
    logits, images = problem(2, 20, 30)
    model = layer("exact", bilateral=crf.Bilateral(4.0, 3.0, 10.0), eps=0.01)
    grid, pairs = model.diagnose(logits, images)[2:]
    assert (grid.term, grid.method, grid.bound) == ("gaussian", "rows and columns", 0.0)
    assert model.bilateral
    tiles = kernels.build_tiles(model.bilateral.features(images)[1], eps=0.01)
    assert (pairs.method, pairs.kept_pairs) == ("exact", float(tiles.share))
    assert pairs.bound == float(tiles.bound)
    assert 0 < pairs.bound <= 0.01
    assert pairs.kept_pairs is not None
    assert pairs.kept_pairs < 1
    (all_pairs,) = layer("exact", gaussian=None).diagnose(logits[:1], images[:1])
    assert (all_pairs.kept_pairs, all_pairs.bound) == (1.0, 0.0)


def test_separable_is_told_by_its_landmarks_and_residual():
    logits, images = problem()
    plain, noise = layer("separable", gaussian=None).diagnose(logits, images)
    assert plain.method == noise.method == "separable"
    assert plain.landmarks is not None
    assert noise.landmarks is not None
    assert 0 < plain.landmarks < noise.landmarks
    assert noise.residual is not None
    assert 0 < noise.residual <= kernels.separable.TOLERANCE


def test_a_gradient_to_features_takes_all_pairs():
    logits, images = problem()
    model = layer("auto", gaussian=None)
    images.requires_grad_()
    found = model.diagnose(logits, images)
    assert {(d.method, d.kept_pairs) for d in found} == {("exact", 1.0)}
    assert "gradients" in found[0].reason
    with torch.no_grad():
        assert model.diagnose(logits, images)[0].method == "permutohedral"


def test_auto_says_for_each_image_why_it_is_not_separable(monkeypatch):
    """As on a GPU: the first image has one colour, the second takes too many landmarks."""
    logits, images = problem(2, 40, 40)
    model = layer("auto", bilateral=crf.Bilateral(4.0, 5.0, 2.0))
    choice = Choice("separable", "auto: few landmarks, unless the image needs too many")
    monkeypatch.setattr(model, "choose", lambda *_: choice)
    found = model.diagnose(logits, images)
    methods = [d.method for d in found]
    assert methods == ["rows and columns", "separable", "permutohedral", "permutohedral"]
    assert found[1].reason == choice.reason
    assert found[3].reason.startswith("auto: not separable, the colours need")
    assert "\n" not in found[3].reason
    lattice = layer("permutohedral", bilateral=model.bilateral)
    torch.testing.assert_close(model(logits, images)[1:], lattice(logits[1:], images[1:]))


def test_lists_and_own_features_are_numbered_and_named():
    sizes = [(4, 5), (6, 3), (2, 2)]
    logits = [torch.randn(3, *size) for size in sizes]
    features = [{"depth": torch.rand(size[0] * size[1], 2)} for size in sizes]
    model = crf.DenseCRF(3, bilateral=None, pairwise=[crf.Pairwise("depth", 1.0)])
    found = model.diagnose(logits, None, features)
    assert isinstance(found, Diagnosis)
    assert [(d.image, d.term) for d in found] == [
        (b, term) for b in range(3) for term in ("gaussian", "depth")
    ]


def test_it_prints_as_a_table_with_a_line_for_each_term():
    table = str(Diagnosis([
        TermDiagnosis(0, "gaussian", "permutohedral", "asked for", vertices=120),
        TermDiagnosis(0, "depth", "exact", "asked for", kept_pairs=0.4213, bound=0.00098),
        TermDiagnosis(10, "bilateral", "separable", "auto: few", landmarks=64, residual=0.0912),
    ]))  # fmt: skip
    assert table.splitlines() == [
        "image  term       method         size            accuracy        reason",
        "0      gaussian   permutohedral  120 vertices    pydensecrf's    asked for",
        "0      depth      exact          42.1% of pairs  bound 0.00098   asked for",
        "10     bilateral  separable      64 landmarks    residual 0.091  auto: few",
    ]
    assert str(crf.DenseCRF(3, bilateral=None).diagnose(torch.zeros(0, 3, 2, 2))).count("\n") == 0


def test_it_refuses_what_a_call_refuses():
    logits, images = problem()
    with pytest.raises(ValueError, match="images are missing"):
        layer("exact").diagnose(logits)
    images.requires_grad_()
    with pytest.raises(ValueError, match="has no gradient to images"):
        layer("permutohedral").diagnose(logits, images)


# Features are looked at once


@pytest.mark.parametrize("iterations", [1, 5])
def test_exact_with_a_gradient_looks_at_its_features_once(monkeypatch, iterations):
    """On a GPU each look is a wait for the host."""
    looked: list[str] = []
    plain = build._known

    def known(tensors):
        looked.append("features")
        return plain(tensors)

    monkeypatch.setattr(build, "_known", known)
    monkeypatch.setattr(kernels.validate, "check_finite", lambda features: looked.append("kernels"))
    logits, images = problem()
    model = layer("exact", gaussian=None, iterations=iterations)
    model(logits, images.requires_grad_()).square().sum().backward()
    assert looked == ["features"]


def test_sigmas_that_underflow_are_named():
    model = layer("exact", gaussian=None, learnable=True)
    assert model.learned is not None
    with torch.no_grad():
        model.learned.raw_sigmas["bilateral_sigma_rgb"].fill_(-1000.0)
    with pytest.raises(ValueError, match="features must be finite"):
        model(*problem())
