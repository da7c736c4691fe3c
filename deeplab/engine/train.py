"""Training with the papers' recipe: SGD with momentum, the poly policy, parameter groups.

    lr(i) = lr_0 * (1 - i / steps) ** power,     power = 0.9

times each group's own factor (`DeepLab.param_groups`), with a linear warm-up in front. Every
sample is a random scene, randomly scaled, mirrored and cropped; its cross entropy is taken at
`loss_stride`: 1 compares the upsampled logits with the labels, 8 the logits with
`labels[::8, ::8]` as the papers do (the same grid, since align_corners maps n = 8k + 1 pixels to
k + 1). Source: Chen et al., DeepLab v2, section 4.1.

The defaults of `TrainConfig` are the recipe of the weights that the package ships: trained from
scratch, so the rate is higher and the head is not favoured as it is over a pretrained body. The
command is `deeplab train --out deeplab_v2_small_scenes.safetensors`; its scores, and those of an
earlier run, are in bench/records/scenes_deeplab_v2_small.json.

A run is a function of its configuration: sample i depends on (seed, i) alone, however many workers
prepare it. Ctrl-C stops after the current step and writes what there is.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deeplab.data import scenes
from deeplab.data.outputs import check_writable_file
from deeplab.engine.evaluate import LabelledImages, evaluate
from deeplab.engine.refine import CRFSettings
from deeplab.errors import InputError
from deeplab.model import MODELS, DeepLab, build
from deeplab.preprocess import MEAN_BGR
from deeplab.weights import save_weights

IGNORE = 255

SCENES_CRF: dict[str, Any] = {
    "iterations": 10,
    "gaussian_weight": 1.0,
    "gaussian_sigma": 1.0,
    "bilateral_weight": 10.0,
    "bilateral_sigma_xy": 120.0,
    "bilateral_sigma_rgb": 8.0,
}
"""CRF settings for the generated scenes, the best of a search on validation scenes."""


@dataclass(frozen=True)
class TrainConfig:
    """What fixes a training run; ValueError on construction where a value makes no sense.

    Attributes:
        model: name in `deeplab.model.MODELS`.
        steps, batch_size: SGD steps, and samples in each.
        lr, power, warmup: first learning rate, exponent of the poly policy, steps of warm-up.
        head_lr_scale: learning rate of the classifier relative to the body; its bias has twice
            that. The papers use 10 over a pretrained body.
        momentum, weight_decay: of SGD; the decay is for weights, not biases or BatchNorm.
        crop: side of a sample in pixels, 8k + 1.
        scales: smallest and largest random scale.
        mirror: flip half of the samples.
        loss_stride: 1 or 8, see the file's docstring.
        scenes, validation_scenes: number of generated scenes, where no data set is given.
        validate_every: steps between validations, each with a checkpoint.
        precision: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the processor has it.
        crf: end in a dense CRF whose weights and compatibility learn with the network. The loss is
            then that of the refined segmentation, at full size (loss_stride 1). It starts from the
            settings in the metadata ("crf"), DeepLab v2's where there are none.
        workers: processes that prepare samples; 0 prepares them in this one.
        seed: of initialisation and samples.
    """

    model: str = "deeplab_v2_small"
    steps: int = 6000
    batch_size: int = 8
    lr: float = 0.05
    power: float = 0.9
    warmup: int = 100
    head_lr_scale: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 193
    scales: tuple[float, float] = (0.5, 1.5)
    mirror: bool = True
    loss_stride: Literal[1, 8] = 1
    scenes: int = 4000
    validation_scenes: int = 50
    validate_every: int = 500
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    crf: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.model in MODELS, "model", f"one of {', '.join(MODELS)}", self.model)
        for name in ("steps", "batch_size", "scenes", "validation_scenes", "validate_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        most = {  # each split ends where the next one starts
            "scenes": scenes.VALIDATION_START - scenes.TRAIN_START,
            "validation_scenes": scenes.TEST_START - scenes.VALIDATION_START,
        }
        for name, limit in most.items():
            _require(getattr(self, name) <= limit, name, f"at most {limit}", getattr(self, name))
        for name in ("warmup", "workers", "seed", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("lr", "power", "head_lr_scale"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "a positive number", value)
        _require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        _require(self.crop >= 9 and self.crop % 8 == 1, "crop", "8k + 1, such as 321", self.crop)
        low, high = self.scales
        _require(0 < low <= high <= 4, "scales", "0 < smallest <= largest <= 4", self.scales)
        _require(self.loss_stride in (1, 8), "loss_stride", "1 or 8", self.loss_stride)
        stride = "1 with crf: a CRF works on pixels"
        _require(not self.crf or self.loss_stride == 1, "loss_stride", stride, self.loss_stride)
        known = ("auto", "float32", "bfloat16")
        _require(self.precision in known, "precision", f"one of {', '.join(known)}", self.precision)


@dataclass(frozen=True)
class TrainResult:
    """The trained model in evaluation mode and what the run achieved.

    `steps` done, `interrupted` by Ctrl-C or not, the mean `loss` of the last steps, and the
    validation `metrics` (mIoU and the like) of the last validation: of the refined segmentation
    where the model ends in a CRF, the network's own under "network" then.
    """

    model: DeepLab
    steps: int
    interrupted: bool
    loss: float
    metrics: dict[str, Any]


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    dataset: LabelledImages | None = None,
    validation: LabelledImages | None = None,
    class_names: Sequence[str] = scenes.CLASSES,
    palette: npt.ArrayLike = scenes.PALETTE,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a model from scratch.

    Args:
        config: the recipe.
        out: weights file, rewritten at every validation and at the end; None writes nothing.
        dataset, validation: pairs (image uint8 [H, W, 3] RGB, labels [H, W], 255 ignored);
            by default the generated scenes of the training and validation seeds.
        class_names: a name for each class; their number is the model's.
        palette: colours [>= classes, 3] for the weights file.
        metadata: more JSON-able entries for the weights file. For the generated scenes "crf" is
            `SCENES_CRF` unless given here; a CRF that learns (`config.crf`) replaces it.
        progress: show loss, learning rate, last mIoU and time left, on standard error.

    Raises:
        ValueError: an empty data set. FloatingPointError: the loss is not finite any more.
        InputError: `out` cannot be written (found before training starts).
    """
    metadata = dict(metadata or {})
    if dataset is None:
        metadata.setdefault("crf", SCENES_CRF)
        dataset = scenes.ScenesDataset(scenes.TRAIN_START, config.scenes)
    if validation is None:
        validation = scenes.ScenesDataset(scenes.VALIDATION_START, config.validation_scenes)
    if len(dataset) == 0 or len(validation) == 0:
        raise ValueError("dataset, validation: expected at least one picture in each")
    torch.manual_seed(config.seed)
    layer = None
    if config.crf:
        settings = CRFSettings().changed(metadata.get("crf") or {})
        layer = settings.layer(len(class_names), learnable=True)
    model = build(config.model, num_classes=len(class_names), crf=layer)
    # A fifth faster on a CPU; the type stubs lack this overload.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    described = {
        "class_names": list(class_names),
        "palette": np.asarray(palette)[: len(class_names)].tolist(),
        "recipe": dataclasses.asdict(config),
        "commit": _commit(),
        **metadata,
    }
    run = _Run(
        config, model, validation, class_names, described, None if out is None else Path(out)
    )
    if out is not None:
        check_writable_file(Path(out))  # an older file there is kept until there is better
        if not Path(out).parent.is_dir():
            raise InputError(f"{out}: cannot write, there is no such folder; create it first")
    return run.loop(dataset, progress)


