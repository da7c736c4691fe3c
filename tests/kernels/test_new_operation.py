"""A new operation is its folder, one export and one test: nothing else in `kernels` is edited.

The folder below is the least that has every part: implementations, an operator, a public function.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from opchecks import OPCHECKS

import kernels
from kernels import dispatch

OPERATION = "cubed"
FOLDER = {
    "__init__.py": '''
        """y = x^3, element by element."""

        import torch

        from kernels.cubed.api import cubed
        from kernels.dispatch import Implementation, register

        __all__ = ["cubed"]

        register(
            "cubed",
            Implementation("fast", "two products", device="cpu", dtypes=(torch.float32,)),
            Implementation("gpu", "for a GPU", device="cuda"),
            Implementation("reference", "plain PyTorch"),
        )
        ''',
    "api.py": '''
        """Validate, choose an implementation, call it."""

        import torch
        from torch import Tensor

        from kernels import dispatch, validate
        from kernels.cubed import ops, reference


        def cubed(x: Tensor, *, impl: str = "auto") -> Tensor:
            validate.check_tensor("x", x, (torch.float32, torch.float64))
            choice = dispatch.choose("cubed", impl, device=x.device, dtype=x.dtype)
            if choice.impl == "reference":
                return reference.cubed(x)
            return ops.cubed(x, choice.impl)
        ''',
    "reference.py": '''
        """The oracle."""

        from torch import Tensor


        def cubed(x: Tensor) -> Tensor:
            return x.pow(3)
        ''',
    "fast.py": '''
        """Compiled code would stand here."""

        from torch import Tensor


        def cubed(x: Tensor) -> Tensor:
            return x * x * x
        ''',
    "ops.py": '''
        """The operator that compilers take whole."""

        from torch import Tensor

        from kernels import dispatch
        from kernels.operators import like_first, opaque_operator


        @opaque_operator("kernels::cubed")
        def cubed(x: Tensor, impl: str) -> Tensor:
            return dispatch.implementation("cubed", impl).cubed(x.contiguous())


        cubed.register_fake(like_first)


        def _save(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])


        def _gradient(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x.square() * grad, None


        cubed.register_autograd(_gradient, setup_context=_save)
        ''',
}


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The folder, found where those of `kernels` are."""
    parent: Path = tmp_path_factory.mktemp("operations")
    (parent / OPERATION).mkdir()
    for name, text in FOLDER.items():
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        (parent / OPERATION / name).write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "__path__", [*kernels.__path__, str(parent)])
        patch.setattr(dispatch, "OPERATIONS", dict(dispatch.OPERATIONS))
        yield importlib.import_module(f"kernels.{OPERATION}")


def test_auto_takes_the_first_implementation_that_runs(operation: ModuleType) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for device, dtype, expected in (
        (cpu, torch.float32, "fast"),
        (cpu, torch.float64, "reference"),
        (cuda, torch.float32, "gpu"),
    ):
        assert dispatch.choose(OPERATION, device=device, dtype=dtype).impl == expected


@pytest.mark.parametrize("impl", ["auto", "fast", "reference"])
def test_every_implementation_computes_it(operation: ModuleType, impl: str) -> None:
    x = torch.randn(4, 3).T.requires_grad_()
    y = operation.cubed(x, impl=impl)
    torch.testing.assert_close(y, x.detach() ** 3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 3 * x.detach() ** 2)


@pytest.mark.parametrize(
    ("impl", "dtype", "message"),
    [
        ("gpu", torch.float32, "impl='gpu' cannot run 'cubed' here: 'gpu' runs on cuda only"),
        ("fast", torch.float64, "impl='fast' cannot run 'cubed' here: 'fast' computes in"),
        ("slow", torch.float32, r"one of \['auto', 'fast', 'gpu', 'reference'\], not 'slow'"),
    ],
)
def test_an_explicit_implementation_is_refused_rather_than_replaced(
    operation: ModuleType, impl: str, dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        operation.cubed(torch.ones(2, dtype=dtype), impl=impl)


def test_bad_input_is_named(operation: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"x must be float32 or float64, not torch\.int64"):
        operation.cubed(torch.arange(3))


def test_opcheck_passes(operation: ModuleType) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    operator = torch.ops.kernels.cubed.default
    torch.library.opcheck(operator, (x, "fast"), test_utils=OPCHECKS)


def test_compilers_take_it_whole(operation: ModuleType) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(operation.cubed, fullgraph=True, backend="aot_eager")
    for count in (3, 5):
        x = torch.randn(count, requires_grad=True)
        assert torch.equal(compiled(x), operation.cubed(x))
        (found,) = torch.autograd.grad(compiled(x).sum(), x)
        assert torch.equal(found, torch.autograd.grad(operation.cubed(x).sum(), x)[0])


def test_exported_programs_hold_the_operator(operation: ModuleType) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operation.cubed(x)

    x = torch.randn(3)
    program = torch.export.export(Layer(), (x,))
    assert any(str(node.target) == "kernels.cubed.default" for node in program.graph.nodes)
    assert torch.equal(program.module()(x), operation.cubed(x))
