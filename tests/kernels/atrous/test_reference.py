"""The plain PyTorch oracle against the equation, computed tap by tap in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.atrous import reference

pytestmark = pytest.mark.processors

RAGGED = [  # shape, channels, kernel, rates
    ((1, 1, 1, 1), 1, 1, (1,)),
    ((2, 3, 5, 7), 4, 3, (1, 2)),
    ((1, 5, 13, 9), 2, 3, (6, 12, 18, 24)),
    ((1, 2, 4, 11), 3, 5, (3,)),
    ((3, 7, 1, 17), 1, 3, (2, 2, 2)),
    ((2, 3, 6, 1), 2, 3, (50, 1)),
    ((1, 4, 9, 8), 3, 7, (1, 4)),
    ((0, 3, 5, 7), 4, 3, (1, 2)),
]
CONCAT = {"fuse": "concat", "scale": True, "shift": True}


def compute(p):
    return reference.multi_rate_atrous_conv2d(*p.args)


@pytest.mark.parametrize("options", [{}, CONCAT], ids=["sum", "concat"])
@pytest.mark.parametrize(("shape", "channels", "kernel", "rates"), RAGGED)
def test_output_and_gradients_follow_the_equation_on_ragged_shapes(
    problem, assert_exact, shape, channels, kernel, rates, options
):
    assert_exact(compute, problem(shape, channels, kernel, rates, integers=True, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, CONCAT], ids=["sum", "concat"])
def test_output_and_gradients_follow_the_equation_in_every_dtype(
    problem, assert_within_budget, dtype, options
):
    assert_within_budget(compute, problem(rates=(1, 3, 8), dtype=dtype, **options))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_every_concat_epilogue_follows_the_equation(
    problem, assert_exact, bias, scale, shift, activation
):
    options = {"bias": bias, "scale": scale, "shift": shift, "activation": activation}
    assert_exact(compute, problem(fuse="concat", integers=True, **options))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5, 7]),
    rates=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    options=st.sampled_from([{}, {"bias": False}, CONCAT, {**CONCAT, "activation": "relu"}]),
)
def test_any_shape_and_rates_follow_the_equation(
    problem, assert_exact, shape, channels, kernel, rates, options
):
    assert_exact(compute, problem(shape, channels, kernel, rates, integers=True, **options))


def test_concatenation_lies_branch_after_branch(problem):
    p = problem(rates=(1, 2, 5), fuse="concat")
    whole = compute(p)
    for r, rate in enumerate(p.rates):
        alone = reference.multi_rate_atrous_conv2d(
            p.input, p.weight[r : r + 1], p.bias[r : r + 1], (rate,), "sum", None, None, None
        )
        torch.testing.assert_close(whole[:, 4 * r : 4 * (r + 1)], alone)


def test_a_rate_beyond_the_map_leaves_the_centre_tap(problem):
    p = problem(rates=(10**9,), bias=False)
    centre = torch.einsum("oc,bchw->bohw", p.weight[0, :, :, 1, 1], p.input)
    torch.testing.assert_close(compute(p), centre)


@pytest.mark.parametrize(
    "options", [{}, {**CONCAT, "activation": "relu"}], ids=["sum", "concat-relu"]
)
def test_first_and_second_derivatives_match_finite_differences(problem, options):
    p = problem((1, 2, 3, 4), channels=2, rates=(1, 2), **options)
    rest = {name: value for name, value in vars(p).items() if name not in p.tensors}

    def function(*tensors):
        arguments = dict(zip(p.tensors, tensors, strict=True)) | rest
        return reference.multi_rate_atrous_conv2d(**arguments)

    assert torch.autograd.gradcheck(function, tuple(p.tensors.values()))
    assert torch.autograd.gradgradcheck(function, tuple(p.tensors.values()))