def poly_lr(lr: float, step: int, steps: int, power: float = 0.9, warmup: int = 0) -> float:
    """The learning rate of `step` (0 is the first): poly policy, linear warm-up in front."""
    return lr * (1 - step / steps) ** power * min(1.0, (step + 1) / (warmup + 1))


def parameter_groups(model: DeepLab, config: TrainConfig) -> list[dict[str, Any]]:
    """The model's groups, with the head's factors (10 and 20) put to `head_lr_scale` (twice it)."""
    groups = model.param_groups(config.lr, config.weight_decay)
    for group in groups:
        if group["name"].startswith("head"):
            group["lr_scale"] *= config.head_lr_scale / 10
            group["lr"] = config.lr * group["lr_scale"]
    return groups


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """The whole run's samples in order: (RGB float [3, crop, crop] 0-255, labels [crop, crop]).

    Sample i visits the pictures in a new random order each epoch and is scaled, mirrored and
    cropped at random; all of it follows from (config.seed, i). Beyond the picture, the image is the
    mean colour and the label 255.
    """

    def __init__(self, dataset: LabelledImages, config: TrainConfig) -> None:
        self.dataset, self.config = dataset, config

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(index, len(self.dataset))
        order = np.random.default_rng([self.config.seed, 0, epoch]).permutation(len(self.dataset))
        image, labels = (np.asarray(part) for part in self.dataset[int(order[position])])
        rng = np.random.default_rng([self.config.seed, 1, index])
        image, labels = random_crop(image, labels, self.config, rng)
        return torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(labels)


