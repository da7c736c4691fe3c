"""The losses of training: one a module, weighted sums of them, over one map of scores or several.

`table.py` lists them, `scored.py` is what each is given, `step_loss.py` sums them up over a step.
"""

from deeplab.training.losses.grid import Grid, label_strides, labels_of_scores
from deeplab.training.losses.scored import Scored
from deeplab.training.losses.step_loss import StepLoss, loss_denominators, segmentation_loss
from deeplab.training.losses.table import LOSSES

__all__ = [
    "LOSSES",
    "Grid",
    "Scored",
    "StepLoss",
    "label_strides",
    "labels_of_scores",
    "loss_denominators",
    "segmentation_loss",
]
