import json
import os

import pytest
from fresh_process import in_fresh_process


def test_a_function_runs_in_another_process_and_gives_back_its_result() -> None:
    assert in_fresh_process(json.loads, "[1, null]") == [1, None]
    assert in_fresh_process(os.getpid) != os.getpid()


def test_what_the_function_raises_is_raised_here() -> None:
    with pytest.raises(json.JSONDecodeError):
        in_fresh_process(json.loads, "no JSON")
