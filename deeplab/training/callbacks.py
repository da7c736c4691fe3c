"""What a run tells while it trains, and to whom: its logs, trackers of experiments, your own code.

    class Print(Callback):
        def on_validation(self, validation):
            print(validation.step, validation.metrics["miou"])

    train(config, "mine.safetensors", callbacks=[Print()])

docs/callbacks.md has more. The log FILE.csv, TensorBoard and the others are such callbacks; yours
are called after them, in the order given. Of several processes the first alone calls any. What one
raises ends the run, as any error does; --resume goes on from the last state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab.model import DeepLab
from deeplab.training.config import TrainConfig

if TYPE_CHECKING:
    from deeplab.training.run import TrainResult


@dataclass(frozen=True)
class Run:
    """A run as it starts or goes on.

    Attributes:
        config: its recipe.
        class_names, palette: of the classes; colours uint8 `[C, 3]`.
        model: the network that is validated and written, which changes while the run lasts.
        out: the weights file; None where nothing is written.
        step: the rows up to this one belong to what is resumed; 0 for a new run.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    palette: np.ndarray
    model: DeepLab
    out: Path | None
    step: int


@dataclass(frozen=True)
class ValidationPicture:
    """A picture of the validation, its truth, the prediction and the errors side by side.

    name: of the picture in its data set; panel: uint8 RGB `[h, w, 3]`, see
    `deeplab.evaluation.panels`.
    """

    name: str
    panel: np.ndarray


@dataclass(frozen=True)
class Validation:
    """What a validation has found.

    Attributes:
        step: how many steps were done.
        metrics: as in `TrainResult.metrics`: "miou", "iou" by class, "pixel_accuracy", ...
        best: whether no validation before it had a mIoU as high.
        pictures: as many as `train(..., pictures=N)` asks for, the same ones each time.
    """

    step: int
    metrics: Mapping[str, Any]
    best: bool
    pictures: tuple[ValidationPicture, ...] = ()


class Callback:
    """Told what happens in a run; each method does nothing until it is overridden."""

    def on_start(self, run: Run) -> None:
        """Before the first step; not called where nothing is left to do."""

    def on_row(self, row: Mapping[str, Any]) -> None:
        """A row of the log: "step" and those of `deeplab.training.logs.columns` that are known.

        Comes each `log_every` steps and with each validation, before `on_validation`.
        """

    def on_validation(self, validation: Validation) -> str | None:
        """After a validation, its weights and the state being written.

        A text ends the run here, and says why: `TrainResult.stopped`. --resume goes on.
        """
        return None

    def on_end(self, result: TrainResult | None) -> None:
        """Once for each `on_start`: the result, or None where an error ended the run."""


class Callbacks:
    """The callbacks of this process, called in their order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = tuple(callbacks)
        self._started: list[Callback] = []

    def start(self, run: Run) -> None:
        for callback in self._callbacks:
            callback.on_start(run)
            self._started.append(callback)

    def row(self, row: Mapping[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_row(row)

    def validation(self, validation: Validation) -> str:
        """Why the run is to stop; empty where it is not."""
        reasons = [callback.on_validation(validation) for callback in self._callbacks]
        return next((reason for reason in reasons if reason), "")

    def end(self, result: TrainResult) -> None:
        """The run has a result. Each is told, and what the first of them raises is raised."""
        while self._started:
            callback = self._started.pop(0)
            try:
                callback.on_end(result)
            except BaseException:
                self.fail()
                raise

    def fail(self) -> None:
        """An error ends the run; those of the callbacks that end with it say nothing beside it."""
        while self._started:
            with suppress(Exception):
                self._started.pop(0).on_end(None)
