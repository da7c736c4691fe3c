"""`deeplab refine` on folders: pairs, what is skipped, what is left when it ends early."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import torch
from commands import assert_refused, done, files, indices, press_ctrl_c, run, scribbled
from PIL import Image

from deeplab import refine_files
from deeplab.cli.shared import many


def folder_of(tmp_path: Path, names: str = "abcd") -> tuple[Path, Path, np.ndarray]:
    """Pictures of two halves, their softmax with a wrong edge, and the true labels."""
    photo, marks, truth = scribbled(tmp_path)
    wrong = np.roll(truth, 2, axis=1)
    wrong[:, :2] = 0
    softmax = np.stack([1 - np.where(wrong, 0.7, 0.3), np.where(wrong, 0.7, 0.3)])
    photos, given = tmp_path / "photos", tmp_path / "given"
    for folder in (photos, given):
        folder.mkdir()
    for name in names:
        (photos / f"{name}.png").write_bytes(photo.read_bytes())
        np.save(given / f"{name}.npy", softmax.astype(np.float32))
    photo.unlink()
    marks.unlink()
    return photos, given, truth


def test_a_folder_is_refined_with_another(tmp_path):
    photos, given, truth = folder_of(tmp_path, "ab")
    (photos / "sub").mkdir()
    (photos / "b.png").rename(photos / "sub" / "b.png")
    (given / "sub").mkdir()
    (given / "b.npy").rename(given / "sub" / "b_probabilities.npy")
    out, table = tmp_path / "out", tmp_path / "table.csv"
    threads = torch.get_num_threads()
    result = done("refine", photos, given, "--out", out, "--recursive", "--manifest", table)
    names = ["a_labels.png", "a_overlay.png"]
    assert files(out) == [*names, "sub", "sub/b_labels.png", "sub/b_overlay.png"]
    for name in ("a", "sub/b"):
        assert np.array_equal(indices(out / f"{name}_labels.png"), truth)
    *lines, summary = result.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"{photos}/a.png", f"{photos}/sub/b.png"]
    assert re.fullmatch(r"2 of 2 pictures refined; \d+\.\d s, \d+\.\d\d a second", summary)
    with table.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["file"], second["file"]) == (f"{photos}/a.png", f"{photos}/sub/b.png")
    assert (first["width"], first["height"]) == ("30", "20")
    assert json.loads(first["shares"]) == {"class 1": 0.6, "class 0": 0.4}
    assert torch.get_num_threads() == threads


def test_results_do_not_depend_on_how_many_work(tmp_path):
    photos, given, _ = folder_of(tmp_path)
    one, three = tmp_path / "one", tmp_path / "three"
    options = ["--probabilities", "--no-overlay", "--workers"]
    done("refine", photos, given, "--out", one, *options, 1)
    done("refine", photos, given, "--out", three, *options, 3)
    assert files(one) == files(three)
    assert len(files(one)) == 8
    for name in files(one):
        assert (one / name).read_bytes() == (three / name).read_bytes()


def test_an_early_end_keeps_what_is_done_and_skipping_goes_on(tmp_path):
    photos, given, truth = folder_of(tmp_path)
    broken, out = given / "b.npy", tmp_path / "out"
    content = broken.read_bytes()
    broken.write_bytes(content[:200])
    arguments = ["refine", photos, given, "--out", out, "--no-overlay", "--workers", 1]
    arguments += ["--manifest", tmp_path / "m.jsonl"]
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(
        r"Error: .*b.npy: cannot be read .*\(\d of 4 pictures refined; .*"
        "--skip-broken.*--skip-existing.*\n",
        result.stderr,
    )
    assert "a_labels.png" in files(out)
    written = (out / "a_labels.png").stat().st_mtime_ns
    result = done(*arguments, "--skip-broken", "--skip-existing")
    assert re.search(r"Left out: .*b.npy: cannot be read", result.stderr)
    assert re.search(r"[12] there before, 1 left out as broken; ", result.stdout)
    assert files(out) == ["a_labels.png", "c_labels.png", "d_labels.png"]
    broken.write_bytes(content)
    (tmp_path / "m.jsonl").unlink()
    result = done(*arguments, "--skip-existing")
    assert "1 of 4 pictures refined, 3 there before; " in result.stdout
    assert (out / "a_labels.png").stat().st_mtime_ns == written
    assert np.array_equal(indices(out / "b_labels.png"), truth)
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert sorted(Path(row["file"]).stem for row in rows) == ["a", "b", "c", "d"]
    for row in rows:
        assert (row["width"], row["height"]) == (30, 20)
        assert row["shares"] == {"class 1": 0.6, "class 0": 0.4}
        assert ("there before" in row["notes"]) == (Path(row["file"]).stem != "b")
    result = done(*arguments, "--skip-existing", "--manifest", tmp_path / "m.jsonl")
    assert "0 of 4 pictures refined, 4 there before; " in result.stdout
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 4


def test_a_result_without_its_overlay_is_not_finished(tmp_path):
    photos, given, _ = folder_of(tmp_path, "ab")
    done("refine", photos, given, "--out", tmp_path / "out")
    (tmp_path / "out" / "b_overlay.png").unlink()
    result = done("refine", photos, given, "--out", tmp_path / "out", "--skip-existing")
    assert "1 of 2 pictures refined, 1 there before" in result.stdout


def test_a_result_that_cannot_be_written_is_no_broken_file(tmp_path):
    photos, given, _ = folder_of(tmp_path)
    out = tmp_path / "out"
    (out / "b_labels.png").mkdir(parents=True)
    options = ["--skip-broken", "--no-overlay", "--workers", 1]
    result = run("refine", photos, given, "--out", out, *options)
    assert result.exit_code == 2
    assert re.match(r"Error: .*b_labels.png: cannot be written .*--skip-existing", result.stderr)
    assert "d_labels.png" not in files(out)


def test_ctrl_c_finishes_what_is_in_hand(tmp_path, monkeypatch):
    photos, given, _ = folder_of(tmp_path, "abcdefgh")
    refine, count = refine_files.FileRefiner.__call__, iter(range(8))

    def interrupted(self: object, *pair: Path) -> object:
        if next(count) == 1:
            press_ctrl_c()
        return refine(self, *pair)

    monkeypatch.setattr(refine_files.FileRefiner, "__call__", interrupted)
    result = run("refine", photos, given, "--out", tmp_path / "out", "--workers", 2)
    assert result.exit_code == 130
    assert result.stderr.endswith("Stopped; the same command with --skip-existing goes on.\n")
    whole = [name for name in files(tmp_path / "out") if name.endswith("_overlay.png")]
    assert f"{len(whole)} of 8 pictures refined; " in result.stdout
    assert 2 <= len(whole) < 8
    assert not [name for name in files(tmp_path / "out") if name.endswith(".part")]


def test_pictures_without_a_partner_are_named(tmp_path):
    photos, given, _ = folder_of(tmp_path, "abc")
    (given / "b.npy").unlink()
    (given / "c.npy").rename(given / "typo.npy")
    arguments = ["refine", photos, given, "--out", tmp_path / "out"]
    message = r"given: has nothing for 2 of 3 pictures, such as .*b.png.*--skip-missing"
    assert_refused(tmp_path, message, *arguments)
    result = done(*arguments, "--skip-missing")
    told = (
        "Note: 2 of 3 pictures are left out: .*given has nothing for them\n"
        "Note: 1 of the files in .*given are left out: they are of no picture\n"
    )
    assert re.fullmatch(told, result.stderr)
    assert "1 of 1 pictures refined" in result.stdout
    (given / "a.npy").rename(given / "A.npy")
    assert_refused(tmp_path, "has nothing for 3 of 3 pictures", *arguments, "--skip-missing")


def test_what_cannot_be_meant_is_refused(tmp_path):
    photos, given, _ = folder_of(tmp_path, "a")
    one, both = (photos / "a.png", given / "a.npy"), (photos, given)
    for message, *arguments in (
        ("must be a folder like", photos, given / "a.npy"),
        ("given: the folder holds no picture", given, photos),
        ("--out .* must be a folder outside of .*photos", *both, "--out", photos / "x"),
        ("--out .* must be a folder", *both, "--out", tmp_path / "x.png"),
        ("--workers must be 1 or more, not 0", *both, "--workers", 0),
        ("m.txt: a manifest must be", *both, "--manifest", tmp_path / "m.txt"),
        ("--skip-existing: only counts with folders", *one, "--skip-existing"),
        ("--skip-missing: only counts with folders", *one, "--skip-missing"),
        ("--workers: only counts with folders", *one, "--workers", 2),
        ("--gt-prob 0.8: only counts", *one, "--background-power", 4, "--gt-prob", 0.8),
        ("--gt-prob 0.8: only counts .* holds probabilities", *one, "--gt-prob", 0.8),
        ("a.npy: cannot be read as CAMs .*probabilities", *one, "--background-power", 4),
        ("--classes 3: only counts with", *one, "--classes", 3),
        ("background must be between 0 and 1", *one, "--background-threshold", "0.1,1.5"),
        ("give one of them", *one, "--background-threshold", 0.1, "--background-power", 4),
        ("--probabilities: there are none", *one, "--background-power", "4,8", "--probabilities"),
    ):
        assert_refused(tmp_path, message, "refine", *arguments)
    (given / "a.npy").write_bytes(b"")
    result = run("refine", photos, given, "--out", tmp_path / "out", "--skip-broken")
    assert result.exit_code == 2
    assert "Error: none of the files could be used; the first: " in result.stderr


def test_activation_maps_become_labels_with_unsure_pixels(tmp_path):
    photos, given, truth = folder_of(tmp_path, "ab")
    for name in "ab":
        seen = np.where(truth == 1, 0.9, 0.02).astype(np.float32)
        seen[:, 10:12] = 0.2
        cams = {"keys": torch.tensor([14]), "high_res": seen[None]}
        np.save(given / f"{name}.npy", cams, allow_pickle=True)
    arguments = ["refine", photos, given, "--out", tmp_path / "out"]
    assert_refused(tmp_path, "a.npy: holds activation maps.*--background-threshold", *arguments[:3])
    options = ["--iterations", 0, "--background-threshold"]
    result = done(*arguments, *options, "0.05,0.3")
    expected = np.where(truth == 1, 15, 0)
    expected[:, 10:12] = 255
    assert np.array_equal(indices(tmp_path / "out" / "a_labels.png"), expected)
    assert "class 15 60.0%, class 0 33.3%, unsure 6.7%" in result.stdout
    done(*arguments, *options, "0.3", "--probabilities", "--classes", 21)
    saved = np.load(tmp_path / "out" / "a_probabilities.npz")["probabilities"]
    assert saved.shape == (21, *truth.shape)
    assert np.array_equal(saved.argmax(0), np.where(truth == 1, 15, 0))


def test_masks_and_scribbles_of_a_folder_say_how_they_were_read_once(tmp_path):
    photos, given, truth = folder_of(tmp_path, "abc")
    for name in "abc":
        (given / f"{name}.npy").unlink()
        Image.fromarray(truth * 255).save(given / f"{name}.png")
    result = done("refine", photos, given, "--out", tmp_path / "out")
    assert re.fullmatch(r"Note: 3 pictures, such as .*a.png: only black and .*\n", result.stderr)
    colours = np.array([(255, 0, 0), (0, 0, 255)], np.uint8)
    Image.fromarray(colours[truth]).save(given / "b.png")
    told = done("refine", photos, given, "--out", tmp_path / "out").stderr
    assert re.search(r"b.png: its labels are numbered by its own colours.*--indices", told)
    done("refine", photos, given, "--out", tmp_path / "out", "--skip-broken")


def test_a_bar_is_shown_on_a_terminal(tmp_path, monkeypatch):
    photos, given, _ = folder_of(tmp_path, "ab")
    shown = []

    class Terminal(many.Console):
        def __init__(self, **options: object) -> None:
            super().__init__(force_terminal=True, **options)
            shown.append(self)

    monkeypatch.setattr(many, "Console", Terminal)
    result = done("refine", photos, given, "--out", tmp_path / "out")
    assert "refined" in result.stderr
    assert "2 of 2 pictures refined" in result.stdout
