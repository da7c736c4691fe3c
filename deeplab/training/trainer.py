"""The training loop: steps, validations, the log, and the files that a run leaves.

Random numbers are drawn anew for each step from (seed, step, rank), so that a run can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplab.crf_settings import CRFSettings
from deeplab.distributed import OtherProcessEnded, Processes
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages, evaluate
from deeplab.model import DeepLab
from deeplab.stopping import StopRequest, stop_request
from deeplab.training.average import AveragedModel
from deeplab.training.callbacks import Callbacks, Run, Validation
from deeplab.training.checkpoint import Files, stored_steps, write_state
from deeplab.training.config import TrainConfig
from deeplab.training.early_stopping import EarlyStopping
from deeplab.training.estimate import estimate
from deeplab.training.interrupt import clear_errors
from deeplab.training.labels import VALIDATION
from deeplab.training.logs import IOU, Logger, Throughput, peak_memory_mib
from deeplab.training.pictures import ValidationPictures
from deeplab.training.report import PictureReport
from deeplab.training.samples import Sample, batches, step_seed
from deeplab.training.schedule import changed_steps_note, set_learning_rate
from deeplab.training.setup import Setup
from deeplab.training.step import TrainStep
from deeplab.weights import read_metadata, save_weights

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Trainer:
    """One training run: `fit` trains, `resume` takes up a stored state before it.

    files: None writes nothing. callbacks: told of rows and validations (`start` and `end` are the
    caller's). pictures: how many of the validation are drawn for them.

    Attributes: `step`, how many are done; `loss`, the mean of the last fifty or so; `metrics` of
    the last validation; `best`, step and mIoU of the best one; `signal`, that stopped the run, or
    0; `stopped`, why it ends before its last step, or ""; `throughput`; `report`, on the pictures.
    """

    def __init__(
        self,
        config: TrainConfig,
        setup: Setup,
        files: Files | None,
        processes: Processes,
        logger: Logger,
        callbacks: Callbacks,
        pictures: int = 0,
    ) -> None:
        self.config, self.processes, self.logger = config, processes, logger
        self.callbacks, self.stopped = callbacks, ""
        self.files, self.facts, self.metadata = files, setup.facts, setup.metadata
        self.class_names: Sequence[str] = self.facts["class names"]
        self.step, self.loss, self.signal = 0, math.nan, 0
        self.metrics: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.validated = -1  # the step of the last validation
        self.restated: list[dict[str, int]] = []  # where the run was given other steps, and which
        self.throughput = Throughput(config.workers)
        self._since_last_row = Throughput(config.workers)
        self._unread_losses: list[Tensor] = []  # that may still be computing on the GPU
        self._last_row = -1  # its step
        self.model = setup.model
        weights = setup.class_weights
        self.update = TrainStep(self.model, config, processes, weights, setup.auxiliary)
        self.auxiliary = setup.auxiliary
        self.average = AveragedModel(self.model, config.ema) if config.ema else None
        self._to_score = setup.validation
        self.early = EarlyStopping(config.patience)
        self.report = PictureReport(
            config,
            self.class_names,
            weights,
            self.facts["pictures"],
            setup.validation,
            processes,
            logger,
            bands=self.model.in_channels,
            masks=self.model.num_classes if self.model.multilabel else 0,
        )
        self.pictures = None
        if pictures and self.model.multilabel:
            raise InputError("pictures must be 0 for several labels a pixel: they show one")
        if pictures and processes.first:
            validated = len(setup.validation)
            names = getattr(setup.validation, "names", [str(i) for i in range(validated)])
            self.pictures = ValidationPictures(
                self.report.validation,
                names,
                pictures,
                self.metadata["palette"],
                self.model.preprocessing,
                processes.world,
            )

    @property
    def result(self) -> DeepLab:
        """What is scored and written: the model, or the average of its weights."""
        return self.model if self.average is None else self.average.model

    def fit(self, dataset: LabelledImages) -> None:
        """Train from `self.step` to the end, or until Ctrl-C or SIGTERM.

        Raises InputError: a picture, the disk, memory that is not enough, a worker that was killed,
        labels from which nothing can be learned; FloatingPointError: training diverged.
        """
        with clear_errors(self.config):
            with stop_request() as request:
                if self.awaits_validation:
                    self.validate()
                if not self.stopped:
                    self._train(dataset, request)
                validates = not self.stopped and self._finish_steps()
            if self.step == self.config.steps:
                self.report.after_step(self.step, last=True)
            if validates:
                self.validate()
            self.report.finish(self.step)

    def _train(self, dataset: LabelledImages, request: StopRequest) -> None:
        config, report = self.config, self.report
        report.start(self.step)
        self._tell_time(dataset)
        with closing(self._batches(dataset)) as rest:
            for batch in rest:
                self.train_step(batch, request)
                report.after_step(self.step, last=False)
                self.log()
                if self.stops:
                    return
                validates = self._due(config.validate_every)
                if validates or self._due(config.save_every):
                    self.save()  # before the validation, which another signal may end
                if validates:
                    self.validate()
                if validates or self.step == report.epoch_end:
                    report.report_conversions(self.step)
                if self.stopped:
                    return

    def _tell_time(self, dataset: LabelledImages) -> None:
        """How long the steps that are left will take, where someone watches."""
        if not self.logger.shows_progress:
            return
        data = dataset, self._to_score  # which reports nothing of what it reads
        if found := estimate(self.config, self.step, self.update, *data):
            self.logger.info(found.told(self.config, self.step))

    def train_step(self, batch: Sample, request: StopRequest) -> None:
        """Update the weights; sets `signal` where the run is to stop after this step."""
        begin = time.perf_counter()
        self.report.add(batch)
        torch.manual_seed(step_seed(self.config.seed, self.step, self.processes.rank))
        set_learning_rate(self.update.optimizer, self.config, self.step)
        denominators, self.signal = self._agree(batch, request.signal)
        self._unread_losses.append(self.update(batch, denominators))
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1
        if self.processes.world == 1:
            self.signal = request.signal  # which may have come during the step
        took = time.perf_counter() - begin
        for stopwatch in (self.throughput, self._since_last_row):
            stopwatch.add(self.config.batch_size, took, batch.waited, batch.seconds)

    def log(self) -> None:
        """Move the progress bar; write a row each `log_every` steps."""
        config = self.config
        validates = not self.stops and self._due(config.validate_every)
        saves = not self.stops and self._due(config.save_every)
        row = self._due(config.log_every)
        if self.update.device.type == "cpu" or validates or saves or row:
            self._read_losses()
        self.logger.progress(self.step, self._status())
        if row and not (self.stops or validates):  # a validation writes it with its scores
            self._write_row()

    def validate(self) -> None:
        """Score the network, and its CRF on top; keep the weights that are the best so far."""
        self.logger.progress(self.step, "validating")
        # BatchNorm's statistics of the first process, which are those that it writes, in all: each
        # process updates its own in a step, and they are one again at the next step only.
        model = self.result
        for buffer in model.buffers():
            self.processes.broadcast(buffer)
        layer, model.crf = model.crf, None  # beside the network: both are scored
        try:
            with self.update.autocast():
                drawing = self.pictures
                result = evaluate(
                    model,
                    self.report.validation if drawing is None else drawing,
                    layer,
                    class_names=self.class_names,
                    scales=self.config.validation_scales,
                    on_prediction=None if drawing is None else drawing.draw,
                    shard=True,
                )
        finally:
            model.crf = layer
        scores = result.network if result.crf is None else result.crf
        self.metrics = {"images": result.images, **dataclasses.asdict(scores)}
        if result.crf is not None:
            self.metrics["network"] = dataclasses.asdict(result.network)
        self.report.after_validation(result.truth(VALIDATION))
        self.validated = self.step
        if better := not self.best or scores.miou > self.best["miou"]:
            self.best = {"step": self.step, "miou": scores.miou}
        if self._is_planned:
            self.early.add(self.step, scores.miou)
            self.stopped = self._early_reason
        self._write_row()
        if better and self.files is not None and self.processes.first:
            self._save_weights(self.files.best)
        self.save()
        self._tell(better)

    def _tell(self, better: bool) -> None:
        """The callbacks of the validation, of which one may end the run."""
        pictures = () if self.pictures is None else self.pictures.take()
        found = Validation(self.step, self.metrics, better, pictures)
        reason = self.processes.gather(self.callbacks.validation(found))[0]
        if self.step < self.config.steps:
            self.stopped = self.stopped or reason

    def save(self) -> None:
        """The state and the last weights; the best ones too while there is no validation yet."""
        if self.files is None or not self.processes.first:
            return
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise self._diverged(f"weights are NaN or Inf after step {self.step - 1}")
        write_state(self.files.state, self._state())
        self._save_weights(self.files.last)
        if not self.best:
            self._save_weights(self.files.best)

    def resume(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from the state in a file, which `check_agreement` has passed."""
        before = stored_steps(path, state)
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.model.load_state_dict(state["average"])
            if self.auxiliary is not None:
                self.auxiliary.load_state_dict(state["auxiliary"])
            self.update.optimizer.load_state_dict(state["optimizer"])
            if self.update.scaler.is_enabled():
                self.update.scaler.load_state_dict(state["scaler"])
            self.step, self.loss = int(state["step"]), float(state["loss"])
            self.validated = int(state["validated"])
            self.metrics, self.best = json.loads(state["metrics"]), json.loads(state["best"])
            self.report.drawn.load(state.get("drawn"))
            self.early.load(state.get("early"))
            self.restated = json.loads(state.get("restated", "[]"))  # an older state has none
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: the state does not fit the run: {error}") from error
        self._last_row = self.logged
        self.stopped = "" if self.awaits_validation else self._early_reason
        if self.files is not None and not self.files.best.is_file():
            self.best = {}  # moved away: the best from here on are worth keeping
        if before != self.config.steps and not self.stopped:
            self.restated.append({"step": self.step, "steps_before": before})
            note = changed_steps_note(self.config, self.step, before)
            self.logger.info(f"{path}: {note}")

    def write_missing_weights(self) -> None:
        """The last weights of a finished run that was killed between its state and them."""
        if self.files is None or not self.processes.first:
            return
        with suppress(InputError):
            stored = read_metadata(self.files.last)
            if (stored.get("step"), stored.get("metrics")) == (self.step, self.metrics):
                return
        self._save_weights(self.files.last)

    def close(self) -> None:
        self.update.close()

    @property
    def stops(self) -> bool:
        """Whether no step follows."""
        return self.step >= self.config.steps or bool(self.signal or self.stopped)

    @property
    def awaits_validation(self) -> bool:
        """Whether the run was stopped between a step and its validation."""
        return self.step > 0 and self._is_planned and self.validated != self.step

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the last step is done and validated."""
        return self.step >= self.config.steps and self.validated == self.step

    @property
    def logged(self) -> int:
        """The step whose row is written: this one, unless that waits for the validation."""
        return self.step - self.awaits_validation

    def as_run(self) -> Run:
        """What callbacks are told at the start."""
        return Run(
            self.config,
            tuple(self.class_names),
            np.array(self.metadata["palette"], np.uint8),
            self.result,
            None if self.files is None else self.files.best,
            self.logged,
        )

    @property
    def _early_reason(self) -> str:
        return self.early.reason if self.step < self.config.steps else ""

    @property
    def _is_planned(self) -> bool:
        """Whether the recipe has a validation after this step."""
        return self.step >= self.config.steps or self._due(self.config.validate_every)

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    def _batches(self, dataset: LabelledImages) -> Generator[Sample, None, None]:
        """This process's batches of the steps that are left.

        Before a broken picture ends the run, its state is saved.
        """
        rest = batches(
            dataset,
            self.config,
            self.step,
            preprocessing=self.model.preprocessing,
            classes=self.model.num_classes,
            multilabel=self.model.multilabel,
            rank=self.processes.rank,
            world=self.processes.world,
            pin=self.update.device.type == "cuda",
        )
        with closing(rest):
            while self.step < self.config.steps:
                begin = time.perf_counter()
                try:
                    batch = next(rest)
                except InputError as error:
                    if self.files is None or not self.processes.first or not self.step:
                        raise
                    self.save()
                    raise InputError(f"{error}; --resume goes on from step {self.step}") from error
                yield batch._replace(waited=time.perf_counter() - begin)

    def _agree(self, batch: Sample, stop: int) -> tuple[Tensor, int]:
        """Denominators of the loss over the whole step, and the signal that any process got."""
        votes = torch.tensor([stop == number for number in SIGNALS], dtype=torch.float64)
        parts = [self.update.denominators(batch.labels), votes, batch.pixels.double()]
        total = self.processes.sum(torch.cat(parts))
        denominators, votes, pixels = total.split([len(part) for part in parts])
        self.report.drawn.add(pixels, float(denominators.sum()))
        stops = [n for n, vote in zip(SIGNALS, votes.tolist(), strict=True) if vote]
        return denominators, stops[-1] if stops else 0

    def _finish_steps(self) -> bool:
        """Write what the last step left; returns whether a validation of it is to follow.

        After SIGTERM none is: whoever sends that gives little time.
        """
        self._read_losses()
        validates = self.signal != signal.SIGTERM and self.validated != self.step
        if not validates:
            self._write_row()
        self.save()  # before the validation, which another Ctrl-C may end
        return validates

    def _read_losses(self) -> None:
        """Take the losses of the last steps into the running mean; on a GPU this waits for them.

        In float16 single steps overflow: the scaler skips them, and halves its scale, which it has
        to find first. Where every step overflows the scale falls below any that helps.
        """
        if not self._unread_losses:
            return
        losses = self.processes.sum(torch.stack(self._unread_losses).double().cpu()).tolist()
        self._unread_losses.clear()
        scaler = self.update.scaler
        for step, value in enumerate(losses, self.step - len(losses)):
            if not math.isfinite(value):
                if scaler.is_enabled():
                    continue
                raise self._diverged(f"the loss is {value} at step {step}")
            # A running mean, of the last fifty steps or so.
            share = 1 / min(step + 1, 50)
            first = math.isnan(self.loss)
            self.loss = value if first else self.loss + share * (value - self.loss)
        if scaler.is_enabled() and scaler.get_scale() < 1:
            raise self._diverged(f"float16 overflows in every step up to step {self.step - 1}")

    def _diverged(self, what: str) -> Exception:
        if not self.processes.first:  # all see the same loss, and the first one says it
            return OtherProcessEnded()
        wider = ", or take precision=bfloat16" if self.update.scaler.is_enabled() else ""
        return FloatingPointError(
            f"{what}: training diverged; lower lr (now {self.config.lr}) or lengthen warmup (now "
            f"{self.config.warmup}){wider}"
        )

    def _state(self) -> dict[str, Any]:
        return {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "facts": json.dumps(self.facts),
            "step": self.step,
            "loss": self.loss,
            "validated": self.validated,
            "metrics": json.dumps(self.metrics),
            "best": json.dumps(self.best),
            "drawn": self.report.drawn.state(),
            "early": self.early.state(),
            "stopped": self.stopped,
            "restated": json.dumps(self.restated),
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.model.state_dict(),
            "auxiliary": {} if self.auxiliary is None else self.auxiliary.state_dict(),
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
        }

    def _save_weights(self, path: Path) -> None:
        known: dict[str, Any] = {"step": self.step, "metrics": self.metrics}
        if self.restated:
            known["restated"] = self.restated
        model = self.result
        if model.crf is not None:
            known["crf"] = CRFSettings.of(model.crf).as_dict()
        save_weights(model, path, dict(self.metadata) | known)

    def _write_row(self) -> None:
        """A row of the log, one a step at most."""
        if self._last_row >= self.step:
            return
        self._last_row = self.step
        scored = self.metrics if self.validated == self.step else {}
        row = {"step": self.step, "loss": self.loss, "lr": self._learning_rate}
        row |= {name: scored[name] for name in ("miou", "pixel_accuracy") if name in scored}
        iou = scored.get("iou", {})
        row |= {f"{IOU}{name}": value for name, value in iou.items() if value is not None}
        row["memory_mib"] = peak_memory_mib(self.update.device)
        if self._since_last_row.images:
            row |= self._since_last_row.as_row()
        self._since_last_row = Throughput(self.config.workers)
        self.logger.row(row)
        self.callbacks.row(row)

    def _status(self) -> str:
        miou = f"  mIoU {self.metrics['miou']:.1%}" if self.metrics else ""
        memory = peak_memory_mib(self.update.device) / 1024
        return (
            f"loss {self.loss:.3f}  lr {self._learning_rate:.4g}{miou}  "
            f"{self.throughput.images_per_second:.1f}/s  "
            f"wait {self.throughput.wait_share:.0%}  {memory:.1f} GiB"
        )

    @property
    def _learning_rate(self) -> float:
        """The body's, of the last step."""
        rate: float = self.update.optimizer.param_groups[0]["lr"]
        return rate
