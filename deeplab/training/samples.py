"""Samples: the pictures of a run in a random order, scaled, mirrored and cropped at random.

Sample i of a run depends on (seed, i) alone. Step s takes samples s * batch_size and following,
process r of n the r-th of n equal parts of them: however many processes and workers there are, and
wherever a run is resumed, the steps see the same samples.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deeplab.data.augment import augment
from deeplab.data.conversions import Conversion
from deeplab.data.datasets import IGNORE
from deeplab.data.datasets.base import LabelledPicture, conversions_of
from deeplab.data.datasets.counts import histogram
from deeplab.data.distort import distort, rotate
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.model.preprocess import Preprocessing
from deeplab.training.config import TrainConfig
from deeplab.training.hook import augmented
from kernels import memory

CHECKED_EVERY = 100  # pictures, between looks at the free memory


class Sample(NamedTuple):
    """A sample, or a process's share of a step: pictures with a batch axis, all else summed.

    image: RGB uint8 [3, crop, crop], or of the model's bands, float32 unless the picture is uint8;
    labels: uint8 [crop, crop], 255 ignored, or masks [C, crop, crop]; pixels: int64 [256],
    of each label in the whole picture; conversions: what reading changed in the picture; broken:
    what is wrong with pictures that were passed over; seconds: how long it took to make; waited:
    seconds that the step waited for it.
    """

    image: Tensor
    labels: Tensor
    pixels: Tensor
    conversions: tuple[Conversion, ...]
    broken: tuple[str, ...]
    seconds: float
    waited: float = 0.0


class Samples(Dataset[Sample]):
    """The whole run's samples in order, a new random order of the pictures each epoch.

    Beyond the picture, the image has the colour that `preprocessing` turns into zero and the label
    is 255. A picture that cannot be read raises its InputError; with `skip_broken` the next one in
    the order takes its place. One that `preprocessing` does not take, such as one that is not uint8
    RGB [H, W, 3], or has other labels [H, W] than 0 to `classes` - 1 and 255, is such a picture.
    multilabel: labels are masks [classes, H, W] of 0, 1 and 255.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        config: TrainConfig,
        preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
        classes: int = IGNORE,
        multilabel: bool = False,
    ) -> None:
        self.dataset, self.config, self.classes = dataset, config, classes
        self.multilabel = multilabel
        self.preprocessing = preprocessing
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, index: int) -> Sample:
        start = time.perf_counter()
        epoch, position = divmod(index, len(self.dataset))
        pair, broken = self._picture(epoch, position)
        image, labels = pair
        rng = np.random.default_rng([self.config.seed, 1, index])
        scaled, target = self._augmented(image, labels, rng)
        if scaled.dtype != np.uint8:  # torch does little with 16 bits
            scaled = scaled.astype(np.float32)
        picture = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))
        truth = torch.from_numpy(target.astype(np.uint8))
        pixels = torch.from_numpy(histogram(labels))
        seconds = time.perf_counter() - start
        return Sample(picture, truth, pixels, conversions_of(pair), broken, seconds)

    def _augmented(
        self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A sample `[..., crop, crop]` of a picture, its chance all of `rng`."""
        config = self.config
        fill = self.preprocessing.mean_colour()
        distortions = [name for name in config.for_rgb if name != "loss"]
        if distortions and (image.dtype != np.uint8 or image.shape[2] != 3):
            raise InputError(
                f"{distortions[0]} must be off for pictures that are not uint8 RGB, such as "
                f"{image.dtype} of {image.shape[2]} bands"
            )
        if config.rotate:
            image, labels = rotate(image, labels, config.rotate, rng, fill)
        image, labels = augment(
            image,
            labels,
            crop=config.crop,
            scales=config.scales,
            mode=config.scale_mode,
            mirror=config.mirror,
            rng=rng,
            fill=fill,
        )
        if config.colour_jitter or config.blur or config.noise:
            image = distort(
                image,
                labels,
                rng,
                colour_jitter=config.colour_jitter,
                blur=config.blur,
                noise=config.noise,
                fill=fill,
            )
        if config.augment:
            image, labels = augmented(config.augment, image, labels, rng, self.classes)
        return image, labels

    def _picture(self, epoch: int, position: int) -> tuple[LabelledPicture, tuple[str, ...]]:
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.config.seed, 0, epoch])
            self._order = (epoch, rng.permutation(len(self.dataset)))
        broken: list[str] = []
        for ahead in range(len(self.dataset)):
            place = int(self._order[1][(position + ahead) % len(self.dataset)])
            try:
                pair = _as_arrays(self.dataset[place])
                _check_picture(place, *pair, self.preprocessing, self.classes, self.multilabel)
                return pair, tuple(broken)
            except InputError as error:
                if not self.config.skip_broken:
                    raise InputError(f"{error} (skip_broken = true passes over it)") from error
                broken.append(str(error))
        raise InputError(f"every picture of the training set is broken, such as: {broken[0]}")


def _as_arrays(pair: tuple[Any, Any]) -> LabelledPicture:
    image, labels = (np.asarray(part) for part in pair)
    return LabelledPicture(image, labels, conversions_of(pair))


def _check_picture(
    place: int,
    image: np.ndarray,
    labels: np.ndarray,
    preprocessing: Preprocessing,
    classes: int,
    multilabel: bool,
) -> None:
    """InputError where a data set gives what no picture and no labels are."""
    bands, dtypes = preprocessing.in_channels, preprocessing.dtypes
    if image.ndim != 3 or image.shape[2] != bands or image.dtype.name not in dtypes:
        colours = " RGB" if bands == 3 else ""
        raise InputError(
            f"picture {place} of the data set must be {' or '.join(dtypes)}{colours} "
            f"[H, W, {bands}], not {image.dtype} {list(image.shape)}"
        )
    maps, values = ((classes,), 2) if multilabel else ((), classes)
    if labels.shape != (*maps, *image.shape[:2]) or not labels.size:
        masks = f" and {classes} classes" if multilabel else ""
        raise InputError(
            f"picture {place} of the data set must have labels for {list(image.shape[:2])} pixels"
            f"{masks}, at least one, not {list(labels.shape)}"
        )
    outside = labels[(labels != IGNORE) & ((labels < 0) | (labels >= values))]
    if outside.size:
        raise InputError(
            f"picture {place} of the data set: label {outside[0]}, expected 0 to {values - 1}, or "
            f"{IGNORE} where a pixel does not count"
        )


class InMemory:
    """A data set whose pictures have all been read, once, and are kept.

    Workers that are forked share them; those that are spawned get a copy each. A broken picture
    raises its InputError when it is asked for. progress: passes on the numbers that it is given,
    and may show how far they are.

    Raises InputError where the memory is not enough, as far as the system tells.
    """

    def __init__(
        self, dataset: LabelledImages, progress: Callable[[Iterable[int]], Iterable[int]] = iter
    ) -> None:
        self._kept: list[LabelledPicture | InputError] = []
        for index in progress(range(len(dataset))):
            try:
                pair = _as_arrays(dataset[index])
            except InputError as error:
                self._kept.append(error)
                continue
            if index % CHECKED_EVERY == 0:
                left = len(dataset) - index
                needed = left * sum(part.nbytes for part in pair)
                what, mend = f"{left} pictures in memory", "set in_memory to false"
                try:
                    memory.require(needed, torch.device("cpu"), what, mend)
                except MemoryError as error:
                    raise InputError(str(error)) from error
            self._kept.append(pair)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        kept = self._kept[index]
        if isinstance(kept, InputError):
            raise kept
        return kept


class SkipBroken:
    """A data set to score on, in which a picture that cannot be read has no labelled pixel.

    It counts for no score then. `broken` collects what is wrong with such pictures. bands: of the
    pictures; masks: how many classes have one, 0 where each pixel has one label.
    """

    def __init__(self, dataset: LabelledImages, bands: int = 3, masks: int = 0) -> None:
        self.dataset, self.bands, self.masks = dataset, bands, masks
        self.broken: set[str] = set()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            return self.dataset[index]
        except InputError as error:
            self.broken.add(str(error))
            shape = (self.masks, 9, 9) if self.masks else (9, 9)
            return np.zeros((9, 9, self.bands), np.uint8), np.full(shape, IGNORE, np.uint8)


def batches(
    dataset: LabelledImages,
    config: TrainConfig,
    first_step: int = 0,
    *,
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 (frozen)
    classes: int = IGNORE,
    multilabel: bool = False,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Generator[Sample, None, None]:
    """The shares of process `rank` of `world` in the steps from `first_step` on.

    Workers make them ahead, two steps each. InputError names a picture that cannot be read, see
    `Samples`.
    """
    share = config.batch_size // world
    starts = (step * config.batch_size + rank * share for step in range(first_step, config.steps))
    with warnings.catch_warnings():
        # The run says it in one line at its start.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Any] = DataLoader(
            _WithErrors(Samples(dataset, config, preprocessing, classes, multilabel)),
            batch_sampler=(list(range(start, start + share)) for start in starts),
            num_workers=config.workers,
            multiprocessing_context=start_method() if config.workers else None,
            collate_fn=_collate,
            worker_init_fn=_start_worker,
            pin_memory=pin,
            # Samples bring their own chance; without this it draws from the global generator.
            generator=torch.Generator().manual_seed(config.seed),
        )
        made = iter(loader)
    try:
        for batch in made:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    finally:
        # An error that someone keeps would keep the workers too, which heed no signal: the program
        # would wait for them at its end.
        getattr(made, "_shutdown_workers", lambda: None)()


def start_method() -> str:
    """How workers are started: as the program has chosen, or forked on Linux.

    Forked ones start at once and share the pictures in memory. Python's own choice, made where
    there is none of the program, differs between its versions.
    """
    default = "fork" if sys.platform == "linux" else "spawn"
    return multiprocessing.get_start_method(allow_none=True) or default


class _WithErrors(Dataset[Sample | InputError]):
    """Hands an InputError over as a value: raised in a worker it would arrive as a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.samples[index]
        except InputError as error:
            return error


def _collate(samples: list[Sample | InputError]) -> Sample | InputError:
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    if len(whole) < len(samples):
        return next(sample for sample in samples if isinstance(sample, InputError))
    images, labels, pixels, conversions, broken, seconds, _ = zip(*whole, strict=True)
    return Sample(
        torch.stack(images),
        torch.stack(labels),
        torch.stack(pixels).sum(0),
        tuple(chain.from_iterable(conversions)),
        tuple(chain.from_iterable(broken)),
        sum(seconds),
    )


def _start_worker(_: int) -> None:
    """Signals that stop a run reach its workers too: they go on, so that the step can end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def step_seed(seed: int, step: int, rank: int) -> int:
    """For dropout: another stream than the samples', another in each process."""
    return int(np.random.SeedSequence([seed, 2, step, rank]).generate_state(1, np.uint64)[0])
