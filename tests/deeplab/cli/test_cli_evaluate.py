"""`deeplab evaluate` on data sets in files, and CRF settings from a file in every command."""

import csv
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_refused, done, picture, plain_weights, run
from dataset_files import label_map, listing
from picture_files import save
from PIL import Image
from several_processes import start_two

from crf import Bilateral, Gaussian
from deeplab.crf_settings import CRFSettings
from deeplab.data.datasets import open_dataset
from deeplab.data.scenes import CLASSES, scene
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.evaluation.report import picture_scores
from deeplab.model import deeplab_v2_small
from deeplab.predict import Predictor
from deeplab.weights import load_model, save_weights

SETTINGS = CRFSettings(2, Gaussian(2.0, 1.5), Bilateral(3.0, 20.0, 8.0))
SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights for VOC's 21 classes."""
    return plain_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", 21)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Two pictures in VOC's layout, with void pixels; and a test split without labels."""
    root = tmp_path_factory.mktemp("VOC2012")
    (root / "JPEGImages").mkdir()
    for seed, name in enumerate(("2007_000001", "2007_000002", "2008_000003")):
        image, labels = scene(seed, (40 + seed, 56))
        save(root / "JPEGImages" / f"{name}.jpg", image)
        if seed < 2:
            values = labels + 3
            values[10:12] = 255
            label_map(root / "SegmentationClass" / f"{name}.png", values, palette=True)
    lists = root / "ImageSets" / "Segmentation"
    listing(lists / "val.txt", "2007_000001", "2007_000002")
    listing(lists / "train.txt", "2007_000001")
    listing(lists / "test.txt", "2008_000003")
    return root


