"""The custom operator: values against the equation, and its contract with PyTorch's compilers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from opchecks import OPCHECKS

from kernels.atrous import ops

OPERATOR = torch.ops.kernels.multi_rate_atrous_conv2d.default
BACKWARD = torch.ops.kernels.multi_rate_atrous_conv2d_backward.default
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
FORMS = {
    "sum": {},
    "sum-no-bias": {"bias": False},
    "concat": {"fuse": "concat"},
    "concat-scale": {"fuse": "concat", "scale": True},
    "concat-shift": {"fuse": "concat", "shift": True, "bias": False},
    "concat-scale-shift-relu": RELU,
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
memory_format = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)


def compute(p):
    return OPERATOR(*p.args)


@form
@memory_format
def test_output_and_gradients_follow_the_equation(problem, assert_exact, options, memory_format):
    assert_exact(compute, problem(memory_format=memory_format, integers=True, **options))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    rates=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    options=st.sampled_from(list(FORMS.values())),
    memory_format=st.sampled_from(list(FORMATS.values())),
)
def test_any_shape_and_rates_follow_the_equation(
    problem, assert_exact, shape, channels, kernel, rates, options, memory_format
):
    options = {**options, "memory_format": memory_format, "integers": True}
    assert_exact(compute, problem(shape, channels, kernel, rates, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["sum", "concat-scale"])
def test_every_dtype_is_as_accurate_as_conv2d(problem, assert_within_budget, name, dtype):
    assert_within_budget(compute, problem(rates=(1, 3, 8), dtype=dtype, **FORMS[name]))


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "crop": lambda x: x[:, :, 1:-1, 1:-2],
    "channels_last crop": lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:, 1:, :-1],
    "transposed": lambda x: x.transpose(2, 3),
    "one image for the batch": lambda x: x[:1].expand_as(x),
    "one row": lambda x: x[:, :, :1],
    "one column, channels_last": lambda x: x[..., :1].contiguous(memory_format=torch.channels_last),
    "one channel": lambda x: x[:, :1],
    "one pixel": lambda x: x[:, :, :1, :1].contiguous(),
    "channels_last, transposed": lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_strides_are_those_of_conv2d_whatever_the_layout(problem, layout):
    p = problem()
    input = layout(p.input.detach())
    weight = p.weight.detach()[:, :, : input.shape[1]].contiguous()
    for fuse in ("sum", "concat"):
        output = OPERATOR(input, weight, None, p.rates, fuse, None, None, None)
        branches = [
            F.conv2d(input, w, padding=rate, dilation=rate)
            for w, rate in zip(weight, p.rates, strict=True)
        ]
        expected = sum(branches) if fuse == "sum" else torch.cat(branches, 1)
        torch.testing.assert_close(output, expected, check_stride=True)


def test_a_stride_0_gradient_and_strided_weights_are_taken(problem, by_taps):
    p = problem(integers=True, **RELU)
    strided = p.weight.detach().mT.contiguous().mT.requires_grad_()
    ours, expected = (
        torch.autograd.grad(function(q).sum(), list(q.tensors.values()))  # .sum(): strides all 0
        for function, q in ((compute, _with_weight(p, strided)), (by_taps, p))
    )
    for found, reference in zip(ours, expected, strict=True):
        assert torch.equal(found, reference)


def _with_weight(p, weight):
    return type(p)(**{**vars(p), "weight": weight})


@form
@memory_format
def test_opchecks_pass(problem, options, memory_format):
    args = problem(memory_format=memory_format, **options).args
    torch.library.opcheck(OPERATOR, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "scale", "shift"])
def test_opchecks_pass_with_one_gradient_asked_for(problem, wanted):
    p = problem(requires_grad=False, **RELU)
    p.tensors[wanted].requires_grad_()
    torch.library.opcheck(OPERATOR, p.args, test_utils=OPCHECKS)


@pytest.mark.parametrize("needs", [[True] * 5, [False, True, False, False, True]])
@memory_format
def test_opchecks_of_the_backward_pass(problem, needs, memory_format):
    p = problem(memory_format=memory_format, requires_grad=False, **RELU)
    output = compute(p)
    args = (output.cos(), p.input, p.weight, p.bias, p.rates, p.fuse, p.scale, output, needs)
    torch.library.opcheck(BACKWARD, args, test_utils=OPCHECKS)


def test_gradients_match_finite_differences(problem):
    p = problem((1, 2, 3, 4), channels=2, rates=(1, 2), **RELU)
    rest = {name: value for name, value in vars(p).items() if name not in p.tensors}

    def function(*tensors):
        return ops.multi_rate_atrous_conv2d(**dict(zip(p.tensors, tensors, strict=True)), **rest)

    assert torch.autograd.gradcheck(function, tuple(p.tensors.values()))


def test_a_second_derivative_is_refused_and_points_to_eager(problem):
    p = problem()
    (grad,) = torch.autograd.grad(compute(p).sum(), p.input, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"differentiable once.*impl='eager'"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["sum", "concat-scale-shift-relu"])
def test_autocast_computes_in_its_dtype_and_gives_gradients_in_the_leaves_dtype(
    problem, dtype, name
):
    p = problem(dtype=torch.float32, **FORMS[name])
    with torch.autocast("cpu", dtype):
        output = compute(p)
        with torch.autocast("cpu", enabled=False):
            expected = compute(p.to(dtype))
        assert torch.equal(output, expected)
        output.sum().backward()
    assert output.dtype == dtype
    assert all(tensor.grad.dtype == torch.float32 for tensor in p.tensors.values())


def test_autocast_leaves_float64_alone(problem):
    p = problem()
    with torch.autocast("cpu", torch.bfloat16):
        output = compute(p)
    assert torch.equal(output, compute(p))


def test_autocast_around_the_backward_alone_changes_nothing(problem, with_gradients):
    p = problem(dtype=torch.float32, **RELU)
    expected = with_gradients(compute, p)

    def forward_without_autocast(p):
        with torch.autocast("cpu", enabled=False):
            return compute(p)

    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(forward_without_autocast, p)
    for name, reference in expected.items():
        assert torch.equal(found[name], reference), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@form
def test_a_gpu_is_as_accurate_as_conv2d_there(problem, assert_within_budget, options):
    p = problem(**options)
    on_gpu = {name: t.detach().cuda().requires_grad_() for name, t in p.tensors.items()}
    assert_within_budget(compute, type(p)(**{**vars(p), **on_gpu}))
