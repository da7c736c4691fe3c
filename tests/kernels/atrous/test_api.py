"""The public function: what it refuses, what it chooses, and that compilers take it whole."""

import pytest
import torch
from atrous_problems import Pyramid

import kernels
from kernels.atrous import reference

RELU = {"fuse": "concat", "scale": True, "shift": True, "activation": "relu"}
IMPLS = ("reference", "auto")

any_impl = pytest.mark.parametrize("impl", IMPLS)
sum_and_concat = pytest.mark.parametrize("options", [{}, RELU], ids=["sum", "concat"])


def call(p, **changed):
    return kernels.multi_rate_atrous_conv2d(**{**vars(p), **changed})


@any_impl
@sum_and_concat
def test_every_impl_follows_the_equation(problem, assert_exact, options, impl):
    assert_exact(lambda p: call(p, impl=impl), problem(integers=True, **options))


def test_sum_is_the_default_and_bias_may_be_left_out(problem):
    p = problem(bias=False)
    found = kernels.multi_rate_atrous_conv2d(p.input, p.weight, rates=list(p.rates))
    assert torch.equal(found, call(p, fuse="sum", bias=None))


def test_auto_on_a_cpu_is_plain_pytorch_twice_differentiable(problem):
    p = problem()
    (grad,) = torch.autograd.grad(call(p).square().sum(), p.input, create_graph=True)
    grad.square().sum().backward()
    assert p.weight.grad.abs().sum() > 0


@any_impl
@sum_and_concat
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_its_dtype_whatever_the_impl(problem, options, dtype, impl):
    p = problem(dtype=torch.float32, **options)
    with torch.autocast("cpu", dtype):
        output = call(p, impl=impl)
    assert output.dtype == dtype
    assert torch.equal(output, reference.multi_rate_atrous_conv2d(*p.to(dtype).args))


@any_impl
def test_autocast_takes_what_an_earlier_layer_left_in_its_dtype(problem, impl):
    p = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(p, input=p.input.bfloat16(), impl=impl).dtype == torch.bfloat16


@any_impl
@sum_and_concat
def test_meta_tensors_give_the_shape(problem, options, impl):
    p = problem(**options)
    on_meta = {name: tensor.to("meta") for name, tensor in p.tensors.items()}
    assert call(p, **on_meta, impl=impl).shape == call(p).shape


@pytest.mark.parametrize(
    ("impl", "dynamic"), [("auto", False), ("auto", True), ("reference", True)]
)
@sum_and_concat
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_takes_forward_and_backward_whole(problem, options, impl, dynamic):
    # aot_eager runs all of the compiler but its code generator, so results are equal to the bit.
    layer = Pyramid(problem(**options), impl)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in [(2, 3, 7, 6), (1, 3, 5, 9), (3, 3, 1, 4)][: 3 if dynamic else 1]:
        input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        leaves = [input, *layer.parameters()]
        expected, found = layer(input), compiled(input)
        assert torch.equal(found, expected)
        ours = torch.autograd.grad(found.sin().sum(), leaves)
        for grad, expected_grad in zip(
            ours, torch.autograd.grad(expected.sin().sum(), leaves), strict=True
        ):
            assert torch.equal(grad, expected_grad)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_under_autocast_gives_its_dtype(problem):
    for impl in IMPLS:
        layer = Pyramid(problem(dtype=torch.float32, **RELU), impl)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        input = torch.randn(2, 3, 7, 6)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(input), layer(input))


@sum_and_concat
@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_batch_and_size_free(problem, options, strict):
    layer = Pyramid(problem(**options), "reference").eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    input = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    program = torch.export.export(layer, (input,), dynamic_shapes=(sizes,), strict=strict)
    other = torch.randn(3, 3, 4, 11, dtype=torch.float64)
    assert torch.equal(program.module()(other), layer(other))


@sum_and_concat
def test_auto_on_a_cpu_exports_to_aten_alone_as_onnx_wants(problem, options):
    layer = Pyramid(problem(**options), "auto").eval()
    input = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    program = torch.export.export(layer, (input,)).run_decompositions()
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {operator.namespace for operator in operators} == {"aten"}


def _tensor(*shape, **options):
    return torch.zeros(shape, **options)


