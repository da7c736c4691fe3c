"""Video through PyAV: the frames of a clip as upright RGB pictures, and clips made of pictures.

    with Clip(path) as clip:
        for frame in clip:
            frame.number, frame.time, frame.image

    with overlay_video(path, clip) as overlay:
        overlay.add(picture, frame.time)

One thread decodes and one encodes, so that a file gives the same bytes whatever the machine was
doing: a damaged picture is concealed alike each time, and an encoder decides alike. Nor does
FFmpeg start any other: a process that is forked later would wait for it when it frees what it has
inherited.

PyAV (FFmpeg's libraries) is an optional package: pip install 'deeplab-triton[video]'.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deeplab.data import images
from deeplab.data.conversions import DEEP, TURNED, Conversion
from deeplab.errors import InputError, OutputError
from deeplab.whole_file import whole_file

SHORT = Fraction(1, 2)  # seconds by which a clip may end before its header says
DATED = ("matroska", "mov")  # formats whose headers tell the length of what is finished
BT709 = 1  # colours of high definition, in the numbers of ITU-T H.273
WIDE_RANGE = {16: "PQ", 18: "HLG"}  # transfer functions, in the same
LIMITED, FULL = 1, 2  # ranges of FFmpeg: 16 to 235, 0 to 255
SOUND, STREAMS, WIDE, BROKEN = "sound", "several video streams", "high range", "broken video"


def require_av() -> Any:
    """The package av; InputError where it does not import."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            f"videos need the package av (PyAV), which does not import ({error}): "
            "pip install 'deeplab-triton[video]'"
        ) from error


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of a clip.

    Attributes:
        number: its place among all that decode, from 0.
        time: seconds; never negative, and more than that of the frame before.
        image: uint8 RGB `[H, W, 3]`, upright.
    """

    number: int
    time: Fraction
    image: np.ndarray


class Clip:
    """A video file, opened; its frames once through, decoded as they are asked for.

    skip_broken: leave out what cannot be decoded, and end where the file ends; `conversions` then
        tells of it. Otherwise it raises.

    Attributes:
        size: (width, height) of the upright picture.
        aspect: of a pixel, width to height.
        rate: frames a second, on the average; time_base: the seconds that times are multiples of.
        expected: how many frames there will be, as far as the file tells; None where it does not.
        conversions: what was changed in the frames, and left out of the file. What is broken comes
            to it during iteration.

    Raises InputError: the file is missing, empty, no video, without a frame that decodes, above
    `max_megapixels` (10^6 pixels a frame), or av is not installed. Iteration raises InputError,
    which names the frame, where one cannot be decoded or differs in size, and where the file ends
    before its header says; it does so behind the last frame before that.
    """

    def __init__(
        self, path: str | Path, *, skip_broken: bool = False, max_megapixels: float | None = None
    ) -> None:
        self.path, self._lenient = Path(path), skip_broken
        self._av = require_av()
        images.check_file(self.path)
        self.conversions: list[Conversion] = []
        self._broken: list[str] = []
        self._count = 0  # of the frames that were decoded
        try:
            # The whole path, which cannot be taken for an address; titles may be in any encoding.
            self._container = self._av.open(str(self.path.absolute()), metadata_errors="replace")
        except self._av.error.FFmpegError as error:
            raise InputError(
                f"{self.path}: is no video that FFmpeg can read, or is truncated "
                f"({_reason(error)}); copy, download or export it again"
            ) from error
        try:
            self._stream = self._choose_stream()
            self._decoded = self._decode()
            self._begin(max_megapixels)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; there are no more frames then."""
        self._decoded = iter(())  # lest this and its generator keep each other alive
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        shift = last = None
        step, number = 1 / self.rate, 0
        for raw in self._decoded:
            if (raw.width, raw.height) != self._coded:
                reason = f"is {raw.width} x {raw.height}, not {self._coded[0]} x {self._coded[1]}"
                self._broken.append(f"frame {number} {reason} as those before")
                break
            time = None if raw.pts is None else raw.pts * self.time_base
            if shift is None:
                shift = max(Fraction(0), -(time or Fraction(0)))
            time = None if time is None else time + shift
            if time is None or (last is not None and time <= last):
                time = Fraction(0) if last is None else last + step
            image = raw.to_ndarray(format="rgb24", threads=1)
            yield Frame(number, time, _upright(image, self._turn))
            last, number = time, number + 1
        if self._broken:
            more = f" and {len(self._broken) - 1} more" if len(self._broken) > 1 else ""
            text = f"{self._broken[0]}{more}"
            if not self._lenient:
                raise InputError(
                    f"{self.path}: {text}; --skip-broken (skip_broken=True) takes what there is"
                )
            self._say(BROKEN, f"{text}; the rest is used, {number} frames")

    def _choose_stream(self) -> Any:
        cover = self._av.stream.Disposition.attached_pic  # the one picture of a song or a film
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise InputError(f"{self.path}: has no video stream; expected a video")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(
                f"{self.path}: FFmpeg has no decoder for it, or it is truncated; convert it to "
                "H.264, or copy it again"
            )
        stream.codec_context.thread_count = 1
        if len(streams) > 1:
            self._say(STREAMS, f"the first of {len(streams)} video streams is used")
        if self._container.streams.audio:
            self._say(SOUND, "its sound is left out")
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate else Fraction(25)
        self.time_base = Fraction(stream.time_base)
        self.expected: int | None = stream.frames or None
        if self.expected is None and self._container.duration:
            self.expected = round(self._container.duration * self.rate / self._av.time_base)
        return stream

    def _begin(self, max_megapixels: float | None) -> None:
        """Look at the first frame, which tells what the header need not."""
        first = next(self._decoded, None)
        if first is None:
            reason = self._broken[0] if self._broken else "it is empty, or damaged"
            raise InputError(f"{self.path}: no frame of it can be decoded ({reason})")
        rest = self._decoded

        def all_of_them() -> Iterator[Any]:
            yield first
            yield from rest

        self._decoded = all_of_them()
        self._coded = width, height = first.width, first.height
        images.check_size(self.path, self._coded, max_megapixels)
        matrix = first.side_data.get("DISPLAYMATRIX")
        self._turn = _NO_TURN if matrix is None else _turn(bytes(matrix))
        aspect = Fraction(self._stream.sample_aspect_ratio or 1)
        self.size, self.aspect = (width, height), aspect
        if self._turn.sides:
            self.size, self.aspect = (height, width), 1 / aspect
        if self._turn != _NO_TURN:
            self._say(TURNED, "turned upright, as its display matrix says")
        bits = first.format.components[0].bits
        if bits > 8:
            self._say(DEEP, f"{bits} bits a channel reduced to 8")
        if (curve := WIDE_RANGE.get(int(first.color_trc))) is not None:
            self._say(WIDE, f"its colours are of high dynamic range ({curve}), taken as they are")

    def _decode(self) -> Iterator[Any]:
        """The decoded frames; what is broken is noted, and ends them unless it is to be skipped."""
        for packet in self._packets():
            try:
                if packet is not None and packet.is_corrupt:
                    raise ValueError("it is incomplete")
                frames = self._stream.codec_context.decode(packet)
            except (self._av.error.FFmpegError, ValueError) as error:
                if not self._lenient:
                    yield from self._counted(self._held_back())
                self._broken.append(f"{self._place(packet)} cannot be decoded ({_reason(error)})")
                if not self._lenient:
                    return
            else:
                yield from self._counted(frames)

    def _held_back(self) -> list[Any]:
        """The frames that the decoder has not given yet."""
        try:
            return self._stream.codec_context.decode(None)
        except self._av.error.FFmpegError:
            return []

    def _place(self, packet: Any) -> str:
        """Of what frame it is; by its time where later ones may come before those held back."""
        ticks = None if packet is None or packet.pts is None else packet.pts
        if ticks is None or not self._lenient:
            return f"frame {self._count}"
        return f"the frame at {float(ticks * self.time_base):.2f} s"

    def _counted(self, frames: list[Any]) -> list[Any]:
        self._count += len(frames)
        return frames

    def _packets(self) -> Iterator[Any]:
        """Those of the video, None for the end; a file that ends too early is noted."""
        begin = end = Fraction(0)
        try:
            for packet in self._container.demux():
                if packet.pts is not None:
                    start = packet.pts * Fraction(packet.time_base)
                    begin = min(begin, start)
                    end = max(end, start + (packet.duration or 0) * Fraction(packet.time_base))
                if packet.stream_index == self._stream.index and packet.size:
                    yield packet
        except self._av.error.FFmpegError as error:
            yield None
            self._broken.append(f"frame {self._count} cannot be read ({_reason(error)})")
            return
        yield None
        told = Fraction(self._container.duration or 0, self._av.time_base)
        missing = told - (end - begin) > max(SHORT, 2 / self.rate)
        if missing and self._container.format.name.startswith(DATED):
            self._broken.append(
                f"frame {self._count} is missing: the file ends at {float(end - begin):.2f} s of "
                f"the {float(told):.2f} s that its header tells"
            )

    def _say(self, kind: str, text: str) -> None:
        self.conversions.append(Conversion(str(self.path), kind, text))


