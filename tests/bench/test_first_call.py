import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import first_call
import memory
import pytest
from memory import in_fresh_process

SECONDS = {"import the library": {"cpu": 0.07, "wall": 0.1}}
SECONDS |= {"first call": {"cpu": 0.2, "wall": 0.3}, "second call": {"cpu": 0.01, "wall": 0.02}}


def test_a_sample_tells_each_step_and_that_the_calls_imported_no_compiler(set_threads):
    first_call.sample(first_call.OURS)  # here, so that its code is on disk
    found = in_fresh_process(first_call.sample, first_call.OURS)
    assert tuple(found["seconds"]) == first_call.STEPS
    assert all(set(seconds) == {"cpu", "wall"} for seconds in found["seconds"].values())
    assert found["compilers"] == []


@pytest.mark.parametrize(("first", "status"), [(0.2, 0), (0.5, 1)])
def test_the_record_holds_every_sample_and_whether_the_bar_is_met(
    first, status, tmp_path, monkeypatch
):
    caches = set()

    def made_up(function: Callable[..., Any], *arguments: str) -> Any:
        if function is first_call.import_of_numba:
            return {"cpu": 0.25, "wall": 0.3}
        assert function is first_call.sample
        caches.add(Path(arguments[1]))
        seconds = SECONDS | {"first call": {"cpu": first, "wall": first}}
        return {"seconds": seconds, "compilers": []}

    monkeypatch.setattr(memory, "in_fresh_process", made_up)
    assert first_call.main(["--samples", "3", "--out", str(tmp_path)]) == status
    (path,) = tmp_path.iterdir()
    (report,) = json.loads(path.read_text())["comparisons"]
    assert len(report["samples"]["crf.pydensecrf.densecrf"]) == 3
    above = report["crf.pydensecrf.densecrf"]["cpu"]["first above second"]
    assert above == pytest.approx(first - 0.01)
    assert report["passed"] == (status == 0)
    assert len(caches) == 1, "every process finds the code that the first has compiled"
