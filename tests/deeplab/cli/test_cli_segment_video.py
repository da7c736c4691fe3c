"""`deeplab segment` on videos: results, folders of them, what is refused, and how runs go on."""

import csv
import json
import re
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clips import decoded, moving, write_clip
from commands import assert_refused, done, files, indices, picture, plain_weights, run
from PIL import Image
from rich.console import Console

from deeplab.cli.segment_video import VideoLabels, VideoOptions
from deeplab.data.scenes import CLASSES
from deeplab.data.video import read_label_video
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.predict.video import VideoFiles, segment_video
from deeplab.weights import save_weights


@pytest.fixture(autouse=True)
def av():
    return pytest.importorskip("av", reason="av (PyAV) is not installed")


def test_frames_are_labelled_as_pictures_are(tmp_path, weights):
    clip, photos = write_clip(tmp_path / "clip.mp4", moving(4)), tmp_path / "photos"
    photos.mkdir()
    for number, image in enumerate(decoded(clip)):
        Image.fromarray(image).save(photos / f"{number}.png")
    out = tmp_path / "out"
    done("segment", photos, "--weights", weights, "--out", tmp_path / "labels")
    expected = [indices(tmp_path / "labels" / f"{number}_labels.png") for number in range(4)]
    result = done("segment", clip, "--weights", weights, "--out", out)
    assert re.match(r".*clip.mp4: 64 x 48, 4 frames, \w+ \d.*%.* a second\) -> ", result.stdout)
    assert np.array_equal(list(read_label_video(out / "clip_labels.mkv")), expected)
    done(*("segment", clip, "--weights", weights, "--out", out), "--video-labels", "png")
    for number in range(4):
        found = indices(out / "clip_labels" / f"{number:06d}.png")
        assert np.array_equal(found, expected[number])


def test_a_folder_of_videos_is_gone_through_like_one_of_pictures(tmp_path, weights):
    clips, out, manifest = tmp_path / "clips", tmp_path / "out", tmp_path / "m.csv"
    write_clip(clips / "b.mp4", moving(3), sound=True)
    write_clip(clips / "s" / "a.mkv", moving(5))
    write_clip(clips / "c.avi", moving(2)).write_bytes(b"no video")
    given = ["segment", clips, "--weights", weights, "--no-crf", "--out", out, "--recursive"]
    given += ["--manifest", manifest, "--every", 2]
    assert_refused(tmp_path, r"c\.avi: is no video that FFmpeg can read", *given)
    result = done(*given, "--skip-broken")
    assert "2 of 3 videos segmented, 1 left out as broken; " in result.stdout
    assert re.search(r"^Left out: .*c\.avi: is no video", result.stderr)
    assert re.search("Note: .*b.mp4: its sound is left out\n", result.stderr)
    names = [f"{name}_{kind}" for name in ("b", "s/a") for kind in ("labels.mkv", "overlay.mp4")]
    assert files(out) == [*names[:2], "s", *names[2:]]
    with manifest.open(newline="") as file:
        rows = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert [rows[name]["notes"].partition("; ")[0] for name in ("b.mp4", "a.mkv")] == [
        "2 frames of 3",
        "3 frames of 5",
    ]
    labels = np.ravel(list(read_label_video(out / "s" / "a_labels.mkv")))
    shares = json.loads(rows["a.mkv"]["shares"])
    for index, name in enumerate(CLASSES):
        assert shares.get(name, 0) == pytest.approx((labels == index).mean(), abs=1e-6)
    assert (rows["a.mkv"]["width"], rows["a.mkv"]["height"]) == ("64", "48")
    manifest.unlink()
    (out / "b_overlay.mp4").unlink()
    again = done(*given, "--skip-broken", "--skip-existing")
    assert "1 of 3 videos segmented, 1 there before, 1 left out as broken; " in again.stdout
    with manifest.open(newline="") as file:
        found = {Path(row["file"]).name: row for row in csv.DictReader(file)}
    assert found["a.mkv"]["notes"] == "3 frames; there before"
    assert json.loads(found["a.mkv"]["shares"]) == shares


