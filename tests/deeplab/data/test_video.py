"""Clips read frame by frame, whatever the file is like, and videos written from pictures."""

import errno
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import decoded, moving, times_of, write_clip

from deeplab.data import video
from deeplab.data.images import find_images
from deeplab.data.video import Clip, label_video, overlay_video, read_label_video, require_av
from deeplab.errors import InputError, OutputError


@pytest.fixture(autouse=True)
def av():
    return pytest.importorskip("av", reason="av (PyAV) is not installed")


def frames(path: Path, **options: bool) -> tuple[list[video.Frame], list[str]]:
    """All frames of a clip, and what is said of it, its path apart."""
    with Clip(path, **options) as clip:
        found = list(clip)
        return found, [str(each).removeprefix(f"{path}: ") for each in clip.conversions]


def truncated(path: Path, share: float) -> Path:
    content = path.read_bytes()
    cut = path.with_stem(f"cut_{share}_{path.stem}")
    cut.write_bytes(content[: int(len(content) * share)])
    return cut


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.mov", {"sound": True}),
        ("a.m4v", {"bf": "2"}),
        ("a.mkv", {"codec": "ffv1", "pixels": "bgr0"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.avi", {"codec": "mpeg4"}),
    ],
)
def test_frames_are_those_that_pyav_decodes(name, how, tmp_path):
    path = write_clip(tmp_path / name, **how)
    found, said = frames(path)
    assert said == (["its sound is left out"] if how.get("sound") else [])
    assert [frame.number for frame in found] == list(range(16))
    assert [frame.time for frame in found] == [Fraction(i, 8) for i in range(16)]
    with Clip(path) as clip:
        assert (clip.size, clip.rate, clip.expected) == ((64, 48), 8, 16)
    for frame, expected in zip(found, decoded(path), strict=True):
        assert np.array_equal(frame.image, expected)


@pytest.mark.parametrize(
    ("pixels", "codec", "said"),
    [
        ("yuv420p10le", "libx264", ["10 bits a channel reduced to 8"]),
        ("gray", "ffv1", []),
        ("gray16le", "ffv1", ["16 bits a channel reduced to 8"]),
    ],
)
def test_other_pixels_become_eight_bit_rgb(pixels, codec, said, tmp_path):
    path = write_clip(tmp_path / "a.mkv", moving(2), pixels=pixels, codec=codec, crf="1")
    found, told = frames(path)
    assert told == said
    for frame, picture in zip(found, moving(2), strict=True):
        assert frame.image.shape == picture.shape
        assert frame.image.dtype == np.uint8
        grey = np.dot(picture, [0.299, 0.587, 0.114])
        assert abs(np.dot(frame.image, [0.299, 0.587, 0.114]) - grey).mean() < 3


TURNS = {  # display matrix (x, y) -> (a x + c y, b x + d y), and what NumPy makes of the picture
    "as phones lie": ((1, 0, 0, 1), lambda image: image),
    "portrait": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "head down": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "other portrait": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "mirrored portrait": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_display_matrix_turns_the_frames(name, tmp_path):
    matrix, turned = TURNS[name]
    path = write_clip(tmp_path / "a.mp4", moving(2), matrix=matrix, aspect=Fraction(4, 3))
    found, said = frames(path)
    plain = name == "as phones lie"
    assert said == ([] if plain else ["turned upright, as its display matrix says"])
    for frame, raw in zip(found, decoded(path), strict=True):
        assert np.array_equal(frame.image, turned(raw))
    with Clip(path) as clip:
        assert clip.size == found[0].image.shape[1::-1]
        assert clip.aspect == (Fraction(3, 4) if "portrait" in name else Fraction(4, 3))


def test_colours_of_high_dynamic_range_are_told(tmp_path):
    transfer = {"x264-params": "transfer=arib-std-b67"}
    path = write_clip(tmp_path / "a.mp4", moving(2), pixels="yuv420p10le", **transfer)
    assert frames(path)[1][1:] == ["its colours are of high dynamic range (HLG), taken as they are"]


def test_the_first_video_stream_counts_and_no_cover(tmp_path, av):
    cover = av.stream.Disposition.attached_pic
    for name, disposition, said in (
        ("two.mkv", av.stream.Disposition.default, ["the first of 2 video streams is used"]),
        ("film.mp4", cover, []),
    ):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            streams = [container.add_stream(codec, rate=8) for codec in ("mpeg4", "mjpeg")]
            streams[1].disposition = disposition
            for stream, size in zip(streams, (64, 32), strict=True):
                stream.width, stream.height = size, 48
                stream.pix_fmt = "yuv420p" if size == 64 else "yuvj420p"
            for stream in streams:
                shape = (stream.height, stream.width, 3)
                frame = av.VideoFrame.from_ndarray(np.zeros(shape, np.uint8), "rgb24")
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt, threads=1)))
                container.mux(stream.encode(None))
        found, told = frames(path)
        assert told == said
        assert [frame.image.shape for frame in found] == [(48, 64, 3)]


