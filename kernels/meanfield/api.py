"""The public function of mean field: validate, choose an implementation, call it.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(2011), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels import dispatch
from kernels.meanfield.term import Term


@torch.no_grad()
def mean_field(
    unary: Tensor,
    terms: Sequence[Term],
    iterations: int,
    *,
    start: Tensor | None = None,
    order: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Marginals of a fully connected CRF after `iterations` mean-field updates:

        Q <- softmax(-unary - sum_k after_k * (F_k(before_k * Q) @ penalty_k^T))

    The points may be those of several images, where the lattices are (`kernels.build_lattice`).
    Not differentiable: compose `kernels.apply_lattice` for a mean field with gradients. On a GPU
    the host waits once, for what the values of `unary` and `order` are checked for.

    Args:
        unary: energies (negative log-probabilities) `[N, C]`, float32 or float64, of any strides;
            a transposed `[C, N]` costs nothing. +Inf forbids a label.
        terms: the pairwise terms, each with a lattice over the N points.
        iterations: how many updates; 0 gives `start`.
        start: the first Q, `[N, C]`; None: softmax(-unary).
        order: int64 `[N]`, a permutation: point i of the lattices is row order[i] of unary, start
            and result. Lattices over points visited tile by tile use the caches better.
        impl: `"cpu"` (numba, float32), `"triton"` (CUDA, float32), `"reference"` (any device and
            dtype) or `"auto"` (`kernels.dispatch.choose("meanfield", ...)` tells its choice).

    Returns:
        `[N, C]` with the memory layout of `unary`; rows sum to 1.

    Raises:
        TypeError: a dtype other than float32 and float64.
        ValueError: shapes, dtypes or devices that do not fit, energies that hold NaN or -Inf or
            forbid every label of a point, an `impl` that cannot run here.
        MemoryError: `impl="triton"` where the update does not fit the device.
    """
    _check_unary_shape(unary)
    count, labels = unary.shape
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be an int of at least 0, not {iterations!r}")
    _check_like(unary, "start", start, (count, labels))
    for k, term in enumerate(terms):
        if term.lattice.num_points != count:
            raise ValueError(
                f"terms[{k}].lattice has {term.lattice.num_points} points, unary has {count}"
            )
        square = term.penalty.ndim == 2
        _check_like(
            unary, f"terms[{k}].penalty", term.penalty, (labels, labels) if square else (labels,)
        )
        _check_like(unary, f"terms[{k}].lattice.weights", term.lattice.weights, None)
        _check_like(unary, f"terms[{k}].before", term.before, (count,))
        _check_like(unary, f"terms[{k}].after", term.after, (count,))
    _check_order_shape(unary, order)
    _check_values(unary, order)
    choice = dispatch.choose("meanfield", impl, device=unary.device, dtype=unary.dtype)
    if choice.impl == "cpu":
        from kernels.meanfield import cpu

        return cpu.mean_field(unary, terms, iterations, start, order)
    if choice.impl == "triton":
        from kernels.meanfield import triton

        return triton.mean_field(unary, terms, iterations, start, order)
    from kernels.meanfield import reference

    return reference.mean_field(unary, terms, iterations, start, order)


def _check_unary_shape(unary: Tensor) -> None:
    if not isinstance(unary, Tensor) or unary.dtype not in (torch.float32, torch.float64):
        kind = unary.dtype if isinstance(unary, Tensor) else type(unary).__name__
        raise TypeError(f"unary must be a float32 or float64 tensor, not {kind}")
    if unary.ndim != 2 or unary.shape[1] == 0:
        raise ValueError(f"unary must be [N, C] with at least one label, not {list(unary.shape)}")


def _check_order_shape(unary: Tensor, order: Tensor | None) -> None:
    if order is None:
        return
    count = len(unary)
    if order.dtype != torch.int64 or order.shape != (count,) or order.device != unary.device:
        raise ValueError(
            f"order must be an int64 permutation [{count}] on {unary.device}, not {order.dtype} "
            f"{list(order.shape)} on {order.device}"
        )


def _check_values(unary: Tensor, order: Tensor | None) -> None:
    """Refuse values that compiled code would trust: it writes where `order` says."""
    if unary.device.type == "cpu":
        usable, permutes = _usable_on_cpu(unary), order is None or _permutes_on_cpu(order)
    else:
        flags = [unary.amin(dim=1).isfinite().all(), _permutes(order, like=unary)]
        usable, permutes = torch.stack(flags).tolist()  # one wait for both
    if not usable:
        raise ValueError(
            "unary holds NaN or -Inf, or +Inf for every label of a point; energies are "
            "-log(probability): clip probabilities away from NaN, and logits to a finite range"
        )
    if not permutes:
        assert order is not None
        rows = order.numpy(force=True)
        raise ValueError(
            f"order must hold each of 0 ... {len(rows) - 1} once, as torch.argsort gives it, not "
            f"{len(np.unique(rows))} different ones from {rows.min()} to {rows.max()}"
        )


# By NumPy on a CPU: torch's threads would spin on the cores that the first pass wants.


def _usable_on_cpu(unary: Tensor) -> bool:
    return bool(np.isfinite(unary.detach().numpy().min(axis=1)).all())


def _permutes_on_cpu(order: Tensor) -> bool:
    rows = order.numpy()
    seen = np.zeros(len(rows), bool)
    if len(rows) and rows.min() >= 0 and rows.max() < len(rows):
        seen[rows] = True
    return bool(seen.all())


def _permutes(order: Tensor | None, like: Tensor) -> Tensor:
    """Whether `order` is a permutation: a bool on the device of `like`."""
    seen = torch.ones(len(like), dtype=torch.bool, device=like.device)
    if order is None:
        return seen.all()
    inside = (order >= 0) & (order < len(order))
    seen.zero_().index_fill_(0, order.clamp(0, max(len(order) - 1, 0)), 1)
    return (seen & inside).all()


def _check_like(
    unary: Tensor, name: str, tensor: Tensor | None, shape: tuple[int, ...] | None
) -> None:
    if tensor is None:
        return
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if tensor.dtype != unary.dtype or tensor.device != unary.device:
        raise ValueError(
            f"{name} ({tensor.dtype} on {tensor.device}) must have the dtype and device of unary "
            f"({unary.dtype} on {unary.device})"
        )
