"""What a DenseCRF takes beside a batch of pictures: lists of sizes, volumes, no picture at all."""

from typing import Any

import pytest
import torch

import crf
from kernels import memory

METHODS = ("permutohedral", "exact", "separable", "auto")
any_method = pytest.mark.parametrize("method", METHODS)


@any_method
@pytest.mark.parametrize("call", ["forward", "refine_logits"])
def test_a_list_is_its_images_one_by_one(method, call):
    model = crf.DenseCRF(3, bilateral=crf.Bilateral(4.0, 9.0, 60.0), iterations=2, method=method)
    infer = getattr(model, call)
    sizes = ((4, 5), (6, 3), (1, 1))
    logits = [torch.randn(3, *size) for size in sizes]
    images = [255 * torch.rand(3, *size) for size in sizes]
    found = infer(logits, images)
    for one, scores, image in zip(found, logits, images, strict=True):
        assert torch.equal(one, infer(scores[None], image[None])[0])
    assert infer([], []) == []


def test_features_in_a_list_have_no_batch_either():
    pairwise = [crf.Pairwise("f", 2.0)]
    model = crf.DenseCRF(3, gaussian=None, bilateral=None, pairwise=pairwise, iterations=2)
    logits, points = torch.randn(3, 4, 5), torch.rand(20, 2)
    (found,) = model([logits], features=[{"f": points}])
    assert torch.equal(found, model(logits[None], features={"f": points[None]})[0])


def test_a_list_gives_a_divergence_for_each_image():
    model = crf.DenseCRF(3, iterations=2)
    logits, images = [torch.randn(3, 4, 5)], [255 * torch.rand(3, 4, 5)]
    ((marginals, divergence),) = model(logits, images, return_kl=True)
    expected = model(logits[0][None], images[0][None], return_kl=True)
    assert torch.equal(marginals, expected[0][0])
    assert torch.equal(divergence, expected[1][:, 0])


@pytest.mark.parametrize(
    ("images", "features", "words"),
    [
        (torch.zeros(2, 3, 4, 5), None, "images must be a list, one entry an image, .* one of 2"),
        ([torch.zeros(3, 4, 5)], None, "images must be a list"),
        ([torch.zeros(3, 4, 5)] * 2, {"f": 1}, "features must be a list"),
    ],
)
def test_lists_of_other_lengths_are_named(images, features, words):
    with pytest.raises(ValueError, match=words):
        crf.DenseCRF(3)([torch.zeros(3, 4, 5)] * 2, images, features)


@any_method
def test_a_volume_is_filtered_by_the_distances_of_its_voxels(method):
    logits, scan = torch.randn(2, 3, 3, 4, 5).double(), 255 * torch.rand(2, 1, 3, 4, 5).double()
    features = crf.grid_features((3, 4, 5), (4.0, 3.0, 2.0), scan, 80.0)
    assert features.shape == (2, 60, 4)
    options = {"tolerance": 1e-4} if method in ("separable", "auto") else {}
    model = crf.DenseCRF(
        3, gaussian=None, bilateral=None, pairwise=[crf.Pairwise("scan", 5.0)], iterations=1,
        method=method, normalization="after", **options,
    )  # fmt: skip
    found = model(logits, features={"scan": features})
    assert found.shape == logits.shape
    assert found.dtype == torch.float64
    kernel = torch.cdist(features, features).square().mul(-0.5).exp()
    kernel = kernel / kernel.sum(2, keepdim=True)
    marginals = logits.softmax(1).flatten(2).transpose(1, 2)
    field = logits.log_softmax(1).flatten(2).transpose(1, 2) + 5.0 * (kernel @ marginals)
    expected = field.softmax(2).transpose(1, 2).reshape(logits.shape)
    allowed = {"exact": 1e-9, "separable": 2e-3, "permutohedral": 0.1, "auto": 0.1}[method]
    assert (found - expected).abs().max() < allowed


def test_grid_features_are_places_and_values_over_sigma():
    values = torch.arange(12.0).reshape(1, 2, 2, 3)
    features = crf.grid_features((2, 3), (2.0, 5.0), values, (1.0, 4.0))
    assert features[0, 4].tolist() == pytest.approx([1 / 2, 1 / 5, 4.0, 10 / 4])
    assert torch.equal(crf.grid_features((2, 3), 1.0), crf.grid_features((2, 3), (1.0, 1.0)))


VALUES = torch.zeros(1, 1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "sigma must be positive"),
        (((1.0, 1.0, 1.0),), "sigma must be one number or 2 of them"),
        ((1.0, VALUES), "values and sigma_values go together"),
        ((1.0, VALUES.mT, 1.0), r"values must have shape \[B, channels, 2, 3"),
        ((1.0, VALUES, (1.0, 2.0)), "sigma_values must be one number or 1"),
    ],
)
def test_bad_grid_features_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        crf.grid_features((2, 3), *arguments)


def test_without_a_bilateral_term_no_images_are_needed():
    model = crf.DenseCRF(3, bilateral=None)
    logits = torch.randn(1, 3, 4, 5)
    assert torch.equal(model(logits), model(logits, torch.zeros(1, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"logits must have shape \[B, 3, H, W\]"):
        model(torch.randn(1, 3, 4, 5, 6))


def test_auto_says_what_it_chooses_and_why():
    def impl(device: str, pixels: Any = None, needs: bool = False, **options: Any) -> str:
        return crf.DenseCRF(3, method="auto", **options).choose(device, pixels, needs).impl

    wide = {"bilateral": crf.Bilateral(4.0, 80.0, 13.0)}
    assert impl("cuda", **wide) == "separable"
    assert impl("cuda") == "permutohedral"
    assert impl("cuda", 5000, **wide) == "separable"
    assert impl("cuda", 4096) == "exact"
    assert impl("cpu", 16, **wide) == "permutohedral"
    assert impl("cuda", needs=True, **wide) == "exact"
    assert impl("cuda", normalization="none", **wide) == "permutohedral"
    assert impl("cuda", pairwise=[crf.Pairwise("f", 1.0)], **wide) == "permutohedral"
    assert crf.DenseCRF(3, method="exact").choose("cpu").reason == "asked for"


def test_auto_is_exact_where_the_images_want_a_gradient():
    logits, images = torch.randn(1, 3, 4, 5), (255 * torch.rand(1, 3, 4, 5)).requires_grad_()
    found = crf.DenseCRF(3, method="auto")(logits, images)
    assert torch.equal(found, crf.DenseCRF(3, method="exact")(logits, images))
    found.square().sum().backward()
    assert images.grad is not None


@any_method
def test_images_that_cannot_fit_are_refused_before_any_work(method, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 10_000)
    model = crf.DenseCRF(3, method=method)
    model(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    with pytest.raises(MemoryError, match="a CRF over 400 pixels with 3 labels needs at least"):
        model(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 20))
