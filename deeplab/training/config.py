"""The configuration of a training run: `TrainConfig`, its defaults, and the values it refuses.

pydantic checks types strictly (an integer counts as a number, a list as a tuple, and nothing else
is converted), ranges, and unknown keys. The defaults are for training from scratch on the generated
scenes; the papers' recipes are TOML files in `deeplab.training.recipes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from deeplab.data import scenes
from deeplab.model import FAMILIES, MODELS
from deeplab.training.config_errors import ConfigError, one_line_errors
from deeplab.training.losses.table import LOSSES

SCENES_CRF: dict[str, Any] = {
    "iterations": 10,
    "gaussian_weight": 1.0,
    "gaussian_sigma_xy": 1.0,
    "bilateral_weight": 10.0,
    "bilateral_sigma_xy": 120.0,
    "bilateral_sigma_rgb": 8.0,
}
"""CRF settings for the generated scenes, the best of a search on validation scenes."""

FREE_ON_RESUME = frozenset(
    (
        *("weights", "starts_from", "new_classifier", "data.root", "skip_broken", "accumulate"),
        *("validate_every", "save_every", "log_every", "patience"),
        *("compile", "channels_last", "in_memory", "device", "workers"),
    )
)
"""The fields that a resumed run may change: where and how it computes, and how long, not what.