@dataclass(frozen=True)
class _Turn:
    """What brings a decoded picture upright: exchange its sides, then mirror them."""

    sides: bool = False
    columns: bool = False
    rows: bool = False


_NO_TURN = _Turn()


def _turn(matrix: bytes) -> _Turn:
    """That of a display matrix: int32 [a b u; c d v; x y w], 65536 being 1.

    It takes a point (x, y) to (a x + c y, b x + d y), as ISO 14496-12 has it (tkhd). Cameras write
    quarter turns, and their mirror images.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    sides = abs(b) > abs(a)
    return _Turn(sides, (c if sides else a) < 0, (b if sides else d) < 0)


def _upright(image: np.ndarray, turn: _Turn) -> np.ndarray:
    image = image.swapaxes(0, 1) if turn.sides else image
    image = image[:, ::-1] if turn.columns else image
    return np.ascontiguousarray(image[::-1] if turn.rows else image)


class _Video:
    """A file of one video stream that grows frame by frame."""

    def __init__(self, path: Path, file: BinaryIO, clip: Clip, every: int, kind: _Kind) -> None:
        self._path, self._pixels, self._av = path, kind.pixels, require_av()
        # Without bitexact Matroska gives each file a number at random.
        options = {"fflags": "+bitexact"}
        self._container = self._av.open(file, "w", format=kind.container, options=options)
        self._stream = self._container.add_stream(kind.codec, rate=clip.rate / every)
        self._time_base = max(clip.time_base, kind.finest)
        self._stream.time_base = self._time_base
        self._codec = self._stream.codec_context
        self._codec.time_base = self._time_base
        self._codec.thread_count = 1
        self._codec.pix_fmt = kind.pixels
        self._codec.options = kind.options
        self._codec.sample_aspect_ratio = clip.aspect
        self._codec.color_range = kind.range
        if kind.colours:
            self._codec.colorspace = BT709
            self._codec.color_primaries = BT709
            self._codec.color_trc = BT709
        self._colours = kind.colours
        self._lasts = max(1, round(every / clip.rate / self._time_base))
        self._last = -1

    def add(self, picture: np.ndarray, time: Fraction) -> None:
        """uint8 `[H, W, 3]`, or of a grey video `[H, W]`, all of one size; seconds.

        Raises InputError where it cannot be written.
        """
        if self._last < 0:
            self._codec.height, self._codec.width = picture.shape[:2]
        self._last = max(self._last + 1, round(time / self._time_base))
        layout = "rgb24" if picture.ndim == 3 else "gray"
        frame = self._av.VideoFrame.from_ndarray(picture, layout)
        if self._colours:
            frame = frame.reformat(format=self._pixels, dst_colorspace="ITU709", threads=1)
        frame.pts, frame.time_base, frame.duration = self._last, self._time_base, self._lasts
        with _writing(self._path):
            self._container.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Write what the encoder has held back, and the index."""
        self._container.mux(self._stream.encode(None))
        self.close()

    def close(self) -> None:
        self._container.close()


