"""The operator around the Triton kernels: opcheck, compile, export, autocast, checkpointing."""

from __future__ import annotations

import pytest
import torch
from atrous_problems import Pyramid
from opchecks import OPCHECKS
from torch.utils.checkpoint import checkpoint

import kernels

RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
any_impl = pytest.mark.parametrize("impl", ["triton:shift", "triton:implicit"])
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])


@any_impl
@sum_and_concat
def test_opcheck_passes(problem, impl, options):
    formats = {"sum": torch.contiguous_format, "concat": torch.channels_last}
    memory_format = formats[options.get("fuse", "sum")]
    made = {"shape": (1, 3, 4, 5), "channels": 2, "dtype": torch.float32, **options}
    p = problem(**made, memory_format=memory_format)
    operator = torch.ops.kernels.multi_rate_atrous_conv2d.default
    torch.library.opcheck(operator, (*p.args, impl, None), test_utils=OPCHECKS)


@any_impl
@pytest.mark.parametrize("dynamic", [False, True])
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


@any_impl
def test_export_keeps_batch_and_size_free(problem, impl):
    layer = Pyramid(problem(dtype=torch.float32), impl).eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(layer, (torch.randn(2, 3, 7, 6),), dynamic_shapes=(sizes,))
    other = torch.randn(3, 3, 4, 11)
    assert torch.equal(program.module()(other), layer(other))


@any_impl
def test_autocast_computes_in_its_dtype(problem, impl):
    p = problem(dtype=torch.float32, **RELU)
    with torch.autocast("cpu", torch.float16):
        output = kernels.multi_rate_atrous_conv2d(**vars(p), impl=impl)
    assert output.dtype == torch.float16
    grads = torch.autograd.grad(output.float().sum(), list(p.tensors.values()))
    assert all(grad.dtype == torch.float32 for grad in grads)


@any_impl
def test_activation_checkpointing_gives_the_same_gradients(problem, impl):
    p = problem(dtype=torch.float32)

    def run(*tensors):
        return kernels.multi_rate_atrous_conv2d(*tensors, rates=p.rates, impl=impl).sum()

    tensors = list(p.tensors.values())
    expected = torch.autograd.grad(run(*tensors), tensors)
    found = torch.autograd.grad(checkpoint(run, *tensors, use_reentrant=False), tensors)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@any_impl
def test_gradients_share_no_memory(problem, impl):
    p = problem(dtype=torch.float32, fuse="concat", shift=True)
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
