"""A video through a predictor, every frame by itself: an overlay, and the labels without loss.

    result = segment_video(Predictor(model, crf), "clip.mp4", "out")
    result.files.overlay, result.files.labels       # out/clip_overlay.mp4, out/clip_labels.mkv

The label map of each frame goes to a hidden folder beside the results as soon as it is known, and
both videos are encoded as the frames pass. A run that was killed and goes on decodes and encodes
all frames again, and takes from that folder the labels that are there: so its results are those of
a run that was never stopped, byte for byte, wherever it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from torch import nn

from deeplab.data import outputs
from deeplab.data.conversions import Conversion
from deeplab.data.images import load_picture
from deeplab.data.legend import with_legend
from deeplab.data.outputs import NamedPalette
from deeplab.data.video import Clip, Frame, label_video, overlay_video, read_label_video
from deeplab.errors import InputError
from deeplab.predict.predictor import TILE, Predictor

Item = TypeVar("Item")
Answer = TypeVar("Answer")
LabelFormat = Literal["ffv1", "png"]


class VideoFiles:
    """The files that a clip's results are written to.

    Attributes:
        overlay: an mp4.
        labels: NAME_labels.mkv of grey label maps; of "png" the folder NAME_labels of palette PNGs,
            called after the frame's number in the clip: 000123.png.
        work: the folder that holds what is known until both are whole.
    """

    def __init__(self, folder: Path, name: str, labels: LabelFormat = "ffv1") -> None:
        self.overlay = folder / f"{name}_overlay.mp4"
        self.labels = folder / (f"{name}_labels" + (".mkv" if labels == "ffv1" else ""))
        self.work = self.overlay.with_name(f".{self.overlay.stem}.part")

    def are_there(self) -> bool:
        """Whether the results are on disk; each is whole or not there at all."""
        return self.overlay.exists() and self.labels.exists()

    def read_labels(self) -> Iterator[np.ndarray]:
        """The label maps that were written, uint8 `[H, W]`, in their order."""
        if not self.labels.is_dir():
            yield from read_label_video(self.labels)
            return
        for path in sorted(self.labels.glob("*.png"), key=lambda path: int(path.stem)):
            yield np.asarray(load_picture(path)[0])


@dataclass(frozen=True, eq=False)
class VideoResult:
    """What became of a clip.

    Attributes:
        files: where the results are.
        size: (width, height) of its upright frames.
        frames: how many were segmented; decoded: how many the clip has.
        areas: pixels of each class in all that were segmented, int64 `[C]`.
        conversions: what was changed in the clip, and left out of it.
    """

    files: VideoFiles
    size: tuple[int, int]
    frames: int
    decoded: int
    areas: np.ndarray
    conversions: tuple[Conversion, ...]


def segment_video(
    predictor: Predictor,
    path: str | Path,
    folder: str | Path,
    name: str | None = None,
    *,
    classes: NamedPalette | None = None,
    every: int = 1,
    labels: LabelFormat = "ffv1",
    legend: bool = True,
    skip_broken: bool = False,
    go_on: bool = False,
    workers: int = 1,
    max_megapixels: float | None = None,
    progress: Callable[[int, int | None], object] = lambda done, expected: None,
    stopped: Callable[[], bool] = lambda: False,
) -> VideoResult | None:
    """Segment the frames of a clip, each by itself.

    predictor: of a model of RGB and of one label a pixel, at most 256 classes.
    folder, name: the results are folder/name_overlay.mp4 and so on, see `VideoFiles`; name: that of
        the clip without its suffix. What is there is replaced.
    classes: how they look and what they are called; None takes VOC's colours and numbers.
    every: segment frames 0, every, 2 every, ...; the others are in no result. The overlay shows
        each until the next, so that it lasts as long as the clip.
    labels: "ffv1" for a video, "png" for a folder.
    legend: below the overlay, of all classes of the model, which is the same in each frame; left
        out where it would be taller than the frames.
    skip_broken: take what can be decoded of a damaged clip, and tell of it in `conversions`.
    go_on: take up a run of this clip with this predictor that was stopped or killed; a different
        one begins anew, as without.
    workers: threads that call the predictor, for frames side by side. More than one need a model
        in evaluation mode without a CRF layer of its own, and one thread each of torch's
        (`torch.set_num_threads(1)`) to be of use on a CPU.
    max_megapixels: refuse a clip of larger frames (10^6 pixels).
    progress: called after each frame that was segmented, with their number so far, and how many
        there will be as far as the file tells.
    stopped: asked before each frame; once it is true, what is in hand is finished.

    A frame takes one label map on the disk, as a PNG, until the results are whole; in memory are as
    many frames as there are workers, and those that the codecs hold. Returns None where `stopped`
    has ended it: no result is there then, and `go_on` goes on.

    Raises InputError as `Clip` does, where a result cannot be written, and as the predictor does;
    no result is written then. ValueError for a predictor, workers and other values that cannot be
    used.
    """
    check_predictor(predictor)
    if every < 1:
        raise ValueError(f"every must be a number from 1 on, not {every}")
    if labels not in get_args(LabelFormat):
        raise ValueError(f"labels must be one of {', '.join(get_args(LabelFormat))}, not {labels}")
    model = predictor.model
    changes = model.crf is not None or any(module.training for module in model.modules())
    if workers < 1 or (workers > 1 and changes):
        raise ValueError(
            f"workers must be 1, or more for a model in evaluation mode without a CRF layer of "
            f"its own, not {workers}"
        )
    path = Path(path)
    files = VideoFiles(Path(folder), path.stem if name is None else name, labels)
    classes = NamedPalette(outputs.voc_palette()) if classes is None else classes
    with Clip(path, skip_broken=skip_broken, max_megapixels=max_megapixels) as clip:
        page = _Page(clip, classes, model.num_classes, legend)
        work = _Work(files.work, clip, predictor, classes, every, go_on)
        expected = None if clip.expected is None else -(-clip.expected // every)
        areas, count, decoded = np.zeros(model.num_classes, np.int64), 0, 0

        def wanted() -> Iterator[Frame]:
            nonlocal decoded
            for frame in clip:
                if stopped():
                    raise _Stopped
                decoded = frame.number + 1
                if frame.number % every == 0:
                    yield frame

        def segmented(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
            found = work.labels(frame)
            return found, page.overlay(frame.image, found)

        lossless = label_video(files.labels, clip, every) if labels == "ffv1" else nullcontext()
        try:
            with overlay_video(files.overlay, clip, every) as overlay, lossless as maps:
                for frame, (found, shown) in in_order(wanted(), segmented, workers):
                    overlay.add(shown, frame.time)
                    if maps is not None:
                        maps.add(found, frame.time)
                    areas += np.bincount(found.ravel(), minlength=len(areas))
                    count += 1
                    progress(count, expected)
                # Of an older pair the part that is replaced last goes first: no two are mixed.
                work.put_aside(files.labels if labels == "png" else files.overlay)
        except _Stopped:
            return None
        work.end(files.labels if labels == "png" else None)
        notes = (*clip.conversions, *page.conversions, *work.conversions)
        return VideoResult(files, clip.size, count, decoded, areas, notes)


def check_predictor(predictor: Predictor) -> None:
    """ValueError for one that cannot segment a video."""
    model = predictor.model
    if model.multilabel:
        raise ValueError("a video needs a model of one label a pixel, not of several")
    if model.in_channels != 3:
        raise ValueError(f"a video needs a model of RGB, not of {model.in_channels} bands")
    if model.num_classes > 256:
        raise ValueError(f"a video needs a model of at most 256 classes, not {model.num_classes}")


def in_order(
    items: Iterable[Item], work: Callable[[Item], Answer], workers: int
) -> Iterator[tuple[Item, Answer]]:
    """Each item with what `work` made of it in one of so many threads, in the order of the items.

    An item is taken when a thread is free for it. Where taking one raises, or working on it does,
    those before it are answered first.
    """
    in_hand: deque[tuple[Item, Future[Answer]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
        try:
            source, problem = iter(items), None
            while problem is None:
                try:
                    item = next(source)
                except Exception as error:  # StopIteration too
                    problem = error
                else:
                    in_hand.append((item, pool.submit(work, item)))
                while len(in_hand) > (workers if problem is None else 0):
                    item, future = in_hand.popleft()
                    yield item, future.result()
            if not isinstance(problem, StopIteration):
                raise problem
        finally:
            pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """A stop was asked for."""


class _Work:
    """The label maps of a clip that are known, in a folder; the others are made."""

    def __init__(
        self,
        folder: Path,
        clip: Clip,
        predictor: Predictor,
        classes: NamedPalette,
        every: int,
        go_on: bool,
    ) -> None:
        self._folder, self._maps, self._path = folder, folder / "labels", clip.path
        self._palette = classes.palette
        tile = predictor.tile
        if tile == "auto":  # by the memory of this moment, and so for all frames
            tile = TILE if predictor.in_tiles(clip.size[::-1]) else None
        file = clip.path.stat()
        about = {
            "clip": [file.st_size, file.st_mtime_ns, every],
            "predictor": _fingerprint(predictor),
            "palette": self._palette.tobytes().hex(),
        }
        described = folder / "about.json"
        stored: dict[str, Any] = {}
        if go_on:
            with suppress(OSError, ValueError):
                stored = json.loads(described.read_text())
        self.conversions: list[Conversion] = []
        if stored | {"tile": None} == about | {"tile": None}:
            tile = stored["tile"]
        else:
            if stored:
                text = "was begun before with other weights or settings, or changed; begun anew"
                self.conversions.append(Conversion(str(clip.path), "begun anew", text))
            with outputs.as_output_error(folder), suppress(FileNotFoundError):
                shutil.rmtree(folder)
            outputs.write_text(described, json.dumps(about | {"tile": tile}))
        self._predictor = replace(predictor, tile=tile)

    def labels(self, frame: Frame) -> np.ndarray:
        """uint8 `[H, W]`."""
        path = self._maps / f"{frame.number:06d}.png"
        if path.exists():
            return np.asarray(load_picture(path)[0])
        try:
            found = self._predictor(frame.image, probabilities=False).labels
        except ValueError as error:
            raise InputError(f"{self._path}: frame {frame.number}: {error}") from error
        outputs.write_labels(path, found, self._palette)
        return found

    def put_aside(self, result: Path) -> None:
        """Take away a result of an earlier run."""
        with outputs.as_output_error(result), suppress(FileNotFoundError):
            result.rename(self._folder / "before")

    def end(self, results: Path | None) -> None:
        """Leave nothing behind: the maps become the folder `results`, if there is to be one."""
        with outputs.as_output_error(self._folder):
            if results is not None:
                self._maps.rename(results)
            shutil.rmtree(self._folder)


def _fingerprint(predictor: Predictor) -> str:
    """A hash of whatever the labels depend on, save that "auto" may cut frames into tiles."""
    model, crf = predictor.model, predictor.crf
    device = next(model.parameters()).device.type
    named = repr(crf) if isinstance(crf, nn.Module) else getattr(crf, "__qualname__", None)
    views = list(predictor.scales), predictor.flip, str(predictor.dtype), device
    rest = (
        predictor.fold,
        predictor.compile,
        predictor.threshold,
        predictor.bands,
        predictor.tile,
        predictor.overlap,
    )
    digest = hashlib.sha256(
        json.dumps([model.config, named, views, rest], sort_keys=True, default=str).encode()
    )
    for module in (model, crf):
        if isinstance(module, nn.Module):
            for key, tensor in sorted(module.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


class _Page:
    """What an overlay is drawn on: the frame, the legend of all classes below it, even sides."""

    def __init__(self, clip: Clip, classes: NamedPalette, count: int, legend: bool) -> None:
        width, height = clip.size
        self._palette, self._page = classes.palette, np.zeros((height, width, 3), np.uint8)
        self.conversions: list[Conversion] = []
        if legend:
            page = with_legend(self._page, np.ones(count, np.int64), classes)
            if page.shape[0] <= 2 * height:
                self._page = page
            else:
                text = f"its overlay has no legend: that of {count} classes is taller than a frame"
                self.conversions.append(Conversion(str(clip.path), "no legend", text))
        self._odd = [(0, side % 2) for side in self._page.shape[:2]]

    def overlay(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """uint8 `[H', W', 3]`: frame `[H, W, 3]` with its labels, at the top left."""
        page = self._page.copy()
        page[: image.shape[0], : image.shape[1]] = outputs.overlay(image, labels, self._palette)
        return np.pad(page, [*self._odd, (0, 0)], "edge")
