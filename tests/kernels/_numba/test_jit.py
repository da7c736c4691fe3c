"""Compiled kernels and where their machine code is kept."""

import ast
import shutil
import subprocess
import sys
import textwrap
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numba.core import config

import kernels
from kernels._numba import code_files, jit
from kernels.meanfield import cpu as mean_field
from kernels.permutohedral import cpu as lattice

FOLDER = Path(kernels.__file__).parent
ROOT = FOLDER.parent
INFERENCE = """
import numpy as np
import crf.pydensecrf.densecrf

dense = crf.pydensecrf.densecrf.DenseCRF2D(9, 8, 21)
dense.setUnaryEnergy(np.ones((21, 72), np.float32))
dense.addPairwiseGaussian(sxy=3, compat=3)
dense.addPairwiseBilateral(sxy=9, srgb=5, rgbim=np.zeros((8, 9, 3), np.uint8), compat=4)
dense.inference(3)
"""
COUNTED = f"""
import sys
from kernels._numba import jit

linked = []
jit._linked, link = lambda code: linked.append(1) or link(code), jit._linked
{INFERENCE}
print(len(linked), *sorted({{"numba", "torch._dynamo", "triton"}} & sys.modules.keys()))
"""


@pytest.fixture
def doubles(tmp_path, monkeypatch):
    """A kernel that doubles numbers, in a module of its own, and its empty cache."""
    source = """
        from numba import njit

        @njit(forceinline=True)
        def double(numbers, words):
            for i in range(len(numbers)):
                numbers[i] *= len(words)
            return len(numbers)

        @njit(forceinline=True)
        def scale(numbers, factor):
            for i in range(len(numbers)):
                numbers[i] *= factor

        @njit(forceinline=True)
        def describe(numbers, found):
            for k in range(3):
                found[k] = numbers.shape[k]
            for i in range(numbers.shape[0]):
                for j in range(numbers.shape[1]):
                    for k in range(numbers.shape[2]):
                        found[3] += numbers[i, j, k]

        @njit(forceinline=True)
        def allocate(numbers):
            for i in range(len(numbers)):
                numbers[i] = len(str(i))

        @njit(forceinline=True)
        def fail(numbers):
            if numbers[0] > 1:
                raise ValueError("too large")
    """
    (tmp_path / "doubling.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    yield lambda name="double": jit.Kernel("doubling", name, returns=name == "double")
    sys.modules.pop("doubling", None)


def _doubled(kernel):
    numbers = np.array([1.0, 2.0, 3.0])
    assert kernel(numbers, (0, 0)) == 3
    return numbers.tolist()


def test_a_kernel_computes_on_arrays_of_any_layout_and_type(doubles):
    kernel = doubles()
    for dtype in (np.float32, np.float64, np.int32, np.int64):
        table = np.ones((4, 6), dtype)
        kernel(table[1, ::2], (0, 0, 0))
        expected = np.ones((4, 6), dtype)
        expected[1, ::2] = 3
        np.testing.assert_array_equal(table, expected)
    assert kernel(np.empty(0), (0,)) == 0


def test_a_number_keeps_its_value_and_what_is_no_number_is_refused(doubles):
    kernel = doubles("scale")
    for factor in (0.5, np.float32(0.5), np.float64(0.5)):
        numbers = np.ones(3)
        kernel(numbers, factor)
        assert numbers.tolist() == [0.5] * 3
    for factor in ("2", None, np.ma.array([2]), 2j):
        with pytest.raises(TypeError):
            kernel(numbers, factor)


def test_an_array_of_another_byte_order_is_refused_and_not_read_as_if_it_had_this_one(doubles):
    with pytest.raises(Exception, match=r"[<>]f8"):
        doubles()(np.ones(3, np.dtype(np.float64).newbyteorder()), (0, 0))


def test_the_machine_code_of_a_kernel_is_kept_and_read_again(doubles, tmp_path, monkeypatch):
    assert _doubled(doubles()) == [2, 4, 6]
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(jit.Kernel, "_compile", lambda *_: pytest.fail("compiled again"))
    assert _doubled(doubles()) == [2, 4, 6]
    assert [kept] == list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("damage", ["emptied", "cut short", "changed"])
def test_damaged_machine_code_is_made_again_and_never_run(doubles, tmp_path, damage):
    _doubled(doubles())
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    changed = whole[:-40] + bytes([whole[-40] ^ 255]) + whole[-39:]
    kept.write_bytes({"emptied": b"", "cut short": whole[:-9], "changed": changed}[damage])
    assert _doubled(doubles()) == [2, 4, 6]
    assert code_files._read(kept) is not None


def test_numbas_settings_have_machine_code_of_their_own(doubles, tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CPU_NAME", raising=False)  # which a whole run may have
    _doubled(doubles())
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    _doubled(doubles())
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("setting", ["NUMBA_BOUNDSCHECK", "NUMBA_DISABLE_JIT"])
def test_settings_to_debug_other_code_leave_kernels_compiled(doubles, monkeypatch, setting):
    """And that other code as it is."""
    monkeypatch.setenv(setting, "1")
    config.reload_config()
    try:
        assert _doubled(doubles()) == [2, 4, 6]
        assert getattr(config, setting.removeprefix("NUMBA_")) == 1
    finally:
        monkeypatch.delenv(setting)
        config.reload_config()


def test_without_a_writable_folder_a_kernel_runs_and_a_warning_says_once_how_to_mend(
    doubles, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    code_files._tell_that_nothing_is_kept.cache_clear()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        assert [_doubled(doubles()) for _ in range(2)] == [[2, 4, 6]] * 2
    assert ["NUMBA_CACHE_DIR" in str(warning.message) for warning in shown] == [True]


def test_a_package_that_cannot_be_written_uses_a_folder_of_the_user(doubles, tmp_path, monkeypatch):
    (tmp_path / "__pycache__").write_text("no folder")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(code_files, "folders", lambda here=tmp_path: _folders_at(here))
    _doubled(doubles())
    assert len(list((tmp_path / "user/deeplab-triton").iterdir())) == 1


def _folders_at(here, folders=code_files.folders):
    first, *rest = folders()
    assert first == FOLDER / "__pycache__"
    return [here / "__pycache__", *rest]


@pytest.mark.parametrize("name", ["allocate", "fail"])
def test_a_kernel_that_needs_numba_at_run_time_is_refused(doubles, tmp_path, name):
    with pytest.raises(Exception, match=r"neither allocate nor raise|NRT required"):
        doubles(name)(np.ones(3))
    assert not list(tmp_path.rglob("*.o"))


def test_threads_that_need_a_kernel_at_once_compile_it_once(doubles, monkeypatch):
    made = []
    compiling = jit.Kernel._compile
    monkeypatch.setattr(jit.Kernel, "_compile", lambda *args: made.append(1) or compiling(*args))
    kernel = doubles()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_doubled, [kernel] * 8)) == [[2, 4, 6]] * 8
    assert len(made) == 1


def test_a_call_keeps_its_arrays_and_sees_what_they_hold(doubles):
    numbers = np.ones(1000)
    (call,) = doubles().calls([(numbers,)], [(0, 0)])
    kept = weakref.ref(numbers)
    del numbers
    assert kept() is not None
    assert [call(), call()] == [1000, 1000]
    np.testing.assert_array_equal(kept(), 4)


def test_a_call_made_once_reads_an_array_of_any_layout_where_numpy_has_it(doubles):
    """Shape and strides come from the Python object, also of arrays without a number."""
    table = np.arange(210.0).reshape(5, 7, 6)
    kernel = doubles("describe")
    for array in (table, table[2:, ::3], table.transpose(2, 0, 1), table[::-1], table[:0]):
        expected = np.array([*array.shape, array.sum()])
        found = np.zeros(4)
        kernel(array, found)
        np.testing.assert_array_equal(found, expected)


def test_the_address_of_an_array_is_that_of_its_interface():
    table = np.zeros((5, 7), np.float32)
    for array in (table, table[2:, ::3], table.T, np.empty(0), np.array(1)):
        assert jit.address(array) == array.__array_interface__["data"][0]


def test_a_first_call_with_its_code_on_disk_imports_no_compiler_and_links_few_kernels():
    """What makes it quick. Whoever adds a kernel, or a type of argument, meets the number here."""
    exec(INFERENCE, {})  # from here on its code is on disk
    command = [sys.executable, "-c", COUNTED]
    process = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.split() == ["12"]


def test_a_change_of_any_source_that_is_compiled_changes_the_digest(tmp_path):
    for name in code_files.SOURCES:
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
        digest_of = code_files.digest_of_sources.__wrapped__
        assert digest_of(copy) == digest_of(FOLDER)
        (copy / name).write_text((copy / name).read_text() + "\n")
        assert digest_of(copy) != digest_of(FOLDER)


def test_every_module_that_numba_compiles_is_in_the_digest():
    compiled = {
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*.py")
        if _imported(path) & {"numba", "llvmlite"}
    } - {"_numba/code_files.py"}
    assert compiled == set(code_files.SOURCES)
    modules = {value.module for value in _kernels()}
    assert {name.replace(".", "/").removeprefix("kernels/") + ".py" for name in modules} <= compiled


def _kernels():
    values = [*vars(lattice).values(), *vars(mean_field).values()]
    return [value for value in values if isinstance(value, jit.Kernel)]


def _imported(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}
