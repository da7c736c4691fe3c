"""The command line as a whole: what several commands refuse in one way, names, help, status."""

import pytest
from campaign.case import invoke
from commands import assert_refused, done, picture, run, scribbled
from several_processes import run_python


@pytest.mark.parametrize("command", ["segment", "refine", "demo", "train"])
def test_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, weights, command):
    photo, marks = picture(tmp_path / "photo.png"), picture(tmp_path / "marks.png")
    (tmp_path / "file").write_text("not a folder")
    given = {"segment": [photo, "--weights", weights], "refine": [photo, marks], "demo": []}
    given["train"] = ["--steps", 1]
    out = tmp_path / "file" / "out"
    assert_refused(tmp_path, "output folder", command, *given[command], "--out", out)


def test_results_never_overwrite_inputs(tmp_path, weights):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a_labels.png")
    options = ["--weights", weights, "--out", tmp_path]
    message = "a_labels.png: is an input"
    assert_refused(tmp_path, message, "segment", tmp_path, *options)
    given = [tmp_path / "a.png", tmp_path / "a_labels.png"]
    assert_refused(tmp_path, message, "refine", *given, "--out", tmp_path)


def test_crf_options_without_sense_are_refused_by_name(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    options = ["--weights", weights, "--out", tmp_path / "out"]
    names = ["iterations", "gaussian_weight", "gaussian_sigma_xy", "bilateral_weight"]
    for name in (*names, "bilateral_sigma_xy", "bilateral_sigma_rgb"):
        wrong = f"--{name.replace('_', '-')}=-1"
        assert_refused(tmp_path, f"CRF {name} must be ", "segment", photo, *options, wrong)


def test_widths_that_a_lattice_cannot_hold_are_one_line(tmp_path, weights):
    photo, marks, _ = scribbled(tmp_path)
    narrow = ["--gaussian-sigma-xy", "1e-9"]
    message = r"gaussian\.sigma_xy=1e-09 is too small.*Make it at least"
    of_features = "features are too large.*larger sigma"
    options = ["--weights", weights, *narrow]
    place = ["--out", tmp_path / "out"]
    assert_refused(tmp_path, f"photo.png: {message}", "segment", photo, *options, *place)
    assert_refused(tmp_path, f"marks.png: {of_features}", "refine", photo, marks, *narrow, *place)
    assert_refused(tmp_path, f"scenes test: .*{message}", "evaluate", "--scenes", 1, *options)


def test_a_name_that_is_no_text_is_printed_in_escapes(tmp_path, monkeypatch):
    scribbled(tmp_path)
    (tmp_path / "photo.png").rename(tmp_path / "\udcff.png")
    monkeypatch.chdir(tmp_path)
    ended = invoke(["refine", "\udcff.png", "marks.png"])
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.startswith("\\udcff.png: 30 x 20")
    assert ended.stdout.endswith("-> out/\\udcff_labels.png\n")
    assert (tmp_path / "out" / "\udcff_labels.png").is_file()


def test_empty_weights_are_not_taken_for_none(tmp_path):
    place = ["--out", tmp_path / "w.safetensors"]
    assert_refused(tmp_path, "--weights must be a file", "train", "--weights", "", *place)


@pytest.mark.parametrize("command", ["segment", "refine", "train", "evaluate", "tune-crf", "demo"])
def test_every_command_teaches_itself_with_examples(command):
    text = done(command, "--help").stdout
    assert "Example" in text
    assert f"deeplab {command} " in text
    assert command in done("--help").stdout


def test_wrong_usage_exits_with_2():
    for args in (["segment"], ["segment", "--nonsense"], ["nonsense"], ["refine", "one"]):
        result = run(*args)
        assert result.exit_code == 2
        assert result.stdout == ""


@pytest.mark.parametrize(("option", "shown"), [("--help", "segment"), ("--version", "torch ")])
def test_it_runs_as_a_module(option, shown):
    assert shown in run_python("-m", "deeplab", option)
