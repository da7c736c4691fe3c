"""What every test starts from: fixed random numbers, a fair share of cores, GPU tests marked.

Two folders hold tiers of tests that need a process of their own, where Triton is imported for its
interpreter or told of a GPU that is not there. A run of everything does not collect them:
test_tiers.py runs each in a child, whose result stands in the terminal summary. By hand, name the
folder, or part of it, and nothing else:

    pytest tests/interpreted
    pytest tests/compiled -k weight_grad

tests/triton holds what Triton kernels do on a GPU and in the interpreter alike. Its tests are GPU
tests as a rule; a run of tests/interpreted, or of a folder in it, takes those of the folder of that
name in tests/triton along. `TRITON_INTERPRET=1 pytest tests/triton` interprets them alone.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torchvision_operators import define_on_import

from kernels import dispatch

ALIKE = Path(__file__).parent / "triton"  # on a GPU and in the interpreter
TIERS = {  # folder by name
    "interpreter": Path(__file__).parent / "interpreted",
    "compile-only": Path(__file__).parent / "compiled",
}


def pytest_configure(config: pytest.Config) -> None:
    """Split the cores among xdist's workers, which would otherwise each take them all."""
    define_on_import()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    tier = _tier_of_run(config)
    if tier is not None:
        _prepare(tier)
    if tier == "interpreter":
        config.args += [folder for folder in _alike(config) if folder not in config.args]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The folder of a tier is for a run of that tier alone."""
    tier = _tier_of(collection_path)
    return True if tier is not None and tier != _tier_of_run(config) else None


@pytest.hookimpl(tryfirst=True)  # before pytest looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes minutes comes first, so that several workers end at the same time.
    items.sort(key=lambda item: item.path.name not in ("test_tiers.py", "test_processors.py"))
    if not dispatch.interpreting():
        for item in items:
            if ALIKE in item.path.parents:
                item.add_marker(pytest.mark.gpu)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device here"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each tier that ran in a child: test_tiers.py records them."""
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if getattr(report, "when", None) == "call":
            for name, line in report.user_properties:
                if name == "tier":
                    terminalreporter.write_line(line)


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """The name and the folder of a tier."""
    if not dispatch.TRITON_INSTALLED:
        pytest.skip("Triton is not installed: pip install triton")
    return request.param, TIERS[request.param]


@pytest.fixture(scope="session")
def torchvision() -> SimpleNamespace:
    """torchvision's models, and its modules resnet, vgg and deeplabv3."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return SimpleNamespace(
        models=models,
        resnet=models.resnet,
        vgg=models.vgg,
        deeplabv3=models.segmentation.deeplabv3,
    )


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.fixture(scope="session")
def smp() -> ModuleType:
    """segmentation_models_pytorch."""
    name = "segmentation_models_pytorch"
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has; afterwards it has as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["float64", "meta"])
def other_default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Changes the dtype or the device that torch is told to make new tensors with."""

    def change() -> None:
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing compiled before, nor left behind."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _fixed_random_numbers() -> None:
    torch.manual_seed(0)


def _tier_of(path: Path) -> str | None:
    """The tier in whose folder `path` lies."""
    for name, folder in TIERS.items():
        if path == folder or folder in path.parents:
            return name
    return None


def _tier_of_run(config: pytest.Config) -> str | None:
    """The tier that this run is of: all its arguments lie in the tier's folder.

    Raises:
        pytest.UsageError: tests of a tier are asked for beside others.
    """
    named = {_tier_of(path) for path in _paths(config) if ALIKE not in (path, *path.parents)}
    if len(named) > 1:
        folders = ", ".join(folder.name for name, folder in TIERS.items() if name in named)
        raise pytest.UsageError(
            f"each of these folders runs in a process of its own, name it alone: {folders}"
        )
    return named.pop() if named else None


def _paths(config: pytest.Config) -> list[Path]:
    start = config.invocation_params.dir
    return [(start / arg.partition("::")[0]).resolve() for arg in config.args]


def _alike(config: pytest.Config) -> list[str]:
    """The folders of ALIKE for those of the interpreter tier that this run names."""
    folder = TIERS["interpreter"]
    inside = [path for path in _paths(config) if folder in (path, *path.parents)]
    found = [ALIKE / path.relative_to(folder) for path in inside]
    return [str(path) for path in found if path.is_dir()]


def _prepare(tier: str) -> None:
    """Make this process one of the tier: whether Triton interprets, its import decides."""
    if not dispatch.TRITON_INSTALLED:
        raise pytest.UsageError(f"the {tier} tier needs Triton: pip install triton")
    wanted = str(int(tier == "interpreter"))
    if "triton" in sys.modules and dispatch.interpreting() != bool(int(wanted)):
        raise pytest.UsageError(f"the {tier} tier needs TRITON_INTERPRET={wanted} from the start")
    os.environ["TRITON_INTERPRET"] = wanted
