"""The wheel, installed away from the checkout as a user would have it."""

import importlib.machinery
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from several_processes import run_python

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "crf", "deeplab")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command where the checkout is not on the path; its output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that no earlier build's leavings get into what is built."""
    folder = tmp_path_factory.mktemp("built") / "source"
    for name in (*PACKAGES, "bench", "tests"):
        leavings = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=leavings)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source):
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(*PIP, "wheel", source, *offline, "--wheel-dir", source.parent, cwd=source.parent)
    (path,) = source.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(source):
    program = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", program, source.parent, cwd=source)
    (path,) = source.parent.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of a virtual environment with the wheel in it and this environment's
    dependencies within reach.

    They come through a path file. Path files of a folder that is reached so are not read
    themselves: an editable install of the checkout stays out.
    """
    folder = tmp_path_factory.mktemp("installed") / "environment"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(*(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel), cwd=folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages / "dependencies.pth").write_text("\n".join(here) + "\n")
    return folder


@pytest.mark.parametrize(("package", "needed"), [("crf", "kernels"), ("deeplab", "crf")])
def test_a_folder_that_hides_a_package_is_named(package, needed, tmp_path, monkeypatch):
    """Python takes it where the packages are installed as links to a checkout."""
    (tmp_path / needed).mkdir()
    spec = importlib.machinery.PathFinder.find_spec(needed, [str(tmp_path)])
    assert spec is not None
    monkeypatch.setitem(sys.modules, needed, importlib.util.module_from_spec(spec))
    with pytest.raises(ImportError, match=f"'{needed}' of deeplab-triton.*{tmp_path / needed}"):
        runpy.run_path(str(ROOT / package / "__init__.py"))


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel):
    entries = {entry.filename: entry.file_size for entry in zipfile.ZipFile(wheel).infolist()}
    assert {name.split("/")[0] for name in entries if ".dist-info/" not in name} == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in entries
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = {path.relative_to(ROOT).as_posix() for path in sources}
    assert {name for name in entries if name.endswith(".py")} == names
    weights = {name: size for name, size in entries.items() if name.endswith(".safetensors")}
    assert all(name.startswith("deeplab/weights/") for name in weights)
    assert 0 < sum(weights.values()) <= 4e6
    assert "kernels/atrous/triton/configs/sm_90.json" in entries
    page = {path.name for path in (ROOT / "deeplab" / "app" / "static").iterdir()}
    assert {f"deeplab/app/static/{name}" for name in page} <= set(entries)


def test_the_source_archive_holds_what_the_wheel_is_made_of(sdist, wheel):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert built | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_metadata_of_wheel_and_source_archive_are_valid_and_alike(sdist, wheel):
    with tarfile.open(sdist) as archive:
        (entry,) = (name for name in archive.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", name))
        of_sdist = archive.extractfile(entry).read()
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        of_wheel = archive.read(entry)
    told = Metadata.from_email(of_wheel)  # raises what is wrong with it
    assert told.name == "deeplab-triton"
    assert str(told.version) == _version()
    assert told.license_expression == "MIT"
    assert told.description_content_type == "text/markdown"
    assert told.description == (ROOT / "README.md").read_text()
    assert Metadata.from_email(of_sdist).as_rfc822().as_bytes() == told.as_rfc822().as_bytes()


def test_twine_finds_nothing_wrong(sdist, wheel):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed: pip install '.[dev]'")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=wheel.parent)


def test_the_installed_command_says_its_version(installed):
    said = run(installed / "bin" / "deeplab", "--version", cwd=installed)
    assert _version() in said


def test_the_installed_package_loads_its_weights_and_segments_with_them(installed):
    """Away from the checkout, from which no package may come."""
    program = """
import crf, deeplab.model, kernels, torch
from deeplab.weights import load_model
model = load_model()
assert not model.training
with torch.inference_mode():
    logits = model(model.preprocess(torch.zeros(1, 3, 65, 65)))
assert logits.isfinite().all()
assert logits.shape[2:] == (65, 65)
print(kernels.__file__, crf.__file__, deeplab.__file__, deeplab.model.__file__)
"""
    files = run(installed / "bin" / "python", "-c", program, cwd=installed).split()
    assert len(files) == 4
    for file in files:
        assert Path(file).is_relative_to(installed), file


@pytest.mark.parametrize("package", ["crf", "deeplab"])
def test_a_foreign_package_named_kernels_is_refused_by_name(tmp_path, package):
    foreign = tmp_path / "kernels" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("def get_kernel(repository): ...\n")
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
try:
    import {package}
except ImportError as error:
    print(error)
"""
    said = run(sys.executable, "-c", program, cwd=tmp_path)
    assert str(foreign) in said
    assert "cannot share an environment" in said
    assert re.search("Hugging Face.*uninstall", said)


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


@pytest.mark.parametrize(
    ("system", "wanted"), [("linux", True), ("darwin", False), ("win32", False)]
)
def test_triton_is_wanted_on_linux_alone(system: str, wanted: bool) -> None:
    """It has no wheels for macOS and Windows: to want it there would end every installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(line) for line in project["dependencies"]]
    names = {
        each.name
        for each in needed
        if each.marker is None or each.marker.evaluate({"sys_platform": system})
    }
    assert {"torch", "numpy", "numba"} <= names
    assert ("triton" in names) == wanted


def test_processes_of_tests_import_what_needs_torchvision(timm: ModuleType, smp: ModuleType):
    """tests/support/sitecustomize.py, which Python runs where that folder is on PYTHONPATH."""
    said = run_python("-c", "import timm, segmentation_models_pytorch, torchvision as t; print(t)")
    assert "torchvision" in said


WITHOUT = """
import sys

absent = ("fcntl", "resource", "triton")
optional = ("torchvision", "timm", "segmentation_models_pytorch", "huggingface_hub")
for name in (*absent, *optional):
    sys.modules[name] = None
import numpy, torch
import crf, deeplab.cli, deeplab.demo, deeplab.export, deeplab.training, kernels
from deeplab.model import build
from deeplab.weights import load_model, save_weights

model = load_model("scenes")
save_weights(model, "again.safetensors")
with torch.no_grad():
    model(torch.zeros(1, 3, 33, 33))
layer = crf.DenseCRF(2, iterations=1)
layer(torch.zeros(1, 2, 5, 6), torch.zeros(1, 3, 5, 6))
"""


def test_all_of_it_works_without_what_other_systems_lack(tmp_path: Path) -> None:
    """Windows and macOS have no Triton, Windows no fcntl and resource; the rest is optional."""
    command = [sys.executable, "-c", WITHOUT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]
