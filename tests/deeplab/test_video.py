"""A video through a predictor: every frame by itself, whatever the run went through."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import decoded, moving, times_of, write_clip
from PIL import Image

from crf import Bilateral, DenseCRF, Gaussian
from deeplab.data.outputs import NamedPalette, full_palette, overlay
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.predict import Predictor
from deeplab.predict.video import VideoFiles, VideoResult, in_order, segment_video


@pytest.fixture(autouse=True)
def av():
    return pytest.importorskip("av", reason="av (PyAV) is not installed")


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    """So that a fork needs no threads of its parent's."""
    set_threads(1)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(deeplab_v2_small(4).eval())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4")


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_labels_are_the_predictors_of_each_frame(clip, predictor, tmp_path):
    model = predictor.model
    refined = Predictor(
        model, DenseCRF(4, gaussian=Gaussian(3.0, 3.0), bilateral=Bilateral(4.0, 30.0, 10.0))
    )
    done: list[tuple[int, int | None]] = []
    result = segment_video(
        refined, clip, tmp_path, workers=2, progress=lambda *now: done.append(now)
    )
    assert result.files.labels == tmp_path / "clip_labels.mkv"
    expected = [refined(image).labels for image in decoded(clip)]
    assert np.array_equal(list(result.files.read_labels()), expected)
    assert (result.frames, result.decoded, result.size) == (16, 16, (64, 48))
    assert result.areas.tolist() == np.bincount(np.ravel(expected), minlength=4).tolist()
    assert done == [(i, 16) for i in range(1, 17)]
    assert sorted(contents(tmp_path)) == ["clip.mp4", "clip_labels.mkv", "clip_overlay.mp4"]
    assert times_of(result.files.overlay) == times_of(result.files.labels) == times_of(clip)


def test_palette_pngs_are_called_after_their_frames(clip, predictor, tmp_path):
    classes = NamedPalette(full_palette([(0, 0, 0), (9, 8, 7)]))
    (tmp_path / "clip_labels").mkdir()
    (tmp_path / "clip_labels" / "000001.png").touch()  # of a run before
    result = segment_video(
        predictor, clip, tmp_path, every=5, labels="png", classes=classes, legend=False
    )
    assert (result.frames, result.decoded) == (4, 16)
    names = [f"{number:06d}.png" for number in (0, 5, 10, 15)]
    assert sorted(contents(tmp_path / "clip_labels")) == names
    frames = decoded(clip)[::5]
    for name, image, read in zip(names, frames, result.files.read_labels(), strict=True):
        with Image.open(result.files.labels / name) as labels:
            assert labels.getpalette()[3:6] == [9, 8, 7]
            assert np.array_equal(np.asarray(labels), predictor(image).labels)
        assert np.array_equal(read, predictor(image).labels)
    assert times_of(result.files.overlay) == [Fraction(number, 8) for number in (0, 5, 10, 15)]


