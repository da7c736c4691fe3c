"""The command line: what each command writes and says, and how it refuses bad input."""

import dataclasses
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from deeplab import cli
from deeplab.data.scenes import CLASSES, PALETTE, scene
from deeplab.engine.predict import predict
from deeplab.engine.refine import CRFSettings
from deeplab.engine.train import TrainConfig
from deeplab.model import deeplab_v2_small
from deeplab.weights import load_model, read_metadata, save_weights

EXAMPLES = Path(__file__).parents[3] / "shared" / "data" / "pydensecrf"
STORED_CRF = dataclasses.asdict(CRFSettings(2, 2.0, 2.0, 3.0, 20.0, 8.0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as training leaves them, but random."""
    torch.manual_seed(0)
    model = deeplab_v2_small(num_classes=len(CLASSES))
    with torch.no_grad():  # probabilities that a CRF can still change
        model.head.classifier.weight.mul_(0.1)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    palette = PALETTE[: len(CLASSES)].tolist()
    about = {"class_names": list(CLASSES), "palette": palette, "crf": STORED_CRF}
    save_weights(model, path, about)
    return path


def run(*args: object):
    """The command's result; an exception that is not an exit is a failure of the test."""
    result = CliRunner().invoke(cli.app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*args: object):
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def assert_refused(tmp_path: Path, message: str, *args: object) -> None:
    """Status 2, one line on standard error that matches, and no file new or changed."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = run(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(message, lines[0]), lines[0]
    assert result.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def picture(path: Path, height: int = 40, width: int = 56, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, (height, width)).image).save(path)
    return path


def header_only_png(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def indices(path: Path) -> np.ndarray:
    with Image.open(path) as labels:
        assert labels.mode == "P"
        return np.asarray(labels)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# What segment writes and says


def test_segment_writes_labels_overlay_and_probabilities_and_a_line(
    tmp_path: Path, weights: Path
) -> None:
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "out"
    result = done("segment", photo, "--weights", weights, "--out", out, "--probabilities")
    assert files(out) == ["photo_labels.png", "photo_overlay.png", "photo_probabilities.npz"]
    labels = indices(out / "photo_labels.png")
    assert labels.shape == (40, 56)
    with Image.open(out / "photo_labels.png") as colours:
        assert np.array_equal(np.asarray(colours.convert("RGB")), PALETTE[labels])
    probabilities = np.load(out / "photo_probabilities.npz")["probabilities"]
    assert probabilities.shape == (len(CLASSES), 40, 56)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(0), labels)
    assert len(np.unique(labels)) > 1
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{photo}: 56 x 40, {CLASSES[np.bincount(labels.ravel()).argmax()]} ")
    assert str(out / "photo_labels.png") in line
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], CRFSettings(**STORED_CRF)),
        (
            ["--iterations", "1", "--bilateral-sigma-rgb", "20"],
            CRFSettings(**STORED_CRF | {"iterations": 1, "bilateral_sigma_rgb": 20.0}),
        ),
        (["--no-crf"], None),
    ],
    ids=["stored with the weights", "options", "no CRF"],
)
def test_segment_refines_with_the_weights_settings_unless_told_otherwise(
    tmp_path: Path, weights: Path, options: list[str], settings: CRFSettings | None
) -> None:
    photo = picture(tmp_path / "photo.png")
    done("segment", photo, "--weights", weights, "--out", tmp_path, "--probabilities", *options)
    layer = None if settings is None else settings.layer(len(CLASSES))
    expected = predict(load_model(weights), np.asarray(Image.open(photo)), layer)
    found = np.load(tmp_path / "photo_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-6)


def test_segment_takes_files_folders_and_patterns_each_file_once(
    tmp_path: Path, weights: Path
) -> None:
    for name in ("in/b.png", "in/a.jpg", "more/c.png", "more/c.txt"):
        picture(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).write_text("x")
    given = [tmp_path / "in", tmp_path / "more" / "*.png", tmp_path / "in" / "b.png"]
    result = done("segment", *given, "--weights", weights, "--out", tmp_path / "out", "--no-crf")
    assert [Path(line.split(":")[0]).name for line in result.stdout.splitlines()] == [
        "a.jpg",
        "b.png",
        "c.png",
    ]
    assert [name for name in files(tmp_path / "out") if "labels" in name] == [
        "a_labels.png",
        "b_labels.png",
        "c_labels.png",
    ]


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path: Path, weights: Path) -> None:
    photos = [
        picture(tmp_path / f, seed=s) for s, f in enumerate(["1/x.png", "2/x.png", "1/x.bmp"])
    ]
    out = tmp_path / "out"
    done("segment", *photos, "--weights", weights, "--out", out, "--no-crf")
    names = ["1-x-bmp_labels.png", "1-x-png_labels.png", "2-x_labels.png"]
    assert [name for name in files(out) if "labels" in name] == names
    model = load_model(weights)
    for photo, name in zip(photos, ["1-x-png", "2-x", "1-x-bmp"], strict=True):
        expected = predict(model, np.asarray(Image.open(photo))).labels
        assert np.array_equal(indices(out / f"{name}_labels.png"), expected)


def test_pictures_of_other_kinds_are_converted_and_it_is_said(
    tmp_path: Path, weights: Path
) -> None:
    rgb = Image.open(picture(tmp_path / "rgb.png"))
    (tmp_path / "rgb.png").unlink()
    grey16 = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "alpha.png": (rgb.convert("RGBA"), {}, "transparency laid on white"),
        "cmyk.jpg": (rgb.convert("CMYK"), {}, "CMYK converted to RGB"),
        "deep.png": (Image.fromarray(grey16), {}, "16-bit grey converted"),
        "grey.png": (rgb.convert("L"), {}, "grey converted to RGB"),
        "turned.jpg": (rgb, {"exif": exif}, r"EXIF orientation \(6\)"),
    }
    for name, (image, options, _) in kinds.items():
        image.save(tmp_path / name, **options)
    out = tmp_path / "out"
    result = done("segment", tmp_path, "--weights", weights, "--out", out, "--no-crf")
    assert len(result.stderr.splitlines()) == len(kinds)
    for line, (name, (_, _, note)) in zip(result.stderr.splitlines(), kinds.items(), strict=True):
        assert re.search(f"^Note: .*{name}: .*{note}", line)
    assert indices(out / "turned_labels.png").shape == (56, 40)
    assert np.array_equal(indices(out / "deep_labels.png"), indices(out / "grey_labels.png"))


def test_segment_can_check_the_model_that_the_weights_are_for(
    tmp_path: Path, weights: Path
) -> None:
    photo = picture(tmp_path / "photo.png")
    named = ["--model", "deeplab_v2_small", "--classes", len(CLASSES)]
    done("segment", photo, "--weights", weights, "--out", tmp_path, "--no-crf", *named)
    expected = predict(load_model(weights), np.asarray(Image.open(photo))).labels
    assert np.array_equal(indices(tmp_path / "photo_labels.png"), expected)


def test_the_shipped_weights_say_that_they_know_generated_scenes_only(tmp_path: Path) -> None:
    """The default weights of the package: fails where they are missing from it."""
    photo = picture(tmp_path / "photo.png", 65, 65)
    result = done("segment", photo, "--out", tmp_path)
    assert result.stderr.startswith("Note: the shipped weights know the generated scenes")
    assert len(result.stderr.splitlines()) == 1
    assert indices(tmp_path / "photo_labels.png").shape == (65, 65)


# What segment refuses


def test_segment_refuses_pictures_that_cannot_be_read(tmp_path: Path, weights: Path) -> None:
    whole = picture(tmp_path / "whole.png").read_bytes()
    bad = {
        "cut.png": (whole[: len(whole) // 2], "truncated or damaged"),
        "empty.png": (b"", "is empty"),
        "text.png": (b"no picture at all", "no picture could be recognised"),
        "zero.ppm": (b"P6 0 0 255\n", "zero size"),
    }
    options = ["--weights", weights, "--out", tmp_path / "out"]
    for name, (content, message) in bad.items():
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path, f"{name}: .*{message}", "segment", tmp_path / name, *options)
    assert_refused(tmp_path, "none.png: no such file", "segment", tmp_path / "none.png", *options)


def test_one_bad_picture_among_good_ones_stops_before_anything_is_written(
    tmp_path: Path, weights: Path
) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")  # grey: worth a note
    content = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:-300])
    options = ["--weights", weights, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "b.png: .*truncated", "segment", tmp_path, *options)


def test_segment_refuses_pictures_above_the_limit_which_can_be_raised(
    tmp_path: Path, weights: Path
) -> None:
    huge = header_only_png(tmp_path / "huge.png", 12_000, 9_000)
    options = ["--weights", weights, "--out", tmp_path / "out"]
    message = "huge.png: 12000 x 9000 pixels are 108.0 megapixels, .*--max-megapixels 109"
    assert_refused(tmp_path, message, "segment", huge, *options)
    raised = [*options, "--max-megapixels", 109]
    assert_refused(tmp_path, "huge.png: .*truncated or damaged", "segment", huge, *raised)


def test_segment_refuses_inputs_that_hold_no_picture(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = ["--weights", weights, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "holds no picture", "segment", tmp_path / "empty", *options)
    assert_refused(tmp_path, "no file matches", "segment", tmp_path / "*.jpg", *options)


def test_segment_refuses_weights_that_do_not_fit(tmp_path: Path, weights: Path) -> None:
    photo = picture(tmp_path / "photo.png")
    (tmp_path / "text.safetensors").write_text("no weights")
    bare = tmp_path / "bare.safetensors"
    from safetensors.torch import save_file

    save_file(deeplab_v2_small(num_classes=3).state_dict(), bare)
    vgg = ["--model", "deeplab_v2_vgg16"]
    small = ["--model", "deeplab_v2_small"]
    for message, *options in (
        ("of deeplab_v2_small, not of --model deeplab_v2_vgg16", "--weights", weights, *vgg),
        ("for 11 classes, not for --classes 5", "--weights", weights, *small, "--classes", 5),
        ("--classes 5: give --model", "--weights", weights, "--classes", 5),
        ("--model resnet: unknown; expected one of deeplab_v1_7x7, ", "--model", "resnet"),
        ("no such weights file", "--weights", tmp_path / "none.safetensors"),
        ("not a readable safetensors file", "--weights", tmp_path / "text.safetensors"),
        ("do not say which model", "--weights", bare),
        ("does not say how many classes", "--weights", bare, *small),
        ("do not fit deeplab_v2_small with 4", "--weights", bare, *small, "--classes", 4),
    ):
        assert_refused(tmp_path, message, "segment", photo, "--out", tmp_path / "out", *options)
    with_all = ["--weights", bare, *small, "--classes", 3, "--no-crf"]
    done("segment", photo, "--out", tmp_path / "out", *with_all)


def test_segment_refuses_weights_that_give_nan_and_names_the_picture(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture(tmp_path / "photo.png")

    def diverged(path: Path):
        model = load_model(path)
        with torch.no_grad():
            model.head.classifier.bias[0] = float("nan")
        return model

    monkeypatch.setattr("deeplab.weights.load_model", diverged)
    options = ["--weights", weights, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "photo.png: .*NaN or Inf", "segment", photo, *options)


def test_segment_refuses_more_classes_than_a_label_map_holds(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(num_classes=257), path)
    photo = picture(tmp_path / "photo.png")
    options = ["--weights", path, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "257 classes do not fit", "segment", photo, *options)


@pytest.mark.parametrize("command", ["segment", "refine", "demo", "train"])
def test_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, weights: Path, command: str
) -> None:
    photo, marks = picture(tmp_path / "photo.png"), picture(tmp_path / "marks.png")
    (tmp_path / "file").write_text("not a folder")
    given = {
        "segment": [photo, "--weights", weights],
        "refine": [photo, marks],
        "demo": [],
        "train": ["--steps", 1],
    }
    out = tmp_path / "file" / "out"
    assert_refused(tmp_path, "output folder", command, *given[command], "--out", out)


def test_results_never_overwrite_inputs(tmp_path: Path, weights: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a_labels.png")
    options = ["--weights", weights, "--out", tmp_path]
    message = "a_labels.png: is an input"
    assert_refused(tmp_path, message, "segment", tmp_path, *options)
    given = [tmp_path / "a.png", tmp_path / "a_labels.png"]
    assert_refused(tmp_path, message, "refine", *given, "--out", tmp_path)


def test_crf_options_without_sense_are_refused_by_name(tmp_path: Path, weights: Path) -> None:
    photo = picture(tmp_path / "photo.png")
    options = ["--weights", weights, "--out", tmp_path / "out"]
    for option, name in {
        "--iterations": "iterations",
        "--gaussian-weight": "gaussian weight",
        "--gaussian-sigma": "gaussian sigma",
        "--bilateral-weight": "bilateral weight",
        "--bilateral-sigma-xy": "bilateral sigma xy",
        "--bilateral-sigma-rgb": "bilateral sigma rgb",
    }.items():
        assert_refused(tmp_path, f"CRF {name}: ", "segment", photo, *options, f"{option}=-1")


def test_widths_that_a_lattice_cannot_hold_are_one_line(tmp_path: Path, weights: Path) -> None:
    photo, marks, _ = scribbled(tmp_path)
    narrow = ["--gaussian-sigma", "1e-9"]
    message = "features are too large.*larger sigma"
    options = ["--weights", weights, *narrow]
    place = ["--out", tmp_path / "out"]
    assert_refused(tmp_path, f"photo.png: {message}", "segment", photo, *options, *place)
    assert_refused(tmp_path, f"marks.png: {message}", "refine", photo, marks, *narrow, *place)
    assert_refused(tmp_path, f"scenes test: {message}", "evaluate", "--scenes", 1, *options)


def test_bad_crf_settings_in_the_weights_are_refused(tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.png")
    for stored, message in (
        ([1, 2], "w.safetensors: .*expected settings by name"),
        ({"s": 1}, "w.safetensors: .*unknown s;"),
        ({"iterations": 2.5}, "w.safetensors: .*iterations: expected an integer"),
        ({"gaussian_weight": True}, "w.safetensors: .*expected a number of 0 or more, got True"),
    ):
        path = tmp_path / "w.safetensors"
        save_weights(deeplab_v2_small(num_classes=3), path, {"crf": stored})
        options = ["--weights", path, "--out", tmp_path / "out"]
        assert_refused(tmp_path, message, "segment", photo, *options)


def test_ctrl_c_exits_with_130_and_leaves_whole_files(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    calls = []

    def interrupted(model, image, layer, **options):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(model, image, layer)

    monkeypatch.setattr("deeplab.engine.predict.predict", interrupted)
    out = tmp_path / "out"
    result = run("segment", *photos, "--weights", weights, "--out", out, "--no-crf")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["Interrupted; every file written so far is complete."]
    assert files(out) == ["a_labels.png", "a_overlay.png"]


# refine


@pytest.mark.parametrize("number", [1, 3])
def test_refine_on_photographs_gives_the_colours_of_pydensecrfs_example(
    tmp_path: Path, number: int
) -> None:
    photo, marks = EXAMPLES / f"im{number}.png", EXAMPLES / f"anno{number}.png"
    if not photo.is_file():
        pytest.skip(f"{photo} is not there: the example photographs are not part of this project")
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    from pydensecrf import utils

    image = np.asarray(Image.open(photo))
    colours, labels = np.unique(
        np.asarray(Image.open(marks).convert("RGB")).reshape(-1, 3), axis=0, return_inverse=True
    )
    assert not colours[0].any()  # black comes first, so it is label 0: unsure
    model = dcrf.DenseCRF(labels.size, len(colours) - 1)
    model.setUnaryEnergy(utils.unary_from_labels(labels.ravel(), len(colours) - 1, gt_prob=0.7))
    model.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 3), image.shape[:2]), compat=3)
    features = utils.create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2)
    model.addPairwiseEnergy(features, compat=10)
    expected = colours[1:][np.argmax(model.inference(5), axis=0)].reshape(image.shape)

    done("refine", photo, marks, "--out", tmp_path)
    with Image.open(tmp_path / f"im{number}_labels.png") as found:
        assert np.array_equal(np.asarray(found.convert("RGB")), expected)


def scribbled(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """A picture of two halves, marks on each, and the true labels."""
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 12:] = 1
    grey = np.where(truth == 1, 200, 40).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "photo.png")
    marks = np.zeros((20, 30, 3), np.uint8)
    marks[8:12, 3:6], marks[8:12, 20:25] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(marks).save(tmp_path / "marks.png")
    return tmp_path / "photo.png", tmp_path / "marks.png", truth


def test_refine_spreads_scribbles_and_names_labels_by_their_colours(tmp_path: Path) -> None:
    photo, marks, truth = scribbled(tmp_path)
    out = tmp_path / "out"
    result = done("refine", photo, marks, "--out", out)
    assert files(out) == ["photo_labels.png", "photo_overlay.png"]
    assert np.array_equal(indices(out / "photo_labels.png"), truth)
    assert "#0000ff 60.0%, #ff0000 40.0%" in result.stdout


def test_refine_takes_the_label_maps_own_name(tmp_path: Path) -> None:
    photo, marks, truth = scribbled(tmp_path)
    done("refine", photo, marks, "--out", tmp_path / "out" / "result.png", "--probabilities")
    assert files(tmp_path / "out") == [
        "result.png",
        "result_overlay.png",
        "result_probabilities.npz",
    ]
    assert np.array_equal(indices(tmp_path / "out" / "result.png"), truth)


def test_refine_says_how_it_read_a_palette_picture(tmp_path: Path) -> None:
    photo, marks, _ = scribbled(tmp_path)
    assert done("refine", photo, marks, "--out", tmp_path / "out").stderr == ""
    Image.open(marks).quantize(4).save(marks)
    told = done("refine", photo, marks, "--out", tmp_path / "out").stderr
    assert "marks.png: a palette picture, read by its colours" in told
    assert "--indices" in told


def test_refine_refuses_to_name_a_label_map_other_than_png(tmp_path: Path) -> None:
    photo, marks, _ = scribbled(tmp_path)
    out = ["--out", tmp_path / "labels.jpg"]
    assert_refused(tmp_path, "labels.jpg: .*name it .png", "refine", photo, marks, *out)


def test_refine_takes_class_indices(tmp_path: Path) -> None:
    photo, marks, truth = scribbled(tmp_path)
    values = np.full(truth.shape, 255, np.uint8)
    values[8:12, 3:6], values[8:12, 20:25] = 4, 2
    Image.fromarray(values).save(marks)
    done("refine", photo, marks, "--indices", "--classes", 6, "--out", tmp_path)
    assert np.array_equal(indices(tmp_path / "photo_labels.png"), np.where(truth == 1, 2, 4))
    for message, *options in (
        (r"marks.png: class index 4 at row 8, column 3", "--indices", "--classes", 3),
        ("--classes 3: only counts with --indices", "--classes", 3),
    ):
        assert_refused(tmp_path, message, "refine", photo, marks, *options)


def test_refining_saved_probabilities_is_segmenting_with_the_crf(
    tmp_path: Path, weights: Path
) -> None:
    photo = picture(tmp_path / "photo.png")
    numbers = {k: v for k, v in STORED_CRF.items() if v is not None}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in numbers.items()]
    given = ["--weights", weights, "--probabilities"]
    done("segment", photo, *given, "--out", tmp_path / "crf")
    done("segment", photo, *given, "--out", tmp_path / "plain", "--no-crf")
    plain = tmp_path / "plain" / "photo_probabilities.npz"
    assert np.load(plain)["probabilities"].min() > 1e-5  # smaller ones are clipped
    done("refine", photo, plain, "--out", tmp_path / "refined", *options)
    refined = indices(tmp_path / "refined" / "photo_labels.png")
    assert np.array_equal(refined, indices(tmp_path / "crf" / "photo_labels.png"))
    assert not np.array_equal(refined, indices(tmp_path / "plain" / "photo_labels.png"))


def test_refine_refuses_annotations_and_probabilities_that_do_not_fit(tmp_path: Path) -> None:
    photo, marks, _ = scribbled(tmp_path)
    Image.open(photo).convert("L").save(photo)  # grey: worth a note, but not beside an error
    small = picture(tmp_path / "small.png", 19, 30)
    even = np.full((3, 20, 30), 1 / 3, np.float32)
    for name, array in {
        "shape.npy": even[:, :19],
        "nan.npy": np.where(np.arange(30) == 7, np.nan, even),
        "inf.npy": np.where(np.arange(30) == 7, np.inf, even),
        "logits.npy": even * 5,
    }.items():
        np.save(tmp_path / name, array)
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    for name, message in {
        "none.png": "none.png: no such file",
        "small.png": "small.png: the annotation is 30 x 19 pixels, the image 30 x 20",
        "shape.npy": r"shape.npy: shape \[3, 19, 30\] does not fit the image, 20 high and 30 wide",
        "nan.npy": "nan.npy: 60 of 1800 values are NaN or Inf",
        "inf.npy": "inf.npy: 60 of 1800 values are NaN or Inf",
        "logits.npy": "logits.npy: not probabilities",
        "broken.npz": "broken.npz: cannot be read",
        "none.npz": "none.npz: no such file",
    }.items():
        out = ["--out", tmp_path / "out"]
        assert_refused(tmp_path, message, "refine", photo, tmp_path / name, *out)
    assert_refused(tmp_path, "gt_prob", "refine", photo, marks, "--gt-prob", "0.5")
    assert_refused(tmp_path, "30 x 20 pixels, the image 30 x 19", "refine", small, marks)
    assert_refused(
        tmp_path, "holds probabilities", "refine", photo, tmp_path / "n.npy", "--indices"
    )


# train and evaluate


TINY = ["--steps", 2, "--batch-size", 2, "--crop", 33, "--scenes", 2, "--validation-scenes", 1]


def test_train_writes_weights_that_evaluate_and_segment_take(tmp_path: Path) -> None:
    out = tmp_path / "new" / "w.safetensors"
    result = done("train", "--out", out, *TINY, "--workers", 0, "--precision", "float32")
    assert re.match(
        r"deeplab_v2_small: 2 of 2 steps, loss [\d.]+, mIoU [\d.]+ on 1 ", result.stdout
    )
    recipe = read_metadata(out)["recipe"]
    assert (recipe["steps"], recipe["crop"], recipe["lr"]) == (2, 33, TrainConfig().lr)

    record = tmp_path / "scores.json"
    result = done("evaluate", "--weights", out, "--scenes", 1, "--iterations", 1, "--out", record)
    assert re.search(r"score .* before .* after", result.stdout)
    scores = json.loads(record.read_text())
    assert (scores["images"], scores["data"], scores["split"]) == (1, "scenes", "test")
    assert scores["crf_settings"]["iterations"] == 1
    assert f"{100 * scores['network']['miou']:.2f}" in result.stdout
    assert f"{100 * scores['crf']['miou']:.2f}" in result.stdout


def test_train_without_options_is_the_recipe_of_the_shipped_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(config: TrainConfig, *args: object, **kwargs: object) -> None:
        assert config == TrainConfig()
        raise Stop

    monkeypatch.setattr("deeplab.engine.train.train", stop)
    with pytest.raises(Stop):
        run("train", "--out", tmp_path / "w.safetensors")


def test_train_shows_the_defaults_of_the_recipe() -> None:
    text = done("train", "--help").stdout
    options = text.split("--model")[1].split("--help")[0].split("--")
    shown = {o.split()[0]: re.search(r"default: +\((.*?)\)", o) for o in options[1:]}
    assert {"steps", "lr", "crop", "batch-size"} <= set(shown)
    for name, default in shown.items():
        assert default is not None, name
        assert default[1] == str(getattr(TrainConfig(), name.replace("-", "_")))


def test_train_and_evaluate_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(num_classes=3), path)
    out = ["--out", tmp_path / "new.safetensors"]
    assert_refused(tmp_path, "--lr: expected a positive number, got -1", "train", "--lr=-1", *out)
    assert_refused(tmp_path, "--batch-size: expected", "train", "--batch-size=0", *out)
    assert_refused(
        tmp_path, "--model: expected one of deeplab_v1_7x7, ", "train", "--model=unet", *out
    )
    message = "weights for 3 classes, the scenes have 11"
    assert_refused(tmp_path, message, "evaluate", "--weights", path)
    for count in (0, 1_000_001):  # the validation scenes end where the test scenes start
        assert_refused(tmp_path, "--scenes: expected 1 to 1000000", "evaluate", "--scenes", count)


def test_interrupted_training_exits_with_130_and_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeplab.engine.train import TrainResult

    model = deeplab_v2_small(num_classes=3)
    stopped = TrainResult(model, 7, True, 1.5, {"miou": 0.25})
    monkeypatch.setattr("deeplab.engine.train.train", lambda *args, **kwargs: stopped)
    result = run("train", "--out", tmp_path / "w.safetensors")
    assert result.exit_code == 130
    assert f"7 of {TrainConfig().steps} steps, loss 1.500, mIoU 25.00" in result.stdout


def test_diverged_training_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: object, **kwargs: object) -> None:
        raise FloatingPointError("the loss is nan at step 3: training diverged; lower lr")

    monkeypatch.setattr("deeplab.engine.train.train", diverge)
    out = ["--out", tmp_path / "w.safetensors"]
    assert_refused(tmp_path, "the loss is nan at step 3", "train", *out)


# The program itself


@pytest.mark.parametrize("command", ["segment", "refine", "train", "evaluate", "tune-crf", "demo"])
def test_every_command_teaches_itself_with_examples(command: str) -> None:
    text = done(command, "--help").stdout
    assert "Example" in text
    assert f"deeplab {command} " in text
    assert command in done("--help").stdout


def test_wrong_usage_exits_with_2() -> None:
    for args in (["segment"], ["segment", "--nonsense"], ["nonsense"], ["refine", "one"]):
        result = run(*args)
        assert result.exit_code == 2
        assert result.stdout == ""


@pytest.mark.parametrize(("option", "shown"), [("--help", "segment"), ("--version", "torch ")])
def test_it_runs_as_a_module(option: str, shown: str) -> None:
    command = [sys.executable, "-m", "deeplab", option]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert shown in result.stdout
