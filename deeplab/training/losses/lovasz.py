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
    # Only those classes are sorted that occur, which are few in a picture; a GPU is waited for.
    present = truth.flatten(2).any(2)
    errors, order = errors.flatten(2)[present].sort(dim=1, descending=True)
    true = truth.flatten(2)[present].gather(1, order)
    values = errors.new_zeros(present.shape)
    values[present] = (errors * _jaccard_steps(true)).sum(1)
    return present_mean(values, truth)


def _jaccard_steps(true: Tensor) -> Tensor:
    """J(i) - J(i - 1) for truths `[M, N]` in the order of their errors: 0 and 1, some 1 in each."""
    area = true.sum(1, keepdim=True)
    caught = true.cumsum(1)
    false = torch.arange(1, true.shape[1] + 1, device=true.device) - caught
    jaccard = 1 - (area - caught) / (area + false)
    return jaccard.diff(dim=1, prepend=torch.zeros_like(area))  # J(0) = 0
