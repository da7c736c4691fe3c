"""The problems and budgets of tests/kernels/atrous."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_shared = Path(__file__).parents[3] / "kernels" / "atrous" / "conftest.py"
_spec = importlib.util.spec_from_file_location("atrous_problems", _shared)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # where dataclasses look for it
_spec.loader.exec_module(_module)
problem = _module.problem
by_taps = _module.by_taps
by_conv2d = _module.by_conv2d
with_gradients = _module.with_gradients
assert_exact = _module.assert_exact
assert_within_budget = _module.assert_within_budget
