"""Focal loss: cross entropy in which pixels that are right already count for little.

    sum_p  w(y_p) (1 - P_p(y_p))^2 * -log P_p(y_p)

over the labelled pixels p, divided by sum_p w(y_p); w are the class weights. Source: Lin et al.,
"Focal Loss for Dense Object Detection", ICCV 2017, equation 5 with gamma = 2, over a softmax.
"""

from __future__ import annotations

from torch import Tensor

from deeplab.training.losses.scored import Scored

GAMMA = 2  # the paper's best


def focal(scored: Scored) -> Tensor:
    """The sum over the labelled pixels, a scalar."""
    labels = scored.labels.where(scored.labelled, 0)
    log_p = scored.logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    wrong = -log_p.expm1()  # 1 - P, without cancellation
    return (scored.label_weights * wrong**GAMMA * -log_p).sum()
