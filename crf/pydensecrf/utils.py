"""Drop-in for `pydensecrf.utils`: unaries from labels or a softmax, features from images.

Change the import line and nothing else:

    from crf.pydensecrf.utils import unary_from_labels, unary_from_softmax

Every array equals pydensecrf's, bit for bit. What differs: a failed assertion is a ValueError here,
deprecated functions warn with DeprecationWarning instead of a log line, labels of any integer type
work (pydensecrf wraps `0 - 1` around in unsigned ones), and labels out of range are refused where
NumPy would count negative ones from the end.

Traps kept as they are: `create_pairwise_*` order features (y, x, colour), `DenseCRF2D`'s own
methods (x, y, colour), and lattices depend on that order a little; `chdim=-1` means that the image
has no channel dimension, not that channels come last.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(
    labels: ArrayLike, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> NDArray[np.float32]:
    """Unary energies of a labelling that is right with probability `gt_prob`.

    A pixel's label costs -log(gt_prob), every other label -log((1 - gt_prob) / (n_labels - 1)).

    Args:
        labels: integers of any shape. With `zero_unsure`, label k = 1 ... n_labels stands for row
            k - 1 of the result, and 0 for a pixel of which nothing is known: all labels cost
            -log(1 / n_labels). Without it, label k is row k.
        n_labels: the number of labels, at least 2; the unsure 0 is not counted.
        gt_prob: probability that a label is right, in (0, 1).
        zero_unsure: whether 0 means "unsure".

    Returns:
        float32 `[n_labels, labels.size]`.

    Raises:
        ValueError: `gt_prob` outside (0, 1), fewer than 2 labels, labels that are not integers or
            out of range.
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must lie in (0, 1), not {gt_prob}")
    if n_labels < 2:
        raise ValueError(f"n_labels must be at least 2 (0 is not counted), not {n_labels}")
    rows = _checked_labels(labels, n_labels, zero_unsure)
    if zero_unsure:
        rows -= 1  # -1 where unsure: set to the last row here, overwritten below

    other = -np.log((1.0 - gt_prob) / (n_labels - 1))
    unary = np.full((n_labels, rows.size), other, dtype=np.float32)
    # By one index: NumPy takes three times as long for a pair of them.
    unary.reshape(-1)[rows * rows.size + np.arange(rows.size)] = -np.log(gt_prob)
    if zero_unsure:
        unary[:, rows < 0] = -np.log(1.0 / n_labels)
    return unary


