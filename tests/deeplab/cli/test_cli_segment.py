"""`deeplab segment`: what it writes and says, and how it refuses bad input."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import STORED_CRF, assert_refused, done, files, indices, picture, run
from picture_files import png, turned
from PIL import Image
from safetensors.torch import save_file

from deeplab.crf_settings import CRFSettings
from deeplab.data import outputs
from deeplab.data.images import read_image
from deeplab.data.large import reduced
from deeplab.data.legend import with_legend
from deeplab.data.scenes import CLASSES, PALETTE
from deeplab.model import deeplab_v2_small
from deeplab.predict import Predictor, predict
from deeplab.weights import load_model, read_metadata, save_weights


def test_segment_writes_labels_overlay_and_probabilities_and_a_line(tmp_path, weights):
    photo, out = picture(tmp_path / "photo.png"), tmp_path / "out"
    result = done("segment", photo, "--weights", weights, "--out", out, "--probabilities")
    assert files(out) == ["photo_labels.png", "photo_overlay.png", "photo_probabilities.npz"]
    labels = indices(out / "photo_labels.png")
    assert labels.shape == (40, 56)
    with Image.open(out / "photo_labels.png") as colours:
        assert np.array_equal(np.asarray(colours.convert("RGB")), PALETTE[labels])
    stored = np.load(out / "photo_probabilities.npz", allow_pickle=False)
    assert stored["class_names"].tolist() == list(CLASSES)
    assert np.array_equal(stored["palette"], PALETTE[: len(CLASSES)])
    probabilities = stored["probabilities"]
    assert probabilities.shape == (len(CLASSES), 40, 56)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(0), labels)
    assert len(np.unique(labels)) > 1
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{photo}: 56 x 40, {CLASSES[np.bincount(labels.ravel()).argmax()]} ")
    assert str(out / "photo_labels.png") in line
    assert result.stderr == ""


def test_the_overlay_has_a_legend_of_the_classes_unless_that_is_left_out(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    given = ["segment", photo, "--weights", weights, "--out", tmp_path, "--no-crf"]
    done(*given, "--no-legend")
    labels, bare = indices(tmp_path / "photo_labels.png"), tmp_path / "photo_overlay.png"
    expected = outputs.overlay(np.asarray(Image.open(photo)), labels, outputs.full_palette(PALETTE))
    assert np.array_equal(np.asarray(Image.open(bare)), expected)
    done(*given)
    classes = outputs.NamedPalette(outputs.full_palette(PALETTE), CLASSES)
    shown = with_legend(expected, np.bincount(labels.ravel()), classes)
    assert np.array_equal(np.asarray(Image.open(bare)), shown)


OTHER = ["--iterations", "1", "--bilateral-sigma-rgb", "20"]


@pytest.mark.parametrize(
    ("options", "crf"),
    [
        ([], STORED_CRF),
        (OTHER, STORED_CRF | {"iterations": 1, "bilateral_sigma_rgb": 20.0}),
        (["--no-crf"], None),
    ],
    ids=["stored with the weights", "options", "no CRF"],
)
def test_segment_refines_with_the_weights_settings_or_those_given(tmp_path, weights, options, crf):
    photo = picture(tmp_path / "photo.png")
    done("segment", photo, "--weights", weights, "--out", tmp_path, "--probabilities", *options)
    layer = crf and CRFSettings().changed(crf).layer(len(CLASSES))
    expected = predict(load_model(weights), np.asarray(Image.open(photo)), layer)
    found = np.load(tmp_path / "photo_probabilities.npz")["probabilities"]
    np.testing.assert_allclose(found, expected.probabilities, atol=1e-6)


def test_segment_takes_files_folders_and_patterns_each_file_once(tmp_path, weights):
    for name in ("in/b.png", "in/a.jpg", "more/c.png", "more/c.txt"):
        picture(tmp_path / name) if name[-3:] != "txt" else (tmp_path / name).write_text("x")
    given = [tmp_path / "in", tmp_path / "more" / "*.png", tmp_path / "in" / "b.png"]
    result = done("segment", *given, "--weights", weights, "--out", tmp_path / "out", "--no-crf")
    *lines, summary = result.stdout.splitlines()
    names = [Path(line.split(":")[0]).name for line in lines]
    assert names == ["a.jpg", "b.png", "c.png"]
    assert summary.startswith("3 of 3 pictures segmented; ")
    written = [name for name in files(tmp_path / "out") if "labels" in name]
    assert written == ["a_labels.png", "b_labels.png", "c_labels.png"]


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path, weights):
    given = ["1/x.png", "2/x.png", "1/x.bmp"]
    photos = [picture(tmp_path / name, seed=seed) for seed, name in enumerate(given)]
    out = tmp_path / "out"
    done("segment", *photos, "--weights", weights, "--out", out, "--no-crf")
    names = ["1-x-bmp_labels.png", "1-x-png_labels.png", "2-x_labels.png"]
    assert [name for name in files(out) if "labels" in name] == names
    model = load_model(weights)
    for photo, name in zip(photos, ["1-x-png", "2-x", "1-x-bmp"], strict=True):
        expected = predict(model, np.asarray(Image.open(photo))).labels
        assert np.array_equal(indices(out / f"{name}_labels.png"), expected)


def test_pictures_of_other_kinds_are_converted_and_it_is_said(tmp_path, weights):
    rgb = Image.open(picture(tmp_path / "rgb.png"))
    (tmp_path / "rgb.png").unlink()
    grey16 = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    kinds = {
        "alpha.png": (rgb.convert("RGBA"), {}, "RGBA converted to RGB"),
        "cmyk.jpg": (rgb.convert("CMYK"), {}, "CMYK converted to RGB"),
        "deep.png": (Image.fromarray(grey16), {}, "16-bit grey converted"),
        "grey.png": (rgb.convert("L"), {}, "grey converted to RGB"),
        "turned.jpg": (rgb, {"exif": turned(6)}, r"EXIF orientation \(6\)"),
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


def test_segment_can_check_the_model_that_the_weights_are_for(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    named = ["--model", "deeplab_v2_small", "--classes", len(CLASSES)]
    done("segment", photo, "--weights", weights, "--out", tmp_path, "--no-crf", *named)
    expected = predict(load_model(weights), np.asarray(Image.open(photo))).labels
    assert np.array_equal(indices(tmp_path / "photo_labels.png"), expected)


def test_the_weights_called_scenes_say_that_they_know_generated_scenes_only(tmp_path: Path) -> None:
    """They come with the package: fails where they are missing from it."""
    photo = picture(tmp_path / "photo.png", 65, 65)
    result = done("segment", photo, "--weights", "scenes", "--out", tmp_path)
    assert result.stderr.startswith("Note: the weights called scenes know the generated scenes")
    assert len(result.stderr.splitlines()) == 1
    assert indices(tmp_path / "photo_labels.png").shape == (65, 65)


def test_a_single_picture_is_decoded_once_several_are_all_checked_first(
    tmp_path, weights, monkeypatch
):
    photos = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    decoded: list[str] = []

    def counted(path: Path, *more: object) -> object:
        decoded.append(path.stem)
        return read_image(path, *more)

    monkeypatch.setattr("deeplab.data.bands.read_image", counted)
    options = ["--weights", weights, "--out", tmp_path / "out", "--no-crf"]
    done("segment", photos[0], *options)
    done("segment", *photos, *options)
    assert "".join(decoded) == "a" + "abab"


def test_one_bad_picture_among_good_ones_stops_before_anything_is_written(tmp_path, weights):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")  # grey: worth a note
    content = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:-300])
    options = ["--weights", weights, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "b.png: .*truncated", "segment", tmp_path, *options)


def test_segment_refuses_pictures_above_the_limit_which_can_be_raised(tmp_path, weights):
    huge = tmp_path / "huge.png"
    huge.write_bytes(png(12_000, 9_000, 8, 2, b""))  # a header that promises more than there is
    options = ["--weights", weights, "--out", tmp_path / "out"]
    message = "huge.png: 12000 x 9000 pixels are 108.0 megapixels, .*--max-megapixels 109"
    assert_refused(tmp_path, message, "segment", huge, *options, "--max-megapixels", 107)
    for allowed in ([], ["--max-megapixels", 109]):
        damaged = [huge, *options, *allowed]
        assert_refused(tmp_path, "huge.png: .*truncated or damaged", "segment", *damaged)


def test_segment_takes_large_pictures_in_tiles(tmp_path, weights, monkeypatch):
    photo, model = picture(tmp_path / "photo.png", 70, 150), load_model(weights)
    options = ["--weights", weights, "--out", tmp_path, "--iterations", 1]
    settings = CRFSettings.stored(read_metadata(weights)).changed({"iterations": 1})
    crf = settings.refiner(model.num_classes)
    expected = Predictor(model, crf, tile=65, overlap=16)(read_image(photo)[0])
    done("segment", photo, *options, "--tile", 65, "--overlap", 16, "--probabilities")
    found = np.load(tmp_path / "photo_probabilities.npz")["probabilities"]
    np.testing.assert_array_equal(found, expected.probabilities)
    monkeypatch.setattr("deeplab.predict.predictor.fits", lambda *about: False)
    monkeypatch.setattr("deeplab.predict.predictor.TILE", 65)
    result = done("segment", photo, *options, "--overlap", 16)
    assert "photo.png: in tiles of" in result.stderr
    with Image.open(tmp_path / "photo_labels.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    message = "--overlap must be from 0 to half a tile, 32, not 40"
    assert_refused(tmp_path, message, "segment", photo, *options, "--tile", 65, "--overlap", 40)


def test_an_overlay_of_many_pixels_is_drawn_smaller(tmp_path, weights, monkeypatch):
    photo = picture(tmp_path / "photo.png", 41, 60)
    monkeypatch.setattr("deeplab.data.legend.reduced", partial(reduced, most=41 * 60 // 4))
    done("segment", photo, "--weights", weights, "--out", tmp_path, "--no-crf", "--no-legend")
    with Image.open(tmp_path / "photo_labels.png") as labels:
        assert labels.size == (60, 41)
    with Image.open(tmp_path / "photo_overlay.png") as shown:
        assert shown.size == (30, 20)


def test_segment_refuses_inputs_that_are_no_picture(tmp_path, weights):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture at all")
    options = ["--weights", weights, "--out", tmp_path / "out"]
    for given, message in {
        "none.png": "none.png: no such file",
        "text.png": "text.png: no picture could be recognised",
        "empty": "holds no picture",
        "*.jpg": "no file matches",
    }.items():
        assert_refused(tmp_path, message, "segment", tmp_path / given, *options)


def test_segment_refuses_weights_that_do_not_fit(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    (tmp_path / "text.safetensors").write_text("no weights")
    bare = tmp_path / "bare.safetensors"
    save_file(deeplab_v2_small(num_classes=3).state_dict(), bare)
    vgg = ["--model", "deeplab_v2_vgg16"]
    small = ["--model", "deeplab_v2_small"]
    for message, *options in (
        ("of deeplab_v2_small, not of --model deeplab_v2_vgg16", "--weights", weights, *vgg),
        ("for 11 classes, not for 5; leave the", "--weights", weights, *small, "--classes", 5),
        ("for 11 classes, not for 5; leave the", "--weights", weights, "--classes", 5),
        ("--model resnet: unknown; expected one of deeplab_v1_7x7, ", "--model", "resnet"),
        ("no such weights file", "--weights", tmp_path / "none.safetensors"),
        ("not a readable safetensors file", "--weights", tmp_path / "text.safetensors"),
        ("has no weights for deeplab_v2_vgg16: it holds a ResNet", "--weights", bare, *vgg),
        ("for 3 classes, not for 4", "--weights", bare, *small, "--classes", 4),
        ("--msc 0.5 must be none, or 1 and smaller", "--weights", weights, "--msc", "0.5"),
        ("--msc 1,x must be none, or 1 and", "--weights", weights, "--msc", "1,x"),
    ):
        assert_refused(tmp_path, message, "segment", photo, "--out", tmp_path / "out", *options)
    for given in ([*small, "--classes", 3], []):
        options = ["--weights", bare, *given, "--no-crf"]
        told = done("segment", photo, "--out", tmp_path / "out", *options).stderr
        assert "bare.safetensors: without metadata, taken for deeplab_v2_small with 3" in told


def test_segment_computes_in_the_precision_that_is_asked_for(tmp_path, weights):
    photo = picture(tmp_path / "photo.png")
    options = ["--weights", weights, "--out", tmp_path, "--no-crf", "--probabilities"]
    done("segment", photo, *options, "--precision", "bfloat16")
    found = np.load(tmp_path / "photo_probabilities.npz")["probabilities"]
    predictor = Predictor(load_model(weights), precision=torch.bfloat16)
    np.testing.assert_array_equal(found, predictor(np.asarray(Image.open(photo))).probabilities)
    message = "--precision half must be float32, bfloat16, float16 or auto"
    assert_refused(tmp_path, message, "segment", photo, *options, "--precision", "half")


def test_segment_refuses_weights_that_give_nan_naming_the_picture(tmp_path, weights, monkeypatch):
    photo, model = picture(tmp_path / "photo.png"), load_model(weights)
    with torch.no_grad():
        model.head.classifier.bias[0] = float("nan")
    monkeypatch.setattr("deeplab.weights.file.load_model", lambda _path: model)
    options = ["--weights", weights, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "photo.png: .*NaN or Inf", "segment", photo, *options)


def test_segment_refuses_more_classes_than_a_label_map_holds(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(deeplab_v2_small(num_classes=257), path)
    photo = picture(tmp_path / "photo.png")
    options = ["--weights", path, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "257 classes do not fit", "segment", photo, *options)


def test_bad_crf_settings_in_the_weights_are_refused(tmp_path):
    photo = picture(tmp_path / "photo.png")
    path = tmp_path / "w.safetensors"
    for stored, message in (
        ([1, 2], "must hold settings by name"),
        ({"s": 1}, "unknown s;"),
        ({"iterations": 2.5}, "CRF iterations must be an integer"),
        ({"gaussian_weight": True}, "CRF gaussian_weight must be a number, not True"),
    ):
        save_weights(deeplab_v2_small(num_classes=3), path, {"crf": stored})
        options = ["--weights", path, "--out", tmp_path / "out"]
        assert_refused(tmp_path, f"w.safetensors: .*{message}", "segment", photo, *options)


def test_ctrl_c_exits_with_130_and_leaves_whole_files(tmp_path, weights, monkeypatch):
    photos = [picture(tmp_path / name) for name in ("a.png", "b.png")]
    calls = []

    class Interrupted(Predictor):
        def __call__(self, images, **options):
            calls.append(images)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(images, **options)

    monkeypatch.setattr("deeplab.predict.Predictor", Interrupted)
    out = tmp_path / "out"
    result = run("segment", *photos, "--weights", weights, "--out", out, "--no-crf", "--workers", 1)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["Interrupted; every file written so far is complete."]
    assert files(out) == ["a_labels.png", "a_overlay.png"]
