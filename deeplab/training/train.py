"""Training with the papers' recipe: SGD with momentum, the poly policy, parameter groups.

    lr(i) = lr_0 * (1 - i / steps) ** power,     power = 0.9

times each group's own factor (`DeepLab.param_groups`), with a linear warm-up in front. Every
sample is a random picture, randomly scaled, mirrored and cropped; its cross entropy is taken at
`loss_stride`: 1 compares the upsampled logits with the labels, 8 the logits with
`labels[::8, ::8]` as the papers do (the same grid, since align_corners maps n = 8k + 1 pixels to
k + 1). Source: Chen et al., DeepLab v2, section 4.1.

The defaults of `TrainConfig` are the recipe of the weights that the package ships. The command is
`deeplab train --out deeplab_v2_small_scenes.safetensors`; its scores, and those of an earlier run,
are in bench/records/scenes_deeplab_v2_small.json.

A run is a function of its configuration: sample i depends on (seed, i) alone, however many workers
and processes prepare it, and a run that was stopped goes on as if it had not been. Ctrl-C and
SIGTERM stop after the current step and write what there is. The parts are in
`deeplab.training`: config, recipe, samples, losses, schedule, loop, checkpoint, distributed,
interrupt, logs.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deeplab.crf_settings import CRFSettings
from deeplab.data import scenes
from deeplab.data.agreement import Classes, compare_classes
from deeplab.data.conversions import Conversion
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.model import DeepLab, build
from deeplab.model.heads import DeepLabV3Head
from deeplab.training.checkpoint import (
    GO_ON,
    Files,
    check_agreement,
    read_state,
    stored_steps,
)
from deeplab.training.config import SCENES_CRF, DataConfig, TrainConfig
from deeplab.training.distributed import Processes, processes
from deeplab.training.labels import look_at_labels
from deeplab.training.logs import CSVLog, Teller, TensorBoardLog, Throughput
from deeplab.training.loop import Run
from deeplab.training.losses import segmentation_loss
from deeplab.training.samples import InMemory, Samples
from deeplab.training.schedule import learning_rate, parameter_groups, poly_lr, step_lr
from deeplab.weights import Loaded, load_weights, read_metadata
from deeplab.weights.sources import is_own

__all__ = [
    "SCENES_CRF",
    "DataConfig",
    "Samples",
    "TrainConfig",
    "TrainResult",
    "learning_rate",
    "parameter_groups",
    "poly_lr",
    "segmentation_loss",
    "step_lr",
    "train",
]


@dataclass(frozen=True)
class TrainResult:
    """The trained model in evaluation mode and what the run achieved.

    `steps` done, `interrupted` by Ctrl-C or SIGTERM (`signal` is its number) or not, the mean
    `loss` of the last steps, and the validation `metrics` (mIoU and the like) of the last
    validation: of the refined segmentation where the model ends in a CRF, the network's own under
    "network" then. `best`: step and mIoU of the validation whose weights the weights file has.
    `throughput`: of the steps and workers. `broken`: what is wrong with pictures passed over.
    `absent`: the classes without a pixel in the labels of the "training" pictures that were drawn,
    and in those of "validation"; each once that is known.
    `conversions`: what reading changed in the pictures of both sets.
    """

    model: DeepLab
    steps: int
    interrupted: bool
    loss: float
    metrics: dict[str, Any]
    signal: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    throughput: Throughput = field(default_factory=Throughput)
    broken: tuple[str, ...] = ()
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conversions: tuple[Conversion, ...] = ()


def train(
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    dataset: LabelledImages | None = None,
    validation: LabelledImages | None = None,
    class_names: Sequence[str] | None = None,
    palette: npt.ArrayLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a model: from scratch, from `config.weights`, or on from where a run was stopped.

    Under torchrun, or in a program that has initialised torch.distributed, every process calls this
    with the same arguments and takes its share; the first alone writes and prints.

    Args:
        config: the recipe.
        out: weights file: the best so far by validation mIoU. Beside it lie the last weights
            (FILE-last), the state to resume from (FILE.state), the log (FILE.csv) and, if wanted,
            FILE.tensorboard. None writes nothing.
        dataset, validation: pairs (image uint8 [H, W, 3] RGB, labels [H, W], 255 ignored);
            by default those of `config.data`.
        class_names: a name for each class; their number is the model's. By default the data set's
            `classes`, or those of the generated scenes.
        palette: colours [>= classes, 3] for the weights file, by default the data set's.
        metadata: more JSON-able entries for the weights file. For the generated scenes "crf" is
            `SCENES_CRF` unless given here; a CRF that learns (`config.crf`) replaces it.
        resume: go on from FILE.state, with the same configuration up to what does not change the
            result (`deeplab.training.config.FREE_ON_RESUME`). Every process reads the file.
            Other `steps` than the run was to have, more than it has done, give the rest of it
            another schedule, which is said; so a finished run trains on. Without more steps a
            finished run stays as it is.
        overwrite: start anew in place of the run or the weights that lie at `out`.
        tensorboard: log for TensorBoard too.
        progress: show loss, learning rate, last mIoU, speed and time left, on standard error.

    Raises:
        ValueError: an empty data set. FloatingPointError: the loss is not finite any more.
        InputError: `out` cannot be written (found before training starts) or the disk is full; data
            or weights cannot be read; the state to resume is of another run; weights, a run or its
            log would be lost; weights or validation have the classes in another order; memory is
            not enough; labels from which nothing can be learned (no two classes that count), at the
            start, after the first epoch or at the end.
        OtherProcessEnded: of several processes another one has failed, and says why itself.
    """
    with processes(config.device) as group:
        teller = Teller(config.steps, shows=progress, speaks=group.first)
        files = None if out is None else Files(Path(out))
        with group.together():
            if files is not None:
                _check_files(files, resume, overwrite, group.first)
            dataset, validation, known = _data(config, dataset, validation)
            known |= dict(metadata or {})
            names = list(class_names or getattr(dataset, "classes", None) or scenes.CLASSES)
            if palette is None:
                palette = getattr(dataset, "palette", scenes.PALETTE)
            _check(config, len(names), group, teller)
            facts = {"pictures": len(dataset), "class names": names}
            state = _state(files, config, facts) if resume else None
            named = "class_names" if class_names else getattr(dataset, "name", "the data set")
            classes = Classes.of(named, names)
            _check_classes(classes, dataset, validation)
            if not resume:
                _check_classes_of_weights(config, classes, teller)
            if not resume and group.first:  # which alone speaks; the others wait for its verdict
                look_at_labels(dataset, validation, names, config.class_weights, teller.say)
            model = _model(config, len(names), known, teller, resumed=resume)
            _check_batch(config, model, group)
        run = Run(
            config,
            model,
            validation,
            names,
            facts=facts,
            metadata={
                "class_names": names,
                "palette": np.asarray(palette)[: len(names)].tolist(),
                "recipe": dataclasses.asdict(config),
                "commit": _commit(),
                **known,
            },
            files=files,
            processes=group,
            teller=teller,
        )
        idle = False
        try:
            with group.together():
                if state is not None and files is not None:
                    run.resume(state, files.state)
                    idle = run.finished and stored_steps(files.state, state) == config.steps
                    del state  # as large as the model and its optimiser
                if files is not None and group.first and not idle:
                    _open_logs(teller, files, run, resume, tensorboard)
                if config.in_memory and run.step < config.steps:
                    dataset = InMemory(dataset, teller.counted)
            if idle:
                run.complete()
                teller.say(f"{out}: the run has finished its {run.step} steps; {GO_ON}")
            else:
                teller.start(run.step)
                run.loop(dataset)
        finally:
            teller.close()
            run.release_group()
    return TrainResult(
        run.model.eval(),
        run.step,
        run.step < config.steps,
        run.loss,
        run.metrics,
        signal=run.signal,
        best=run.best,
        throughput=run.throughput,
        broken=tuple(sorted(run.broken)),
        absent=run.absent,
        conversions=tuple(sorted(run.conversions)),
    )


