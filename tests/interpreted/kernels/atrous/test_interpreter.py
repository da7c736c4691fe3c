"""What the interpreter alone can show: memory within a workspace, what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

import kernels
from kernels.atrous import cost
from kernels.atrous.triton import configs, implicit, layout, shift, weight_grad

IMPLS = ("triton:shift", "triton:implicit")
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
any_impl = pytest.mark.parametrize("impl", IMPLS)
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])


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


@pytest.mark.parametrize(
    ("pixels", "memory_format", "options"),
    [
        (100, torch.contiguous_format, {}),
        (100, torch.channels_last, RELU),
        (42, torch.contiguous_format, RELU),
        (42, torch.channels_last, {}),
        (20, torch.contiguous_format, {}),
        (20, torch.channels_last, RELU),
    ],
    ids=[
        "groups, sum",
        "groups, concat",
        "image, concat",
        "image, sum",
        "bands, sum",
        "bands, concat",
    ],
)
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
        shape=(1, 3, 9, 7), rates=(1,), dtype=torch.float32, integers=True, requires_grad=False,
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
        shape=(2, 3, 6, 9), channels=2, rates=(1, 3), dtype=torch.float32, integers=True,
        **options,
    )  # fmt: skip
    x, _ = layout.pixels_of(p.input)
    assert min(weight_grad.splits_for(x, 2, 18, 36, 2**20)) > 1
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