def unary_from_softmax(
    sm: ArrayLike, scale: float | None = None, clip: float | None = 1e-5
) -> NDArray[np.float32]:
    """Unary energies -log p of class probabilities.

    Args:
        sm: probabilities `[classes, ...]`; the other dimensions are flattened in C order.
        scale: in (0, 1]: mix with the uniform distribution, `scale * sm + (1 - scale) / classes`.
        clip: the least probability, so that the energy stays finite. None: no clipping; the
            energy of a zero is +inf, which inference takes as "impossible".

    Returns:
        float32 `[classes, points]`.

    Raises:
        ValueError: `scale` outside (0, 1], or `sm` without dimensions.
    """
    probabilities = np.asarray(sm)
    if probabilities.ndim == 0:
        raise ValueError("sm must have shape [classes, ...], not that of a single number")
    classes = probabilities.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must lie in (0, 1], not {scale}")
        uniform = np.full(probabilities.shape, 1.0 / classes)
        probabilities = scale * probabilities + (1 - scale) * uniform
    if clip is not None:
        probabilities = np.clip(probabilities, clip, 1.0)
    energies: NDArray[np.float32] = -np.log(probabilities).reshape(classes, -1).astype(np.float32)
    return energies


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> NDArray[np.float32]:
    """Features of a smoothness term on a grid: each point's position over the scale, by dimension.

    Args:
        sdims: sigma by dimension, in the order of `shape`: (sigma_y, sigma_x) for an image, where
            `DenseCRF2D.addPairwiseGaussian` takes (sigma_x, sigma_y).
        shape: shape of the grid, for example (height, width).

    Returns:
        float32 `[len(shape), points]`.

    Raises:
        ValueError: `sdims` and `shape` differ in length, or a sigma is not positive.
    """
    if len(sdims) != len(shape):
        raise ValueError(
            f"sdims must have one entry for each of the {len(shape)} dimensions of "
            f"shape={tuple(shape)}, not {len(sdims)}"
        )
    return _scaled_positions(sdims, shape).reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: ArrayLike, chdim: int = -1
) -> NDArray[np.float32]:
    """Features of an appearance term: position and colour of each point, over their scales.

    Args:
        sdims: sigma by image dimension, (sigma_y, sigma_x) for a picture. Dimensions beyond the
            last entry stay undivided.
        schan: sigma of the channels: one number for all, or one each. Channels beyond the last
            entry stay undivided.
        img: the image, any number of dimensions and any range of values.
        chdim: which dimension holds the channels, 2 for `[height, width, 3]`. -1: there is none
            (a grey image or volume).

    Returns:
        float32 `[dimensions + channels, points]`.

    Raises:
        ValueError: more sigmas than dimensions or channels, or a sigma that is not positive.
    """
    image = np.asarray(img)
    image = image[np.newaxis] if chdim == -1 else np.moveaxis(image, chdim, 0)
    colours = image.astype(np.float32)
    sigmas = [schan] * len(colours) if np.ndim(schan) == 0 else schan
    _divide(colours, sigmas, "schan", "channels of img")
    features = np.concatenate([_scaled_positions(sdims, colours.shape[1:]), colours])
    return features.reshape(len(features), -1)


def compute_unary(labels: ArrayLike, M: int, GT_PROB: float = 0.5) -> NDArray[np.float32]:
    """Deprecated: `unary_from_labels(labels, M, GT_PROB)`."""
    warnings.warn(
        "compute_unary is deprecated: use unary_from_labels", DeprecationWarning, stacklevel=2
    )
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: ArrayLike, GT_PROB: float = 1) -> NDArray[np.float32]:
    """Deprecated: `unary_from_softmax(sm, scale=GT_PROB, clip=None)`."""
    warnings.warn(
        "softmax_to_unary is deprecated: use unary_from_softmax", DeprecationWarning, stacklevel=2
    )
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def _checked_labels(labels: ArrayLike, n_labels: int, zero_unsure: bool) -> NDArray[np.int64]:
    """Labels, flat, as a new int64 array."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, not {array.dtype}: use labels.astype(int)")
    flat = array.reshape(-1).astype(np.int64)
    last = n_labels if zero_unsure else n_labels - 1
    if flat.size and not 0 <= flat.min() <= flat.max() <= last:
        meaning = "0 is unsure and not counted" if zero_unsure else "zero_unsure=False"
        raise ValueError(
            f"labels must lie in 0 ... {last} for n_labels={n_labels} ({meaning}), "
            f"but range from {flat.min()} to {flat.max()}"
        )
    return flat


def _scaled_positions(sdims: Sequence[float], shape: Sequence[int]) -> NDArray[np.float32]:
    positions = np.indices(tuple(shape), dtype=np.float32)
    _divide(positions, sdims, "sdims", "dimensions")
    return positions


def _divide(planes: NDArray[np.float32], sigmas: Any, name: str, of: str) -> None:
    """planes[i] /= sigmas[i], in place."""
    if len(sigmas) > len(planes):
        raise ValueError(f"{name} has {len(sigmas)} entries for {len(planes)} {of}")
    for plane, sigma in zip(planes, sigmas, strict=False):
        if not sigma > 0:
            raise ValueError(f"{name} must hold positive numbers, not {sigma}")
        plane /= sigma
