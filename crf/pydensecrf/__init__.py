"""Drop-in for pydensecrf: the same modules, names, signs and results, NumPy in and out.

    densecrf.py   pydensecrf.densecrf: DenseCRF, DenseCRF2D
    utils.py      pydensecrf.utils: unaries from labels or a softmax, features from images
    eigen.py      pydensecrf.eigen: arrays
    arguments.py  what all of them take as an array, a number or an option

Either change the imports, `import crf.pydensecrf.densecrf as dcrf`, or change nothing:

    import crf.pydensecrf
    crf.pydensecrf.install()                # at the start of the program
    import pydensecrf.densecrf as dcrf      # other people's code, as it is

and from the command line

    python -m crf.pydensecrf script.py arguments
    python -m crf.pydensecrf -m module arguments
"""

import importlib
import sys

__all__ = ["install", "uninstall"]

MODULES = ("", ".densecrf", ".utils", ".eigen")


def install() -> None:
    """Let `import pydensecrf`, and its densecrf, utils and eigen, find this drop-in from now on.

    It holds for this process and those forked from it; `uninstall` undoes it. Calling it again
    changes nothing.

    Raises:
        RuntimeError: the real pydensecrf is imported already, or part of it.
    """
    ours = {f"pydensecrf{m}": importlib.import_module(f"{__name__}{m}") for m in MODULES}
    real = [name for name in _imported() if sys.modules[name] is not ours.get(name)]
    if real:
        raise RuntimeError(
            f"{real[0]} is imported already, from {_origin(real[0])}: call "
            "crf.pydensecrf.install() before anything imports pydensecrf"
        )
    sys.modules.update(ours)


def uninstall() -> None:
    """Undo `install`: a later `import pydensecrf` finds what is installed under that name.

    What was imported before keeps the drop-in. Without `install` before it, it changes nothing.
    """
    for name in _imported():
        if sys.modules[name].__name__.startswith(__name__):
            del sys.modules[name]


def _imported() -> list[str]:
    """The modules that are imported as pydensecrf and parts of it."""
    return [name for name in sys.modules if name.partition(".")[0] == "pydensecrf"]


def _origin(name: str) -> str:
    module = sys.modules[name]
    return getattr(module, "__file__", None) or repr(module)
