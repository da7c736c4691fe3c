"""Triton kernels on a GPU and in the interpreter: bit for bit in integers, within error budgets.

The interpreter takes small problems; a GPU also those of the networks, in every dtype.
"""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import dispatch

pytest.importorskip("triton", reason="triton is not installed")
from kernels.atrous.triton import layout, shift

IMPLS = ("triton:shift", "triton:implicit")
TF32_EPS = 2**-10
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
NHWC = {"memory_format": torch.channels_last}
RAGGED = {
    "small": {},
    "one pixel, rates beyond it": {"shape": (1, 5, 1, 1), "channels": 1, "rates": (6, 12, 18, 24)},
    "one rate": {"shape": (3, 17, 5, 9), "channels": 21, "rates": (2,), **NHWC},
    "a rate beyond the map": {"shape": (1, 16, 19, 2), "channels": 33, "rates": (1, 40), **NHWC},
    "1 x 1": {"shape": (2, 4, 6, 5), "channels": 3, "kernel": 1, "rates": (1, 2)},
    "5 x 5": {"shape": (1, 2, 5, 6), "channels": 2, "kernel": 5, "rates": (1,), **NHWC},
    "5 x 5, some taps live": {
        "shape": (1, 40, 9, 5), "channels": 2, "kernel": 5, "rates": (2, 3),
    },
    "one row": {"shape": (2, 20, 1, 37), "channels": 5, "rates": (3, 1, 2)},
    "no bias": {"shape": (1, 33, 4, 4), "channels": 4, "rates": (1, 1), "bias": False, **NHWC},
}  # fmt: skip
NETWORKS = {
    "v2 head": {"shape": (2, 2048, 41, 41), "channels": 21, "rates": (6, 12, 18, 24)},
    "VGG ASPP": {
        "shape": (1, 512, 41, 41), "channels": 1024, "rates": (6, 12, 18, 24),
        "fuse": "concat", "activation": "relu",
    },
    "v3 branches": {
        "shape": (1, 2048, 33, 33), "channels": 256, "rates": (12, 24, 36), **RELU,
    },
    "backbone": {"shape": (2, 512, 65, 65), "channels": 512, "rates": (4,), "bias": False},
    "ragged": {"shape": (3, 37, 17, 23), "channels": 19, "rates": (1, 5, 30), **RELU},
}  # fmt: skip
IN_THE_INTERPRETER = {
    "sum": {"shape": (2, 40, 5, 7), "channels": 6, "rates": (1, 3, 5)},
    "concat": {"shape": (2, 40, 5, 7), "channels": 6, "rates": (1, 3, 5), **RELU},
}
PROBLEMS = IN_THE_INTERPRETER if dispatch.interpreting() else NETWORKS
SMALL = {"shape": (1, 3, 4, 5), "dtype": torch.float32, **RELU}
REPEATED = {"small": SMALL} if dispatch.interpreting() else NETWORKS
KINDS = {  # dtype, and whether float32 may be computed in TF32
    "bfloat16": (torch.bfloat16, True),
    "float16": (torch.float16, True),
    "tf32": (torch.float32, True),
    "ieee": (torch.float32, False),
}
if dispatch.interpreting():  # which multiplies the raw bits of bfloat16, and knows no TF32
    KINDS = {name: KINDS[name] for name in ("float16", "ieee")}

any_impl = pytest.mark.parametrize("impl", IMPLS)
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])
any_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


def by(impl):
    def compute(p):
        return kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl)

    return compute


@any_impl
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_stay_within_twice_those_of_conv2d(
    problem, trained, assert_within_budget, impl, kind, name
):
    dtype, allowed = KINDS[kind]
    p = trained(problem(**PROBLEMS[name]), dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        assert_within_budget(by(impl), p, TF32_EPS if kind == "tf32" else None)


@any_impl
@sum_and_concat
def test_errors_stay_within_twice_those_of_conv2d_where_taps_cancel(
    problem, assert_within_budget, impl, options
):
    """The second derivative of a smooth map is far smaller than each tap's share of it."""
    p = problem(shape=(1, 16, 17, 17), channels=2, rates=(1,), dtype=torch.float16, **options)
    bump = torch.linspace(0, torch.pi, 17).sin().square()
    p.input.data[:] = 8 * bump[:, None] * bump
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).half()
    p.weight.data[:] = p.weight.data.abs()[..., :1, :1] * laplacian.to(p.weight)
    assert_within_budget(by(impl), p)


@any_impl
def test_rates_beyond_32_bits_look_beyond_the_map(problem, assert_exact, impl):
    made = {"shape": (1, 3, 4, 5), "channels": 2, "kernel": 5, "rates": (1, 2**40)}
    assert_exact(by(impl), problem(**made, integers=True, dtype=torch.float32))


@any_impl
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_runs_give_the_same_bits(problem, trained, with_gradients, device, impl, name):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    p = trained(problem(**REPEATED[name]), dtype)
    first = with_gradients(by(impl), p)
    for _ in range(1 if device.type == "cpu" else 10):
        again = with_gradients(by(impl), p)
        assert all(torch.equal(first[key], again[key]) for key in first)


