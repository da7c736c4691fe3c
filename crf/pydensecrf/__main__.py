"""Run a program that imports pydensecrf on the drop-in: python -m crf.pydensecrf script.py ..."""

import runpy
import sys
from pathlib import Path
from typing import NoReturn

from crf import pydensecrf

USAGE = """\
usage: python -m crf.pydensecrf SCRIPT.py [ARGUMENT ...]
       python -m crf.pydensecrf -m MODULE [ARGUMENT ...]

Runs a Python program so that its `import pydensecrf` finds crf.pydensecrf. The program itself
needs no change, and pydensecrf need not be installed."""


def main(arguments: list[str]) -> None:
    """Run the program that `arguments` name, with those that follow as its own."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return
    as_module = arguments[:1] == ["-m"]
    program = arguments[1:] if as_module else arguments
    if not program:
        _refuse(f"{USAGE}\n\nerror: a script, or -m and a module, must be given")
    if not as_module and not Path(program[0]).is_file():
        _refuse(f"error: {program[0]} must be a Python file, and is none")
    pydensecrf.install()
    sys.argv = program
    if as_module:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).resolve().parent)
        runpy.run_path(program[0], run_name="__main__")


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
