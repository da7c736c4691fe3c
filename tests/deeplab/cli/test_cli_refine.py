"""`deeplab refine`: scribbles, class indices and probabilities, and how bad input is refused."""

import re

import numpy as np
from commands import STORED_CRF, assert_refused, done, files, indices, picture, scribbled
from picture_files import png, save, soft_drawing
from PIL import Image

from deeplab.data import outputs
from deeplab.data.legend import with_legend
from kernels import memory


def test_refine_spreads_scribbles_and_names_labels_by_their_colours(tmp_path):
    photo, marks, truth = scribbled(tmp_path)
    out = tmp_path / "out"
    result = done("refine", photo, marks, "--out", out)
    assert files(out) == ["photo_labels.png", "photo_overlay.png"]
    assert np.array_equal(indices(out / "photo_labels.png"), truth)
    assert "#0000ff 60.0%, #ff0000 40.0%" in result.stdout
    palette = outputs.full_palette([[255, 0, 0], [0, 0, 255]])
    classes = outputs.NamedPalette(palette, ["#ff0000", "#0000ff"])
    image = np.asarray(Image.open(photo))
    bare = outputs.overlay(image, truth, palette)
    shown = with_legend(bare, np.bincount(truth.ravel()), classes)
    assert np.array_equal(np.asarray(Image.open(out / "photo_overlay.png")), shown)
    done("refine", photo, marks, "--out", out, "--no-legend")
    assert np.array_equal(np.asarray(Image.open(out / "photo_overlay.png")), bare)


def test_refine_keeps_the_names_and_colours_that_come_with_probabilities(tmp_path):
    photo, _, truth = scribbled(tmp_path)
    softmax = tmp_path / "p.npz"
    foreground = np.where(truth, 0.9, 0.1).astype(np.float32)
    about = {"class_names": np.array(["road", "Gebäude"]), "palette": [[9, 8, 7], [40, 50, 60]]}
    np.savez(softmax, probabilities=np.stack([1 - foreground, foreground]), **about)
    again = tmp_path / "1" / "photo_probabilities.npz"  # what was written the first time
    for given, out in ((softmax, tmp_path / "1"), (again, tmp_path / "2")):
        result = done("refine", photo, given, "--out", out, "--probabilities", "--iterations", 1)
        assert "Gebäude 60.0%, road 40.0%" in result.stdout
        with Image.open(out / "photo_labels.png") as colours:
            shown = np.asarray(colours.convert("RGB"))
        assert np.array_equal(shown, np.array(about["palette"])[truth])
        stored = np.load(out / "photo_probabilities.npz", allow_pickle=False)
        assert stored["class_names"].tolist() == ["road", "Gebäude"]
        assert stored["palette"].tolist() == about["palette"]


def test_refine_takes_pictures_of_any_size_that_the_memory_holds(tmp_path, monkeypatch):
    photo, marks, truth = scribbled(tmp_path)
    softmax = tmp_path / "p.npy"
    np.save(softmax, np.where(truth, 0.9, 0.1))
    corners_and_labels = 24 * (3 + 6) + 16 * 2
    for given, a_pixel, message in (
        (marks, 99, r"photo.png: 30 x 20 pixels take at least 0\.0 GB to refine"),
        (marks, corners_and_labels - 1, "marks.png: not enough memory to refine it"),
        (softmax, corners_and_labels - 1, "p.npy: not enough memory to refine it"),
    ):
        monkeypatch.setattr(memory, "available", lambda device, n=a_pixel: n * truth.size)
        assert_refused(tmp_path, message, "refine", photo, given, "--out", tmp_path / "out")
    monkeypatch.undo()
    photo.write_bytes(png(12_000, 9_000, 8, 2, b""))  # a header that promises more than there is
    for limit, message in ((107, "108.0 megapixels, above the limit"), (109, "truncated")):
        given = [photo, marks, "--out", tmp_path / "out"]
        assert_refused(tmp_path, message, "refine", *given, "--max-megapixels", limit)
    assert_refused(tmp_path, "truncated", "refine", photo, marks, "--out", tmp_path / "out")


def test_refine_takes_the_label_maps_own_name(tmp_path):
    photo, marks, truth = scribbled(tmp_path)
    done("refine", photo, marks, "--out", tmp_path / "out" / "result.png", "--probabilities")
    names = ["result.png", "result_overlay.png", "result_probabilities.npz"]
    assert files(tmp_path / "out") == names
    assert np.array_equal(indices(tmp_path / "out" / "result.png"), truth)


def test_refine_says_how_it_read_a_palette_picture(tmp_path):
    photo, marks, _ = scribbled(tmp_path)
    assert done("refine", photo, marks, "--out", tmp_path / "out").stderr == ""
    Image.open(marks).quantize(4).save(marks)
    told = done("refine", photo, marks, "--out", tmp_path / "out").stderr
    assert "marks.png: a palette picture, read by its colours" in told
    assert "--indices" in told


