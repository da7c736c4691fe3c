"""The report and the plots of records: what they take from them, and what they refuse."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pictures
import plots
import pytest

needs_matplotlib = pytest.mark.usefixtures("_matplotlib")


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[plots]'")


def seconds(middle: float) -> dict[str, float]:
    return {"p20": 0.9 * middle, "p50": middle, "p80": 1.2 * middle}


def case(name: str, facts: dict[str, Any], times: dict[str, float], **more: Any) -> dict[str, Any]:
    candidates = {name: {"seconds": seconds(each)} for name, each in times.items()}
    plain = {"passed": True, "cost": None, "threads": 1, "checks": [], "error": None}
    listed: dict[str, Any] = {"notes": [], "bars": []}
    return {"name": name, "facts": facts, "candidates": candidates, **plain, **listed, **more}


def comparison(name: str, *cases: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    described = {"name": name, "device": device, "description": f"The {name}.", "left_out": []}
    return {**described, "cases": list(cases)}


def comparisons() -> list[dict[str, Any]]:
    """What a run on a CPU gives."""
    crf = {"width": 500, "height": 375, "sigma_xy": 80, "sigma_rgb": 13}
    task = {"body": "resnet101", "side": 513, "batch": 2}
    small = {"of": "scenes", "pictures": 4, "height": 60, "width": 80}
    methods = case("methods", small, {"lattice": 0.4, "exact": 4.0})
    methods["candidates"]["lattice"]["quality"] = {"same_label": 0.99, "mean_error": 1e-2}
    methods["candidates"]["exact"]["quality"] = {"same_label": 1.0, "mean_error": 0.0}
    bar = {"what": "times as fast as pydensecrf2", "value": 3.0, "bar": 2.3, "met": True}
    both = {"ours": 0.1, "pydensecrf2": 0.3}
    found = [
        comparison(
            "crf",
            case("two", {**crf, "labels": 2}, both, cost={}, bars=[bar], notes=["of a test"]),
            case("many", {**crf, "labels": 21}, {"ours": 0.2, "pydensecrf2": 0.8}, cost={}),
            case("all cores", {**crf, "labels": 2}, both, cost={}, threads=2),
            case("set-up", {**crf, "labels": 2}, both),
        ),
        comparison(
            "model",
            case("whole", {**task, "step": "image to labels"}, {"ours": 4.0, "onnx": 5.0}),
            case("network", {**task, "step": "network"}, {"ours": 3.2, "onnx": 3.0}),
            case("upsampling", {**task, "step": "upsampling"}, {"ours": 0.2}),
            case("CRF", {**task, "step": "CRF"}, {"ours": 1.8}),
        ),
        comparison("accuracy", methods),
    ]
    for each in found[0]["cases"]:
        lead = {"p20": 3.0, "median_of_pairs": 3.5, "p80": 4.0, "ratio_of_p50": 3.0}
        each["candidates"]["pydensecrf2"]["ours_is_faster_by"] = lead
    return found


def record(*found: dict[str, Any], date: str = "2026-11-29", quick: bool = False) -> dict[str, Any]:
    return {
        "date": f"{date}T12:00:00+00:00",
        "command": "python bench/compare.py",
        "threads": 2,
        "quick": quick,
        "commit": {"id": "0123456789", "dirty": True},
        "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
        "versions": {"torch": "2", "pydensecrf2": None},
        "comparisons": list(found),
    }


def written(folder: Path, *records: dict[str, Any]) -> list[str]:
    paths = [folder / f"{i}.json" for i in range(len(records))]
    for path, each in zip(paths, records, strict=True):
        path.write_text(json.dumps(each))
    return [str(path) for path in paths]


def test_cores_are_whole_calls_on_one_thread() -> None:
    (panel,) = plots.cores(comparisons()).values()
    assert panel == {
        2: {"ours": {"": 100.0, plots.TIMES: 3.5}, "pydensecrf2": {"": 300.0}},
        21: {"ours": {"": 200.0, plots.TIMES: 3.5}, "pydensecrf2": {"": 800.0}},
    }


def test_methods_are_told_by_the_picture() -> None:
    (panel,) = plots.methods(comparisons()).values()
    assert panel["lattice"]["p50"] == pytest.approx(100)
    assert (panel["lattice"]["error"], panel["exact"]["error"]) == (1e-2, 0.0)


def test_methods_of_a_gpu_are_those_of_its_photographs() -> None:
    facts = {"width": 5, "height": 3, "sigma_xy": 80, "sigma_rgb": 13, "batch": 1}
    found = case("one", facts, {"exact": 1.0})
    found["candidates"]["exact"]["quality"] = {"mean_error": 0.0}
    panels = plots.methods([comparison("crf", found, device="cuda"), comparison("crf", found)])
    assert list(panels) == ["80/13 on a GPU, 5x3"]


def test_steps_of_a_pipeline_are_the_whole_together() -> None:
    (panel,) = plots.pipelines(comparisons()).values()
    # 3.2 + 1.8 s apart, of which 0.2 upsampling, are 4 s for 2 pictures
    assert panel["ours"] == pytest.approx({"network": 1200, "upsampling": 80, "CRF": 720})
    assert panel["onnx"] == pytest.approx({"network": 1500, "not timed apart": 1000})


def test_a_case_that_failed_is_not_drawn() -> None:
    found = comparisons()
    for each in found[0]["cases"]:
        each["passed"] = False
    assert plots.cores(found) == {}


@needs_matplotlib
def test_a_report_and_its_plots_are_written_and_the_same_again(tmp_path, capsys) -> None:
    given = written(tmp_path, record(*comparisons()))
    found = []
    for name in ("one", "two"):
        assert pictures.main([*given, "--out", str(tmp_path / name)]) == 0
        files = sorted((tmp_path / name).iterdir())
        assert [file.stem for file in files] == [*sorted(pictures.PLOTS), "report"]
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]
    for svg in found[0][:-1]:
        root = ElementTree.fromstring(svg)
        assert root.findall(".//{*}text"), "text is text"
    report = found[0][-1].decode()
    for expected in (
        "![The dense CRF a core for a core", "(crf_cores.svg)", "## crf on the cpu", "The crf.",
        "`python bench/compare.py` on 2026-11-29, 2 threads, commit 0123456 and changes (0.json)",
        "cpu a CPU, cores 2; torch 2.", "| two | ours | 90 | 100 | 120 |",
        "asked for 2.3 times as fast as pydensecrf2, reached: 3 (two)", "- of a test",
    ):  # fmt: skip
        assert expected in report, report
    assert "not written" not in capsys.readouterr().out


@needs_matplotlib
def test_a_plot_without_figures_is_left_out_and_this_is_said(tmp_path, capsys) -> None:
    given = written(tmp_path, record(comparisons()[0], quick=True))
    assert pictures.main([*given, "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "image_to_labels.svg").exists()
    assert "image_to_labels.svg is not written" in capsys.readouterr().out
    report = (tmp_path / "report.md").read_text()
    assert "image_to_labels" not in report
    assert "A `--quick` run: to try, not to quote." in report


def test_of_two_records_the_later_one_counts() -> None:
    crf, model, _ = comparisons()
    newer, older = record(crf, date="2026-11-29"), record(crf, model, date="2026-11-28")
    found = pictures.latest([("newer", newer), ("older", older)])
    assert [(file, each["name"]) for file, _, each in found] == [
        ("newer", "crf"),
        ("older", "model"),
    ]


def test_every_colour_stands_out_on_a_light_and_a_dark_page() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one: str, other: str) -> float:
        low, high = sorted([luminance(one), luminance(other)])
        return (high + 0.05) / (low + 0.05)

    for page in ("#ffffff", "#0d1117"):
        assert contrast(plots.TEXT, page) > 4.2  # the best grey for both has 4.3
        for colour in (plots.OURS, plots.PEER, *plots.STEPS.values()):
            assert contrast(colour, page) >= 3, (colour, page)


@pytest.mark.parametrize("text", ["{}", "{", '{"comparisons": [{"cases": [{"name": "one"}]}]}'])
def test_what_is_no_record_is_named(tmp_path, text, capsys) -> None:
    source = tmp_path / "record.json"
    source.write_text(text)
    with pytest.raises(SystemExit) as stop:
        pictures.main([str(source), "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "record.json must be a record of compare.py" in capsys.readouterr().err
