"""What a run checks, opens and builds before its first step.

All of it happens in every process, and nothing is exchanged in it; what is wrong is an InputError.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from deeplab.crf_settings import CRFSettings
from deeplab.data import scenes
from deeplab.data.agreement import Classes, compare_classes
from deeplab.data.datasets import available_splits, open_dataset
from deeplab.distributed import Processes
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.model import DeepLab, build
from deeplab.model.heads import DeepLabV3Head
from deeplab.model.timm_encoder import TimmEncoder
from deeplab.training.auxiliary import AuxiliaryHead, load_auxiliary
from deeplab.training.checkpoint import Files, check_agreement, read_state
from deeplab.training.config import SCENES_CRF, DataConfig, TrainConfig
from deeplab.training.hook import load_hook
from deeplab.training.labels import balanced_weights, check_labels
from deeplab.training.logs import Logger
from deeplab.training.losses import Grid, label_strides
from deeplab.weights import Loaded, bands, load_weights, read_metadata
from deeplab.weights.loading import missing
from deeplab.weights.sources import is_own


@dataclass
class Setup:
    """A run that is ready to start.

    auxiliary: the classifier of a run that has one, as it starts.
    class_weights: those of the configuration, or balanced; empty where all classes weigh alike.
    facts: what fixes it beside its configuration, see `check_agreement`; metadata: what the weights
    file says of it; state: to resume from, None for a new run.
    """

    dataset: LabelledImages
    validation: LabelledImages
    model: DeepLab
    auxiliary: AuxiliaryHead | None
    class_weights: tuple[float, ...]
    facts: dict[str, Any]
    metadata: dict[str, Any]
    state: dict[str, Any] | None


def set_up(
    config: TrainConfig,
    files: Files | None,
    processes: Processes,
    logger: Logger,
    *,
    dataset: LabelledImages | None,
    validation: LabelledImages | None,
    class_names: Sequence[str] | None,
    palette: npt.ArrayLike | None,
    metadata: Mapping[str, Any] | None,
    resume: bool,
) -> Setup:
    """Open the data, check them against the configuration, and build the model.

    The arguments are those of `deeplab.training.train`, which also says what is raised.
    """
    dataset, validation, known = _open_data(config, dataset, validation)
    known |= dict(metadata or {})
    names = list(class_names or getattr(dataset, "classes", None) or scenes.CLASSES)
    multilabel = _is_multilabel(config, dataset, validation)
    if palette is None:
        palette = getattr(dataset, "palette", scenes.PALETTE)
    _check_config(config, len(names), processes, logger)
    facts: dict[str, Any] = {"pictures": len(dataset), "class names": names}
    state = _stored_state(files, config, facts) if resume else None
    weights = _class_weights(config, dataset, names, state, logger)
    if config.class_weights == "balanced":
        facts["class weights"] = list(weights)
    owner = "class_names" if class_names else getattr(dataset, "name", "the data set")
    classes = Classes.of(owner, names)
    _check_classes(classes, dataset, validation)
    if not resume:
        _check_classes_of_weights(config, classes, logger)
        if processes.first:  # the others wait for its verdict
            check_labels(dataset, validation, names, weights, logger.info, multilabel)
    model = _make_model(config, len(names), known, logger, resume, multilabel)
    check_bands(config, model)
    check_sync_bn(config, model)
    check_grid(config, model)
    auxiliary = _make_auxiliary(model, config, logger, resumed=resume)
    check_batch(config, model, processes)
    about = {
        "class_names": names,
        "palette": np.asarray(palette)[: len(names)].tolist(),
        "recipe": dataclasses.asdict(config),
        "commit": _commit(),
        **known,
    }
    return Setup(dataset, validation, model, auxiliary, weights, facts, about, state)


def check_files(files: Files, resume: bool, overwrite: bool, first: bool) -> None:
    """InputError where the first process cannot write the run's files, or would replace others."""
    files.check_name()
    if resume and overwrite:
        raise InputError(
            "resume and overwrite: a run goes on or starts anew; leave one of them out"
        )
    if not first:
        return
    files.check_writable()
    if not resume and not overwrite:
        files.check_free()


