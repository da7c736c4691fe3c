"""Small videos of generated scenes, written with PyAV.

All codecs have one thread: a process that is forked would wait for others forever, once it collects
the garbage that it was born with.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from deeplab.data.scenes import scene


def moving(count: int = 16, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames uint8 `[H, W, 3]`: a scene that moves to the left."""
    wide = scene(0, (height, width + 2 * count)).image
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + width]) for i in range(count)]


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray] | None = None,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 8,
    times: Sequence[int | None] | None = None,
    ticks: int | None = None,
    matrix: Sequence[int] | None = None,
    sound: bool = False,
    aspect: Fraction = Fraction(1),
    movflags: str = "",
    **options: str,
) -> Path:
    """A clip of these frames, of `moving` ones for None.

    times: of the frames, in `ticks` a second; else one after another at `rate`. matrix: 2 x 2, of
    how the picture is turned for display. sound: a second of silence. aspect: of a pixel.
    movflags: how an mp4 is laid out; options: the encoder's.
    """
    import av

    frames, path = moving() if frames is None else frames, Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=layout) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = pixels, options
        stream.codec_context.thread_count = 1
        stream.sample_aspect_ratio = aspect
        base = Fraction(1, rate if ticks is None else ticks)
        stream.time_base = stream.codec_context.time_base = base
        if matrix is not None:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        silence: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels, threads=1)
            frame.pts, frame.time_base = number if times is None else times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence is not None:
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            quiet.rate = 8000
            container.mux(silence.encode(quiet))
            container.mux(silence.encode(None))
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """The frames of a video as PyAV decodes them, uint8 `[H, W, 3]`, not turned."""
    return [frame.to_ndarray(format="rgb24", threads=1) for frame in _frames(path)]


def times_of(path: Path) -> list[Fraction]:
    """When each frame of a video is shown, in seconds."""
    return [frame.pts * Fraction(frame.time_base) for frame in _frames(path)]


def _frames(path: Path) -> Iterator[Any]:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        yield from container.decode(video=0)
