"""Stopping before the last step, where validations have long found nothing better."""

from __future__ import annotations

import json
import math


class EarlyStopping:
    """Counts the validations since the best one; `reason` tells when they are `patience` many.

    Only those that the recipe plans count, not the one that Ctrl-C adds: so a run that was stopped
    and goes on ends where it would have without. patience: 0 never stops.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.miou, self.step, self.without = -math.inf, 0, 0

    def add(self, step: int, miou: float) -> None:
        """A validation after so many steps."""
        if miou > self.miou:
            self.miou, self.step, self.without = miou, step, 0
        else:
            self.without += 1

    @property
    def reason(self) -> str:
        """Why the run is to stop; empty where it is not."""
        if not self.patience or self.without < self.patience:
            return ""
        count = "1 validation" if self.without == 1 else f"{self.without} validations"
        return f"{count} without a better mIoU than {100 * self.miou:.2f} at step {self.step}"

    def state(self) -> str:
        return json.dumps([self.miou, self.step, self.without])

    def load(self, state: str | None) -> None:
        """Go on from a state; one of a run that did not count yet has none."""
        if state is not None:
            miou, step, without = json.loads(state)
            self.miou, self.step, self.without = float(miou), int(step), int(without)
