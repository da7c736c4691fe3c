"""The picture of time against error: what it takes from a record, and what it refuses."""

import json
from typing import Any

import pareto
import pytest

SECONDS = {"p20": 0.9, "p50": 1.0, "p80": 1.2}


def record() -> dict[str, Any]:
    def case(name: str, candidate: str, **entry: Any) -> dict[str, Any]:
        return {"name": name, "candidates": {candidate: entry}}

    quality = {"same_label": 0.99, "mean_error": 1e-2}
    cases = [
        case("10x20 80/13 exact", "exact", seconds=SECONDS, quality={**quality, "mean_error": 0.0}),
        case("10x20 80/13 separable", "separable", seconds=SECONDS, quality=quality),
        case("10x20 80/13 separable batch 8", "separable", seconds=SECONDS),
        case("10x20 49/5 separable", "separable", seconds=SECONDS, quality=quality),
    ]
    return {"comparisons": [{"device": "cuda", "cases": cases}]}


def test_methods_of_one_problem_share_a_panel():
    panels = dict(pareto.panels_of(record()))
    assert list(panels) == ["10x20 80/13 on the cuda", "10x20 49/5 on the cuda"]
    assert [p["name"] for p in panels["10x20 80/13 on the cuda"]] == ["exact", "separable"]


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[plots]'")
    source, out = tmp_path / "record.json", tmp_path / "pareto.png"
    source.write_text(json.dumps(record()))
    assert pareto.main([str(source), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no record of compare.py"),
        ("{", "no record of compare.py"),
        ('{"comparisons": []}', "no case states an error"),
    ],
)
def test_what_is_no_such_record_is_named(tmp_path, text, words, capsys):
    source = tmp_path / "record.json"
    source.write_text(text)
    with pytest.raises(SystemExit):
        pareto.main([str(source)])
    assert words in capsys.readouterr().err
