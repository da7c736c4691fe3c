"""What pydensecrf gave, recorded, from the Triton kernels in the interpreter."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from crf.pydensecrf import densecrf
from kernels import dispatch
from kernels.meanfield import triton
from kernels.permutohedral import triton as lattices
from kernels.permutohedral.triton import filtering

GOLDEN = Path(__file__).parents[3] / "golden"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have `auto` choose Triton, and list what of it ran; with tiles for a thousand vertices."""
    only = (dispatch.Implementation("triton", "interpreted", triton=True),)
    tables = {**dispatch.OPERATIONS, "permutohedral": only, "meanfield": only}
    monkeypatch.setattr(dispatch, "OPERATIONS", tables)
    for module in (filtering, triton):
        monkeypatch.setattr(module, "TILE", 2**15)
    called: list[str] = []

    def watched(module: ModuleType, name: str) -> None:
        run = getattr(module, name)

        def watch(*args: Any) -> Any:
            called.append(name)
            return run(*args)

        monkeypatch.setattr(module, name, watch)

    watched(lattices, "build_all")
    watched(lattices, "filter")
    watched(triton, "mean_field")
    return called


@pytest.mark.parametrize("name", ["potts", "matrix", "scattered_points"])
def test_marginals_are_those_that_pydensecrf_gave(ran: list[str], name: str) -> None:
    record = np.load(GOLDEN / f"pydensecrf_{name}.npz")
    (kind, size), *calls = json.loads(str(record["calls"]))
    crf = getattr(densecrf, kind)(*size)
    for method, given in calls:
        resolved = {k: record[v[1:]] if isinstance(v, str) else v for k, v in given.items()}
        getattr(crf, method)(**resolved)
    found, expected = np.array(crf.inference(10)), record["marginals"]
    assert set(ran) == {"build_all", "filter", "mean_field"}
    assert (np.abs(found - expected) <= 2e-3).mean() >= 0.999
    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.999