def _check_files(files: Files, resume: bool, overwrite: bool, first: bool) -> None:
    files.check_name()
    if resume and overwrite:
        raise InputError(
            "resume and overwrite: a run goes on or starts anew; leave one of them out"
        )
    if not first:
        return  # which alone writes
    files.check_writable()
    if not resume and not overwrite:
        files.check_free()


def _state(files: Files | None, config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The state to resume from, of the run that `config` and `facts` describe."""
    if files is None:
        raise InputError("resume: expected the weights file of the run that is to go on")
    state = read_state(files.state)
    check_agreement(files.state, state, config, facts)
    return state


def _data(
    config: TrainConfig, dataset: LabelledImages | None, validation: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages, dict[str, Any]]:
    """The pictures to train and to validate on, and what the weights' metadata say of them."""
    data = config.data
    is_scenes = dataset is None and data.name == "scenes"
    if dataset is None:
        if is_scenes:
            dataset = scenes.ScenesDataset(scenes.TRAIN_START, config.scenes)
        else:
            dataset = _opened(data, data.train)
    if validation is None:
        if data.name == "scenes":
            validation = scenes.ScenesDataset(scenes.VALIDATION_START, config.validation_scenes)
        else:
            validation = _opened(data, data.validation)
    if len(dataset) == 0 or len(validation) == 0:
        raise ValueError("dataset, validation: expected at least one picture in each")
    return dataset, validation, {"crf": SCENES_CRF} if is_scenes else {}


def _opened(data: DataConfig, split: str) -> LabelledImages:
    from deeplab.data.datasets import open_dataset

    return open_dataset(data.name, data.root or None, split, **data.options)


def _check(config: TrainConfig, classes: int, group: Processes, teller: Teller) -> None:
    pieces = config.accumulate * group.world
    if config.batch_size % pieces:
        raise InputError(
            f"batch_size: expected a multiple of accumulate x processes = {config.accumulate} x "
            f"{group.world}, got {config.batch_size}; accumulate less, or change either number"
        )
    if config.sync_bn and group.device.type != "cuda":
        raise InputError("sync_bn: BatchNorm is synchronised on GPUs only; leave it out")
    if config.class_weights and len(config.class_weights) != classes:
        raise InputError(
            f"class_weights: expected {classes}, one for each class, got "
            f"{len(config.class_weights)}"
        )
    cores = os.cpu_count() or 1
    if config.workers > cores:
        teller.say(
            f"workers: {config.workers} processes prepare samples, on {cores} processors; "
            f"--workers {cores} may be as fast"
        )


def _check_classes(ours: Classes, dataset: LabelledImages, validation: LabelledImages) -> None:
    """InputError unless the pictures to train and to validate on have the run's classes."""
    mend = "give class_names and both sets the same classes, in one order"
    for pictures, owner in ((dataset, "the training set"), (validation, "the validation set")):
        if names := getattr(pictures, "classes", None):
            compare_classes(Classes.of(owner, names), ours, mend)


def _check_classes_of_weights(config: TrainConfig, ours: Classes, teller: Teller) -> None:
    """InputError where the weights to start from have the run's classes in another order.

    Of other counts nothing is said here: `load_weights` leaves the classifier to chance then.
    """
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
        teller.say(note)


def _check_batch(config: TrainConfig, model: DeepLab, group: Processes) -> None:
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


def _model(
    config: TrainConfig, classes: int, metadata: Mapping[str, Any], teller: Teller, resumed: bool
) -> DeepLab:
    """The model as the run starts with it; a resumed one takes its weights from the state."""
    torch.manual_seed(config.seed)
    layer = None
    if config.crf:
        settings = CRFSettings().changed(metadata.get("crf") or {})
        layer = settings.layer(classes, learnable=True)
    try:
        model = build(config.model, num_classes=classes, crf=layer, **config.model_options)
    except (TypeError, ValueError) as error:
        raise InputError(f"model_options: {config.model} does not take them: {error}") from error
    if resumed:
        return model
    if config.weights:
        drawn = copy.deepcopy(model.state_dict()) if config.new_classifier else {}
        with warnings.catch_warnings():
            # Said below, by one process, beside the progress bar.
            warnings.filterwarnings("ignore", message=".*has no weights for")
            loaded = load_weights(model, config.weights)
        if loaded.skipped:
            teller.say(
                f"{config.weights}: has no weights for {', '.join(loaded.skipped)}, which start "
                "from random numbers"
            )
        if note := _other_scales(model, loaded):
            teller.say(f"{config.weights}: {note}")
        if config.new_classifier:
            anew = {name: tensor for name, tensor in drawn.items() if ".classifier." in name}
            model.load_state_dict(anew, strict=False)
    elif config.starts_from:
        raise InputError(
            f"weights: this recipe starts from {config.starts_from}; name the file with "
            "--weights, or start from random numbers with --set starts_from="
        )
    return model


def _other_scales(model: DeepLab, loaded: Loaded) -> str:
    """What to say where the weights were trained at other scales (MSC), or resized otherwise.

    Several scales that start from weights of one are the papers' own recipe.
    """
    scales, resize = loaded.scales or model.scales, loaded.resize or model.resize
    if (scales, resize) == (model.scales, model.resize):
        return ""
    theirs, ours = (f"scales {_listed(s)}" for s in (scales, model.scales))
    keep = f"--set 'model_options.scales={_listed(scales)}' " if scales else ""
    return (
        f"trained with {theirs} and resize {resize}, and trained on here with {ours} and resize "
        f"{model.resize}; to keep theirs: {keep}--set model_options.resize={resize}"
    )


def _listed(scales: Sequence[float] | None) -> str:
    return "none" if scales is None else f"[{', '.join(f'{scale:g}' for scale in scales)}]"


def _open_logs(teller: Teller, files: Files, run: Run, resumed: bool, tensorboard: bool) -> None:
    kept = run.step - run.awaits_validation
    teller.logs.append(CSVLog(files.log, kept))  # which no other run is writing
    if not resumed:
        files.state.unlink(missing_ok=True)  # of an earlier run, which ends here
    if tensorboard:
        teller.logs.append(TensorBoardLog(files.tensorboard, kept))


def _commit() -> str | None:
    """The commit of the checkout that this file lies in; None when it is installed."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
