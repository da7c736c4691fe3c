"""The rows of the ablation: each a recipe that differs from the row before it in one thing.

    row           what is new                               of lite0         of full
    stride32      v2's 1x1 head, no atrous convolution      stride 32        stride 32
    stride16      the last stage atrous                     stride 16        stride 16
    stride8       the last two stages atrous                stride 8         stride 8
    largefov      one 3x3 at a large rate for the 1x1       rate 4           rate 12
    aspp_s        four rates for the one                    1, 2, 3, 4       2, 4, 8, 12
    aspp_l        larger ones                               2, 4, 6, 8       6, 12, 18, 24
    augmented     scales drawn at random                    0.25 to 0.75     0.5 to 1.5
    msc           three scales of one picture (MSC)         1, 0.75, 0.5     1, 0.75, 0.5
    pretrained    starts from ImageNet
    crf_plain     + CRF, settings of v2's released script
    crf           + CRF, settings tuned on what training left out
    further       trained a fifth longer, the CRF as before
    end_to_end    trained as much longer through the CRF

lite0 sees pictures at half their size, at which a crop has 13 x 13 places of stride 16 where the
papers' has 41 x 41 of stride 8: rates are a third of theirs. Its heads follow stride16, since a
step at stride 8 takes four times as long; stride8 stands beside them. full follows the papers.

The rows from crf_plain on start from the weights of pretrained. The papers' gains are of Chen et
al., "DeepLab", TPAMI 2018, section 4.1: mIoU on VOC 2012 val.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deeplab.training.config import TrainConfig
from deeplab.training.recipe import Settings, flat_settings, make_config, read_recipe

WEIGHTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "weights"

CHEAP, DEAR = (0, 1, 2), (0,)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    after: the row that it differs from; change: the settings that do, by their flat names; seeds:
    those of the plan; kind: "train" from its start, "crf" without training, on the network of
    `pretrained`, "further" to train that on.
    """

    name: str
    title: str
    after: str
    change: Mapping[str, Any]
    seeds: tuple[int, ...] = DEAR
    kind: Literal["train", "crf", "further"] = "train"


@dataclass(frozen=True)
class Paper:
    """How much a row is above another one, "" for the one before it, in the papers: points of mIoU,
    and of which network."""

    row: str
    after: str
    gain: float
    network: str


PAPERS = (
    Paper("largefov", "", 0.67, "ResNet-101"),
    Paper("aspp_s", "largefov", 1.22, "VGG-16"),
    Paper("aspp_l", "aspp_s", 1.98, "VGG-16"),
    Paper("aspp_l", "largefov", 0.81, "ResNet-101"),
    Paper("augmented", "aspp_l", 1.59, "ResNet-101"),
    Paper("msc", "augmented", 2.55, "ResNet-101"),
    Paper("pretrained", "msc", 2.01, "ResNet-101, COCO over ImageNet"),
    Paper("crf", "pretrained", 1.34, "ResNet-101"),
)


@dataclass(frozen=True)
class Plan:
    """What --config names.

    recipe: the shipped one that all rows start from; changes: to it, for all of them; rates: of the
    three heads; heads_after: the row that LargeFOV follows; scales: of the augmentation; cheap:
    the seeds of rows that are; of_stride8: what that row takes beside; weights: to start from, a
    file of the shared folder and the name of it, "" where one must be given.
    """

    recipe: str
    changes: Mapping[str, Any]
    rates: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    heads_after: str
    scales: tuple[float, float]
    cheap: tuple[int, ...]
    of_stride8: Mapping[str, Any]
    weights: tuple[str, str]

    def rows(self) -> dict[str, Row]:
        """The rows by name, in the table's order."""
        largefov, aspp_s, aspp_l = (list(rates) for rates in self.rates)
        head, stride, rates = "model", "model_options.output_stride", "model_options.rates"
        v2, cheap = "deeplab_v2", self.cheap
        eight = {stride: 8, **self.of_stride8}
        rows = (
            Row("stride32", "output stride 32, 1x1 head", "", {stride: 32}, cheap),
            Row("stride16", "output stride 16", "stride32", {stride: 16}, cheap),
            Row("stride8", "output stride 8", "stride16", eight),
            Row("largefov", "LargeFOV", self.heads_after, {head: v2, rates: largefov}, cheap),
            Row("aspp_s", "ASPP-S", "largefov", {rates: aspp_s}, cheap),
            Row("aspp_l", "ASPP-L", "aspp_s", {rates: aspp_l}, cheap),
            Row("augmented", "+ random scales", "aspp_l", {"scales": list(self.scales)}, cheap),
            Row("msc", "+ MSC", "augmented", {"model_options.scales": [1.0, 0.75, 0.5]}),
            Row("pretrained", "from ImageNet", "msc", {}),
            Row("crf_plain", "+ CRF, v2's settings", "pretrained", {}, kind="crf"),
            Row("crf", "+ CRF, tuned", "crf_plain", {}, kind="crf"),
            Row("further", "trained further, the same CRF", "crf", {}, kind="further"),
            Row("end_to_end", "trained through the CRF", "further", {"crf": True}, kind="further"),
        )
        return {row.name: row for row in rows}

    def own_weights(self) -> str:
        """What `pretrained` starts from where nothing is given."""
        file, name = self.weights
        return str(WEIGHTS / file) if file and (WEIGHTS / file).is_file() else name


