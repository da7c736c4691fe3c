"""Gaussian filtering on the permutohedral lattice: validate, choose an implementation, call it.

The sum y_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j, approximated in time linear in the points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import dispatch, validate
from kernels.permutohedral import batch, ops
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.limits import require_indexable, require_own_parts, require_placeable


def filter(values: Tensor, features: Tensor, *, impl: str = "auto") -> Tensor:
    """Build the lattice of each image, and filter `[B, N, C]` by features `[B, N, D]`.

    Arguments and errors are those of `kernels.gaussian_filter(method="permutohedral")`.
    """
    validate.check_pair(values, features, ndim=3)
    validate.check_no_gradient(features, ops.NO_FEATURE_GRADIENT)
    choice = dispatch.choose("permutohedral", impl, device=values.device, dtype=values.dtype)
    if choice.impl != "reference":
        filtered: Tensor = ops.permutohedral_filter(values, features, False, choice.impl)
        return filtered
    require_placeable(features)
    lattices = dispatch.implementation("permutohedral", choice.impl)
    images = [lattices.filter(lattices.build(f), v) for v, f in zip(values, features, strict=True)]
    return torch.stack(images) if images else values.new_zeros(values.shape)


def build_lattice(features: Tensor, *, impl: str = "auto") -> Lattice:
    """Build the permutohedral lattice of some points, to filter on it any number of times.

    Its shape depends on the data, so that `torch.compile` cannot take this call whole;
    `gaussian_filter` it can. On a GPU the host waits for the shape, once for all images of a batch,
    and for nothing else.

    Args:
        features: float32 or float64 `[N, D]`, already divided by sigma; or `[B, N, D]`, the points
            of several images, which share no vertex and so do not mix. The lattice has B * N points
            then, image after image: its values are `[B * N, C]`, and each image is filtered as it
            is on a lattice of its own.
        impl: as in `gaussian_filter`.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: another shape, an `impl` that cannot run here, features that hold NaN or Inf,
            are too large, or require a gradient, which the lattice does not have.
    """
    return build_lattices([features], impl=impl)[0]


def build_lattices(features: Sequence[Tensor], *, impl: str = "auto") -> list[Lattice]:
    """`build_lattice` of each of `features`, of one dtype and device; on a GPU one wait for all."""
    for one in features:
        batched = isinstance(one, Tensor) and one.ndim == 3
        validate.check_points("features", one, ndim=3 if batched else 2)
        validate.check_alike("features", one, "features[0]", features[0])
        validate.check_no_gradient(one, ops.NO_FEATURE_GRADIENT)
    if not features:
        return []
    first = features[0]
    choice = dispatch.choose("permutohedral", impl, device=first.device, dtype=first.dtype)
    implementation = dispatch.implementation("permutohedral", choice.impl)
    points = [one.detach().flatten(0, -2) for one in features]
    images = [max(1, len(one)) if one.ndim == 3 else 1 for one in features]
    if choice.impl == "triton":  # which learns whether they are placeable as it waits
        together: list[Lattice] = implementation.build_all(points, images)
        return together
    lattices = []
    for several, one in zip(images, points, strict=True):
        require_placeable(one)
        parts = [one] if several == 1 else one.chunk(several)
        lattices.append(batch.joined([implementation.build(part) for part in parts]))
    return lattices


def repeat_lattice(lattice: Lattice, images: int) -> Lattice:
    """The lattice of a batch of images that all have the points of `lattice`, built once for all.

    It is `build_lattice(features.expand(images, -1, -1))`, if `lattice` is that of `features`.

    Raises:
        TypeError: `images` is no integer.
        ValueError: `images` is not positive, or more points than 32-bit indices can name.
    """
    validate.check_integer("images", images, least=1)
    corners = lattice.num_dims + 1
    entries = lattice.corners.numel() if lattice.entries is None else len(lattice.entries)
    require_indexable(images * (entries // corners), lattice.num_dims)
    return batch.repeated(lattice, images)


def apply_lattice(
    lattice: Lattice, values: Tensor, *, reverse: bool = False, impl: str = "auto"
) -> Tensor:
    """Filter `values` on a lattice: splat, blur and slice, the scale 1 / (1 + 2^-D) included.

    Args:
        lattice: of `build_lattice`, by any implementation.
        values: `[N, C]`, of the dtype and device of the lattice's weights; the N points of a batch
            are those of its first image, then of its second.
        reverse: blur in the opposite order: the transpose of the filter, and its gradient.
        impl: as in `gaussian_filter`.

    Returns:
        `[N, C]`, contiguous, differentiable in the values any number of times.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: values, or parts, that do not fit the lattice; an `impl` that cannot run here.
    """
    validate.check_points("values", values, ndim=2)
    validate.check_rows(values, lattice.num_points, "the lattice")
    validate.check_alike("values", values, "lattice.weights", lattice.weights)
    require_own_parts(lattice)
    choice = dispatch.choose("permutohedral", impl, device=values.device, dtype=values.dtype)
    if choice.impl in ("cpu", "triton"):
        x = lattice
        return ops.permutohedral_apply(
            values, x.corners, x.weights, x.neighbours, x.ghosts, x.parts, x.chains, reverse,
            x.entries, x.pieces, x.sums, choice.impl,
        )  # fmt: skip
    reference = dispatch.implementation("permutohedral", choice.impl)
    filtered: Tensor = reference.filter(lattice, values, reverse)
    return filtered