def test_ctrl_c_ends_a_video_at_a_frame_and_the_same_command_goes_on(
    tmp_path, weights, monkeypatch
):
    clip, whole, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "whole", tmp_path / "out"
    given = ["segment", clip, "--weights", weights, "--no-crf", "--skip-existing", "--out"]
    done(*given, whole)

    def interrupted(*args: object, progress: object, **options: object) -> object:
        def show(count: int, expected: int | None) -> None:
            if count == 3:
                signal.raise_signal(signal.SIGINT)

        return segment_video(*args, progress=show, **options)

    monkeypatch.setattr("deeplab.predict.video.segment_video", interrupted)
    stopped = run(*given, out)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("Stopped; the same command with --skip-existing goes on.\n")
    assert "0 of 1 videos segmented; " in stopped.stdout
    assert not [name for name in files(out) if not name.startswith(".")]
    assert 3 <= len(list(VideoFiles(out, "clip").work.rglob("*.png"))) < 16
    monkeypatch.undo()
    done(*given, out)
    assert files(out) == files(whole)
    for name in files(out):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_truncated_video_is_refused_or_ends_early_on_request(tmp_path, weights):
    clip, out = write_clip(tmp_path / "clip.mkv"), tmp_path / "out"
    clip.write_bytes(clip.read_bytes()[:-400])
    given = ["segment", clip, "--weights", weights, "--no-crf", "--out", out]
    refused = run(*given)
    assert refused.exit_code == 2
    assert re.match(r"Error: .*clip\.mkv: frame \d+ is missing: .*--skip-broken", refused.stderr)
    assert len(refused.stderr.splitlines()) == 1
    assert not [name for name in files(out) if not name.startswith(".")]
    taken = done(*given, "--skip-broken", "--skip-existing")
    assert re.search(r"Note: .*clip\.mkv: frame (\d+) is .*; the rest is used, \1 f", taken.stderr)
    assert files(out) == ["clip_labels.mkv", "clip_overlay.mp4"]


def test_progress_tells_frames_a_second(tmp_path, weights, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", moving(3))
    given = ["segment", clip, "--weights", weights, "--no-crf", "--out", tmp_path / "out"]
    assert "a second" not in done(*given).stderr
    monkeypatch.setattr("deeplab.cli.segment_video.EACH", 0.0)
    lines = done(*given).stderr.splitlines()
    for number, line in enumerate(lines[:3], 1):
        assert re.fullmatch(rf".*clip.mp4: {number} of 3 frames, \d+\.\d a second", line)
    seen = partial(Console, force_terminal=True, width=100)
    monkeypatch.setattr("deeplab.cli.segment_video.Console", seen)
    assert re.search(r"clip\.mp4 .*3 frames, \d+\.\d a second", done(*given).stderr)


def test_what_does_not_go_with_videos_is_refused(tmp_path, weights, monkeypatch):
    clip, photo = write_clip(tmp_path / "clip.mp4", moving(2)), picture(tmp_path / "photo.png")
    overlay = write_clip(tmp_path / "clip_overlay.mp4", moving(1))
    several = tmp_path / "several.safetensors"
    save_weights(deeplab_v2_small(3, multilabel=True), several)
    monkeypatch.setattr("deeplab.data.polygons.require_rasterio", lambda: None)
    out = ["--out", tmp_path / "out"]
    for message, *arguments in (
        ("clip.mp4: is a video, and .*photo.png is none", photo, clip, *out),
        ("--probabilities must be left out with videos", clip, "--probabilities", *out),
        ("--polygons must be left out with videos", clip, "--polygons", "coco", *out),
        ("--batch must be left out with videos", clip, "--batch", 2, *out),
        ("--every must be 1 or more, not 0", clip, "--every", 0, *out),
        ("--every, --video-labels: only count with videos", photo, "--every", 2, *out),
        ("above the limit of 0.001", clip, "--max-megapixels", 0.001, *out),
        ("clip_overlay.mp4: is an input, and a result would", clip, overlay, "--out", tmp_path),
    ):
        arguments += ["--weights", weights, "--no-crf"]
        assert_refused(tmp_path, message, "segment", *arguments)
    given = ["segment", clip, *out, "--no-crf", "--weights"]
    assert_refused(tmp_path, "a video needs a model of one label a pixel", *given, several)
    with pytest.raises(InputError, match="must be segmented by one process"):
        VideoOptions(1, VideoLabels.png).apply_to([clip], [], 2)
    monkeypatch.setitem(sys.modules, "av", None)
    message = r"videos need the package av .* 'deeplab-triton\[video\]'"
    assert_refused(tmp_path, message, *given, plain_weights(tmp_path / "w.safetensors", 3))
