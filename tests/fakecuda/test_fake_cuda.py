"""The fake GPU itself: each fault that it looks for is one that it finds, and it counts right."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_cuda import DEVICE, GPU, Fault, counts_of, fake_gpu, tensor
from fake_cuda_answers import ANSWERS
from fake_cuda_cases import CASES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kernels import dispatch
from kernels.operators import like_first, opaque_operator

pytestmark = pytest.mark.skipif(
    not dispatch.TRITON_INSTALLED or dispatch.interpreting(),
    reason="kernels are launched where Triton is installed and TRITON_INTERPRET=0",
)

Launch = Callable[..., None]


@pytest.fixture
def gpu() -> Iterator[GPU]:
    with fake_gpu({}) as fake:
        yield fake


@pytest.fixture
def kernel() -> Any:
    """It adds one to `count` numbers."""
    import triton
    import triton.language as tl

    @triton.jit
    def add_kernel(source, target, count, BLOCK: tl.constexpr):
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + offs, tl.load(source + offs, offs < count) + 1, offs < count)

    return add_kernel


@pytest.fixture
def launch(kernel: Any) -> Launch:
    """Launch it as it should be, but for what is said."""

    def run(grid: Any = (4,), x: Any = None, count: Any = 512, **options: Any) -> None:
        x = tensor(512) if x is None else x
        with torch.cuda.device(DEVICE):
            kernel[grid](x, tensor(512), count, BLOCK=128, **options)

    return run


def test_a_launch_is_counted(gpu: GPU, launch: Launch) -> None:
    launch()
    launch(lambda arguments: (-(-arguments["count"] // arguments["BLOCK"]),), num_warps=8)
    assert gpu.counts.triton == {"add_kernel": 2}
    assert not gpu.counts.aten
    assert gpu.counts.waits == 0


def test_a_launch_outside_a_guard_is_a_fault(gpu: GPU, kernel: Any) -> None:
    with pytest.raises(Fault, match="launched on cuda:0, its tensors are on cuda:99"):
        kernel[4,](tensor(512), tensor(512), 512, BLOCK=128)
    with torch.cuda.device_of(tensor(512)):
        kernel[4,](tensor(512), tensor(512), 512, BLOCK=128)
    with pytest.raises(Fault, match="launched on cuda:0"):  # the guard is over
        kernel[4,](tensor(512), tensor(512), 512, BLOCK=128)


@pytest.mark.parametrize(
    "name",
    [
        "v2 head, batch 1, float16, shift, forward",
        "v2 head, batch 1, float16, implicit, backward",
        "lattice, positions and colours, build",
        "exact, all pairs, ieee, apply",
        "separable, bf16, apply",
        "CRF, permutohedral, 1 image, potts",
    ],
)
def test_host_code_without_its_guards_is_a_fault(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    with pytest.raises(Fault, match="launched on cuda:0"):
        counts_of(CASES[name], ANSWERS)


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_a_tensor_elsewhere_is_a_fault(device: str, launch: Launch) -> None:
    with FakeTensorMode():
        elsewhere = torch.empty(512, device=device)
    with fake_gpu({}), pytest.raises(Fault, match=f"source is a tensor on {device}, not on cuda"):
        launch(x=elsewhere)
    with fake_gpu({}), pytest.raises(Fault, match=f"source is a tensor on {device}, not on cuda"):
        launch(x=(tensor(512), elsewhere))


def test_a_tensor_with_memory_of_the_host_is_a_fault(launch: Launch) -> None:
    on_host = torch.empty(512)
    with fake_gpu({}), pytest.raises(Fault, match="source is a tensor on cpu"):
        launch(x=on_host)


@pytest.mark.parametrize("grid", [(2**31 - 1,), (1, 65535), (1, 1, 65535)])
def test_the_largest_grids_are_launched(grid: Any, gpu: GPU, launch: Launch) -> None:
    launch(grid)
    assert gpu.counts.triton == {"add_kernel": 1}


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ((2**31,), "along x must be 1 to 2147483647, not 2147483648"),
        ((1, 65536), "along y must be 1 to 65535, not 65536"),
        ((1, 1, 65536), "along z must be 1 to 65535, not 65536"),
        ((0,), "along x must be 1 to 2147483647, not 0"),
        ((1.5,), "along x must be 1 to 2147483647, not 1.5"),
        ((1, 1, 1, 1), "1 to 3 axes, not 4"),
    ],
)
def test_a_grid_out_of_bounds_is_a_fault(grid: Any, said: str, gpu: GPU, launch: Launch) -> None:
    with pytest.raises(Fault, match=said):
        launch(grid)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_warps": 3}, "num_warps must be a power of two from 1 to 32, not 3"),
        ({"num_warps": 64}, "num_warps must be a power of two from 1 to 32, not 64"),
        ({"num_wraps": 4}, "no argument.*num_wraps"),
        ({"count": 2**63}, "count is 9223372036854775808, which takes more than 64 bits"),
        ({"source": 1}, "multiple values for argument 'source'"),
    ],
)
def test_arguments_that_no_launch_takes_are_faults(
    options: Any, said: str, gpu: GPU, launch: Launch
) -> None:
    with pytest.raises(Fault, match=said):
        launch(**options)


def test_a_missing_argument_is_a_fault(gpu: GPU, kernel: Any) -> None:
    with torch.cuda.device(DEVICE), pytest.raises(Fault, match="missing a required argument"):
        kernel[4,](tensor(512), tensor(512), BLOCK=128)


@opaque_operator("kernels::doubled_for_the_fake_gpu")
def doubled(x: Tensor) -> Tensor:
    return 2 * x


doubled.register_fake(like_first)
doubled.register_autograd(lambda ctx, grad: doubled(grad))


@opaque_operator("kernels::transposed_for_the_fake_gpu")
def transposed(x: Tensor) -> Tensor:
    return (2 * x).T.contiguous().T  # in other strides than the fake says


transposed.register_fake(like_first)


@opaque_operator("kernels::squared_for_the_fake_gpu")
def squared(x: Tensor) -> Tensor:
    return torch.matmul(x, x)


squared.register_fake(like_first)


def test_an_operator_runs_its_body_forward_and_backward(gpu: GPU) -> None:
    x = tensor(3, 4, requires_grad=True)
    doubled(x).sum().backward()
    assert gpu.counts.aten["mul"] == 2


def test_an_output_of_other_strides_than_promised_is_a_fault(gpu: GPU) -> None:
    with pytest.raises(Fault, match=r"strides \[1, 3\].*its fake promises .*strides \[4, 1\]"):
        transposed(tensor(3, 4))


def test_host_code_that_gives_what_its_fake_does_not_promise_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    implementation = dispatch.implementation("permutohedral", "triton")
    kept = implementation.filter
    monkeypatch.setattr(implementation, "filter", lambda *args: kept(*args).T.contiguous().T)
    with pytest.raises(Fault, match=r"permutohedral_apply.*its fake promises"):
        counts_of(CASES["lattice, positions and colours, apply"], ANSWERS)


def test_what_makes_no_launch_is_not_counted(gpu: GPU) -> None:
    x = tensor(4, 6)
    x[1], x[:, None], x.T, x.view(2, 12), x.to(DEVICE), x.float(), x.contiguous()
    x.new_empty(3), torch.empty_like(x), x.detach(), x.split(2), list(x), x[:0] + 1
    assert not gpu.counts.aten


def test_what_computes_is_counted_by_its_operator(gpu: GPU) -> None:
    x = tensor(4, 6)
    x[1:3] = 0
    x[torch.arange(2, device=x.device)], x.half(), x.T.contiguous(), x @ x.T
    assert gpu.counts.aten == {
        "fill_": 1,
        "arange": 1,
        "index": 1,
        "_to_copy": 1,
        "clone": 1,
        "mm": 1,
    }


def test_inside_an_operator_pytorchs_own_are_taken_apart(gpu: GPU) -> None:
    squared(tensor(4, 4))
    assert gpu.counts.aten == {"mm": 1}


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.empty(4, device="cuda"),
        lambda x: torch.arange(4),
        lambda x: x[torch.empty(2, device="cuda:0", dtype=torch.int64)],
        lambda x: torch.cat([x, torch.zeros(4, device="cuda:1")]),
    ],
)
def test_pytorchs_operators_take_and_make_tensors_of_the_device_alone(
    mixed: Callable[[Tensor], Tensor], gpu: GPU
) -> None:
    with pytest.raises(Fault, match="has a tensor on c"):
        mixed(tensor(4))


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda x: bool(x.isfinite().all()), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: int(x.sum()), 1),
        (lambda x: x.sum().item(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: torch.tensor([1.0, 2.0], device=DEVICE), 1),
        (lambda x: x * 2.0, 0),
        (lambda x: torch.tensor(3).item(), 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(read: Callable[[Tensor], Any], waits: int) -> None:
    with fake_gpu({f"{__name__}.<lambda>": lambda values: 3}) as gpu:
        read(tensor(4))
    assert gpu.counts.waits == waits


def test_a_value_without_an_answer_is_a_fault_that_names_who_reads(gpu: GPU) -> None:
    with pytest.raises(Fault, match=r"who_reads reads torch\.float32"):
        _who_reads(tensor(4))


def _who_reads(x: Tensor) -> int:
    return int(x.sum())


def test_the_properties_of_another_device_are_a_fault(gpu: GPU) -> None:
    assert torch.cuda.get_device_properties(DEVICE).major == 9
    with pytest.raises(Fault, match="properties of cuda:0"):
        torch.cuda.get_device_properties("cuda:0")


def test_everything_is_as_it_was_afterwards() -> None:
    import triton.runtime.jit as jit

    def seen() -> list[Any]:
        functions = torch.cuda._exchange_device, torch.cuda.get_device_properties
        methods = jit.JITFunction.run, FakeTensor.tolist, FakeTensor.__bool__, FakeTensor.is_cuda
        return [*functions, *methods]

    before = seen()
    with fake_gpu({}):
        assert not any(a is b for a, b in zip(before, seen(), strict=True))
    assert all(a == b for a, b in zip(before, seen(), strict=True))
    assert torch.ones(2).tolist() == [1, 1]
