"""Call a function in a fresh interpreter: for memory peaks, and for what happens only once.

A process keeps freed memory and compiled code, so a peak or a first call can only be measured in a
process that has done nothing before.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def call(
    function: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Any:
    """The result of "module:name" of this folder, called with `arguments` in a new process.

    Arguments and result travel as JSON. `environment` is added to this process's own. A function
    that fails raises a RuntimeError here, with the child's own error at its end.
    """
    process = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), function, json.dumps(arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        raise RuntimeError(f"{function} failed in its own process:\n{process.stderr.strip()}")
    return json.loads(process.stdout.splitlines()[-1])


def _main() -> None:
    module, name = sys.argv[1].split(":")
    function = getattr(importlib.import_module(module), name)
    print(json.dumps(function(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    _main()
