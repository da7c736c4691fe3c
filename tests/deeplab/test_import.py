"""Importing deeplab: quick where things are absent, clear where another `kernels` is present."""

import subprocess
import sys


def run(code: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    first = f"import sys; sys.path.insert(0, {path!r}); " if path else "import sys; "
    return subprocess.run(
        [sys.executable, "-c", first + code], capture_output=True, text=True, check=False
    )


def test_a_foreign_kernels_package_is_named_in_the_import_error(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(name): ...\n")
    done = run("import deeplab", str(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError:"), done.stderr
    assert str(tmp_path / "kernels" / "__init__.py") in last
    assert "separate virtual environment" in last


def test_importing_the_models_imports_neither_triton_nor_numba():
    done = run("import deeplab.model; print([m for m in ('triton', 'numba') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