# Alike in all rows, so that each differs in one thing: AdamW, since nothing is pretrained at first;
# the loss at full size, the same at every output stride.
COMMON: dict[str, Any] = {
    "model": "deeplab_v2_base",
    "weights": "",
    "starts_from": "",
    "optimizer": "adamw",
    "weight_decay": 1e-2,
    "head_lr_scale": 1,
    "batch_size": 8,
    "accumulate": 1,
    "loss_stride": 1,
    "in_memory": True,
    "save_every": 50,
}

PLANS = {
    "lite0": Plan(
        "camvid_efficientnet_lite0",
        COMMON
        | {
            "steps": 1400,
            "lr": 2e-3,
            "scales": [0.5, 0.5],
            "validate_every": 350,
            "precision": "float32",
            "workers": 0,
        },
        rates=((4,), (1, 2, 3, 4), (2, 4, 6, 8)),
        heads_after="stride16",
        scales=(0.25, 0.75),
        cheap=CHEAP,
        # On a CPU depthwise convolutions with rates are a third slower the other way.
        of_stride8={"channels_last": False},
        weights=("efficientnet-lite0-57934424.pth", "tf_efficientnet_lite0_imagenet"),
    ),
    "full": Plan(
        "camvid_resnet101",
        COMMON
        | {
            "model_options.backbone": "resnet101",
            "model_options.frozen_bn": False,
            "steps": 4000,
            "lr": 5e-4,
            "warmup": 100,
            "ema": 0.99,
            "scales": [1.0, 1.0],
            "scale_mode": "continuous",
            "validate_every": 1000,
            "precision": "bfloat16",
        },
        rates=((12,), (2, 4, 8, 12), (6, 12, 18, 24)),
        heads_after="stride8",
        scales=(0.5, 1.5),
        cheap=DEAR,
        of_stride8={},
        weights=("", ""),
    ),
}


def config_of(
    plan: Plan, name: str, seed: int, given: Settings, root: Path, weights: str
) -> TrainConfig:
    """The recipe of a row.

    given: settings of the command line, for every row but where it changes them itself; root: the
    data; weights: what a row starts from whose weights are not random, the network of `pretrained`
    where it trains that further.

    Raises InputError for settings that make no recipe.
    """
    rows = plan.rows()
    row: Row | None = rows[name]
    chain: list[Row] = []
    while row is not None:
        chain.insert(0, row)
        row = rows.get(row.after)
    settings = read_recipe(plan.recipe) | flat_settings(plan.changes, f"{plan.recipe} changed")
    settings |= given
    for each in chain:
        if each.kind == "train":
            settings |= flat_settings(each.change, f"row {each.name}")
    settings |= flat_settings({"data.root": str(root), "seed": seed}, "ablation")
    if any(each.name == "pretrained" for each in chain):
        settings |= flat_settings({"weights": weights}, "--weights")
    config = make_config(settings)
    last = chain[-1]
    if last.kind != "further":
        return config
    steps = max(1, config.steps // 5)
    return dataclasses.replace(
        config,
        **last.change,
        steps=steps,
        lr=config.lr / 5,
        warmup=min(config.warmup, steps // 4),
        # Only at the end: at half size the CRF that learns is not that of whole pictures.
        validate_every=steps,
    )
