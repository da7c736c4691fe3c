"""What fixes a training run: `TrainConfig`, its defaults, and what makes no sense.

The defaults are the recipe of the weights that the package ships: trained from scratch on the
generated scenes, so the rate is higher and the head is not favoured as it is over a pretrained
body. The papers' recipes are TOML files beside `deeplab.training.recipes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deeplab.data import scenes
from deeplab.model import MODELS

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
    {
        "weights",
        "starts_from",
        "new_classifier",
        "data.root",
        "skip_broken",
        "accumulate",
        "validate_every",
        "save_every",
        "log_every",
        "compile",
        "channels_last",
        "in_memory",
        "device",
        "workers",
    }
)
"""What a resumed run may change unsaid: where and how it computes, not what.

skip_broken is among them, since a run that met a broken picture could not go on otherwise.
"""

MOST_INTEGER = 2**31 - 1
MOST_FLOAT = 3.4e38  # float32's


@dataclass(frozen=True)
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
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """What fixes a training run; ValueError on construction where a value makes no sense.

    Attributes:
        model: name in `deeplab.model.MODELS`.
        model_options: further arguments of its builder, such as scales = [1.0, 0.75, 0.5] (MSC).
        weights: file to start from, of any format that `deeplab.weights.load_weights` reads.
        starts_from: what `weights` should be, in words; a run that has this and no weights stops.
        new_classifier: draw the classifier anew, though `weights` have one for as many classes.
        data: the pictures.
        steps, batch_size: SGD steps, and samples in each: over all micro-batches and processes.
        accumulate: micro-batches in which a process computes its share of a step, to save memory.
        lr: first learning rate.
        policy: "poly": lr (1 - i / steps)^power; "step": lr gamma^floor(i / step_size).
        power, step_size, gamma: of the policy. warmup: steps in which the rate rises linearly.
        head_lr_scale: learning rate of the classifier relative to the body; its bias has twice
            that. The papers use 10 over a pretrained body.
        optimizer: "sgd", the papers', or "adamw", which learns faster from scratch and wants a
            smaller lr and a larger weight_decay.
        momentum, weight_decay: of SGD, or beta_1 and the decay of AdamW (beta_2 is 0.99); the decay
            is for weights, not biases or BatchNorm.
        crop: side of a sample in pixels, 8k + 1; 16k + 1 for a model of several scales.
        scales: smallest and largest random scale, or with scale_mode "discrete" the list to draw
            from. scale_mode: see `deeplab.data.augment`.
        mirror: flip half of the samples.
        loss_stride: 1 compares the upsampled logits with the labels, 8 the logits with every
            eighth label, as the papers do.
        class_weights: weight of each class in the loss; empty weighs all alike.
        scenes, validation_scenes: how many generated scenes, where they are the data.
        in_memory: read (or draw) every picture once, before the first step, and keep it.
        skip_broken: pass over pictures that cannot be read, and count them, instead of stopping.
        validate_every, save_every, log_every: steps between validations (each with the weights),
            between states to resume from, between rows of the log.
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

    model: str = "deeplab_v2_small"
    model_options: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    starts_from: str = ""
    new_classifier: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    steps: int = 6000
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    policy: Literal["poly", "step"] = "poly"
    power: float = 0.9
    step_size: int = 2000
    gamma: float = 0.1
    warmup: int = 100
    head_lr_scale: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 193
    scales: tuple[float, ...] = (0.5, 1.5)
    scale_mode: Literal["continuous", "discrete"] = "continuous"
    mirror: bool = True
    loss_stride: Literal[1, 8] = 1
    class_weights: tuple[float, ...] = ()
    scenes: int = 4000
    validation_scenes: int = 50
    in_memory: bool = False
    skip_broken: bool = False
    validate_every: int = 500
    save_every: int = 500
    log_every: int = 20
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    channels_last: bool = True
    sync_bn: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    crf: bool = False
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.model in MODELS, "model", f"one of {', '.join(MODELS)}", self.model)
        for name in (
            *("steps", "batch_size", "accumulate", "step_size", "scenes", "validation_scenes"),
            *("validate_every", "save_every", "log_every"),
        ):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        most = {  # each split ends where the next one starts
            "scenes": scenes.VALIDATION_START - scenes.TRAIN_START,
            "validation_scenes": scenes.TEST_START - scenes.VALIDATION_START,
        }
        for name, limit in most.items():
            _require(getattr(self, name) <= limit, name, f"at most {limit}", getattr(self, name))
        for name in ("warmup", "workers", "seed"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name, value in vars(self).items():
            if isinstance(value, int):
                _require(value <= MOST_INTEGER, name, f"at most {MOST_INTEGER}", value)
        decays = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        _require(decays, "weight_decay", "a finite number, 0 or more", self.weight_decay)
        for name in ("lr", "power", "gamma", "head_lr_scale"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "a positive number", value)
        fastest = self.lr * max(1.0, 2 * self.head_lr_scale)
        _require(fastest <= MOST_FLOAT, "lr", f"rates of at most {MOST_FLOAT:g}", self.lr)
        _require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        shared = f"a multiple of accumulate = {self.accumulate}"
        _require(self.batch_size % self.accumulate == 0, "batch_size", shared, self.batch_size)
        self._check_samples()
        self._check_choices()

    def _check_samples(self) -> None:
        _require(self.crop >= 9 and self.crop % 8 == 1, "crop", "8k + 1, such as 321", self.crop)
        inside = bool(self.scales) and all(0 < scale <= 4 for scale in self.scales)
        if self.scale_mode == "continuous":
            ordered = inside and len(self.scales) == 2 and self.scales[0] <= self.scales[1]
            _require(ordered, "scales", "0 < smallest <= largest <= 4", self.scales)
        _require(inside, "scales", "at least one number, each above 0 and up to 4", self.scales)
        weights = self.class_weights
        positive = all(math.isfinite(w) and w >= 0 for w in weights) and (
            not weights or any(weights)
        )
        _require(positive, "class_weights", "numbers of 0 or more, not all 0", weights)

    def _check_choices(self) -> None:
        _one_of(self.loss_stride, "loss_stride", (1, 8))
        _one_of(self.optimizer, "optimizer", ("sgd", "adamw"))
        _one_of(self.policy, "policy", ("poly", "step"))
        _one_of(self.scale_mode, "scale_mode", ("continuous", "discrete"))
        _one_of(self.precision, "precision", ("auto", "float32", "bfloat16", "float16"))
        _one_of(self.device, "device", ("auto", "cpu", "cuda"))
        stride = "1 with crf: a CRF works on pixels"
        _require(not self.crf or self.loss_stride == 1, "loss_stride", stride, self.loss_stride)
        self._check_data()
        for name, origin in (("num_classes", "the data set"), ("crf", "the field crf")):
            key, given = f"model_options.{name}", self.model_options.get(name)
            _require(name not in self.model_options, key, f"none: {origin} says it", given)
        if self.model_options.get("scales"):
            self._check_scales(self.model_options["scales"])

    def _check_data(self) -> None:
        """Generated scenes have neither folder nor splits: what asks for such means other data."""
        if self.data.name != "scenes":
            return
        none = "none for generated scenes; name other data with data.name"
        for name, default in vars(DataConfig()).items():
            if name != "name":
                given = getattr(self.data, name)
                _require(given == default, f"data.{name}", none, given)

    def _check_scales(self, scales: Any) -> None:
        """Several scales have losses at the sizes of the logits, the smallest at its own."""
        last = scales[-1] if isinstance(scales, list | tuple) else scales
        _require(last in (0.5, 0.25), "model_options.scales", "a last one of 0.5 or 0.25", scales)
        size = "8 with a model of several scales, whose losses are taken at the logits' size"
        _require(self.loss_stride == 8, "loss_stride", size, self.loss_stride)
        stride = round(8 / last)
        whole = f"{stride}k + 1 with a smallest scale of {last}, such as 321"
        _require(self.crop % stride == 1, "crop", whole, self.crop)


def _one_of(value: object, name: str, known: tuple[object, ...]) -> None:
    *first, last = map(str, known)
    _require(value in known, name, f"{', '.join(first)} or {last}", value)


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