def test_refine_takes_a_mask_and_the_probability_of_foreground(tmp_path):
    photo, _, truth = scribbled(tmp_path)
    wrong = np.roll(truth, 2, axis=1)  # the edge is off by two pixels
    wrong[:, :2] = 0
    mask, softmax, out = tmp_path / "mask.png", tmp_path / "p.npy", tmp_path / "out"
    Image.fromarray(wrong * 255).save(mask)
    np.save(softmax, np.where(wrong, 0.7, 0.3))
    for given, how in ((mask, "a mask of two labels"), (softmax, "the probability of foreground")):
        result = done("refine", photo, given, "--out", out, "--probabilities")
        assert np.array_equal(indices(out / "photo_labels.png"), truth)
        assert "foreground 60.0%, background 40.0%" in result.stdout
        assert re.fullmatch(f"Note: {given}: .*read as {how}.*\n", result.stderr)
        assert np.load(out / "photo_probabilities.npz")["probabilities"].shape == (2, 20, 30)


def test_refine_mends_soft_edges_with_the_number_of_colours(tmp_path):
    drawn, inside = soft_drawing([(255, 0, 0), (0, 0, 255)], 6)
    photo, marks = picture(tmp_path / "photo.png", 90, 120), save(tmp_path / "marks.png", drawn)
    options = ["--out", tmp_path / "out", "--iterations", 0]  # the annotation as it was read
    told = done("refine", photo, marks, *options).stderr
    assert re.fullmatch(r"Note: .*marks.png: \d+ of its \d+ colours .* --colours 2\n", told)
    result = done("refine", photo, marks, *options, "--colours", 2)
    assert result.stderr == ""
    labels = indices(tmp_path / "out" / "photo_labels.png")
    assert set(labels[inside == 1]) == {0}
    assert set(labels[inside == 2]) == {1}
    for message, *more in (
        (r"marks.png: --colours 999 must be 1 to \d+", "--colours", 999),
        ("--colours 2: only counts with an annotation by colours", "--colours", 2, "--indices"),
    ):
        assert_refused(tmp_path, message, "refine", photo, marks, *more)


def test_refine_refuses_to_name_a_label_map_other_than_png(tmp_path):
    photo, marks, _ = scribbled(tmp_path)
    out = ["--out", tmp_path / "labels.jpg"]
    assert_refused(tmp_path, "labels.jpg: .*name it .png", "refine", photo, marks, *out)


def test_refine_takes_class_indices(tmp_path):
    photo, marks, truth = scribbled(tmp_path)
    values = np.full(truth.shape, 255, np.uint8)
    values[8:12, 3:6], values[8:12, 20:25] = 4, 2
    Image.fromarray(values).save(marks)
    done("refine", photo, marks, "--indices", "--classes", 6, "--out", tmp_path)
    assert np.array_equal(indices(tmp_path / "photo_labels.png"), np.where(truth == 1, 2, 4))
    for message, *options in (
        (r"marks.png: class index 4 at row 8, column 3", "--indices", "--classes", 3),
        (r"--classes 3: only counts with class indices \(--indices\)", "--classes", 3),
    ):
        assert_refused(tmp_path, message, "refine", photo, marks, *options)


def test_refining_saved_probabilities_is_segmenting_with_the_crf(tmp_path, weights):
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


def test_refine_refuses_annotations_and_probabilities_that_do_not_fit(tmp_path):
    photo, marks, _ = scribbled(tmp_path)
    Image.open(photo).convert("L").save(photo)  # grey: worth a note, but not beside an error
    small = picture(tmp_path / "small.png", 19, 30)
    np.save(tmp_path / "shape.npy", np.full((3, 19, 30), 1 / 3, np.float32))
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    for name, message in {
        "none.png": "none.png: no such file",
        "small.png": "small.png: the annotation is 30 x 19 pixels, the image 30 x 20",
        "shape.npy": r"shape.npy: shape \[3, 19, 30\] does not fit the image, 20 high and 30 wide",
        "broken.npz": "broken.npz: cannot be read",
        "none.npz": "none.npz: no such file",
    }.items():
        given = ["refine", photo, tmp_path / name, "--out", tmp_path / "out"]
        assert_refused(tmp_path, message, *given)
    assert_refused(tmp_path, "gt_prob", "refine", photo, marks, "--gt-prob", "0.5")
    assert_refused(tmp_path, "30 x 20 pixels, the image 30 x 19", "refine", small, marks)
    given = ["refine", photo, tmp_path / "n.npy", "--indices"]
    assert_refused(tmp_path, "holds probabilities", *given)
