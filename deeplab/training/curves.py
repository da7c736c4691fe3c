"""The log as a picture, drawn at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab.errors import InputError
from deeplab.evaluation.plots import plot_training, require_matplotlib
from deeplab.training.callbacks import Callback, Run
from deeplab.training.logs import IOU, columns, read_rows

if TYPE_CHECKING:
    from deeplab.training.run import TrainResult

FEWEST = 10  # rows that are worth a curve


class Curves(Callback):
    """Loss, learning rate, mIoU and the IoU of each class over the steps of the whole log.

    picture: where it goes; log: the CSV file; info: takes the line that tells why it is missing.
    Drawn where a run ends with a result, and at least `FEWEST` rows are in its log.
    """

    def __init__(self, picture: Path, log: Path, info: Callable[[str], object]) -> None:
        self.picture, self.log, self.info = picture, log, info

    def on_start(self, run: Run) -> None:
        self._columns = columns(run.class_names)

    def on_end(self, result: TrainResult | None) -> None:
        rows = [] if result is None else read_rows(self.log)
        if len(rows) < FEWEST:
            return
        try:
            require_matplotlib()
        except InputError as error:
            self.info(f"Note: {self.picture} is not drawn: {error}")
            return
        values = {n: [float(row.get(n) or math.nan) for row in rows] for n in self._columns}
        classes = {n.removeprefix(IOU): values[n] for n in self._columns if n.startswith(IOU)}
        plot_training(self.picture, [int(row["step"]) for row in rows], values, classes)
