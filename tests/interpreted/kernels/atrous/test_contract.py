"""The operator around the Triton kernels: opcheck, compile, export, autocast, checkpointing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from atrous_problems import Pyramid
from opchecks import OPCHECKS
from torch.utils.checkpoint import checkpoint

import kernels
from deeplab.patch import patch

OPERATOR = torch.ops.kernels.multi_rate_atrous_conv2d.default
BACKWARD = torch.ops.kernels.multi_rate_atrous_conv2d_backward.default
RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
FORMS = {
    "sum": {},
    "sum, no bias": {"bias": False},
    "concat, shift": {"fuse": "concat", "shift": True, "bias": False},
    "concat, scale, shift, ReLU": RELU,
}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SMALL = {"shape": (1, 3, 4, 5), "channels": 2, "dtype": torch.float32}

any_impl = pytest.mark.parametrize("impl", ["triton:shift", "triton:implicit"])
any_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
any_format = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)


@pytest.mark.parametrize(
    ("form", "memory_format", "impl"),
    [
        ("sum", "nchw", "triton:implicit"),
        ("sum, no bias", "nhwc", "triton:shift"),
        ("concat, shift", "nchw", "triton:implicit"),
        ("concat, scale, shift, ReLU", "nhwc", "triton:implicit"),
        ("concat, scale, shift, ReLU", "nchw", "triton:shift"),
    ],
)
def test_opcheck_passes(problem, form, memory_format, impl):
    p = problem(**SMALL, memory_format=FORMATS[memory_format], **FORMS[form])
    torch.library.opcheck(OPERATOR, (*p.args, impl), test_utils=OPCHECKS)


@any_form
@any_format
def test_the_fake_has_the_layout_of_the_operator(problem, options, memory_format):
    p = problem(**SMALL, memory_format=memory_format, **options)
    torch.library.opcheck(OPERATOR, (*p.args, "triton:implicit"), test_utils="test_faketensor")


@pytest.mark.parametrize("wanted", ["input", "weight", "bias", "scale", "shift"])
def test_one_gradient_alone_is_traced(problem, wanted):
    p = problem(**SMALL, requires_grad=False, **RELU)
    p.tensors[wanted].requires_grad_()
    arguments = *p.args, "triton:implicit"
    torch.library.opcheck(OPERATOR, arguments, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("needs", [[True] * 5, [False, True, False, False, True]])
@any_format
def test_opcheck_of_the_backward_passes(problem, needs, memory_format):
    p = problem(**SMALL, memory_format=memory_format, requires_grad=False, **RELU)
    output = OPERATOR(*p.args, "triton:implicit")
    activated = p.scale, output, needs, "triton:implicit"
    args = output.cos(), p.input, p.weight, p.bias, p.rates, p.fuse, *activated
    # It has no derivative of its own, so that tracing it shows no more than the fake does.
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(BACKWARD, args, test_utils=checks)


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
    p = problem(dtype=torch.float32, integers=True)
    input = layout(p.input.detach())
    weight = p.weight.detach()[:, :, : input.shape[1]].contiguous()
    branches = [
        F.conv2d(input, w, padding=rate, dilation=rate)
        for w, rate in zip(weight, p.rates, strict=True)
    ]
    for fuse, expected in (("sum", sum(branches)), ("concat", torch.cat(branches, 1))):
        rest = None, p.rates, fuse, None, None, None, "triton:implicit"
        torch.testing.assert_close(OPERATOR(input, weight, *rest), expected, check_stride=True)


def test_the_faster_algorithm_is_taken_where_none_is_named(problem, assert_exact):
    p = problem(dtype=torch.float32, integers=True)

    def compute(p):
        return kernels.multi_rate_atrous_conv2d(**vars(p), impl="triton")

    assert_exact(compute, p)
    choice = kernels.atrous.choose(p.input, p.weight, rates=p.rates, impl="triton")
    assert choice.impl in ("triton:shift", "triton:implicit")
    assert "triton:shift expected to take" in choice.reason
    assert "triton:implicit expected to take" in choice.reason


@pytest.mark.parametrize(("impl", "dynamic"), [("triton:shift", False), ("triton:implicit", True)])
def test_compile_takes_forward_and_backward_whole(problem, impl, dynamic):
    torch._dynamo.reset()
    layer = Pyramid(problem(dtype=torch.float32, **RELU), impl)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in [(2, 3, 4, 3), (1, 3, 5, 2)]:
        input = torch.randn(shape, requires_grad=True)
        leaves = [input, *layer.parameters()]
        expected, found = layer(input), compiled(input)
        assert torch.equal(found, expected)
        ours = torch.autograd.grad(found.sin().sum(), leaves)
        theirs = torch.autograd.grad(expected.sin().sum(), leaves)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_inductor_compiles_the_operator(problem):
    torch._dynamo.reset()
    layer = Pyramid(problem(dtype=torch.float32), "triton:implicit")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for shape in [(2, 3, 4, 3), (1, 3, 5, 2)]:
        input = torch.randn(shape)
        assert torch.equal(compiled(input), layer(input))


@pytest.mark.parametrize(("impl", "strict"), [("triton:shift", True), ("triton:implicit", False)])
def test_export_keeps_batch_and_size_free(problem, impl, strict):
    layer = Pyramid(problem(dtype=torch.float32, **RELU), impl).eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    input = torch.randn(2, 3, 7, 6)
    program = torch.export.export(layer, (input,), dynamic_shapes=(sizes,), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith("kernels.multi_rate_atrous_conv2d") for target in targets)
    other = torch.randn(3, 3, 4, 11)
    assert torch.equal(program.module()(other), layer(other))


def test_a_patched_pyramid_compiles_and_exports_with_the_operator(torchvision):
    torch._dynamo.reset()
    pyramid = torchvision.deeplabv3.ASPP(4, (2, 3, 5), 3).eval()
    image = torch.randn(2, 4, 5, 6)
    expected = pyramid(image)
    patch(pyramid, "triton:implicit")
    torch.testing.assert_close(pyramid(image), expected)
    compiled = torch.compile(pyramid, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), expected)
    program = torch.export.export(pyramid, (image,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any(target.startswith("kernels.multi_rate_atrous_conv2d") for target in targets)
    torch.testing.assert_close(program.module()(image), expected)


def test_autocast_around_the_backward_alone_changes_nothing(problem, with_gradients):
    p = problem(**SMALL, **RELU)

    def compute(p):
        with torch.autocast("cpu", enabled=False):
            return kernels.multi_rate_atrous_conv2d(**vars(p), impl="triton:implicit")

    expected = with_gradients(compute, p)
    with torch.autocast("cpu", torch.float16):
        found = with_gradients(compute, p)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@any_impl
def test_activation_checkpointing_gives_the_same_gradients(problem, impl):
    p = problem(**SMALL)

    def run(*tensors):
        return kernels.multi_rate_atrous_conv2d(*tensors, rates=p.rates, impl=impl).sum()

    tensors = list(p.tensors.values())
    expected = torch.autograd.grad(run(*tensors), tensors)
    found = torch.autograd.grad(checkpoint(run, *tensors, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@any_impl
def test_gradients_share_no_memory(problem, impl):
    p = problem(**SMALL, fuse="concat", shift=True)
    output = kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl)
    grads = torch.autograd.grad(output.sum(), list(p.tensors.values()))
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == len(grads)


@any_impl
def test_distributed_data_parallel_trains(problem, impl, tmp_path):
    layer = Pyramid(problem(dtype=torch.float32), impl)
    input = torch.randn(2, 3, 7, 6)
    expected = torch.autograd.grad(layer(input).sum(), list(layer.parameters()))
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(layer)
        parallel(input).sum().backward()
        del parallel  # it holds the group, which must not end with Python's lock held
    finally:
        torch.distributed.destroy_process_group()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, grad)


@any_impl
def test_a_parameter_and_its_gradient_have_the_same_strides(problem, impl):
    layer = Pyramid(problem(dtype=torch.float32), impl)
    layer(torch.randn(2, 3, 7, 6)).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
