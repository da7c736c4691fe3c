"""A training run as a whole: `train` sets it up, trains, and returns what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from deeplab.data.conversions import Conversion
from deeplab.distributed import processes
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.model import DeepLab
from deeplab.training.callbacks import Callback, Callbacks
from deeplab.training.checkpoint import GO_ON, Files, stored_steps
from deeplab.training.config import TrainConfig
from deeplab.training.curves import Curves
from deeplab.training.logs import CSVLog, Logger, Throughput
from deeplab.training.pictures import PictureFolder
from deeplab.training.samples import InMemory
from deeplab.training.setup import check_files, set_up
from deeplab.training.trackers import TensorBoardLog
from deeplab.training.trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """The trained model in evaluation mode and what the run achieved.

    `steps` done, `interrupted` by Ctrl-C or SIGTERM (`signal` is its number) or not, `stopped`, why
    a run that was not ended before its last step ("patience" of the recipe, or a callback), the
    mean `loss` of the last steps, and the `metrics` of the last validation: of the refined
    segmentation where the model ends in a CRF, with the network's own under "network". `best`: step
    and mIoU of the validation whose weights the weights file has. `broken`: what is wrong with
    pictures passed over. `absent`: the classes without a pixel in the "training" and the
    "validation" labels, once that is known. `conversions`: what reading changed in the pictures of
    both sets.
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
    stopped: str = ""


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
    pictures: int = 0,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    note: str = "",
) -> TrainResult:
    """Train a model: from scratch, from `config.weights`, or on from where a run was stopped.

    Under torchrun, or in a program that has initialised torch.distributed, every process calls this
    with the same arguments and takes its share; the first alone writes and prints.

    Args:
        config: the recipe.
        out: weights file: the best so far by validation mIoU; beside it lie the files that
            `deeplab.training.checkpoint` names. None writes nothing.
        dataset, validation: pairs (image uint8 [H, W, 3] RGB, labels [H, W], 255 ignored), or
            images of the model's bands; by default those of `config.data`.
        class_names: a name for each class; their number is the model's. By default the data set's
            `classes`, or those of the generated scenes.
        palette: colours [>= classes, 3] for the weights file, by default the data set's.
        metadata: more JSON-able entries for the weights file. For the generated scenes "crf" is
            `SCENES_CRF` unless given here; a CRF that learns (`config.crf`) replaces it.
        resume: go on from FILE.state, with the same configuration up to what does not change the
            result (`deeplab.training.config.FREE_ON_RESUME`). Other `steps` than the run was to
            have give the rest of it another schedule; so a finished run trains on.
        overwrite: start anew in place of the run or the weights that lie at `out`.
        tensorboard: log for TensorBoard too.
        pictures: how many pictures of the validation set are drawn at each validation, beside their
            truth and errors: into FILE.pictures and for the callbacks. 0: none.
        callbacks: told of the run as it goes, see `deeplab.training.callbacks`.
        progress: show loss, learning rate, last mIoU, speed and time left on standard error: in a
            bar on a terminal, else in a line for each row of the log; before the start, how long
            the run will take.
        note: a line to tell before the first step, such as where the configuration comes from.

    Raises:
        ValueError: an empty data set, `pictures` below 0.
        FloatingPointError: the loss is not finite any more.
        InputError: `out` cannot be written, or a run there would be lost; data or weights cannot be
            read, or have the classes in another order; the state to resume is of another run;
            memory is not enough; nothing can be learned from the labels.
        OtherProcessEnded: of several processes another one has failed, and says why itself.
    """
    if pictures < 0:
        raise ValueError(f"pictures must be at least 0, not {pictures}")
    with processes(config.device) as group:
        logger = Logger(config.steps, progress, group.first)
        files = None if out is None else Files(Path(out))
        with group.together():
            if files is not None:
                check_files(files, resume, overwrite, group.first)
            setup = set_up(
                config,
                files,
                group,
                logger,
                dataset=dataset,
                validation=validation,
                class_names=class_names,
                palette=palette,
                metadata=metadata,
                resume=resume,
            )
        told: list[Callback] = []
        if files is not None and group.first:
            told.append(CSVLog(files.log))  # locked: no other run writes here
            told += [TensorBoardLog(files.tensorboard)] * tensorboard
            told += [PictureFolder(files.pictures)] * (pictures > 0)
            told.append(Curves(files.curves, files.log, logger.info))
        shown = Callbacks([*told, *callbacks] if group.first else [])
        trainer = Trainer(config, setup, files, group, logger, shown, pictures)
        finished = False
        try:
            with group.together():
                if setup.state is not None and files is not None:
                    trainer.resume(setup.state, files.state)
                    steps = stored_steps(files.state, setup.state)
                    whole = trainer.finished and steps == config.steps
                    finished = whole or bool(trainer.stopped)
                    setup.state = None  # as large as the model and its optimiser
                if not finished:
                    shown.start(trainer.as_run())
                    if files is not None and group.first and not resume:
                        files.state.unlink(missing_ok=True)  # of an earlier run, which ends here
                if config.in_memory and trainer.step < config.steps:
                    setup.dataset = InMemory(setup.dataset, logger.reading)
            if finished:
                trainer.write_missing_weights()
                logger.info(_nothing_left(trainer))
            else:
                if note:
                    logger.info(f"Note: {note}")
                logger.start(trainer.step)
                trainer.fit(setup.dataset)
            logger.close()
            result = _result(trainer)
            with group.together():
                shown.end(result)
        except BaseException:
            shown.fail()
            raise
        finally:
            logger.close()
            trainer.close()
    return result


def _nothing_left(trainer: Trainer) -> str:
    """What to say where a run to resume has ended already, and how it goes on."""
    assert trainer.files is not None
    if trainer.stopped:
        how = "train on with --resume and a higher patience, or --patience 0"
        return f"{trainer.files.best}: the run has stopped early ({trainer.stopped}); {how}"
    return f"{trainer.files.best}: the run has finished its {trainer.step} steps; {GO_ON}"


def _result(trainer: Trainer) -> TrainResult:
    return TrainResult(
        trainer.result.eval(),
        trainer.step,
        trainer.step < trainer.config.steps and not trainer.stopped,
        trainer.loss,
        trainer.metrics,
        signal=trainer.signal,
        best=trainer.best,
        throughput=trainer.throughput,
        broken=tuple(sorted(trainer.report.broken)),
        absent=trainer.report.absent,
        conversions=tuple(sorted(trainer.report.conversions)),
        stopped=trainer.stopped,
    )
