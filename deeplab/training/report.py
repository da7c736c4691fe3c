"""What a run says of its pictures, each thing once: conversions, broken ones, absent classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deeplab.data.conversions import Conversion, counted
from deeplab.data.datasets.base import Recording
from deeplab.data.datasets.counts import LabelCounts
from deeplab.distributed import OtherProcessEnded, Processes
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import LabelledImages
from deeplab.training.config import TrainConfig
from deeplab.training.labels import TRAINING, DrawnLabels
from deeplab.training.logs import Logger
from deeplab.training.samples import Sample, SkipBroken


class PictureReport:
    """Collects what steps and validations find in their pictures, over all processes.

    pictures: how many there are to train on; bands, masks: how many each has. Attributes:
    `validation`, the pictures to score on; `drawn`, the labels of all that were trained on;
    `absent`, classes without a pixel, by split; `broken`, what is wrong with pictures passed over;
    `conversions`.
    """

    def __init__(
        self,
        config: TrainConfig,
        class_names: Sequence[str],
        class_weights: Sequence[float],
        pictures: int,
        validation: LabelledImages,
        processes: Processes,
        logger: Logger,
        bands: int,
        masks: int = 0,
    ) -> None:
        self.config, self.pictures = config, pictures
        self.processes, self.logger = processes, logger
        self._scored = Recording(validation)
        skipping = SkipBroken(self._scored, bands, masks)
        self.validation = skipping if config.skip_broken else self._scored
        self.drawn = DrawnLabels(class_names, class_weights, config.crop, masks=masks > 0)
        self.absent: dict[str, tuple[str, ...]] = {}
        self.broken: set[str] = set()
        self.conversions: set[Conversion] = set()
        self._reported_kinds: set[str] = set()
        self.start(0)

    def start(self, step: int) -> None:
        """The run reads pictures from this step on."""
        self.epoch_end = step + math.ceil(self.pictures / self.config.batch_size)

    def add(self, batch: Sample) -> None:
        """Take in the pictures of a step."""
        self.conversions.update(batch.conversions)
        for message in batch.broken:
            if message not in self.broken:
                self.broken.add(message)
                self.logger.info(f"Passed over: {message}")

    def after_step(self, step: int, *, last: bool) -> None:
        """Judge the training labels after the first epoch, or the last step if it comes before.

        Raises InputError where nothing can be learned from them.
        """
        drawn = step * self.config.batch_size
        if "training" in self.absent or not (last or drawn >= self.pictures):
            return
        part = "" if drawn >= self.pictures else f" (of {drawn} of {self.pictures} pictures)"
        if defect := self.drawn.defect(TRAINING + part):
            raise InputError(defect) if self.processes.first else OtherProcessEnded()
        self._report_absent("training", self.drawn.counts(TRAINING + part))

    def after_validation(self, counts: LabelCounts) -> None:
        self._report_absent("validation", counts)

    def report_conversions(self, step: int) -> None:
        """What was converted in the pictures, of all processes: each kind once, counted."""
        found = self.conversions | self._scored.conversions
        self.conversions = set().union(*self.processes.gather(found))
        new = {c for c in self.conversions if c.kind not in self._reported_kinds}
        self._reported_kinds |= {conversion.kind for conversion in new}
        so_far = " (so far)" if step < self.epoch_end else ""
        for line in counted(new):
            self.logger.info(f"Note: {line}{so_far}")

    def finish(self, step: int) -> None:
        """Report the conversions that are new, and all pictures that were passed over."""
        self.report_conversions(step)
        if not self.config.skip_broken:
            return
        if isinstance(self.validation, SkipBroken):
            self.broken |= self.validation.broken
        self.broken = set().union(*self.processes.gather(self.broken))
        if self.broken:
            names = "; ".join(sorted(self.broken))
            self.logger.info(f"{len(self.broken)} broken pictures were passed over: {names}")

    def _report_absent(self, split: str, counts: LabelCounts) -> None:
        if split not in self.absent and (note := counts.note()):
            self.logger.info(f"Note: {note}")
        self.absent[split] = counts.absent