@any_impl
def test_autocast_computes_in_its_dtype(problem, device, impl):
    dtype = torch.float16 if device.type == "cpu" else torch.bfloat16
    p = problem(**SMALL)
    with torch.autocast(device.type, dtype):
        output = by(impl)(p)
    assert output.dtype == dtype
    assert torch.equal(output, by(impl)(p.to(dtype)))
    grads = torch.autograd.grad(output.float().sum(), list(p.tensors.values()))
    assert all(grad.dtype == torch.float32 for grad in grads)


@any_impl
@sum_and_concat
@pytest.mark.parametrize("shape", RAGGED)
def test_output_and_gradients_are_those_of_the_equation(
    problem, assert_exact, impl, options, shape
):
    made = {**RAGGED[shape], **options}
    assert_exact(by(impl), problem(integers=True, dtype=torch.float32, **made))


@any_impl
@sum_and_concat
@any_format
def test_gradients_of_any_strides_are_taken(problem, by_taps, impl, options, memory_format):
    made = {"shape": (2, 3, 4, 5), "memory_format": memory_format, **options}
    p = problem(dtype=torch.float32, integers=True, **made)
    output = by(impl)(p)
    for grad in (
        output.new_ones(()).expand(output.shape),  # of output.sum(): all strides 0
        output.new_ones(output.mT.shape).mT,
        output.new_ones(*output.shape, 2)[..., 0],
    ):
        found = torch.autograd.grad(output, list(p.tensors.values()), grad, retain_graph=True)
        expected = torch.autograd.grad(by_taps(p), list(p.tensors.values()), grad)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@any_impl
def test_inputs_of_any_strides_are_taken(problem, assert_exact, impl):
    p = problem(shape=(2, 16, 5, 5), dtype=torch.float32, integers=True)
    for view in (p.input.mT, p.input.detach()[:, :, ::2, 1:], p.input.flip(1).transpose(0, 0)):
        q = type(p)(**{**vars(p), "input": view.detach().requires_grad_()})
        assert_exact(by(impl), q)


@any_impl
def test_weights_of_any_strides_are_taken(problem, assert_exact, impl):
    p = problem(shape=(1, 16, 5, 5), dtype=torch.float32, integers=True)
    last = p.weight.detach().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    for weight in (last, p.weight.detach().mT):
        q = type(p)(**{**vars(p), "weight": weight.detach().requires_grad_()})
        assert_exact(by(impl), q)


@any_impl
@sum_and_concat
def test_an_empty_batch_gives_empty_output_and_zero_gradients(problem, impl, options):
    p = problem(shape=(0, 3, 7, 6), dtype=torch.float32, **options)
    output = by(impl)(p)
    assert output.shape[0] == 0
    tensors = list(p.tensors.values())
    grads = torch.autograd.grad(output.sum(), tensors)
    assert all(
        torch.equal(grad, torch.zeros_like(tensor))
        for grad, tensor in zip(grads, tensors, strict=True)
    )


@any_impl
def test_only_the_gradients_asked_for_are_computed(problem, impl):
    full = problem(integers=True, **SMALL)
    names = list(full.tensors)
    everything = torch.autograd.grad(by(impl)(full).sum(), list(full.tensors.values()))
    for name, expected in zip(names, everything, strict=True):
        p = problem(integers=True, requires_grad=False, **SMALL)
        leaf = p.tensors[name].requires_grad_()
        (found,) = torch.autograd.grad(by(impl)(p).sum(), leaf)
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_rows_hold_each_tap_once_and_the_centres_of_a_sum_added_up(problem, fuse, kernel):
    weight = problem(kernel=kernel, dtype=torch.float32, requires_grad=False).weight
    taps = list(weight.flatten(3).permute(0, 3, 1, 2).flatten(0, 1))  # rate by rate
    if fuse == "sum":
        centres = [taps.pop(r * kernel**2 + kernel**2 // 2 - r) for r in range(len(weight))]
        taps.insert(0, sum(centres))
    rows = shift.pack(weight, fuse).tensor
    used, inputs = sum(len(tap) for tap in taps), weight.shape[2]
    assert torch.equal(rows[:used, :inputs], torch.cat(taps))
    assert rows[used:].eq(0).all()
    assert rows[:, inputs:].eq(0).all()
    assert rows.shape == (layout.aligned(used), layout.aligned(inputs))


def test_centres_are_added_up_in_float32(device):
    weight = torch.tensor([1.0, 2**-11, 2**-11]).to(device, torch.float16).view(3, 1, 1, 1, 1)
    assert shift.pack(weight, "sum").tensor[0, 0] == 1 + 2**-10  # one rounding of the sum
    assert weight[0, 0, 0, 0, 0] + weight[1, 0, 0, 0, 0] == 1  # where each step would round


@any_impl
def test_a_weight_changed_in_place_counts_at_the_next_call(problem, by_taps, impl):
    p = problem(dtype=torch.float32, integers=True)
    before = by(impl)(p)
    p.weight.data.mul_(3)
    changed = by(impl)(p)
    assert torch.equal(changed, by_taps(p))
    assert not torch.equal(changed, before)


@any_impl
def test_float64_is_refused(problem, impl):
    with pytest.raises(ValueError, match=f"impl='{impl}' cannot run 'atrous' here.*float64"):
        by(impl)(problem(dtype=torch.float64))


@any_impl
def test_a_second_derivative_is_refused_with_the_mend(problem, impl):
    p = problem(dtype=torch.float32)
    (grad,) = torch.autograd.grad(by(impl)(p).square().sum(), p.input, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"once.*impl='reference'"):
        grad.sum().backward()