MISTAKES = {
    "input is an array": ({"input": [1.0]}, TypeError, "input must be a torch.Tensor, not list"),
    "weight is missing": ({"weight": None}, TypeError, "weight must be a torch.Tensor, not None"),
    "bias is a number": ({"bias": 0.5}, TypeError, "bias must be a torch.Tensor, not float"),
    "input of integers": (
        {"input": _tensor(2, 3, 7, 6, dtype=torch.int64)},
        TypeError,
        "input must be float16, bfloat16, float32 or float64, not torch.int64",
    ),
    "mixed dtypes": (
        {"weight": _tensor(2, 4, 3, 3, 3, dtype=torch.float16)},
        ValueError,
        r"weight must have the dtype .* of input \(torch.float32 on cpu\), not torch.float16",
    ),
    "scale of another dtype": (
        {"fuse": "concat", "scale": _tensor(8, dtype=torch.float64)},
        ValueError,
        "scale must have the dtype .*, not torch.float64",
    ),
    "mixed devices": (
        {"bias": _tensor(2, 4, device="meta")},
        ValueError,
        r"bias must have the dtype and device of input \(.* on cpu\), not .* on meta",
    ),
    "input without a batch": (
        {"input": _tensor(3, 7, 6)},
        ValueError,
        r"input must have shape \[B, Cin, H, W\].*not \[3, 7, 6\]",
    ),
    "input without pixels": ({"input": _tensor(2, 3, 0, 6)}, ValueError, r"not \[2, 3, 0, 6\]"),
    "weight of one rate": (
        {"weight": _tensor(4, 3, 3, 3)},
        ValueError,
        r"weight must have shape \[R, Cout, Cin, k, k\].*not \[4, 3, 3, 3\]",
    ),
    "no output channels": (
        {"weight": _tensor(2, 0, 3, 3, 3)},
        ValueError,
        "weight must have shape .*none of them 0",
    ),
    "even kernel": ({"weight": _tensor(2, 4, 3, 2, 2)}, ValueError, "one odd k, not .*2, 2]"),
    "oblong kernel": ({"weight": _tensor(2, 4, 3, 3, 5)}, ValueError, "one odd k, not .*3, 5]"),
    "input channels differ": (
        {"weight": _tensor(2, 4, 5, 3, 3)},
        ValueError,
        r"weight must have shape \[R, Cout, 3, k, k\] for the channels of input, not \[2, 4, 5",
    ),
    "flat bias": ({"bias": _tensor(8)}, ValueError, r"bias must have shape .* = \[2, 4\], not"),
    "a single rate": ({"rates": 6}, TypeError, "rates must be a list or tuple of integers, not 6"),
    "a rate of 1.5": ({"rates": (1, 1.5)}, TypeError, r"rates\[1\] must be an integer, not 1.5"),
    "a bool as rate": ({"rates": (1, True)}, TypeError, "must be an integer, not True"),
    "a rate of 0": ({"rates": (0, 1)}, ValueError, r"rates\[0\] must be at least 1, not 0"),
    "too few rates": ({"rates": (6,)}, ValueError, "2, one for each kernel of weight, not 1"),
    "unknown fusion": (
        {"fuse": "mean"},
        ValueError,
        r"fuse must be one of \['sum', 'concat'\], not 'mean'",
    ),
    "unknown activation": (
        {"fuse": "concat", "activation": "gelu"},
        ValueError,
        r"activation must be one of \['relu', None\], not 'gelu'",
    ),
    "scale of a sum": ({"scale": _tensor(8)}, ValueError, "scale must be None with fuse='sum'"),
    "shift of a sum": ({"shift": _tensor(8)}, ValueError, "shift must be None with fuse='sum'"),
    "activation of a sum": ({"activation": "relu"}, ValueError, "activation must be None with"),
    "scale by branch": (
        {"fuse": "concat", "scale": _tensor(2, 4)},
        ValueError,
        r"scale must have shape \[R\*Cout\] = \[8\], not \[2, 4\]",
    ),
    "short shift": (
        {"fuse": "concat", "shift": _tensor(4)},
        ValueError,
        r"shift must have shape .*not \[4\]",
    ),
    "unknown impl": ({"impl": "cuda"}, ValueError, "impl of 'atrous' must be one of.*not 'cuda'"),
}


@pytest.mark.parametrize(("changed", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_by_name(problem, changed, error, message):
    with pytest.raises(error, match=message):
        call(problem(dtype=torch.float32), **changed)


def test_autocast_does_not_excuse_float64_beside_float32(problem):
    p = problem(dtype=torch.float32)
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"not torch\.float64"):
        call(p, weight=p.weight.double())
