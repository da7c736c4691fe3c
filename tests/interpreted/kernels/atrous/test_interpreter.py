"""What the interpreter alone can show: memory within a workspace, what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

import kernels
from kernels.atrous import cost, ops
from kernels.atrous.triton import configs, implicit, layout, shift, weight_grad

IMPLS = ("triton:shift", "triton:implicit")
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
any_impl = pytest.mark.parametrize("impl", IMPLS)
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])


@pytest.fixture
def workspace(monkeypatch) -> Callable[..., None]:
    """Set the sizes, in bytes, within which what a call holds by itself must stay."""
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
            sums = weight_grad.PARTIAL_SUMS if run.__name__ == "gradients" else 0
            assert sum(made) <= shift.WORKSPACE + sums
            return result

        return watch

    def set_to(slices: int | None = None, partial_sums: int | None = None) -> None:
        monkeypatch.setattr(torch, "empty", counted)
        for module, size in ((cost, slices), (shift, slices)):
            if size is not None:
                monkeypatch.setattr(module, "WORKSPACE", size)
        for module, size in ((cost, partial_sums), (weight_grad, partial_sums)):
            if size is not None:
                monkeypatch.setattr(module, "PARTIAL_SUMS", size)
        for module, name in itertools.product((shift, implicit), ("forward", "gradients")):
            monkeypatch.setattr(module, name, watched(getattr(module, name)))

    return set_to


def by(impl):
    def compute(p):
        return kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl)

    return compute


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize(
    ("memory_format", "options"),
    [
        (torch.contiguous_format, {}),
        (torch.channels_last, RELU),
        (torch.contiguous_format, RELU),
        (torch.channels_last, {}),
    ],
    ids=["sum, nchw", "concat, nhwc", "concat, nchw", "sum, nhwc"],
)
def test_shift_within_little_workspace_gives_the_same(
    problem, assert_exact, workspace, options, memory_format, images
):
    """Three images, one or two at a time."""
    p = problem(
        shape=(3, 3, 4, 5), dtype=torch.float32, integers=True, memory_format=memory_format,
        **options,
    )  # fmt: skip
    rows = shift.pack(p.weight, p.fuse).outputs
    workspace(slices=4 * rows * (20 * images + 19), partial_sums=4 * rows * 16)
    assert_exact(by("triton:shift"), p)


@sum_and_concat
def test_a_map_whose_slices_do_not_fit_is_for_the_implicit_product(
    problem, assert_exact, workspace, options
):
    p = problem(shape=(2, 3, 4, 5), dtype=torch.float32, integers=True, **options)
    rows = shift.pack(p.weight, p.fuse).outputs
    workspace(slices=4 * rows * 19)
    ops._choose.cache_clear()
    with pytest.raises(ValueError, match=r"input must be a map of at most 19 pixels .*not 4 x 5"):
        by("triton:shift")(p)
    choice = kernels.atrous.choose(p.input, p.weight, rates=p.rates, fuse=p.fuse, impl="triton")
    assert choice.impl == "triton:implicit"
    assert_exact(by("triton"), p)
    ops._choose.cache_clear()


@any_impl
@sum_and_concat
def test_a_weight_gradient_too_large_to_add_up_is_written_in_place(
    problem, assert_exact, workspace, impl, options
):
    p = problem(
        shape=(1, 32, 3, 4), channels=16, rates=(1, 2), dtype=torch.float32, integers=True,
        **options,
    )  # fmt: skip
    workspace(partial_sums=4 * p.weight.numel() // 2)
    assert_exact(by(impl), p)


@any_impl
@sum_and_concat
def test_split_pixels_of_the_weight_gradient_add_up(
    problem, assert_exact, monkeypatch, impl, options
):
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 500)
    monkeypatch.setattr(weight_grad, "LEAST_STEPS", 1)
    p = problem(
        shape=(2, 3, 6, 9), channels=2, rates=(1, 3), dtype=torch.float32, integers=True,
        **options,
    )  # fmt: skip
    x, _ = layout.pixels_of(p.input)
    assert min(weight_grad.splits_for(x, 2, 18, 36)) > 1
    assert_exact(by(impl), p)


@any_impl
def test_nan_and_infinity_come_through_the_relu(problem, impl):
    p = problem(dtype=torch.float32, **RELU)
    p.input.data[0, 0, 3, 3] = torch.nan
    p.input.data[1, 0, 3, 3] = torch.inf
    found, expected = by(impl)(p), by("reference")(p)
    torch.testing.assert_close(found, expected, equal_nan=True)


@any_impl
def test_bfloat16_is_refused_since_the_interpreter_computes_it_wrong(problem, impl):
    with pytest.raises(ValueError, match=r"interpreter cannot compute in torch\.bfloat16"):
        by(impl)(problem(dtype=torch.bfloat16))


def test_auto_stays_eager_on_a_cpu(problem):
    p = problem(dtype=torch.float32)
    choice = kernels.atrous.choose(p.input, p.weight, rates=p.rates)
    assert choice.impl == "reference"
    (grad,) = torch.autograd.grad(by("auto")(p).square().sum(), p.input, create_graph=True)
    grad.sum().backward()
