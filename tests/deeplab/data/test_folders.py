"""Folders of many pictures: which files, how they are worked on, and what is kept of it."""

import csv
import json
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deeplab.data import folders
from deeplab.data.folders import Manifest, Outcome, files_below, pair_by_stem, work_through
from deeplab.errors import InputError


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_are_listed_by_name_with_subfolders_on_request(tmp_path):
    touched(tmp_path, "b.jpg", "a.JPG", ".c.jpg", "d.txt", "z/e.jpg", "A/f.jpg", ".g/h.jpg")
    (tmp_path / "z" / "circle").symlink_to(tmp_path)
    assert list(files_below(tmp_path, (".jpg",), recursive=False)) == ["a.JPG", "b.jpg"]
    found = list(files_below(tmp_path, (".jpg",), recursive=True))
    assert found == ["a.JPG", "b.jpg", "A/f.jpg", "z/e.jpg"]
    with pytest.raises(InputError, match="none: cannot be listed"):
        list(files_below(tmp_path / "none", (".jpg",), recursive=False))


def test_pairs_have_one_name_in_one_subfolder(tmp_path):
    pictures = touched(tmp_path / "p", "a.jpg", "b.png", "s/a.jpg", "c.jpg")
    others = touched(tmp_path / "o", "a.npy", "b_soft.npz", "s/a.png", "s/c.npy", "x.npy")
    arguments = (pictures, others, (".jpg", ".png"), (".npy", ".npz", ".png"), ("", "_soft"))
    found = pair_by_stem(*arguments, recursive=True)
    assert found.names == [("a.jpg", "a.npy"), ("b.png", "b_soft.npz"), ("s/a.jpg", "s/a.png")]
    assert (found.alone, found.first_alone, found.unused) == (1, "c.jpg", 2)
    for name, message in (
        ("o/a.npz", r"o/a.npy and .*o/a.npz both belong to .*p/a.jpg"),
        ("o/a_soft.npy", r"o/a.npy and .*o/a_soft.npy both belong to .*p/a.jpg"),
        ("p/a.png", "p/a.jpg and .*p/a.png have one name"),
    ):
        touched(tmp_path, name)
        with pytest.raises(InputError, match=message):
            pair_by_stem(*arguments)
        (tmp_path / name).unlink()


def test_names_take_little_memory(tmp_path, monkeypatch):
    """Each name once on either side, and what pairs them while they are paired."""
    count = 3000
    listed = {"p": ".jpg", "o": ".npy"}

    def names(folder: Path, *_: object) -> object:
        return (f"2012_{i:06d}{listed[folder.name]}" for i in range(count))

    monkeypatch.setattr(folders, "files_below", names)
    tracemalloc.start()
    try:
        pairs = pair_by_stem(tmp_path / "p", tmp_path / "o", (), ())
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pairs.names) == count
    assert kept / count < 300  # bytes: two texts of 64 and a pair of them
    assert peak / count < 800


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_come_as_they_are_ready_with_few_in_hand(workers):
    taken, busy, most = [], 0, 0
    lock = threading.Lock()

    def items() -> object:
        for i in range(20):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.002 * (i % 3))
        with lock:
            busy -= 1
        if i % 5 == 4:
            raise InputError(f"number {i}")
        return i * i

    answered = []
    for item, answer in work_through(items(), work, workers, lambda: False):
        assert str(answer) == (f"number {item}" if item % 5 == 4 else str(item * item))
        answered.append(item)
        assert len(taken) <= len(answered) + 2 * workers
    assert sorted(answered) == list(range(20))
    assert workers > 1 or answered == sorted(answered)
    assert most <= workers


def test_a_slow_item_does_not_hold_the_others():
    slow, others = threading.Event(), []

    def work(i: int) -> int:
        if i == 0:
            assert slow.wait(timeout=60)
        return i

    for item, _ in work_through(range(20), work, 2, lambda: False):
        others.append(item)
        if len(others) == 19:
            slow.set()
    assert sorted(others) == list(range(20))
    assert others[-1] == 0


def test_work_that_nobody_wants_any_more_is_not_begun():
    begun = []
    answers = work_through(range(20), begun.append, 2, lambda: False)
    next(answers)
    answers.close()
    assert len(begun) <= 6


def test_once_stopped_what_is_begun_is_finished_and_nothing_else():
    begun, finished, stop = [], [], threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.01)
        finished.append(i)
        return i

    answered = []
    for item, _ in work_through(range(100), work, 2, stop.is_set):
        answered.append(item)
        if item == 3:
            stop.set()
    assert sorted(answered) == sorted(begun) == sorted(finished)
    assert len(answered) < 12


def test_a_fault_of_the_program_is_no_broken_file():
    with pytest.raises(ZeroDivisionError):
        list(work_through([1, 0], lambda i: 1 / i, 2, lambda: False))


def test_shares_are_by_class_largest_first():
    labels = np.array([[2, 2, 2], [0, 5, 5]], np.uint8)
    shares = folders.class_shares(labels, None)
    assert list(shares.items()) == [("class 2", 0.5), ("class 5", 2 / 6), ("class 0", 1 / 6)]
    assert list(folders.class_shares(labels, "abcdef")) == ["c", "f", "a"]


OUTCOMES = (
    Outcome("a,b.jpg", (5, 4), {"sky": 0.75, "road": 0.25}, 0.5, ("one", "two")),
    Outcome("broken.jpg", notes=("broken.jpg: is empty",)),
)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_manifest_goes_on_behind_its_last_whole_row(tmp_path, suffix):
    path = tmp_path / "new" / f"m.{suffix}"
    with Manifest(path) as manifest:
        manifest.add(OUTCOMES[0])
        assert path.read_bytes().endswith(b"\n")  # at once, for whoever looks on
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[-1][:9])
    with Manifest(path, continues=True) as manifest:
        assert "a,b.jpg" in manifest
        assert "broken.jpg" not in manifest
        manifest.add(OUTCOMES[1])
    assert path.read_text().startswith(whole)
    if suffix == "csv":
        with path.open(newline="") as file:
            first, second = csv.DictReader(file)
        assert first["shares"] == '{"sky": 0.75, "road": 0.25}'
        assert (first["width"], first["height"], first["notes"]) == ("5", "4", "one; two")
        assert second["width"] == second["seconds"] == ""
    else:
        first, second = map(json.loads, path.read_text().splitlines())
        assert (first["shares"], first["seconds"]) == ({"sky": 0.75, "road": 0.25}, 0.5)
        assert (second["width"], second["notes"]) == (None, ["broken.jpg: is empty"])
    assert first["file"] == "a,b.jpg"
    with Manifest(path):
        pass
    assert len(path.read_text().splitlines()) == (suffix == "csv")


def test_a_manifest_is_named_as_what_it_is_and_no_other_table(tmp_path):
    with pytest.raises(InputError, match=r"m.txt: a manifest must be named .csv or .jsonl"):
        Manifest(tmp_path / "m.txt")
    for name, content in {"m.csv": "x,y\n1,2\n", "m.jsonl": "[1]\n", "n.jsonl": "no\n"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: is no manifest to go on with"):
            Manifest(tmp_path / name, continues=True)
        assert (tmp_path / name).read_text() == content
