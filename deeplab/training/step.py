"""One step of training: forward and backward in pieces, gradients averaged, weights updated.

A process computes its share of a step in `accumulate` pieces. The loss is divided by what all
labels of the step give, such as the weight of their pixels, in all pieces and processes, so that
neither changes the gradient (BatchNorm that trains sees its own piece).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deeplab.distributed import Processes
from deeplab.model import DeepLab
from deeplab.precision import computes_bfloat16
from deeplab.training.auxiliary import AuxiliaryHead
from deeplab.training.config import TrainConfig
from deeplab.training.losses import StepLoss
from deeplab.training.samples import Sample
from deeplab.training.schedule import make_optimizer

Placed = TypeVar("Placed", bound=nn.Module)


class TrainStep:
    """The model on its device with its optimiser and loss scale; a call is one step.

    class_weights: of the loss, one for each class; empty where all weigh alike. auxiliary: the
    classifier of a run that has one.

    Attributes: `optimizer`, and `scaler`, which scales the loss where it computes in float16.
    """

    def __init__(
        self,
        model: DeepLab,
        config: TrainConfig,
        processes: Processes,
        class_weights: Sequence[float],
        auxiliary: AuxiliaryHead | None,
    ) -> None:
        self.config, self.processes, self.device = config, processes, processes.device
        self.model = self._placed(model)
        if auxiliary is not None:
            self._placed(auxiliary)
        self.optimizer = make_optimizer(model, config, auxiliary)
        self._dtype = autocast_dtype(config.precision, self.device)
        half = self._dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self._loss = StepLoss(
            model,
            config.loss_stride,
            torch.tensor(class_weights) if class_weights else None,
            config.channels_last,
            config.losses,
            config.label_smoothing,
            auxiliary,
            config.auxiliary,
        )
        self._loss.to(self.device)
        self._parallel = self._wrapped_in_ddp() if processes.world > 1 else None
        self._forward: nn.Module = self._parallel or self._loss
        if config.compile:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]

    def __call__(self, batch: Sample, denominators: Tensor) -> Tensor:
        """Update the weights; returns the part of this process in the loss, on its device.

        denominators: float64 on the CPU, those of the whole step (`denominators`).
        """
        accumulate = self.config.accumulate
        self.model.train()
        self.optimizer.zero_grad()
        statistics = self._statistics()
        # 1 instead of 0, so that a step without labels has the loss 0 and not NaN.
        divisors = self._on_device(denominators.where(denominators > 0, 1.0).float())
        losses = []
        pieces = zip(batch.image.chunk(accumulate), batch.labels.chunk(accumulate), strict=True)
        for number, (rgb, labels) in enumerate(pieces, 1):
            with self._exchange(last=number == accumulate):
                with self.autocast():
                    rgb, labels = self._on_device(rgb), self._on_device(labels).long()
                    loss = self._forward(rgb, labels, divisors)
                # Gradients are averaged over the processes; the loss is a sum over them.
                self.scaler.scale(loss * self.processes.world).backward()
            losses.append(loss.detach())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        total = torch.stack(losses).sum()
        for buffer, before in statistics:
            buffer.copy_(torch.where(total.isfinite(), buffer, before))
        return total

    def rehearsal(self, image: Tensor, labels: Tensor) -> Callable[[], None]:
        """A function that goes forward and backward through a copy of the network, and waits.

        image, labels: samples as of a `Sample`.
        """
        loss = copy.deepcopy(self._loss).train()
        divisors = self._on_device(self.denominators(labels).clamp(min=1).float())
        image, labels = self._on_device(image), self._on_device(labels).long()

        def rehearse() -> None:
            with self.autocast():
                value = loss(image, labels, divisors)
            value.backward()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return rehearse

    def denominators(self, labels: Tensor) -> Tensor:
        """What these labels `[B, H, W]` on the CPU add to the denominators of a step: float64."""
        return self._loss.denominators(labels)

    def autocast(self) -> torch.autocast:
        """The precision of the run, for the network's forward pass."""
        return torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None)

    def close(self) -> None:
        """Drop DistributedDataParallel while its process group still exists.

        A group that ends in its destructor waits for threads that want Python's lock, which it has.
        """
        del self._parallel, self._forward

    def _placed(self, model: Placed) -> Placed:
        if self.config.sync_bn and self.processes.world > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(self.device)
        if self.config.channels_last:  # the type stubs lack this overload
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _wrapped_in_ddp(self) -> DistributedDataParallel:
        return DistributedDataParallel(
            self._loss,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            process_group=self.processes.group,
            find_unused_parameters=self.config.crf,  # the widths of a lattice's terms do not learn
        )

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Gradients go to the other processes with the last piece of a step only."""
        return nullcontext() if last or self._parallel is None else self._parallel.no_sync()

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """In float16, BatchNorm's statistics and what they were before the step.

        The scaler skips a step that overflows, and they have to stay as they were too.
        """
        if not self.scaler.is_enabled():
            return []
        floating = [buffer for buffer in self._loss.buffers() if buffer.is_floating_point()]
        return [(buffer, buffer.clone()) for buffer in floating]

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this device; None leaves float32."""
    if precision != "auto":
        named = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        return named.get(precision)
    return torch.bfloat16 if computes_bfloat16(device) else None