def test_times_vary_and_only_grow(tmp_path):
    times = [0, 40, 45, 300, 1000, 1001]
    vary = write_clip(tmp_path / "a.mkv", moving(6), times=times, ticks=1000)
    assert [frame.time for frame in frames(vary)[0]] == [Fraction(t, 1000) for t in times]
    early = write_clip(tmp_path / "a.mp4", moving(3), times=[-2, -1, 0])
    assert frames(early)[0][0].time >= 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 1, 1, 1, 5], [0, 1, 2, 3, 5]),
        ([0, 3, 2, 4, 5], [0, 3, 4, 5, 6]),
        ([None, None, 7, None, 8], [0, 1, 7, 8, 9]),
        ([-3, -2, -1, 0, 4], [0, 1, 2, 3, 7]),
    ],
)
def test_time_stamps_that_do_not_grow_are_mended(given, expected, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.avi", moving(5), codec="mpeg4")

    class Stamped:
        def __init__(self, raw: object, pts: int | None) -> None:
            self._raw, self.pts = raw, pts

        def __getattr__(self, name: str) -> object:
            return getattr(self._raw, name)

    decode = Clip._decode

    def stamped(self: Clip) -> Iterator[Stamped]:
        for raw, pts in zip(decode(self), given, strict=True):
            yield Stamped(raw, pts)

    monkeypatch.setattr(Clip, "_decode", stamped)
    assert [frame.time * 8 for frame in frames(path)[0]] == expected


def test_a_number_of_frames_that_a_header_tells_wrong_changes_nothing(tmp_path):
    path = write_clip(tmp_path / "a.avi", codec="mpeg4")
    content = bytearray(path.read_bytes())
    for tag, place in ((b"avih", 4 + 4 + 16), (b"strh", 4 + 4 + 32)):
        start = content.index(tag) + place
        assert int.from_bytes(content[start : start + 4], "little") == 16
        content[start : start + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with Clip(path) as clip:
        assert clip.expected == 1000
        assert len(list(clip)) == 16
        assert clip.conversions == []


@pytest.mark.parametrize(
    ("name", "how", "share"),
    [
        ("a.mp4", {"movflags": "faststart"}, 0.6),
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}, 0.6),
        ("a.avi", {"codec": "mpeg4"}, 0.6),
        ("a.mkv", {}, 0.6),
    ],
)
def test_a_truncated_clip_is_refused_or_ends_early_on_request(name, how, share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 48, 64, 3), np.uint8)
    path = write_clip(tmp_path / name, list(noise), **how)
    cut, whole = truncated(path, share), frames(path)[0]
    found = []
    with Clip(cut) as clip, pytest.raises(InputError) as caught:
        found.extend(clip)  # those before the one that is broken come
    assert 2 < len(found) < 15
    assert f"{cut}: frame {len(found)} " in str(caught.value)
    assert "--skip-broken" in str(caught.value)
    again, said = frames(cut, skip_broken=True)
    assert len(said) == 1
    assert f"the rest is used, {len(found)} frames" in said[0]
    for one, other, before in zip(found, again, whole, strict=False):
        assert np.array_equal(one.image, before.image)
        assert np.array_equal(other.image, before.image)
        assert one.time == other.time == before.time
    with pytest.raises(InputError, match=r"no video|no frame of it|no decoder"):
        frames(truncated(path, 0.01), skip_broken=True)