def test_an_overlay_has_even_sides_and_one_legend(predictor, tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", moving(2, 121, 161), codec="ffv1", pixels="bgr0")
    classes = NamedPalette(full_palette([(0, 0, 0), (200, 0, 0)]), ["sky", "road", "tree", "car"])
    result = segment_video(predictor, clip, tmp_path / "with", classes=classes)
    shown = decoded(result.files.overlay)
    height, width, _ = shown[0].shape
    assert height > 130
    assert (height % 2, width % 2) == (0, 0)
    assert abs(shown[0][124:, :161].astype(int) - shown[1][124:, :161]).mean() < 3  # the legend
    plain = segment_video(predictor, clip, tmp_path / "without", classes=classes, legend=False)
    for frame, image in zip(decoded(plain.files.overlay), moving(2, 121, 161), strict=True):
        assert frame.shape == (122, 162, 3)
        expected = overlay(image, predictor(image).labels, classes.palette)
        assert abs(frame[:121, :161].astype(int) - expected).mean() < 8
    many = Predictor(deeplab_v2_small(200).eval())
    (said,) = segment_video(many, clip, tmp_path / "many").conversions
    assert "no legend: that of 200 classes is taller" in said.text


def killed_at(number: int, part: str = "") -> Callable[..., None]:
    """SIGKILL after so many frames, or where the first file with `part` in its name is renamed."""

    def progress(done: int, expected: int | None) -> None:
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    rename = os.replace

    def renamed(source: Any, target: Any) -> None:
        if part and part in Path(target).name:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    def run(*args: Any, **options: Any) -> None:
        os.replace = os.rename = renamed
        segment_video(*args, progress=progress, go_on=True, **options)

    return run


KILLS = [(1, "", []), (-1, "000008.png", []), (6, "", [])]  # then visible


@pytest.mark.parametrize(
    ("labels", "kills"),
    [
        ("ffv1", [(-1, "clip_labels", []), (-1, "clip_overlay.mp4", ["clip_labels.mkv"])]),
        ("png", [(-1, "clip_overlay.mp4", []), (-1, "clip_labels", ["clip_overlay.mp4"])]),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_bytes(labels, kills, clip, predictor, tmp_path):
    options = {"labels": labels, "every": 2, "workers": 2}
    segment_video(predictor, clip, tmp_path / "whole", **options | {"workers": 1})
    context, out = multiprocessing.get_context("fork"), tmp_path / "out"
    for number, part, visible in KILLS + kills:
        process = context.Process(
            target=killed_at(number, part), args=(predictor, clip, out), kwargs=options
        )
        process.start()
        process.join(60)
        process.kill()
        assert process.exitcode == -signal.SIGKILL
        assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == visible
    result = segment_video(predictor, clip, out, go_on=True, **options)
    assert result.frames == 8
    assert contents(out) == contents(tmp_path / "whole")


def test_a_run_that_goes_on_makes_no_label_map_twice(clip, predictor, tmp_path, monkeypatch):
    made: list[int] = []
    of_model = predictor.model.forward

    def counted(*args: Any, **options: Any) -> Any:
        made.append(1)
        return of_model(*args, **options)

    monkeypatch.setattr(predictor.model, "forward", counted)
    out, stops = tmp_path / "out", iter([False] * 6 + [True])
    assert segment_video(predictor, clip, out, stopped=lambda: next(stops)) is None
    assert len(made) == 6
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    segment_video(predictor, clip, out, go_on=True)
    assert len(made) == 16
    segment_video(predictor, clip, out)
    assert len(made) == 32
    assert sorted(contents(out)) == ["clip_labels.mkv", "clip_overlay.mp4"]


def test_label_maps_of_another_run_are_not_taken_up(predictor, tmp_path):
    torch.manual_seed(1)
    clip, out = write_clip(tmp_path / "clip.mp4", moving(3)), tmp_path / "out"
    other, layer = Predictor(deeplab_v2_small(4).eval()), DenseCRF(4, iterations=1)
    changes: list[tuple[Predictor, dict[str, Any]]] = [
        (other, {}),
        (replace(predictor, flip=True), {}),
        (replace(predictor, crf=layer), {}),
        (predictor, {"every": 2}),
        (predictor, {}),
    ]
    for number, (changed, options) in enumerate(changes):
        segment_video(predictor, clip, out, stopped=stop_after(2))
        assert len(list(VideoFiles(out, "clip").work.rglob("*.png"))) == 2
        if number == len(changes) - 1:
            write_clip(clip, moving(3)[::-1])
        result = segment_video(changed, clip, out, go_on=True, legend=False, **options)
        assert [each.kind for each in result.conversions] == ["begun anew"]
        expected = [changed(image).labels for image in decoded(clip)[:: options.get("every", 1)]]
        assert np.array_equal(list(result.files.read_labels()), expected)


def stop_after(frames: int) -> Callable[[], bool]:
    answers = iter([False] * frames)
    return lambda: next(answers, True)


def test_tiles_for_want_of_memory_are_so_for_the_whole_clip(predictor, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", moving(3, 40, 56))
    for module in ("predictor", "video"):
        monkeypatch.setattr(f"deeplab.predict.{module}.TILE", 33)
    tiled, free = replace(predictor, overlap=8), [False]
    monkeypatch.setattr("deeplab.predict.predictor.fits", lambda *_: free[0])
    segment_video(tiled, clip, tmp_path, stopped=stop_after(1))
    free[0] = True
    result = segment_video(tiled, clip, tmp_path, go_on=True)
    whole = [tiled(image).labels for image in decoded(clip)]
    expected = [replace(tiled, tile=33)(image).labels for image in decoded(clip)]
    assert not np.array_equal(expected, whole)
    assert np.array_equal(list(result.files.read_labels()), expected)


def test_errors_leave_no_result_and_what_is_known_stays(clip, predictor, tmp_path):
    out, content = tmp_path / "out", write_clip(tmp_path / "x.mkv").read_bytes()
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(content[: int(len(content) * 0.8)])
    with pytest.raises(InputError, match=f"^{broken}: frame [0-9]+ is missing"):
        segment_video(predictor, broken, out)
    assert not [path for path in out.iterdir() if not path.name.startswith(".")]
    result = segment_video(predictor, broken, out, go_on=True, skip_broken=True)
    assert isinstance(result, VideoResult)
    assert 0 < result.frames < 16
    assert "the rest is used" in result.conversions[0].text
    nan = Predictor(deeplab_v2_small(4).eval())
    with torch.no_grad():
        nan.model.head.classifier.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=f"^{clip}: frame 0: .*NaN"):
        segment_video(nan, clip, out)


def test_predictors_that_give_no_label_map_are_refused(clip, predictor, tmp_path):
    for model, message in (
        (deeplab_v2_small(4, multilabel=True), "one label a pixel"),
        (
            deeplab_v2_small(4, in_channels=4, mean=[0] * 4, deviation=[1] * 4),
            "a model of RGB, not of 4 bands",
        ),
        (deeplab_v2_small(257), "at most 256 classes, not 257"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_video(Predictor(model), clip, tmp_path)
    with pytest.raises(ValueError, match="every must be a number from 1 on, not 0"):
        segment_video(predictor, clip, tmp_path, every=0)
    with pytest.raises(ValueError, match="labels must be one of ffv1, png, not jpg"):
        segment_video(predictor, clip, tmp_path, labels="jpg")
    for model, workers in (
        (predictor.model, 0),
        (deeplab_v2_small(4), 2),  # in training mode, as it is built
        (deeplab_v2_small(4, crf=DenseCRF(4)).eval(), 2),
    ):
        with pytest.raises(ValueError, match=f"workers must be 1, or more .*, not {workers}"):
            segment_video(Predictor(model), clip, tmp_path, workers=workers)
    assert sorted(contents(tmp_path)) == ["clip.mp4"]


def test_the_example_of_the_document_runs(clip, tmp_path, monkeypatch):
    document = Path(__file__).parents[2] / "docs" / "video.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(block, found)
    result = found["result"]
    assert (result.frames, result.decoded, found["shown"]) == (8, 16, 8)
    assert np.array_equal(list(found["maps"]), list(result.files.read_labels()))


def test_in_order_answers_in_order_and_takes_no_more_than_fit():
    running, most, lock = 0, 0, threading.Lock()
    taken: list[int] = []

    def source():
        for i in range(20):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.003 * (i % 3))
        with lock:
            running -= 1
        return -i

    answers = []
    for item, answer in in_order(source(), work, 3):
        answers.append((item, answer))
        assert len(taken) - len(answers) <= 3
    assert answers == [(i, -i) for i in range(20)]
    assert most == 3


@pytest.mark.parametrize("where", ["source", "work"])
def test_in_order_answers_what_came_before_an_error(where):
    def source():
        yield from range(5)
        if where == "source":
            raise InputError("here")
        yield from range(5, 100)

    def work(i: int) -> int:
        if where == "work" and i == 5:
            raise InputError("here")
        return i

    answers = []
    with pytest.raises(InputError, match="here"):  # noqa: PT012
        for _, answer in in_order(source(), work, 3):
            answers.append(answer)
    assert answers == [0, 1, 2, 3, 4]
