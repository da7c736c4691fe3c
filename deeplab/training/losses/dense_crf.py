"""The dense CRF loss of weak supervision: like colours nearby want like answers, labelled or not.

    sum_k S_k^T W (1 - S_k) / N
    W_pq = exp(-|p - q|^2 / (2 sigma_xy^2) - |I_p - I_q|^2 / (2 sigma_rgb^2))

for each picture, over all pairs of its N pixels, those beyond the picture left out; S_k are the
probabilities of class k. It goes with a cross entropy over scribbles, and looks at labels only in
so far as a picture without any takes no part. Where scores lie `stride` pixels apart, W runs over
the scores and each stands for stride^2 pixels, so that a weight means the same at any stride. The
mean is taken over the pictures with a labelled pixel.

The loss is large, since a row of W sums to thousands: the authors' weight, 2e-9 for the sum over a
picture of 513 x 513 at half its size, is about 3e-5 here.

W is the permutohedral lattice. On the photograph of this package the loss is 0.5 to 0.6 of that
over all pairs, which a test holds.

Source: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018, with
the sigmas of its released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crf import Bilateral
from deeplab.training.losses.scored import Scored
from kernels import gaussian_filter
from kernels.gaussian import Method

SIGMA_XY, SIGMA_RGB = 100.0, 15.0


def dense_crf(scored: Scored, method: Method = "permutohedral") -> Tensor:
    """The sum over the pictures, a scalar. method: as of `kernels.gaussian_filter`."""
    logits, rgb = scored.logits, scored.rgb
    assert rgb is not None  # StepLoss gives it
    inside = torch.ones_like(scored.labelled) if scored.inside is None else scored.inside
    kernel = Bilateral(weight=1.0, sigma_xy=SIGMA_XY / scored.stride, sigma_rgb=SIGMA_RGB)
    counted = inside.flatten(1)[:, :, None].to(logits.dtype)  # [B, N, 1]
    with torch.autocast(logits.device.type, enabled=False):
        features = kernel.features(rgb.to(logits.dtype))
        s = logits.softmax(1).flatten(2).transpose(1, 2)  # [B, N, C]
        # S^T W (1 - S) and not S^T W 1 - S^T W S, whose terms nearly cancel where answers are sure.
        others = gaussian_filter((1 - s) * counted, features, method=method)
        pairs = (s * counted * others).sum((1, 2)) * scored.stride**2
    pictures = pairs / counted.sum((1, 2)).clamp(min=1)
    return pictures.where(scored.labelled.flatten(1).any(1), 0).sum()