def files(folder):
    """What the files of a folder hold, by their names in it."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def data(voc, split="val"):
    return ["--data", "voc2012", "--root", voc, "--split", split]


def test_scores_of_a_data_set_are_those_of_the_engine_and_go_to_every_file(tmp_path, weights, voc):
    (tmp_path / "crf.toml").write_text(SETTINGS.to_toml())
    files = ["--out", tmp_path / "s.json", "--save-confusion", tmp_path / "c.csv"]
    files += ["--trimap", tmp_path / "curve.csv", "--trimap-widths", "1,3,9"]
    views = ["--scales", "0.5,1", "--flip", "--absent", "zero"]
    crf = ["--crf-settings", tmp_path / "crf.toml", "--iterations", 1]
    result = done("evaluate", "--weights", weights, *data(voc), *files, *views, *crf)
    pictures = open_dataset("voc2012", voc, "val")
    options = {"class_names": pictures.classes, "absent": "zero", "trimap": (1, 3, 9)}
    options |= {"around": "void", "scales": (0.5, 1.0), "flip": True}
    layer = SETTINGS.changed({"iterations": 1}).layer(21)
    expected = evaluate(load_model(weights), pictures, layer, **options)
    stored = json.loads((tmp_path / "s.json").read_text())
    assert stored == stored | json.loads(json.dumps(expected.as_dict()))
    assert stored["crf_settings"]["iterations"] == 1
    assert stored["crf_settings"]["gaussian_sigma_xy"] == 1.5
    assert f"{100 * expected.crf.miou:.2f}" in result.stdout
    assert "IoU aeroplane" in result.stdout
    rows = list(csv.reader((tmp_path / "c.csv").open()))
    assert rows[0][1:] == [row[0] for row in rows[1:]] == list(pictures.classes)
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == stored["confusion"]["crf"]
    curve = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["width"] for row in curve] == ["1", "3", "9"]
    assert float(curve[1]["crf miou"]) == pytest.approx(expected.trimap["crf"].miou[1], abs=1e-6)
    with Image.open(tmp_path / "curve.png") as drawn:
        assert len(np.unique(np.asarray(drawn.convert("L")))) > 5


def test_submission_has_vocs_layout_and_the_final_labels(tmp_path, weights, voc):
    options = ["--weights", weights, *data(voc), "--no-crf", "--submission", tmp_path / "up"]
    assert "2 predictions -> " in done("evaluate", *options).stdout
    folder = tmp_path / "up" / "results" / "VOC2012" / "Segmentation" / "comp6_val_cls"
    assert sorted(p.name for p in folder.iterdir()) == ["2007_000001.png", "2007_000002.png"]
    pictures = open_dataset("voc2012", voc, "val")
    for index, name in enumerate(pictures.names):
        with Image.open(folder / f"{name}.png") as found:
            assert found.mode == "P"
            expected = Predictor(load_model(weights))(pictures.image(index)).labels
            np.testing.assert_array_equal(np.asarray(found), expected)
    with tarfile.open(tmp_path / "up" / "results.tgz") as packed:
        assert len(packed.getnames()) == 2


def test_a_split_without_labels_is_predicted_for_its_server(tmp_path, weights, voc):
    given = ["evaluate", "--weights", weights, *data(voc, "test")]
    done(*given, "--no-score", "--iterations", 1, "--submission", tmp_path)
    path = tmp_path / "results/VOC2012/Segmentation/comp6_test_cls/2008_000003.png"
    with Image.open(path) as found:
        assert found.size == (56, 42)
    missing = "SegmentationClass/2008_000003.png: no such file"
    assert_refused(tmp_path, missing, *given, "--no-crf")
    assert_refused(tmp_path, "--no-score: leaves nothing to do", *given, "--no-score")
    useless = ["--no-score", "--submission", tmp_path / "x", "--trimap", "c", "--out", "s.json"]
    assert_refused(tmp_path, "--no-score: leaves nothing for --trimap, --out", *given, *useless)
    assert not (tmp_path / "x").exists()


def test_options_without_sense_are_one_line(tmp_path, weights, voc):
    given = ["evaluate", "--weights", weights]
    here = [*given, *data(voc)]
    for message, *line in (
        (r"has 21 classes, scenes test has 11 classes \(sky", *given),
        ("--scenes 3: only counts with the generated scenes", *here, "--scenes", 3),
        ("no split 'best'; there are", *given, *data(voc, "best")),
        ("no data set 'voc'; there are voc2012", *given, "--data", "voc", "--root", voc),
        ("--scales a must be numbers with commas", *here, "--scales", "a"),
        ("--scales must be at least one number, each from 0.1", *here, "--scales", "0"),
        ("--trimap . must be the name of a file", *here, "--trimap", ""),
        ("--device tpu must be", *here, "--device", "tpu"),
        ("none.toml: no such file", *here, "--crf-settings", tmp_path / "none.toml"),
    ):
        assert_refused(tmp_path, message, *line)
    curve = [*here, "--trimap", "c.csv", "--trimap-widths"]
    for widths in ("3,1", "0", "1.5", "x"):
        assert_refused(tmp_path, "--trimap-widths", *curve, widths)
    bad = tmp_path / "bad.toml"
    for text, message in (
        ("[crf", "cannot be read as TOML"),
        ("x = 1", r"has no table \[crf\]"),
        ("[crf]\nsigma = 3", "bad.toml: CRF settings: unknown sigma"),
        ("[crf]\niterations = -1", "bad.toml: CRF iterations must be"),
    ):
        bad.write_text(text)
        assert_refused(tmp_path, message, *here, "--crf-settings", bad)


def test_weights_whose_logits_overflow_are_named(tmp_path):
    model = deeplab_v2_small(len(CLASSES))
    torch.nn.init.constant_(model.head.classifier.weight, 3e38)
    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / "w.safetensors"
    save_weights(model, path)
    given = ["--weights", path, "--data-option", "size=33", "--out", tmp_path / "out"]
    message = f"^Error: {path}: the network's output for picture 0 has NaN or Inf"
    tuning = ["tune-crf", "--images", 2, "--folds", 2]
    for command in (["evaluate", "--scenes", 1, "--no-crf"], tuning):
        assert_refused(folder, message, *command, *given)


def test_a_curve_without_void_labels_says_so(tmp_path):
    curve = ["--trimap", tmp_path / "curve.csv", "--trimap-widths", "2"]
    given = ["evaluate", "--scenes", 1, "--data-option", "size=65", "--no-crf", *curve]
    assert "curve is empty" in done(*given, "--trimap-around", "void").stderr
    assert (tmp_path / "curve.csv").read_text().splitlines()[1] == "2,,"
    assert "curve" not in done(*given).stderr
    assert float((tmp_path / "curve.csv").read_text().splitlines()[1].split(",")[1]) > 0


@pytest.mark.parametrize("crf", ["--no-crf", "--crf"])
def test_a_report_has_the_scores_and_the_worst_pictures(tmp_path, weights, voc, crf):
    given = ["evaluate", "--weights", weights, *data(voc), crf, "--iterations", 1]
    folder = tmp_path / "report"
    result = done(*given, "--report", folder, "--report-pictures", 1, "--out", tmp_path / "s.json")
    assert f"report -> {folder / 'index.html'}" in result.stdout
    stored = json.loads((folder / "scores.json").read_text())
    assert stored.pop("format").startswith("deeplab evaluation report")
    assert stored == json.loads((tmp_path / "s.json").read_text())
    network = load_model(weights)
    settings = CRFSettings.stored({}, weights).changed({"iterations": 1})
    layer = None if crf == "--no-crf" else settings.layer(21)
    pictures, ranked = open_dataset("voc2012", voc, "val"), []
    for name, (image, truth) in zip(pictures.names, pictures, strict=True):
        labels = Predictor(network, layer)(image).labels
        ranked.append(picture_scores(name, truth, labels, 21))
    ranked.sort()
    rows = list(csv.DictReader((folder / "pictures.csv").open()))
    assert rows == [
        {"picture": o.name, "miou": f"{o.miou:.6f}", "pixel_accuracy": f"{o.accuracy:.6f}"}
        for o in ranked
    ]
    assert [path.name for path in (folder / "worst").iterdir()] == [f"001_{ranked[0].name}.jpg"]
    page = (folder / "index.html").read_text()
    final = stored["network" if layer is None else "crf"]
    assert f"<td>{100 * final['miou']:.2f}</td>" in page
    assert ("<th>with the CRF</th>" in page) == (layer is not None)


def test_a_report_is_refused_before_anything_is_scored(tmp_path, weights, voc, monkeypatch):
    monkeypatch.setattr("deeplab.evaluation.evaluate.evaluate", None)
    given = ["evaluate", "--weights", weights, *data(voc), "--report"]
    place = tmp_path / "notes"
    place.mkdir()
    (place / "mine.txt").write_text("of somebody")
    assert_refused(tmp_path, "--report .*notes must be a new folder, or a report", *given, place)
    assert_refused(voc, "would lie among the files of", *given, voc / "JPEGImages" / "report")
    many = run(*given, tmp_path / "r", "--report-pictures", 201)
    assert many.exit_code == 2
    assert "'--report-pictures'" in many.stderr
    own = [*given, tmp_path / "r", "--predictions", tmp_path / "r" / "p"]
    assert_refused(tmp_path, "would lie in the folder of --report", *own)
    unscored = ["--no-score", "--predictions", tmp_path / "p"]
    assert_refused(tmp_path, "leaves nothing for --report; leave", *given, "r", *unscored)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(tmp_path, r"pip install 'deeplab-triton\[plots\]'", *given, tmp_path / "new")


def test_ctrl_c_leaves_no_part_of_a_report(tmp_path, weights, voc, monkeypatch):
    given = ["evaluate", "--weights", weights, *data(voc), "--no-crf", "--report", tmp_path / "r"]

    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("deeplab.evaluation.report_page.page", interrupted)
    assert run(*given).exit_code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_share_the_pictures_and_prints_the_scores_of_all_once(tmp_path, weights, voc):
    root = shutil.copytree(voc, tmp_path / "VOC2012")
    for path in (root / "JPEGImages").iterdir():
        with Image.open(path) as image:
            image.convert("L").save(path)
    options = ["--weights", weights, *data(root), "--no-crf", "--device", "cpu"]
    report = ["--report", tmp_path / "one", "--report-pictures", 1]
    alone = done("evaluate", *options, "--out", tmp_path / "one.json", *report).stdout
    shared = ["--out", tmp_path / "two.json", "--submission", tmp_path / "up"]
    shared += ["--report", tmp_path / "two", "--report-pictures", 1]
    children = start_two("-m", "deeplab", "evaluate", *map(str, (*options, *shared)))
    told = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    stdout, stderr = ("".join(texts) for texts in zip(*told, strict=True))
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert stdout.count("pixel accuracy") == alone.count("pixel accuracy") == 1
    assert len(re.findall("Note: 2 pictures, such as .*: grey converted", stderr)) == 1
    with tarfile.open(tmp_path / "up" / "results.tgz") as packed:
        assert len(packed.getnames()) == 2


@pytest.mark.slow
def test_a_broken_picture_of_one_process_is_said_once_and_the_other_ends(tmp_path, weights, voc):
    root = shutil.copytree(voc, tmp_path / "VOC2012")
    broken = root / "JPEGImages" / "2007_000002.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    options = ["--weights", weights, *data(root), "--no-crf", "--device", "cpu"]
    children = start_two("-m", "deeplab", "evaluate", *map(str, options))
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [1, 2], errors
    assert re.fullmatch(r"Stopped: another process .*; mend that and start again\n", errors[0])
    assert re.fullmatch(r"Error: .*2007_000002\.jpg.*\n", errors[1])


@pytest.mark.parametrize("name", ["v1.5", "v1.5.csv", "v1.5.png"])
def test_a_curve_keeps_its_name_up_to_the_suffix(tmp_path, name):
    curve = ["--trimap", tmp_path / name]
    done("evaluate", "--scenes", 1, "--data-option", "size=33", "--no-crf", *curve)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v1.5.csv", "v1.5.png"]


def test_segment_and_refine_take_settings_from_a_file(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    (tmp_path / "crf.toml").write_text(SETTINGS.to_toml())
    file = ["--crf-settings", tmp_path / "crf.toml", "--bilateral-weight", 5, "--probabilities"]
    views = ["--scales", "0.75,1", "--flip"]
    done("segment", photo, "--weights", weights, "--out", tmp_path / "a", *file, *views)
    settings = SETTINGS.changed({"bilateral_weight": 5.0})
    image = np.asarray(Image.open(photo))
    network = load_model(weights)
    options = {"scales": (0.75, 1.0), "flip": True}
    expected = Predictor(network, settings.layer(21), **options)(image).probabilities
    found = np.load(tmp_path / "a" / "photo_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.save(tmp_path / "p.npy", Predictor(network, **options)(image).probabilities)
    done("refine", photo, tmp_path / "p.npy", "--out", tmp_path / "b", *file)
    refined = np.load(tmp_path / "b" / "photo_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(refined, expected, atol=2e-3)


def test_refine_says_what_it_would_else_pass_over(tmp_path):
    photo, marks = picture(tmp_path / "photo.png", 20, 30), tmp_path / "marks.png"
    values = np.zeros((20, 30), np.uint8)
    values[2:5, 2:5], values[12:15, 12:15], values[18] = 1, 2, 255
    save(marks, values)
    told = done("refine", photo, marks, "--out", tmp_path / "out", "--iterations", 1).stderr
    assert "marks.png: a grey picture of small values, read as colours" in told
    assert "--indices" in told
    save(marks, values * 100)  # shades that were drawn
    told = done("refine", photo, marks, "--out", tmp_path / "out", "--iterations", 1).stderr
    assert told == ""
    np.save(tmp_path / "p.npy", np.full((2, 20, 30), 0.5, np.float32))
    given = ["refine", photo, tmp_path / "p.npy", "--gt-prob", 0.9]
    assert_refused(tmp_path, "--gt-prob 0.9: .*p.npy holds probabilities", *given)
    matrix = CRFSettings(compatibility=((0.0, 1.0), (1.0, 0.0)))
    (tmp_path / "crf.toml").write_text(matrix.to_toml())
    given = ["refine", photo, marks, "--crf-settings", tmp_path / "crf.toml"]
    assert_refused(tmp_path, "CRF compatibility: scribbles have labels", *given)


@pytest.mark.slow
def test_the_voc_sample_scores(tmp_path, weights):
    if not (SHARED / "voc_sample" / "JPEGImages").is_dir():
        pytest.skip("the VOC sample is not there: it is no part of this project")
    given = ["--data", "voc2012", "--root", SHARED / "voc_sample", "--split", "all"]
    out = tmp_path / "s.json"
    done("evaluate", "--weights", weights, *given, "--iterations", 1, "--out", out)
    stored = json.loads(out.read_text())
    assert stored["images"] == 3
    assert 0 <= stored["crf"]["miou"] < 0.5
    with pytest.raises(InputError):
        CRFSettings.from_toml(out)


def test_the_only_split_of_a_folder_is_taken_and_its_classes_are_no_markup(tmp_path, weights):
    own = tmp_path / "own"
    picture(own / "images" / "a.png", 33, 33)
    label_map(own / "labels" / "a.png", scene(0, 33).labels)
    listing(own / "classes.txt", *(f"[/{i}]" for i in range(21)))
    scores = tmp_path / "scores.json"
    data = ("--data", "folder", "--root", own, "--no-crf", "--out", scores)
    assert "[/3]" in done("evaluate", "--weights", weights, *data).output
    assert json.loads(scores.read_text())["split"] == "all"
