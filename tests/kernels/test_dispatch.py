"""Which implementation runs: what is chosen, what is refused, and what is said about it."""

import logging
import subprocess
import sys

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import Implementation, choose

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
LATTICE = ["permutohedral", "meanfield"]


@pytest.mark.parametrize("operation", LATTICE)
@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        (CPU, torch.float32, "cpu"),
        (CPU, torch.float64, "reference"),
        (CPU, torch.bfloat16, "reference"),
        (CUDA, torch.float32, "triton"),
        (CUDA, torch.float64, "reference"),
    ],
)
def test_auto_takes_numba_or_triton_for_float32_and_plain_pytorch_elsewhere(
    operation, device, dtype, expected
):
    assert choose(operation, device=device, dtype=dtype).impl == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_auto_takes_plain_pytorch_for_atrous_convolution_on_a_cpu(dtype, monkeypatch):
    for interpret in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        assert choose("atrous", device=CPU, dtype=dtype).impl == "reference"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_auto_takes_triton_for_atrous_convolution_on_cuda(dtype):
    assert choose("atrous", device=CUDA, dtype=dtype).impl == "triton"


def test_auto_takes_plain_pytorch_where_triton_is_missing_or_float64_asked_for(monkeypatch):
    choice = choose("atrous", device=CUDA, dtype=torch.float64)
    assert choice.impl == "reference"
    assert "'triton' computes in torch.float16" in choice.reason
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    choice = choose("atrous", device=CUDA, dtype=torch.float32)
    assert choice.impl == "reference"
    assert "needs Triton, which is not installed: pip install triton" in choice.reason


def test_triton_takes_cpu_tensors_by_name_in_its_interpreter_alone(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="runs on cuda only, the tensors are on cpu"):
        choose("atrous", "triton:shift", device=CPU, dtype=torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("atrous", "triton:shift", device=CPU, dtype=torch.float32).impl == "triton:shift"
    with pytest.raises(ValueError, match=r"interpreter cannot compute in torch\.bfloat16"):
        choose("atrous", "triton:shift", device=CPU, dtype=torch.bfloat16)


def test_the_reason_names_what_was_passed_over():
    reason = choose("meanfield", device=CPU, dtype=torch.float64).reason
    assert "'cpu' computes in torch.float32 only, the tensors are torch.float64" in reason


@pytest.mark.parametrize("operation", dispatch.OPERATIONS)
def test_every_operation_has_an_oracle_that_runs_anywhere(operation):
    for device in (CPU, CUDA, torch.device("meta")):
        for dtype in (torch.float16, torch.float64):
            assert choose(operation, "reference", device=device, dtype=dtype).impl == "reference"


@pytest.mark.parametrize("operation", LATTICE)
@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CUDA, torch.float32, "runs on cpu only, the tensors are on cuda"),
        (CPU, torch.float64, "computes in torch.float32 only, the tensors are torch.float64"),
    ],
)
def test_an_explicit_impl_is_refused_rather_than_replaced(operation, device, dtype, reason):
    with pytest.raises(ValueError, match=f"impl='cpu' cannot run {operation!r} here: .*{reason}"):
        choose(operation, "cpu", device=device, dtype=dtype)


def test_an_unknown_impl_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['auto', 'cpu', 'triton', 'reference'\], not 'gpu'"):
        choose("meanfield", "gpu", device=CPU, dtype=torch.float32)


def test_an_unknown_operation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"operation must be one of .*'atrous'.*, not 'conv'"):
        choose("conv", device=CPU, dtype=torch.float32)


def test_auto_says_so_where_nothing_runs(monkeypatch):
    table = (Implementation("gpu", "for a test", device="cuda"),)
    monkeypatch.setattr(dispatch, "OPERATIONS", {"probe": table})
    with pytest.raises(ValueError, match="'gpu' runs on cuda only"):
        choose("probe", device=CPU, dtype=torch.float32)


def test_auto_never_takes_an_implementation_that_must_be_asked_for(monkeypatch):
    table = (Implementation("rare", "asked", automatic=False), Implementation("usual", "plain"))
    monkeypatch.setattr(dispatch, "OPERATIONS", {"probe": table})
    assert choose("probe", device=CPU, dtype=torch.float32).impl == "usual"
    assert choose("probe", "rare", device=CPU, dtype=torch.float32).impl == "rare"


def test_each_choice_is_logged_once_at_debug_level(monkeypatch, caplog):
    table = (Implementation("only", "for this test"),)
    monkeypatch.setattr(dispatch, "OPERATIONS", {"logged once": table})
    caplog.set_level(logging.DEBUG, logger="kernels.dispatch")
    for _ in range(3):
        choose("logged once", device=CPU, dtype=torch.float32)
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "logged once: impl='auto' runs 'only' (auto: for this test)" in record.getMessage()


def test_a_compiled_function_may_choose():
    @torch.compile(fullgraph=True, backend="eager")
    def named(x):
        return (
            x + {"cpu": 1, "reference": 2}[choose("meanfield", device=x.device, dtype=x.dtype).impl]
        )

    assert named(torch.zeros(())) == 1
    assert named(torch.zeros((), dtype=torch.float64)) == 2


def test_importing_kernels_loads_neither_numba_nor_triton():
    program = (
        "import sys, kernels\n"
        "for name in kernels.__all__: getattr(kernels, name)\n"
        "print([name for name in ('numba', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
