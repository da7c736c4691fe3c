"""Dice loss: how far the areas of prediction and truth are from covering each other.

    mean over c of  1 - 2 sum_p P_p(c) g_p(c) / (sum_p P_p(c) + sum_p g_p(c))

for each picture, over its labelled pixels p and the classes c that occur in it; g is 1 where c is
the true class, else 0. A class that does not occur has no term: what the network gives to it is
missing from the others. The mean is taken over the pictures with a labelled pixel.

Sources: Milletari et al., "V-Net", 2016, with P in place of its square, as in Sudre et al.,
"Generalised Dice overlap as a deep learning loss function", 2017.
"""

from __future__ import annotations

from torch import Tensor

from deeplab.training.losses.scored import Scored, present_mean


def dice(scored: Scored) -> Tensor:
    """The sum over the pictures, a scalar."""
    truth = scored.truth
    p = scored.logits.softmax(1) * scored.labelled[:, None]
    common, area = (p * truth).flatten(2).sum(2), truth.flatten(2).sum(2)
    areas = p.flatten(2).sum(2) + area
    overlap = 2 * common / areas.where(area > 0, 1)  # classes that do not occur count for nothing
    return present_mean(1 - overlap, truth)
