"""Lovász-softmax: the Jaccard loss 1 - IoU of each class, extended to probabilities.

    mean over c of  sum_i m_(i) [ J(i) - J(i - 1) ]
    m_p = 1 - P_p(c) where c is the true class, else P_p(c);      m_(1) >= m_(2) >= ...

for each picture, over its labelled pixels and the classes c that occur in it. J(i) is the Jaccard
loss of a prediction that is wrong in the first i pixels of that order: 1 less the true pixels that
are not among them, over all that are true or among them. The mean is taken over the pictures with a
labelled pixel.

Source: Berman et al., "The Lovász-Softmax loss", CVPR 2018, equations 8 and 9, over the classes
that are present.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deeplab.training.losses.scored import Scored, present_mean


def lovasz(scored: Scored) -> Tensor:
    """The sum over the pictures, a scalar."""
    truth = scored.truth
    # Ignored pixels have error 0 and no class: they come last, where what is left multiplies 0.
    errors = (truth - scored.logits.softmax(1)).abs() * scored.labelled[:, None]
    errors, order = errors.flatten(2).sort(dim=2, descending=True)
    true = truth.flatten(2).gather(2, order)
    return present_mean((errors * _jaccard_steps(true)).sum(2), truth)


def _jaccard_steps(true: Tensor) -> Tensor:
    """J(i) - J(i - 1) for the truth `[B, C, N]` of 0 and 1 in the order of the errors."""
    area = true.sum(2, keepdim=True)
    missed = true.cumsum(2)
    false = torch.arange(1, true.shape[2] + 1, device=true.device) - missed
    # J(0) = 0; a class that does not occur has some number, which is not counted.
    jaccard = 1 - (area - missed) / (area + false).clamp(min=1)
    return jaccard.diff(dim=2, prepend=torch.zeros_like(area))
