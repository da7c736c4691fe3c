"""The hot paths under pytest-benchmark, to compare one commit with another on one machine:

    pytest tests/test_benchmarks.py --benchmark-only --benchmark-disable-gc --benchmark-autosave
    pytest-benchmark compare

A plain `pytest` leaves them out. Against other people's code: bench/compare.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import crf
import kernels
from crf.pydensecrf import densecrf
from deeplab.data.scenes import scene
from deeplab.model import deeplab_v2_small
from kernels.meanfield import LatticeFilter

HEIGHT, WIDTH, LABELS = 120, 160, 21
RATES = (6, 12, 18, 24)

Benchmark = Callable[..., Any]


@pytest.fixture(scope="module")
def image():
    """A generated scene, uint8 `[HEIGHT, WIDTH, 3]`."""
    return np.ascontiguousarray(scene(10_000_000, size=321).image[:HEIGHT, :WIDTH])


@pytest.fixture(scope="module")
def features(image):
    """Bilateral features `[N, 5]`, sigmas 49 and 5."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return crf.Bilateral(weight=4, sigma_xy=49, sigma_rgb=5).features(pixels)[0].contiguous()


@pytest.fixture(scope="module")
def values():
    """Marginals `[N, LABELS]`."""
    return torch.randn(HEIGHT * WIDTH, LABELS).softmax(dim=1)


@pytest.mark.parametrize(("fuse", "outputs"), [("sum", 21), ("concat", 64)])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_multi_rate_atrous_conv2d(benchmark, fuse, outputs, backward):
    x = torch.randn(1, 256, 41, 41, requires_grad=backward)
    weight = torch.randn(len(RATES), outputs, 256, 3, 3, requires_grad=backward)

    def call() -> None:
        y = kernels.multi_rate_atrous_conv2d(x, weight, rates=RATES, fuse=fuse)
        if backward:
            torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    benchmark(call)


def test_build_lattice(benchmark, features):
    benchmark(kernels.build_lattice, features)


def test_apply_lattice(benchmark, features, values):
    benchmark(kernels.apply_lattice, kernels.build_lattice(features), values)


def test_mean_field(benchmark, features, values):
    filter = LatticeFilter([kernels.build_lattice(features)])
    term = kernels.Term(filter, compatibility=-torch.ones(LABELS))
    benchmark(kernels.mean_field, -values.log()[None], [term], 5)


def test_gaussian_filter_exact(benchmark, features, values):
    few = slice(0, 4000)
    benchmark(kernels.gaussian_filter, values[None, few], features[None, few], method="exact")


def test_drop_in_with_set_up(benchmark, image, values):
    energies = np.ascontiguousarray(-values.log().T.numpy())

    def call() -> np.ndarray:
        dense = densecrf.DenseCRF2D(WIDTH, HEIGHT, LABELS)
        dense.setUnaryEnergy(energies)
        dense.addPairwiseGaussian(sxy=3, compat=3)
        dense.addPairwiseBilateral(sxy=49, srgb=5, rgbim=image, compat=4)
        return dense.inference(10)

    benchmark(call)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_dense_crf_layer(benchmark, image, backward):
    layer = crf.DenseCRF(
        LABELS,
        gaussian=crf.Gaussian(weight=3, sigma_xy=3),
        bilateral=crf.Bilateral(weight=4, sigma_xy=49, sigma_rgb=5),
        iterations=5,
    )
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    logits = torch.randn(1, LABELS, HEIGHT, WIDTH, requires_grad=backward)

    def call() -> None:
        with torch.set_grad_enabled(backward):
            marginals = layer(logits, images)
        if backward:
            torch.autograd.grad(marginals, logits, torch.ones_like(marginals))

    benchmark(call)


def test_small_model(benchmark, image):
    model = deeplab_v2_small(num_classes=LABELS).eval()
    with torch.inference_mode():
        benchmark(model, model.preprocess(image))