def random_crop(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
    config: TrainConfig,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """A window of the picture, brought to crop x crop; image bilinear, labels nearest.

    A window of crop / scale pixels resized is the scaled picture cropped, at the cost of the crop.
    """
    crop, (low, high) = config.crop, config.scales
    side = max(1, round(crop / rng.uniform(low, high)))
    height, width = labels.shape
    top = int(rng.integers(min(0, height - side), max(0, height - side) + 1))
    left = int(rng.integers(min(0, width - side), max(0, width - side) + 1))
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = np.round(MEAN_BGR[::-1])
    truth = np.full((side, side), IGNORE, np.uint8)
    y0, y1, x0, x1 = max(top, 0), min(top + side, height), max(left, 0), min(left + side, width)
    inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    canvas[inside], truth[inside] = image[y0:y1, x0:x1], labels[y0:y1, x0:x1]
    size = (crop, crop)
    scaled = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BILINEAR))
    target = np.array(Image.fromarray(truth).resize(size, Image.Resampling.NEAREST))
    if config.mirror and rng.random() < 0.5:
        scaled, target = scaled[:, ::-1].copy(), target[:, ::-1].copy()
    return scaled, target.astype(np.int64)


def segmentation_loss(model: DeepLab, rgb: Tensor, labels: Tensor, stride: int) -> Tensor:
    """Mean cross entropy over the labelled pixels: at full size, or on the grid of the logits."""
    x = model.preprocess(rgb).contiguous(memory_format=torch.channels_last)
    image = None if model.crf is None else rgb
    logits = model(x, image=image, upsample=stride == 1)
    if stride == 8:
        labels = labels[:, ::8, ::8]
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


class _Run:
    """One training run: the model with its optimiser, validations and checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        model: DeepLab,
        validation: LabelledImages,
        class_names: Sequence[str],
        metadata: dict[str, Any],
        out: Path | None,
    ) -> None:
        self.config, self.model, self.out = config, model, out
        self.validation, self.class_names = validation, class_names
        self.metadata = metadata
        self.step, self.loss, self.metrics = 0, math.nan, dict[str, Any]()
        self.optimizer = torch.optim.SGD(parameter_groups(model, config), momentum=config.momentum)

    def loop(self, dataset: LabelledImages, progress: bool) -> TrainResult:
        config = self.config
        samples = DataLoader(
            Samples(dataset, config),
            config.batch_size,
            num_workers=config.workers,
            worker_init_fn=_ignore_interrupt,
        )
        bar = _progress_bar() if progress else None
        with _interruptible() as stopped, bar or nullcontext():
            task = bar.add_task("train", total=config.steps, state="") if bar else None
            for rgb, labels in samples:
                self._advance(rgb, labels)
                if bar and task is not None:
                    bar.update(task, completed=self.step, state=self._state())
                if stopped.is_set():
                    break
                if self.step % config.validate_every == 0 and self.step < config.steps:
                    self._validate()
        interrupted = self.step < config.steps
        self.save()  # before the validation, which Ctrl-C may end
        self._validate()
        return TrainResult(self.model.eval(), self.step, interrupted, self.loss, self.metrics)

    def save(self) -> None:
        if self.out is not None:
            known = {"step": self.step, "metrics": self.metrics}
            if self.model.crf is not None:
                known["crf"] = dataclasses.asdict(CRFSettings.of(self.model.crf))
            save_weights(self.model, self.out, self.metadata | known)

    def _advance(self, rgb: Tensor, labels: Tensor) -> None:
        config = self.config
        lr = poly_lr(config.lr, self.step, config.steps, config.power, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=_use_bfloat16(config)):
            loss = segmentation_loss(self.model, rgb, labels, config.loss_stride)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.step}: training diverged; lower lr "
                f"(now {config.lr}) or lengthen warmup (now {config.warmup})"
            )
        # A running mean, of the last fifty steps or so.
        share = 1 / min(self.step + 1, 50)
        self.loss = value if self.step == 0 else self.loss + share * (value - self.loss)
        self.step += 1

    def _validate(self) -> None:
        layer, self.model.crf = self.model.crf, None  # beside the network: both are scored
        try:
            result = evaluate(self.model, self.validation, layer, class_names=self.class_names)
        finally:
            self.model.crf = layer
        scores = result.network if result.crf is None else result.crf
        self.metrics = {"images": result.images, **dataclasses.asdict(scores)}
        if result.crf is not None:
            self.metrics["network"] = dataclasses.asdict(result.network)
        self.save()

    def _state(self) -> str:
        miou = f"  mIoU {self.metrics['miou']:.1%}" if self.metrics else ""
        return f"loss {self.loss:.3f}  lr {self.optimizer.param_groups[0]['lr']:.4f}{miou}"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, once; a second Ctrl-C interrupts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may handle signals
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C reaches the workers too: they go on, so that the current step can end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _use_bfloat16(config: TrainConfig) -> bool:
    if config.precision != "auto":
        return config.precision == "bfloat16"
    return bool(torch.cpu._is_avx512_bf16_supported())


def _commit() -> str | None:
    """The commit of the checkout that this file lies in; None when it is installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
