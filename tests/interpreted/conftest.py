"""What every test of the interpreter tier starts from."""

from __future__ import annotations

from triton_fixtures import (  # noqa: F401
    large_lattice_tiles,
    lighter_interpreter,
    poisoned_memory,
)
