"""Every method over the whole range of shapes, labels and sigmas that a user may come with."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import crf

METHODS = ("permutohedral", "exact", "separable", "auto")
any_method = pytest.mark.parametrize("method", METHODS)
sigma = st.floats(-1, 4).map(lambda power: 10**power)  # 0.1 to 1e4


@any_method
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    labels=st.sampled_from([1, 2, 7, 21, 65, 256]),
    sigmas=st.tuples(sigma, sigma, sigma),
    normalization=st.sampled_from(["symmetric", "before", "after"]),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_marginals_are_probabilities(method, size, labels, sigmas, normalization, as_bytes, seed):
    batch, height, width = size
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, labels, height, width, generator=generator)
    images = 255 * torch.rand(batch, 3, height, width, generator=generator)
    model = crf.DenseCRF(
        labels,
        gaussian=crf.Gaussian(3.0, sigmas[0]),
        bilateral=crf.Bilateral(4.0, sigmas[1], sigmas[2]),
        iterations=3,
        method=method,
        normalization=normalization,
    )
    found = model(logits, images.to(torch.uint8) if as_bytes else images)
    assert found.shape == logits.shape
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(batch, height, width))