def _stored_state(
    files: Files | None, config: TrainConfig, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The state to resume from, of the run that `config` and `facts` describe."""
    if files is None:
        raise InputError("resume must be the weights file of the run that is to go on")
    state = read_state(files.state)
    check_agreement(files.state, state, config, facts)
    return state


def _class_weights(
    config: TrainConfig,
    dataset: LabelledImages,
    names: Sequence[str],
    state: Mapping[str, Any] | None,
    logger: Logger,
) -> tuple[float, ...]:
    """One for each class, or none; balanced ones of a resumed run are those that it began with."""
    if config.class_weights != "balanced":
        return config.class_weights
    if state is not None:
        return tuple(json.loads(state["facts"])["class weights"])
    weights = balanced_weights(dataset, names)
    pairs = (f"{name} {w:.3g}" for name, w in zip(names, weights, strict=False))
    logger.info(f"class_weights balanced: {', '.join(pairs)}")
    return weights


def _open_data(
    config: TrainConfig, dataset: LabelledImages | None, validation: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages, dict[str, Any]]:
    """The pictures to train and to validate on, and what the weights' metadata say of them."""
    data = config.data

    def opened(part: str, split: str, start: int, scenes_wanted: int) -> LabelledImages:
        if data.name == "scenes":
            return scenes.ScenesDataset(start, scenes_wanted)
        root = data.root or None
        try:
            return open_dataset(data.name, root, split, **data.options)
        except InputError as error:
            if split in available_splits(data.name, root, **data.options):
                raise
            raise InputError(f"{error}; {_other_split(part, data)}") from error

    known = {"crf": SCENES_CRF} if dataset is None and data.name == "scenes" else {}
    if dataset is None:
        dataset = opened("train", data.train, scenes.TRAIN_START, config.scenes)
    if validation is None:
        start, wanted = scenes.VALIDATION_START, config.validation_scenes
        validation = opened("validation", data.validation, start, wanted)
    if len(dataset) == 0 or len(validation) == 0:
        raise ValueError("dataset, validation must have at least one picture in each")
    return dataset, validation, known


def _other_split(part: str, data: DataConfig) -> str:
    """How to mend that a data set has no such split to train or to validate on."""
    option = {"train": "--split", "validation": "--validation-split"}[part]
    name = f"name the one for it with {option}"
    if data.name != "folder":
        return name
    names = f"{data.root}/splits/{getattr(data, part)}.txt"
    return (
        f"{name}, list its pictures in {names}, or let deeplab data import --split 0.8 make splits"
    )


def _check_config(config: TrainConfig, classes: int, group: Processes, logger: Logger) -> None:
    pieces = config.accumulate * group.world
    if config.batch_size % pieces:
        raise InputError(
            f"batch_size must be a multiple of accumulate x processes = {config.accumulate} x "
            f"{group.world}, not {config.batch_size}; accumulate less, or change either number"
        )
    if config.sync_bn and group.device.type != "cuda":
        raise InputError("sync_bn: BatchNorm is synchronised on GPUs only; leave it out")
    given = config.class_weights
    if given and given != "balanced" and len(given) != classes:
        raise InputError(f"class_weights must be {classes}, one for each class, not {len(given)}")
    if config.augment:
        load_hook(config.augment)  # before the first step, which would miss it
    cores = os.cpu_count() or 1
    if config.workers > cores:
        logger.info(
            f"workers: {config.workers} processes prepare samples, on {cores} processors; "
            f"--workers {cores} may be as fast"
        )


def _check_classes(ours: Classes, dataset: LabelledImages, validation: LabelledImages) -> None:
    """InputError unless the pictures to train and to validate on have the run's classes."""
    mend = "give class_names and both sets the same classes, in one order"
    for pictures, owner in ((dataset, "the training set"), (validation, "the validation set")):
        if names := getattr(pictures, "classes", None):
            compare_classes(Classes.of(owner, names), ours, mend)


def _check_classes_of_weights(config: TrainConfig, ours: Classes, logger: Logger) -> None:
    """InputError where the weights to start from have as many classes, but in another order."""
    if config.new_classifier or not (config.weights and is_own(config.weights)):
        return
    names = read_metadata(config.weights).get("class_names") or ()
    if len(names) != ours.count:
        return
    mend = (
        "bring the data set's classes into the order of the weights, or let the classifier start "
        "from random numbers with --set new_classifier=true"
    )
    if note := compare_classes(Classes.of(config.weights, names), ours, mend):
        logger.info(note)


def check_bands(config: TrainConfig, model: DeepLab) -> None:
    """InputError where something is asked for that pictures of other bands cannot have."""
    if model.in_channels != 3 and config.for_rgb:
        name = config.for_rgb[0]
        off = "loss must be without dense_crf" if name == "loss" else f"{name} must be off"
        raise InputError(f"{off} for pictures of {model.in_channels} bands; it is for RGB")


def check_sync_bn(config: TrainConfig, model: DeepLab) -> None:
    """InputError where torch's conversion to SyncBatchNorm would lose what a layer does besides."""
    batch_norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    more = {type(m).__name__ for m in batch_norms if type(m) is not nn.BatchNorm2d}
    if config.sync_bn and more:
        raise InputError(
            f"sync_bn must be false for {config.model_options.get('backbone', config.model)}, "
            f"whose layers {', '.join(sorted(more))} cannot be synchronised; or keep BatchNorm as "
            "it is with --set model_options.frozen_bn=true"
        )


def check_grid(config: TrainConfig, model: DeepLab) -> None:
    """InputError where a crop gets other scores than the labels that the loss compares them with.

    Our own backbones give k + 1 for a side of 8k + 1; some of timm's give k.
    """
    if set(label_strides(model, config.loss_stride)) == {1} or not isinstance(
        model.backbone, TimmEncoder
    ):
        return
    backbone = copy.deepcopy(model.backbone).to("meta").eval()
    crop = torch.empty(1, model.in_channels, config.crop, config.crop, device="meta")
    found, wanted = backbone(crop).shape[-1], Grid.of(model).count(config.crop, 8)
    if found != wanted:
        raise InputError(
            f"loss_stride must be 1 to train {model.config['backbone']}, which gives {found} "
            f"scores for a side of {config.crop} pixels and not {wanted}"
        )


def check_batch(config: TrainConfig, model: DeepLab, group: Processes) -> None:
    """InputError where a forward pass has fewer pictures than BatchNorm has to have."""
    least = model.head.least_batch if isinstance(model.head, DeepLabV3Head) else 1
    together = 1 if config.sync_bn else group.world
    pictures = config.batch_size // (config.accumulate * together)
    if pictures < least:
        raise InputError(
            f"batch_size: {config.model} trains BatchNorm behind its image pooling, which takes "
            f"{least} pictures at a time, and gets {pictures}: batch_size {config.batch_size} / "
            f"(accumulate {config.accumulate} x {together} "
            f"{'process' if together == 1 else 'processes'}); raise batch_size, lower accumulate "
            "or start fewer processes, or keep BatchNorm as it is with "
            "--set model_options.frozen_bn=true"
        )


def _is_multilabel(config: TrainConfig, *pictures: LabelledImages) -> bool:
    """Whether labels are masks, several a pixel: what the pictures say, or else the model's option.

    InputError where one of them says otherwise than the others, or for what does not go with masks.
    """
    said = {bool(d.multilabel) for d in pictures if hasattr(d, "multilabel")}
    option = config.model_options.get("multilabel")
    if len(said) > 1:
        raise InputError("the validation set must have masks where the training set has, or none")
    multilabel = bool(option) if not said else said.pop()
    if option is not None and option != multilabel:
        kind = "a mask of each class" if multilabel else "one label for each pixel"
        raise InputError(
            f"model_options.multilabel must be left out for a data set of {kind}, not {option}"
        )
    if multilabel and config.crf:
        raise InputError("crf must be false for several labels a pixel: a CRF gives a pixel one")
    if multilabel and config.class_weights == "balanced":
        raise InputError('class_weights must be numbers for several labels a pixel, not "balanced"')
    return multilabel


def _make_model(
    config: TrainConfig,
    classes: int,
    metadata: Mapping[str, Any],
    logger: Logger,
    resumed: bool,
    multilabel: bool = False,
) -> DeepLab:
    """The model as the run starts with it; a resumed one takes its weights from the state."""
    torch.manual_seed(config.seed)
    layer = None
    if config.crf:
        settings = CRFSettings().changed(metadata.get("crf") or {})
        layer = settings.layer(classes, learnable=True)
    options = ({"multilabel": True} if multilabel else {}) | config.model_options
    try:
        model = build(config.model, num_classes=classes, crf=layer, **options)
    except ImportError as error:
        raise InputError(f"model_options: {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"model_options: {config.model} does not take them: {error}") from error
    if resumed:
        return model
    if config.weights:
        _load_weights(model, config, logger)
    elif config.starts_from:
        raise InputError(
            f"weights: this recipe starts from {config.starts_from}; name the file with "
            "--weights, or start from random numbers with --set starts_from="
        )
    return model


def _make_auxiliary(
    model: DeepLab, config: TrainConfig, logger: Logger, resumed: bool
) -> AuxiliaryHead | None:
    """The auxiliary classifier as the run starts with it, None without."""
    if not config.auxiliary:
        return None
    head = AuxiliaryHead(model)
    if not resumed and config.weights:
        drawn = copy.deepcopy(head.classifier)
        stay = load_auxiliary(head, config.weights)
        if config.new_classifier:
            head.classifier = drawn
        if stay:
            logger.info(
                f"{config.weights}: has no weights for {', '.join(stay)} of the auxiliary "
                "classifier, which start from random numbers"
            )
    return head


def _load_weights(model: DeepLab, config: TrainConfig, logger: Logger) -> None:
    drawn = copy.deepcopy(model.state_dict()) if config.new_classifier else {}
    with warnings.catch_warnings():
        # One process says it below, beside the progress bar.
        warnings.filterwarnings("ignore", message=".*has no weights for")
        warnings.filterwarnings("ignore", message=".*of three channels adapted")
        loaded = load_weights(model, config.weights)
    if loaded.skipped:
        logger.info(
            f"{config.weights}: has no weights for {missing(model, loaded.skipped)}, which start "
            "from random numbers"
        )
    if loaded.adapted:
        logger.info(f"{config.weights}: {bands.note(model, loaded.adapted)}")
    if note := _other_scales(model, loaded):
        logger.info(f"{config.weights}: {note}")
    if config.new_classifier:
        anew = {name: tensor for name, tensor in drawn.items() if ".classifier." in name}
        model.load_state_dict(anew, strict=False)


def _other_scales(model: DeepLab, loaded: Loaded) -> str:
    """What to say where the weights were trained at other scales (MSC), or resized otherwise."""
    scales, resize = loaded.scales or model.scales, loaded.resize or model.resize
    if (scales, resize) == (model.scales, model.resize):
        return ""
    theirs, ours = (f"scales {_scales_text(s)}" for s in (scales, model.scales))
    keep = f"--set 'model_options.scales={_scales_text(scales)}' " if scales else ""
    return (
        f"trained with {theirs} and resize {resize}, and trained on here with {ours} and resize "
        f"{model.resize}; to keep theirs: {keep}--set model_options.resize={resize}"
    )


def _scales_text(scales: Sequence[float] | None) -> str:
    return "none" if scales is None else f"[{', '.join(f'{scale:g}' for scale in scales)}]"


def _commit() -> str | None:
    """The commit of the checkout that this file lies in; None when it is installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