def test_what_is_no_video_is_refused_in_one_line(tmp_path, av):
    empty, text, folder = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "f.mp4"
    empty.touch()
    text.write_text("no video\n" * 100)
    folder.mkdir()
    song = tmp_path / "song.mp4"
    with av.open(str(song), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        quiet.rate = 8000
        container.mux(stream.encode(quiet))
        container.mux(stream.encode(None))
    nothing = write_clip(tmp_path / "nothing.mkv", moving(1))
    for path, message in (
        (tmp_path / "none.mp4", "no such file"),
        (empty, "is empty"),
        (folder, "is a folder"),
        (text, "is no video that FFmpeg can read"),
        (song, "has no video stream"),
        (truncated(nothing, 0.5), "no frame of it can be decoded|is no video that FFmpeg can read"),
    ):
        with pytest.raises(InputError, match=f"^{path}: .*({message})"):
            Clip(path)
    with pytest.raises(InputError, match=r"above the limit of 0\.001"):
        Clip(write_clip(tmp_path / "large.mp4", moving(2)), max_megapixels=0.001)


def test_metadata_in_other_letters_is_no_error(tmp_path):
    path = write_clip(tmp_path / "a.mkv", moving(2))
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))  # Latin-1
    assert len(frames(path)[0]) == 2


def test_frames_that_change_their_size_end_the_clip(tmp_path):
    """As recordings of a call do; a concatenated elementary stream is such a file."""
    small, large = (
        write_clip(tmp_path / f"{width}.h264", moving(4, 48, width)) for width in (64, 80)
    )
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(InputError, match="frame 4 is 80 x 48, not 64 x 48"):
        frames(both)
    assert len(frames(both, skip_broken=True)[0]) == 4


def test_label_maps_are_read_as_they_were_written(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", moving(3))
    maps = np.random.default_rng(0).integers(0, 256, (3, 47, 63), np.uint8)
    with Clip(clip) as source, label_video(tmp_path / "maps.mkv", source) as written:
        for frame, labels in zip(source, maps, strict=True):
            written.add(labels, frame.time)
    assert np.array_equal(list(read_label_video(tmp_path / "maps.mkv")), maps)
    for broken in (write_clip(tmp_path / "x.mkv", moving(2)), tmp_path / "clip.mp4"):
        broken.write_bytes(broken.read_bytes()[:100])
        with pytest.raises(InputError, match="cannot be read as a video of labels"):
            list(read_label_video(broken))


@pytest.mark.parametrize("has_x264", [True, False])
def test_an_overlay_keeps_times_and_colours(has_x264, tmp_path, monkeypatch, av):
    if not has_x264:
        monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    times, ticks = [0, 3003, 6006, 12012, 12013], 90000
    frames_ = moving(5)
    aspect = Fraction(4, 3)
    clip = write_clip(tmp_path / "clip.mp4", frames_, times=times, ticks=ticks, aspect=aspect)
    out = tmp_path / "out.mp4"
    with Clip(clip) as source, overlay_video(out, source) as written:
        for frame, picture in zip(source, frames_, strict=True):
            written.add(picture, frame.time)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == ("h264" if has_x264 else "mpeg4")
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.sample_aspect_ratio == aspect
    tick = Fraction(1, 90000 if has_x264 else 65535)
    for shown, given in zip(times_of(out), times, strict=True):
        assert abs(shown - Fraction(given, ticks)) <= (
            0 if given % 3003 == 0 and has_x264 else tick
        )
    for shown, picture in zip(decoded(out), frames_, strict=True):
        assert abs(shown.astype(int) - picture).mean() < 8
        assert abs(shown.mean((0, 1)) - picture.mean((0, 1))).max() < 3


def test_a_video_is_whole_or_not_there(tmp_path, monkeypatch):
    clip, out = write_clip(tmp_path / "clip.mp4", moving(2)), tmp_path / "out.mkv"
    with Clip(clip) as source:
        with pytest.raises(ZeroDivisionError), label_video(out, source) as written:
            written.add(np.zeros((4, 4), np.uint8), Fraction(1, 0))
        assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=f"{out}: cannot be written .No space left"):  # noqa: SIM117
            with label_video(out, source) as written:
                written.add(np.zeros((4, 4), np.uint8), Fraction(0))
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_folder_gives_its_videos_where_it_has_no_pictures(tmp_path):
    (tmp_path / "a.MP4").touch()
    (tmp_path / "b.webm").touch()
    (tmp_path / "c.txt").touch()
    assert [path.name for path in find_images([tmp_path], videos=True)] == ["a.MP4", "b.webm"]
    with pytest.raises(InputError, match="holds no picture"):
        find_images([tmp_path])
    (tmp_path / "photo.jpg").touch()  # with a short video of the same name, as phones do
    assert [path.name for path in find_images([tmp_path], videos=True)] == ["photo.jpg"]


def test_without_av_it_says_what_to_install(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", moving(1))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"package av .*: pip install 'deeplab-triton.video.'"):
        Clip(path)
    with pytest.raises(InputError, match=r"package av"):
        require_av()