@dataclass(frozen=True)
class _Kind:
    """How a video is written; `finest`: the shortest time base that the codec takes, in seconds;
    `colours`: it is no map of labels, but a picture in limited range."""

    container: str
    codec: str
    pixels: str
    options: dict[str, str]
    finest: Fraction = Fraction(0)
    colours: bool = True

    @property
    def range(self) -> int:
        return LIMITED if self.colours else FULL


# Unless independent of the processor, x264 gives other bytes from one run to the next (AVX-512).
_H264_OPTIONS = {"preset": "veryfast", "crf": "18", "x264-params": "cpu-independent=1"}
_H264 = _Kind("mp4", "libx264", "yuv420p", _H264_OPTIONS)
_MPEG4 = _Kind("mp4", "mpeg4", "yuv420p", {"qscale": "3", "flags": "+qscale"}, Fraction(1, 65535))
_LABELS = _Kind("matroska", "ffv1", "gray", {"level": "3", "slicecrc": "1"}, colours=False)


@contextmanager
def overlay_video(path: Path, clip: Clip, every: int = 1) -> Iterator[_Video]:
    """An mp4 of the frames of a clip, each `every`th, as they are added: `add(picture, time)`.

    H.264 where this FFmpeg has libx264, else MPEG-4 part 2; without sound. Pictures are uint8 RGB
    `[H, W, 3]` with even sides. It is at `path` once the block has ended, and not if that raises.

    Raises InputError where it cannot be written.
    """
    av = require_av()
    has_h264 = "libx264" in av.codecs_available
    with _whole_video(path, clip, every, _H264 if has_h264 else _MPEG4) as video:
        yield video


@contextmanager
def label_video(path: Path, clip: Clip, every: int = 1) -> Iterator[_Video]:
    """As `overlay_video`, of label maps uint8 `[H, W]`: lossless, FFV1 in Matroska, grey."""
    with _whole_video(path, clip, every, _LABELS) as video:
        yield video


def read_label_video(path: str | Path) -> Iterator[np.ndarray]:
    """The label maps of a `label_video`, uint8 `[H, W]`.

    Raises InputError where it cannot be read.
    """
    av, path = require_av(), Path(path)
    images.check_file(path)
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="gray")
    except (av.error.FFmpegError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as a video of labels ({error})") from error


@contextmanager
def _whole_video(path: Path, clip: Clip, every: int, kind: _Kind) -> Iterator[_Video]:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            video = _Video(path, file, clip, every, kind)
            try:
                yield video
                video.end()
            except BaseException:
                with suppress(Exception):  # what it still writes goes with the file
                    video.close()
                raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What FFmpeg or the system says of a file as an OutputError that names it."""
    try:
        yield
    except (OSError, require_av().error.FFmpegError) as error:
        raise OutputError(
            f"{path}: cannot be written ({_reason(error)}); choose another output folder"
        ) from error


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error
