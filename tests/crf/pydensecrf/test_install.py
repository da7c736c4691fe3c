"""Programs that import pydensecrf run on the drop-in, unchanged, and the real one comes back."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from several_processes import run_python

import crf.pydensecrf
from crf.pydensecrf.__main__ import main

ROOT = Path(__file__).parents[3]
CLIENT = """
import sys
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels
from pydensecrf import eigen

labels = np.arange(12).reshape(3, 4) % 2
d = dcrf.DenseCRF2D(4, 3, 2)
d.setUnaryEnergy(unary_from_labels(labels, 2, 0.7, zero_unsure=False))
d.addPairwiseGaussian(sxy=3, compat=3)
print(np.array(d.inference(2)).shape, dcrf.__name__, eigen.__name__, *sys.argv[1:])
"""
real_is_installed = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None,
    reason="pydensecrf2 is not installed: pip install pydensecrf2==1.1",
)


def said(program: str) -> str:
    return run_python("-c", program).strip()


def test_after_install_a_client_finds_the_drop_in():
    program = f"import crf.pydensecrf; crf.pydensecrf.install(); crf.pydensecrf.install()\n{CLIENT}"
    assert said(program) == "(2, 12) crf.pydensecrf.densecrf crf.pydensecrf.eigen"


def test_importing_the_drop_in_alone_changes_nothing():
    program = "import sys, crf.pydensecrf.densecrf; print('pydensecrf' in sys.modules)"
    assert said(program) == "False"


@real_is_installed
def test_uninstall_brings_the_real_one_back():
    program = """
import crf.pydensecrf as drop_in
drop_in.install()
import pydensecrf.densecrf as first
drop_in.uninstall()
drop_in.uninstall()
import pydensecrf.densecrf as second
print(first.__name__, second.__name__)
"""
    assert said(program) == "crf.pydensecrf.densecrf pydensecrf.densecrf"


@real_is_installed
def test_install_refuses_where_the_real_one_is_imported_and_leaves_it():
    program = """
import crf.pydensecrf, pydensecrf.densecrf
try:
    crf.pydensecrf.install()
except RuntimeError as error:
    print(error)
crf.pydensecrf.uninstall()
import pydensecrf.utils
print(pydensecrf.utils.__name__)
"""
    refusal, name = said(program).splitlines()
    assert refusal.startswith("pydensecrf is imported already, from ")
    assert "before anything imports pydensecrf" in refusal
    assert name == "pydensecrf.utils"


def test_a_script_runs_with_its_own_arguments_and_folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("WORD = 'beside'")
    script = tmp_path / "client.py"
    script.write_text(f"{CLIENT}\nimport neighbour; print(neighbour.WORD, __name__)")
    out = run_python("-m", "crf.pydensecrf", str(script), "--flag", "7")
    assert out.splitlines() == [
        "(2, 12) crf.pydensecrf.densecrf crf.pydensecrf.eigen --flag 7",
        "beside __main__",
    ]


def test_a_module_runs_with_its_own_arguments(tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    command = [sys.executable, "-m", "crf.pydensecrf", "-m", "client", "x"]
    about = {"cwd": tmp_path, "env": {"PYTHONPATH": str(ROOT), "PATH": ""}}
    process = subprocess.run(command, capture_output=True, text=True, **about)
    assert process.stdout.split()[-1:] == ["x"], process.stderr


@pytest.fixture
def nothing_imported(monkeypatch):
    """As if nothing had imported pydensecrf in this process; what had is put back at the end."""
    kept = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "pydensecrf"}
    for name in kept:
        del sys.modules[name]
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    crf.pydensecrf.uninstall()
    sys.modules.update(kept)


@pytest.mark.usefixtures("nothing_imported")
def test_every_module_of_the_drop_in_is_installed_and_taken_away_again():
    crf.pydensecrf.install()
    for part in ("densecrf", "utils", "eigen"):
        module = importlib.import_module(f"pydensecrf.{part}")
        assert module is importlib.import_module(f"crf.pydensecrf.{part}")
    crf.pydensecrf.uninstall()
    assert not [name for name in sys.modules if name.partition(".")[0] == "pydensecrf"]


@pytest.mark.usefixtures("nothing_imported")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a script, or -m and a module, must be given"),
        (["-m"], "a script, or -m and a module, must be given"),
        (["missing.py"], "missing.py must be a Python file, and is none"),
    ],
)
def test_what_cannot_run_is_named(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().endswith(words)
    assert "pydensecrf" not in sys.modules


@pytest.mark.usefixtures("nothing_imported")
def test_help_says_how_to_call_it(capsys):
    main(["--help"])
    assert "usage: python -m crf.pydensecrf" in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_imported")
def test_a_script_is_run_as_the_main_program(tmp_path, capsys):
    script = tmp_path / "client.py"
    script.write_text(f"{CLIENT}\nprint(__name__)")
    main([str(script), "x"])
    said = capsys.readouterr().out.split()
    assert said[-2:] == ["x", "__main__"]
