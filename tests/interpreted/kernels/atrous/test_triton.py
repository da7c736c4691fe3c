"""The Triton kernels in the interpreter: bit for bit in integers, within budget in halves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch

import kernels
from kernels.atrous import cost
from kernels.atrous.triton import configs, implicit, layout, shift, weight_grad

IMPLS = ("triton:shift", "triton:implicit")
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
NHWC = {"memory_format": torch.channels_last}
RAGGED = {
    "small": {},
    "one pixel, rates beyond it": {"shape": (1, 5, 1, 1), "channels": 1, "rates": (6, 12, 18, 24)},
    "one rate": {"shape": (3, 17, 5, 9), "channels": 21, "rates": (2,), **NHWC},
    "a rate beyond the map": {"shape": (1, 16, 19, 2), "channels": 33, "rates": (1, 40), **NHWC},
    "1 x 1": {"shape": (2, 4, 6, 5), "channels": 3, "kernel": 1, "rates": (1, 2)},
    "5 x 5": {"shape": (1, 2, 5, 6), "channels": 2, "kernel": 5, "rates": (1,), **NHWC},
    "one row": {"shape": (2, 20, 1, 37), "channels": 5, "rates": (3, 1, 2)},
    "no bias": {"shape": (1, 33, 4, 4), "channels": 4, "rates": (1, 1), "bias": False, **NHWC},
}

any_impl = pytest.mark.parametrize("impl", IMPLS)
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])
any_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


@pytest.fixture
def workspace(monkeypatch) -> Callable[[int], None]:
    """Set the workspace, in bytes: what one pass of a call holds by itself must stay within it."""
    made: list[int] = []
    empty = torch.empty

    def counted(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        made.append(tensor.nbytes)
        return tensor

    def watched(run):
        def watch(*args):
            made.clear()
            result = run(*args)
            assert sum(made) <= shift.WORKSPACE
            return result

        return watch

    def set_to(size: int) -> None:
        monkeypatch.setattr(torch, "empty", counted)
        for module in (cost, shift, weight_grad):
            monkeypatch.setattr(module, "WORKSPACE", size)
        for module, name in itertools.product((shift, implicit), ("forward", "gradients")):
            monkeypatch.setattr(module, name, watched(getattr(module, name)))

    return set_to


def by(impl):
    def compute(p):
        return kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl)

    return compute


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
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_errors_stay_within_twice_those_of_conv2d(
    problem, assert_within_budget, impl, options, dtype
):
    p = problem(shape=(2, 40, 9, 7), channels=6, rates=(1, 3, 5), dtype=dtype, **options)
    assert_within_budget(by(impl), p)


@any_impl
@sum_and_concat
@any_format
def test_gradients_of_any_strides_are_taken(problem, impl, options, memory_format):
    p = problem(dtype=torch.float32, integers=True, memory_format=memory_format, **options)
    output = by(impl)(p)
    for grad in (
        torch.ones(()).expand(output.shape),  # of output.sum(): all strides 0
        torch.ones(output.mT.shape).mT,
        torch.ones(*output.shape, 2)[..., 0],
    ):
        found = torch.autograd.grad(output, list(p.tensors.values()), grad, retain_graph=True)
        expected = torch.autograd.grad(by("reference")(p), list(p.tensors.values()), grad)
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


@sum_and_concat
@any_format
@pytest.mark.parametrize("pixels", [100, 42, 20], ids=lambda n: f"{n} pixels fit")
def test_shift_within_little_workspace_gives_the_same(
    problem, assert_exact, workspace, options, memory_format, pixels
):
    """Groups of images, one image, or bands of one."""
    p = problem(
        shape=(3, 3, 6, 7), dtype=torch.float32, integers=True, memory_format=memory_format,
        **options,
    )  # fmt: skip
    rows = shift.pack(p.weight, p.fuse)
    workspace(4 * len(rows) * pixels)
    assert_exact(by("triton:shift"), p)


@sum_and_concat
def test_an_image_whose_sums_do_not_fit_is_computed_in_bands(problem, by_taps, workspace, options):
    """36 of its 63 pixels at a time; most see only some of the three that fit as slices."""
    p = problem(
        shape=(2, 3, 9, 7), rates=(1,), dtype=torch.float32, integers=True, requires_grad=False,
        **options,
    )  # fmt: skip
    rows = shift.pack(p.weight, p.fuse)
    workspace(2 * 3 * 4 * len(rows))
    assert torch.equal(by("triton:shift")(p), by_taps(p))


@any_impl
@sum_and_concat
def test_a_weight_gradient_larger_than_the_workspace_is_written_in_place(
    problem, assert_exact, workspace, impl, options
):
    p = problem(
        shape=(1, 32, 3, 4), channels=16, rates=(1, 2), dtype=torch.float32, integers=True,
        **options,
    )  # fmt: skip
    workspace(4 * p.weight.numel() // 2)
    assert_exact(by(impl), p)


@any_impl
@sum_and_concat
def test_split_pixels_of_the_weight_gradient_add_up(
    problem, assert_exact, monkeypatch, impl, options
):
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 500)
    monkeypatch.setattr(weight_grad, "LEAST_STEPS", 1)
    p = problem(
        shape=(3, 3, 9, 14), channels=2, rates=(1, 3), dtype=torch.float32, integers=True,
        **options,
    )  # fmt: skip
    x, _ = layout.pixels_of(p.input)
    assert min(weight_grad.splits_for(x, 2, 18, 36, 2**20)) > 1
    assert_exact(by(impl), p)


@any_impl
@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_bulk_copy_engine_brings_the_same(
    problem, assert_exact, monkeypatch, impl, fuse, kernel
):
    original = configs.select
    monkeypatch.setattr(configs, "select", lambda *a: dataclasses.replace(original(*a), tma=True))
    made = {"shape": (2, 40, 4, 5), "channels": 20, "kernel": kernel, "fuse": fuse}
    assert_exact(by(impl), problem(**made, integers=True, dtype=torch.float32))


@any_impl
def test_rates_beyond_32_bits_look_beyond_the_map(problem, impl):
    p = problem((1, 3, 4, 5), channels=2, kernel=5, rates=(1, 2**40), dtype=torch.float32)
    far = type(p)(**{**vars(p), "rates": (1, 5)})
    grads = [torch.autograd.grad(by(impl)(q).sum(), list(q.tensors.values())) for q in (p, far)]
    torch.testing.assert_close(by(impl)(p), by("reference")(far))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@any_impl
@sum_and_concat
def test_two_runs_give_the_same_bits(problem, with_gradients, impl, options):
    p = problem(dtype=torch.float32, **options)
    first, second = with_gradients(by(impl), p), with_gradients(by(impl), p)
    assert all(torch.equal(first[name], second[name]) for name in first)


@any_impl
def test_nan_and_infinity_come_through_the_relu(problem, impl):
    p = problem(dtype=torch.float32, **RELU)
    p.input.data[0, 0, 3, 3] = torch.nan
    p.input.data[1, 0, 3, 3] = torch.inf
    found, expected = by(impl)(p), by("reference")(p)
    torch.testing.assert_close(found, expected, equal_nan=True)


@any_impl
def test_only_the_gradients_asked_for_are_computed(problem, impl):
    full = problem(dtype=torch.float32, integers=True, **RELU)
    names = list(full.tensors)
    everything = torch.autograd.grad(by(impl)(full).sum(), list(full.tensors.values()))
    for name, expected in zip(names, everything, strict=True):
        p = problem(dtype=torch.float32, integers=True, requires_grad=False, **RELU)
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
    rows = shift.pack(weight, fuse)
    used, inputs = sum(len(tap) for tap in taps), weight.shape[2]
    assert torch.equal(rows[:used, :inputs], torch.cat(taps))
    assert rows[used:].eq(0).all()
    assert rows[:, inputs:].eq(0).all()
    assert rows.shape == (layout.aligned(used), layout.aligned(inputs))


def test_centres_are_added_up_in_float32():
    weight = torch.tensor([1.0, 2**-11, 2**-11]).to(torch.float16).view(3, 1, 1, 1, 1)
    assert shift.pack(weight, "sum")[0, 0] == 1 + 2**-10  # one rounding of the sum
    assert weight[0, 0, 0, 0, 0] + weight[1, 0, 0, 0, 0] == 1  # where each step would round


@any_impl
def test_a_weight_changed_in_place_counts_at_the_next_call(problem, impl):
    p = problem(dtype=torch.float32, integers=True)
    before = by(impl)(p)
    p.weight.data.mul_(3)
    changed = by(impl)(p)
    assert torch.equal(changed, by("reference")(p))
    assert not torch.equal(changed, before)


@any_impl
def test_bfloat16_is_refused_since_the_interpreter_computes_it_wrong(problem, impl):
    with pytest.raises(ValueError, match=r"interpreter cannot compute in torch\.bfloat16"):
        by(impl)(problem(dtype=torch.bfloat16))


@any_impl
def test_float64_is_refused(problem, impl):
    with pytest.raises(ValueError, match=f"impl='{impl}' cannot run 'atrous' here.*float64"):
        by(impl)(problem(dtype=torch.float64))


def test_auto_stays_eager_on_a_cpu(problem):
    p = problem(dtype=torch.float32)
    choice = kernels.atrous.choose(p.input, p.weight, rates=p.rates)
    assert choice.impl == "reference"
    (grad,) = torch.autograd.grad(by("auto")(p).square().sum(), p.input, create_graph=True)
    grad.sum().backward()


@any_impl
def test_a_second_derivative_is_refused_with_the_mend(problem, impl):
    p = problem(dtype=torch.float32)
    (grad,) = torch.autograd.grad(by(impl)(p).square().sum(), p.input, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"once.*impl='reference'"):
        grad.sum().backward()