skip_broken is among them, since a run that met a broken picture could not go on otherwise.
"""

MOST_INTEGER = 2**31 - 1
MOST_FLOAT = 3.4e38  # float32's


def _known_model(name: str) -> str:
    known = (*MODELS, *FAMILIES)
    if name not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return name


def _one_or_eight(stride: int) -> int:
    if stride not in (1, 8):  # Literal[1, 8] would take True and 8.0 too
        raise ValueError("1 or 8")
    return stride


STRICT = ConfigDict(strict=True, extra="forbid")
Count = Annotated[int, Field(ge=1, le=MOST_INTEGER)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST_INTEGER)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Each split of the generated scenes ends where the next one starts.
TrainScenes = Annotated[int, Field(ge=1, le=scenes.VALIDATION_START - scenes.TRAIN_START)]
ValidationScenes = Annotated[int, Field(ge=1, le=scenes.TEST_START - scenes.VALIDATION_START)]
Numbers = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


def _place(text: str) -> str:
    module, _, name = text.partition(":")
    if text and not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError("package.module:function")
    return text


def _class_weights(value: Any, as_numbers: Callable[[Any], Any]) -> Any:
    if isinstance(value, str):
        if value != "balanced":
            raise ValueError('a list of numbers or "balanced"')
        return value
    return as_numbers(value)


def _loss(value: Any, as_table: Callable[[Any], Any]) -> Any:
    names = ", ".join(LOSSES)
    if isinstance(value, dict):
        for name in value:
            if name not in LOSSES:
                raise ConfigError(str(name), f": unknown loss; the known ones are {names}")
        return as_table(value)
    if not isinstance(value, str) or value not in LOSSES:
        raise ValueError(f"one of {names}, or a table of them with their weights")
    return value


if TYPE_CHECKING:
    ClassWeights = tuple[float, ...] | Literal["balanced"]
    Loss = str | dict[str, float]
else:  # pydantic would name every alternative of a union in an error
    ClassWeights = Annotated[tuple[NotNegative, ...], Numbers, WrapValidator(_class_weights)]
    Loss = Annotated[dict[str, NotNegative], WrapValidator(_loss)]


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which pictures: `deeplab.data.datasets.open_dataset(name, root, split, **options)`.

    Attributes:
        name: of the data set; "scenes" are the generated ones, which need no other field.
        root: its folder.
        train, validation: the splits to learn from and to score on.
        options: further arguments of the data set.
    """

    name: str = "scenes"
    root: str = ""
    train: str = "train"
    validation: str = "val"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def _data(value: Any) -> Any:
    return DataConfig(**value) if isinstance(value, dict) else value


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """What fixes a training run. Construction raises ConfigError, a ValueError of one line.

    Attributes:
        model: name in `deeplab.model.MODELS` or `FAMILIES`.
        model_options: further arguments of its builder, such as scales = [1.0, 0.75, 0.5] (MSC),
            backbone = "resnet34" and output_stride = 16, or in_channels, mean and deviation for
            pictures of other bands than RGB, whose data set has data.options.bands.
        weights: file to start from, of any format that `deeplab.weights.load_weights` reads.
        starts_from: what `weights` should be, in words; a run that has this and no weights stops.
        new_classifier: draw the classifier anew, though `weights` have one for as many classes.
        data: the pictures.
        steps, batch_size: SGD steps, and samples in each: over all micro-batches and processes.
        accumulate: micro-batches in which a process computes its share of a step, to save memory.
        lr, policy, power, step_size, gamma, warmup: see `deeplab.training.schedule`.
        head_lr_scale: learning rate of the classifier relative to the body; its bias has twice
            that. The papers use 10 over a pretrained body.
        optimizer: "sgd", the papers', or "adamw", which learns faster from scratch and wants a
            smaller lr and a larger weight_decay.
        momentum, weight_decay: of SGD, or beta_1 and the decay of AdamW; the decay is for weights,
            not biases or BatchNorm.
        crop: side of a sample in pixels, 8k + 1; 16k + 1 for a model of several scales whose
            loss_stride is 8.
        scales: smallest and largest random scale, or with scale_mode "discrete" the list to draw
            from. scale_mode: see `deeplab.data.augment`.
        mirror: flip half of the samples.
        rotate, colour_jitter, blur, noise: largest angle in degrees, change of brightness,
            contrast and saturation, and standard deviations in pixels and grey levels: see
            `deeplab.data.distort`. 0: none, as in the papers.
        augment: "package.module:function", called for each sample: see `deeplab.training.hook`.
        loss_stride: 1 compares the upsampled logits with the labels, 8 the logits with every
            eighth label, as the papers do. Of several scales those of each.
        loss: a name of `deeplab.training.losses.table`, such as "cross_entropy", or a table of
            several with their weights in the sum.
        label_smoothing: share of each label that cross_entropy spreads over all classes.
        auxiliary: weight of the loss of an auxiliary classifier, of DeepLab v3 alone: see
            `deeplab.training.auxiliary`; 0 trains without.
        class_weights: weight of each class in cross_entropy, focal and ohem; empty weighs all
            alike, "balanced" takes the weights of `deeplab.training.labels.balanced_weights`.
        scenes, validation_scenes: how many generated scenes, where they are the data.
        in_memory: read (or draw) every picture once, before the first step, and keep it.
        skip_broken: pass over pictures that cannot be read, and count them, instead of stopping.
        validate_every, save_every, log_every: steps between validations (each with the weights),
            between states to resume from, between rows of the log.
        validation_scales: the views whose probabilities a validation averages, relative to the
            pictures' size: see `deeplab.predict.network_scores`. (0.5,) scores what is trained at
            half the resolution, on labels of the full one.
        patience: end the run after so many validations without a better mIoU; 0: never.
        ema: decay of a moving average of the weights, such as 0.999; the average is what is
            validated and written. 0: none. See `deeplab.training.average`.
        precision: "float32", "bfloat16" or "float16" (autocast, float16 with a scaled loss), or
            "auto": bfloat16 where the processor has it.
        compile: pass network and loss through torch.compile.
        channels_last: memory format of network and input; a fifth faster on a CPU.
        sync_bn: BatchNorm statistics over all processes, on GPUs.
        device: "cpu", "cuda", or "auto": a GPU where there is one.
        crf: end in a dense CRF whose weights and compatibility learn with the network. The loss is
            then that of the refined segmentation, at full size (loss_stride 1). It starts from the
            settings in the metadata ("crf"), DeepLab v2's where there are none.
        workers: processes that prepare samples; 0 prepares them in this one.
        seed: of initialisation, samples and dropout.
    """

    model: Annotated[str, AfterValidator(_known_model)] = "deeplab_v2_small"
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = ""
    starts_from: str = ""
    new_classifier: bool = False
    data: Annotated[DataConfig, BeforeValidator(_data)] = dataclasses.field(
        default_factory=DataConfig
    )
    steps: Count = 6000
    batch_size: Count = 8
    accumulate: Count = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.05
    policy: Literal["poly", "step"] = "poly"
    power: Positive = 0.9
    step_size: Count = 2000
    gamma: Positive = 0.1
    warmup: CountOrZero = 100
    head_lr_scale: Positive = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    crop: Count = 193
    scales: Annotated[tuple[float, ...], Numbers] = (0.5, 1.5)
    scale_mode: Literal["continuous", "discrete"] = "continuous"
    mirror: bool = True
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    colour_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    blur: Annotated[float, Field(ge=0, le=100)] = 0.0
    noise: Annotated[float, Field(ge=0, le=255)] = 0.0
    augment: Annotated[str, AfterValidator(_place)] = ""
    loss_stride: Annotated[int, AfterValidator(_one_or_eight)] = 1
    loss: Loss = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    auxiliary: NotNegative = 0.0
    class_weights: ClassWeights = ()
    scenes: TrainScenes = 4000
    validation_scenes: ValidationScenes = 50
    in_memory: bool = False
    skip_broken: bool = False
    validate_every: Count = 500
    save_every: Count = 500
    log_every: Count = 20
    validation_scales: Annotated[tuple[float, ...], Numbers] = (1.0,)
    patience: CountOrZero = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    channels_last: bool = True
    sync_bn: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    crf: bool = False
    workers: CountOrZero = 1
    seed: CountOrZero = 0

    @property
    def losses(self) -> dict[str, float]:
        """The losses with their weights, of one name too."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else self.loss

    @property
    def for_rgb(self) -> tuple[str, ...]:
        """The fields in use that take uint8 RGB pictures alone."""
        distortions = ("rotate", "colour_jitter", "blur", "noise", "augment")
        used = [name for name in distortions if getattr(self, name)]
        return (*used, *(["loss"] if "dense_crf" in self.losses else []))

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        fastest = self.lr * max(1.0, 2 * self.head_lr_scale)
        _require(fastest <= MOST_FLOAT, "lr", f"rates of at most {MOST_FLOAT:g}", self.lr)
        shared = f"a multiple of accumulate = {self.accumulate}"
        _require(self.batch_size % self.accumulate == 0, "batch_size", shared, self.batch_size)
        stride = "1 with crf: a CRF works on pixels"
        _require(not self.crf or self.loss_stride == 1, "loss_stride", stride, self.loss_stride)
        self._check_samples()
        self._check_loss()
        self._check_data()
        self._check_model_options()
        return self

    def _check_samples(self) -> None:
        _require(self.crop >= 9 and self.crop % 8 == 1, "crop", "8k + 1, such as 321", self.crop)
        inside = bool(self.scales) and all(0 < scale <= 4 for scale in self.scales)
        if self.scale_mode == "continuous":
            ordered = inside and len(self.scales) == 2 and self.scales[0] <= self.scales[1]
            _require(ordered, "scales", "0 < smallest <= largest <= 4", self.scales)
        _require(inside, "scales", "at least one number, each above 0 and up to 4", self.scales)
        views = self.validation_scales
        inside = bool(views) and all(0.1 <= scale <= 4 for scale in views)
        _require(inside, "validation_scales", "at least one number, each from 0.1 to 4", views)

    def _check_loss(self) -> None:
        weighed = not self.class_weights or any(self.class_weights)
        _require(weighed, "class_weights", "at least one above 0", self.class_weights)
        taught = any(weight > 0 for name, weight in self.losses.items() if name != "dense_crf")
        labels = "cross_entropy or another that learns from labels, with a weight above 0"
        _require(taught, "loss", labels, self.loss)
        smooth = self.label_smoothing == 0 or "cross_entropy" in self.losses
        _require(smooth, "label_smoothing", "0 without cross_entropy", self.label_smoothing)
        of_pixels = (
            not self.class_weights or {"cross_entropy", "focal", "ohem"} & self.losses.keys()
        )
        none = "none without cross_entropy, focal or ohem"
        _require(bool(of_pixels), "class_weights", none, self.class_weights)

    def _check_data(self) -> None:
        """Generated scenes have neither folder nor splits."""
        if self.data.name != "scenes":
            return
        none = "none for generated scenes; name other data with --data (data.name)"
        for name, default in vars(DataConfig()).items():
            if name != "name":
                given = getattr(self.data, name)
                _require(given == default, f"data.{name}", none, given)

    def _check_model_options(self) -> None:
        """At loss_stride 8 several scales have losses at the logits' sizes, the last at its own."""
        for name, origin in (("num_classes", "the data set"), ("crf", "the field crf")):
            key, given = f"model_options.{name}", self.model_options.get(name)
            _require(name not in self.model_options, key, f"none: {origin} says it", given)
        scales = self.model_options.get("scales")
        if not scales or self.loss_stride == 1:
            return
        last = scales[-1] if isinstance(scales, list | tuple) else scales
        _require(last in (0.5, 0.25), "model_options.scales", "a last one of 0.5 or 0.25", scales)
        stride = round(8 / last)
        whole = f"{stride}k + 1 with a smallest scale of {last} at loss_stride 8, such as 321"
        _require(self.crop % stride == 1, "crop", whole, self.crop)


def _require(holds: bool, key: str, expected: str, value: object) -> None:
    if not holds:
        raise ConfigError(key, f" must be {expected}, not {value!r:.200}")
