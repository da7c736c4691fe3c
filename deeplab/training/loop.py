"""The training loop: steps of SGD, validations, and the files that a run leaves.

A step takes `batch_size` samples: each process has an equal part of them and computes it in
`accumulate` pieces. The loss is divided by the weight of all labelled pixels of the step, in all
pieces and processes, so that neither changes the gradient (BatchNorm that trains sees its own
piece). Random numbers are drawn anew for each step from (seed, step, rank), so that a run goes on
after a resume as if it had not stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab.crf_settings import CRFSettings
from deeplab.data.conversions import Conversion, counted
from deeplab.data.datasets.base import Recording
from deeplab.data.datasets.counts import LabelCounts
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages, evaluate
from deeplab.model import DeepLab
from deeplab.model.preprocess import mean_colour
from deeplab.training.checkpoint import Files, stored_steps, write_state
from deeplab.training.config import TrainConfig
from deeplab.training.distributed import OtherProcessEnded, Processes
from deeplab.training.failures import clear_errors
from deeplab.training.interrupt import stop_request
from deeplab.training.labels import TRAINING, VALIDATION, DrawnLabels
from deeplab.training.logs import Teller, Throughput, peak_memory_mib
from deeplab.training.losses import Grid, StepLoss, at_least_something, labelled_mass
from deeplab.training.precision import autocast_dtype
from deeplab.training.samples import Batch, SkipBroken, batches, step_seed
from deeplab.training.schedule import learning_rate, optimizer_of, restated
from deeplab.weights import read_metadata, save_weights

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Run:
    """One training run: the model with its optimiser, validations and checkpoints.

    facts: what fixes the run beside its configuration, see `check_agreement`; metadata: what the
    weights file says of the run; files: None writes nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: DeepLab,
        validation: LabelledImages,
        class_names: Sequence[str],
        *,
        facts: Mapping[str, Any],
        metadata: Mapping[str, Any],
        files: Files | None,
        processes: Processes,
        teller: Teller,
    ) -> None:
        self.config, self.processes, self.teller = config, processes, teller
        self.files, self.facts, self.metadata = files, facts, metadata
        self.class_names = class_names
        self._scored = Recording(validation)
        self.validation = SkipBroken(self._scored) if config.skip_broken else self._scored
        self.step, self.loss, self.signal = 0, math.nan, 0
        self.metrics: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.restated: list[dict[str, int]] = []  # where the run was given other steps, and which
        self.validated = -1  # the step of the last validation
        self.broken: set[str] = set()
        self.drawn = DrawnLabels(class_names, config.class_weights, config.crop)
        self.absent: dict[str, tuple[str, ...]] = {}  # classes without a pixel, once that is known
        self.conversions: set[Conversion] = set()
        self._told: set[str] = set()  # the kinds of conversions that have been said
        self.throughput, self._stretch = self._measured(), self._measured()
        self._pending: list[Tensor] = []  # losses that are still on their way from the GPU
        self._row_step = -1
        self.device = processes.device
        self.model = self._placed(model)
        self.optimizer = optimizer_of(model, config)
        self.dtype = autocast_dtype(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self._parallel, self.stepper = self._wrapped()

    def loop(self, dataset: LabelledImages) -> None:
        """Train from `self.step` to the end, or until Ctrl-C or SIGTERM.

        Raises InputError: a picture, the disk, memory that is not enough, a worker that was killed,
        labels from which nothing can be learned; FloatingPointError: training diverged.
        """
        with clear_errors(self.config):
            self._loop(dataset)

    def _loop(self, dataset: LabelledImages) -> None:
        config, processes = self.config, self.processes
        self._epoch_ends = self.step + math.ceil(len(dataset) / config.batch_size)
        samples = batches(
            dataset,
            config,
            self.step,
            fill=mean_colour(self.model.style),
            classes=self.model.num_classes,
            rank=processes.rank,
            world=processes.world,
            pin=self.device.type == "cuda",
        )
        with stop_request() as request:
            if self.awaits_validation:
                self._validate()
            with closing(samples):
                while self.step < config.steps and not self.signal:
                    begin = time.perf_counter()
                    batch = self._next(samples)
                    fetched = time.perf_counter()
                    self.signal = self._advance(batch, request.signal)
                    if processes.world == 1:
                        self.signal = request.signal
                    waited, took = fetched - begin, time.perf_counter() - fetched
                    for stretch in (self.throughput, self._stretch):
                        stretch.add(config.batch_size, took, waited, batch.seconds)
                    self._after_step()
            self._settle()
            scoring = self.signal != signal.SIGTERM and self.validated != self.step
            if not scoring:
                self._row()
            self.save()  # before the validation, which another Ctrl-C may end
        if self.step == config.steps and "training" not in self.absent:
            self._judge_labels()
        if scoring:  # not after SIGTERM: whoever sends that gives little time
            self._validate()
        self._tell_conversions()
        self._tell_broken()

    @property
    def awaits_validation(self) -> bool:
        """Whether the run was stopped between a step and its validation."""
        last = self.step >= self.config.steps
        due = self.step > 0 and (last or self.step % self.config.validate_every == 0)
        return due and self.validated != self.step

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the last step is done and validated."""
        return self.step >= self.config.steps and self.validated == self.step

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

    def complete(self) -> None:
        """Write the last weights of a finished run, if it was killed between its state and them."""
        if self.files is None or not self.processes.first:
            return
        with suppress(InputError):
            stored = read_metadata(self.files.last)
            if (stored.get("step"), stored.get("metrics")) == (self.step, self.metrics):
                return
        self._save_weights(self.files.last)

    def resume(self, state: Mapping[str, Any], path: Path) -> None:
        """Go on from the state in a file, which `check_agreement` has passed.

        Where the run was to have other steps, the schedule is another from here on, which is said.
        """
        before = stored_steps(path, state)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.loss = int(state["step"]), float(state["loss"])
            self.validated = int(state["validated"])
            self.metrics, self.best = json.loads(state["metrics"]), json.loads(state["best"])
            self.drawn.load(state.get("drawn"))
            self.restated = json.loads(state.get("restated", "[]"))  # an older state has none
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: the state does not fit the run: {error}") from error
        self._row_step = self.step - self.awaits_validation
        if self.files is not None and not self.files.best.is_file():
            self.best = {}  # moved away: the best from here on are worth keeping
        if before != self.config.steps:
            self.restated.append({"step": self.step, "steps_before": before})
            self.teller.say(f"{path}: {restated(self.config, self.step, before)}")

    def _state(self) -> dict[str, Any]:
        return {
            "config": json.dumps(dataclasses.asdict(self.config)),
            "facts": json.dumps(self.facts),
            "step": self.step,
            "loss": self.loss,
            "validated": self.validated,
            "metrics": json.dumps(self.metrics),
            "best": json.dumps(self.best),
            "drawn": self.drawn.state(),
            "restated": json.dumps(self.restated),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _save_weights(self, path: Path) -> None:
        known: dict[str, Any] = {"step": self.step, "metrics": self.metrics}
        if self.restated:
            known["restated"] = self.restated
        if self.model.crf is not None:
            known["crf"] = CRFSettings.of(self.model.crf).as_dict()
        save_weights(self.model, path, dict(self.metadata) | known)

    def _next(self, samples: Generator[Batch, None, None]) -> Batch:
        """The next share of a step; before a broken picture ends the run, its state is saved."""
        try:
            return next(samples)
        except InputError as error:
            if self.files is None or not self.processes.first or not self.step:
                raise
            self.save()
            raise InputError(f"{error}; --resume goes on from step {self.step}") from error

    def _advance(self, batch: Batch, stop: int) -> int:
        """One step; returns the signal on which all processes agree to stop after it, or 0."""
        config, world = self.config, self.processes.world
        self.conversions.update(batch.conversions)
        self._note_broken(batch.broken)
        torch.manual_seed(step_seed(config.seed, self.step, self.processes.rank))
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        mass, stop = self._agree(batch, stop)
        self.model.train()
        self.optimizer.zero_grad()
        statistics = self._statistics()
        parts = []
        pieces = zip(
            batch.image.chunk(config.accumulate), batch.labels.chunk(config.accumulate), strict=True
        )
        for number, (rgb, labels) in enumerate(pieces, 1):
            with self._exchange(number == config.accumulate):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                    loss = self.stepper(self._moved(rgb), self._moved(labels).long(), mass)
                # Gradients are averaged over the processes; the loss is a sum over them.
                self.scaler.scale(loss * world).backward()
            parts.append(loss.detach())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss = torch.stack(parts).sum()
        for buffer, before in statistics:
            buffer.copy_(torch.where(loss.isfinite(), buffer, before))
        self._pending.append(loss)
        self.step += 1
        return stop

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """In float16, BatchNorm's statistics and what they were before the step.

        The scaler skips a step that overflows, and they have to stay as they were too.
        """
        if not self.scaler.is_enabled():
            return []
        floating = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        return [(buffer, buffer.clone()) for buffer in floating]

    def _agree(self, batch: Batch, stop: int) -> tuple[Tensor, int]:
        """Denominators of the loss over the whole step, and the signal that any process got."""
        weights = torch.tensor(self.config.class_weights) if self.config.class_weights else None
        mass = labelled_mass(batch.labels, self._strides, weights, Grid.of(self.model))
        votes = torch.tensor([stop == number for number in SIGNALS], dtype=torch.float64)
        parts = [mass, votes, batch.pixels.double()]
        mass, votes, pixels = self.processes.sum(torch.cat(parts)).split([len(p) for p in parts])
        self.drawn.add(pixels, float(mass.sum()))
        stops = [n for n, vote in zip(SIGNALS, votes.tolist(), strict=True) if vote]
        return self._moved(at_least_something(mass).float()), stops[-1] if stops else 0

    def _judge_labels(self) -> None:
        """Say which classes no picture has, of those drawn; end a run that can learn nothing."""
        drawn, pictures = self.step * self.config.batch_size, self.facts["pictures"]
        part = "" if drawn >= pictures else f" (of {drawn} of {pictures} pictures)"
        if defect := self.drawn.defect(TRAINING + part):
            raise InputError(defect) if self.processes.first else OtherProcessEnded()
        self._tell_absent("training", self.drawn.counts(TRAINING + part))

    def _tell_absent(self, split: str, counts: LabelCounts) -> None:
        """Once in a run, and with each resume."""
        if split not in self.absent and (note := counts.note()):
            self.teller.say(f"Note: {note}")
        self.absent[split] = counts.absent

    def _after_step(self) -> None:
        config, step = self.config, self.step
        drawn = step * config.batch_size
        if "training" not in self.absent and drawn >= self.facts["pictures"]:
            self._judge_labels()
        goes_on = step < config.steps and not self.signal
        scoring = goes_on and step % config.validate_every == 0
        saving = goes_on and step % config.save_every == 0
        logging = step % config.log_every == 0
        if self.device.type == "cpu" or scoring or saving or logging:
            self._settle()
        self.teller.step(step, self._state_text())
        if logging and goes_on and not scoring:
            self._row()
        if scoring or saving:
            self.save()
        if scoring:
            self._validate()
        if scoring or step == self._epoch_ends:
            self._tell_conversions()

    def _settle(self) -> None:
        """Take the losses of the last steps into the running mean; on a GPU this waits for them.

        In float16 single steps overflow: the scaler skips them, and halves its scale, which it has
        to find first. Where every step overflows the scale falls below any that helps.
        """
        if not self._pending:
            return
        losses = self.processes.sum(torch.stack(self._pending).double().cpu()).tolist()
        self._pending.clear()
        for step, value in enumerate(losses, self.step - len(losses)):
            if not math.isfinite(value):
                if self.scaler.is_enabled():
                    continue
                raise self._diverged(f"the loss is {value} at step {step}")
            # A running mean, of the last fifty steps or so.
            share = 1 / min(step + 1, 50)
            first = math.isnan(self.loss)
            self.loss = value if first else self.loss + share * (value - self.loss)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise self._diverged(f"float16 overflows in every step up to step {self.step - 1}")

    def _diverged(self, what: str) -> Exception:
        if not self.processes.first:  # all see the same loss, and the first one says it
            return OtherProcessEnded()
        wider = ", or take precision=bfloat16" if self.scaler.is_enabled() else ""
        return FloatingPointError(
            f"{what}: training diverged; lower lr (now {self.config.lr}) or lengthen warmup (now "
            f"{self.config.warmup}){wider}"
        )

    def _validate(self) -> None:
        self.teller.step(self.step, "validating")
        self._share_buffers()
        layer, self.model.crf = self.model.crf, None  # beside the network: both are scored
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                result = evaluate(
                    self.model, self.validation, layer, class_names=self.class_names, shard=True
                )
        finally:
            self.model.crf = layer
        scores = result.network if result.crf is None else result.crf
        self.metrics = {"images": result.images, **dataclasses.asdict(scores)}
        if result.crf is not None:
            self.metrics["network"] = dataclasses.asdict(result.network)
        self._tell_absent("validation", result.truth(VALIDATION))
        self.validated = self.step
        if better := not self.best or scores.miou > self.best["miou"]:
            self.best = {"step": self.step, "miou": scores.miou}
        self._row()
        if better and self.files is not None and self.processes.first:
            self._save_weights(self.files.best)
        self.save()

    def release_group(self) -> None:
        """Let go of the processes, before their group ends: DDP holds it, and a group that ends in
        DDP's destructor waits for threads that want Python's lock, which it has."""
        del self._parallel, self.stepper

    def _share_buffers(self) -> None:
        """The first process's statistics of BatchNorm, which are those that it writes, in all.

        Each process updates its own in a step, and they are one again at the next step only.
        """
        for buffer in self.model.buffers():
            self.processes.share(buffer)

    def _row(self) -> None:
        """A row of the log, one a step at most."""
        if self._row_step >= self.step:
            return
        self._row_step = self.step
        scored = self.metrics if self.validated == self.step else {}
        row = {
            "step": self.step,
            "loss": self.loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "memory_mib": peak_memory_mib(self.device),
        }
        row |= {name: scored[name] for name in ("miou", "pixel_accuracy") if name in scored}
        if self._stretch.images:
            row |= self._stretch.as_row()
        self._stretch = self._measured()
        self.teller.row(row)

    def _state_text(self) -> str:
        miou = f"  mIoU {self.metrics['miou']:.1%}" if self.metrics else ""
        return (
            f"loss {self.loss:.3f}  lr {self.optimizer.param_groups[0]['lr']:.4g}{miou}  "
            f"{self.throughput.images_per_second:.1f}/s  "
            f"wait {self.throughput.wait_share:.0%}  {peak_memory_mib(self.device) / 1024:.1f} GiB"
        )

    def _tell_conversions(self) -> None:
        """What was converted in the pictures, of all processes: each kind once, counted.

        That is when every picture has been read, or at the first validation if it comes before.
        """
        found = self.conversions | self._scored.conversions
        self.conversions = set().union(*self.processes.gather(found))
        new = {c for c in self.conversions if c.kind not in self._told}
        self._told |= {conversion.kind for conversion in new}
        so_far = " (so far)" if self.step < self._epoch_ends else ""
        for line in counted(new):
            self.teller.say(f"Note: {line}{so_far}")

    def _note_broken(self, messages: Sequence[str]) -> None:
        for message in messages:
            if message not in self.broken:
                self.broken.add(message)
                self.teller.say(f"Passed over: {message}")

    def _tell_broken(self) -> None:
        if not self.config.skip_broken:
            return
        if isinstance(self.validation, SkipBroken):
            self.broken |= self.validation.broken
        self.broken = set().union(*self.processes.gather(self.broken))
        if self.broken:
            names = "; ".join(sorted(self.broken))
            self.teller.say(f"{len(self.broken)} broken pictures were passed over: {names}")

    def _placed(self, model: DeepLab) -> DeepLab:
        config = self.config
        if config.sync_bn and self.processes.world > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(self.device)
        if config.channels_last:  # the type stubs lack this overload
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _wrapped(self) -> tuple[DistributedDataParallel | None, nn.Module]:
        """What exchanges gradients, and what a step calls."""
        config = self.config
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        loss = StepLoss(self.model, config.loss_stride, weights, config.channels_last)
        self._strides = loss.strides
        stepper: nn.Module = loss.to(self.device)
        parallel = None
        if self.processes.world > 1:
            parallel = stepper = DistributedDataParallel(
                stepper,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                process_group=self.processes.group,
                find_unused_parameters=config.crf,  # the widths of a lattice's terms do not learn
            )
        if config.compile:
            stepper = torch.compile(stepper)  # type: ignore[assignment]
        return parallel, stepper

    def _exchange(self, last: bool) -> Any:
        """Gradients go to the other processes with the last piece of a step only."""
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _measured(self) -> Throughput:
        return Throughput(self.config.workers)
