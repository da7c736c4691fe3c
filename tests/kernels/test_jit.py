"""Compiled kernels and where they are kept."""

import ast
import shutil
import warnings
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import kernels
from kernels import jit
from kernels.meanfield import cpu

FOLDER = Path(kernels.__file__).parent


def _function(path):
    namespace = {}
    exec(compile("def double(x):\n    return 2 * x\n", path, "exec"), namespace)
    return namespace["double"]


def _names_from_kernels(path):
    """Modules of the package that a file imports, as paths, and whether it imports numba."""
    tree = ast.parse(path.read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    names |= {node.module for node in froms}
    files = {name.replace(".", "/").removeprefix("kernels/") + ".py" for name in names}
    uses_numba = any(name.split(".")[0] in ("numba", "llvmlite") for name in names)
    return {file for file in files if (FOLDER / file).is_file()}, uses_numba


def test_a_kernel_is_kept_on_disk(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("")
    double = jit.kernel()(_function(str(path)))
    assert double(3) == 6
    assert list(tmp_path.rglob("*.nbc"))


def test_without_a_writable_folder_a_kernel_still_runs_and_a_warning_says_how_to_mend(tmp_path):
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):
        double = jit.kernel()(_function(str(tmp_path / "missing.py")))
    assert double(3) == 6


def test_the_warning_is_shown_once(tmp_path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            jit.kernel()(_function(str(tmp_path / "missing.py")))
    assert len(shown) == 1


def test_a_change_of_what_is_compiled_into_a_kernel_renames_its_cached_file(tmp_path):
    for name in jit.INLINED:
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
        assert jit._digest_of(copy) == jit._digest_of(FOLDER)
        (copy / name).write_text((copy / name).read_text() + "\n")
        assert jit._digest_of(copy) != jit._digest_of(FOLDER)
    dispatchers = [value for value in vars(cpu).values() if isinstance(value, Dispatcher)]
    assert dispatchers
    digest = jit._digest_of(FOLDER)
    assert all(digest in dispatcher.py_func.__qualname__ for dispatcher in dispatchers)


def test_every_module_that_is_compiled_into_others_is_named():
    imports = {path: _names_from_kernels(path) for path in FOLDER.rglob("*.py")}
    compiled = {
        path.relative_to(FOLDER).as_posix()
        for path, (files, uses_numba) in imports.items()
        if uses_numba or "jit.py" in files
    } - {"jit.py"}
    assert compiled >= {"simd.py", "meanfield/cpu.py", "gaussian/permutohedral/cpu.py"}
    inlined = {
        file
        for path, (files, _) in imports.items()
        if path.relative_to(FOLDER).as_posix() in compiled
        for file in files & compiled
    }
    assert inlined == set(jit.INLINED)
