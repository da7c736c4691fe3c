"""Lattice filters as opaque custom operators: `torch.compile` and `torch.export` take them whole.

    kernels::permutohedral_apply     filter on a lattice that exists
    kernels::permutohedral_filter    build lattices of all images, and filter

Both run in float32, on numba's lattice for tensors on a CPU and on Triton's on a GPU;
kernels/permutohedral/reference.py holds their equation. A lattice filter y = A v has the
gradient A^T g, which is the same lattice blurred in reverse. The arguments are those of the public
functions, already validated except for the values of the features, which only exist when the
operator runs.

The second waits for the GPU, which tells how many vertices there are: it is tagged so that
`torch.compile(mode="reduce-overhead")` makes CUDA graphs of what is before and after it.
"""

from typing import Any

from torch import Tensor

from kernels import dispatch
from kernels.dispatch import WAITS
from kernels.operators import like_first, opaque_operator
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.limits import require_placeable

NO_FEATURE_GRADIENT = (
    "the permutohedral lattice has gradients to the values only, not to the features: "
    'use method="exact" to differentiate the features, or features.detach()'
)


@opaque_operator("kernels::permutohedral_apply")
def permutohedral_apply(
    values: Tensor,
    corners: Tensor,
    weights: Tensor,
    neighbours: Tensor | None,
    ghosts: Tensor,
    parts: Tensor,
    chains: Tensor | None,
    reverse: bool,
    entries: Tensor | None = None,
    pieces: Tensor | None = None,
    sums: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """`[N, C]` -> `[N, C]`; the tensors of a `Lattice`."""
    tables = chains, entries, pieces, sums
    lattice = Lattice(corners, weights, neighbours, ghosts, parts, *tables)
    lattices = dispatch.implementation("permutohedral", _chosen(impl, values))
    filtered: Tensor = lattices.filter(lattice, values.contiguous(), reverse)
    return filtered


permutohedral_apply.register_fake(like_first)


def _save_lattice(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, reverse, entries, pieces, sums, impl = inputs
    ctx.save_for_backward(*tensors, entries, pieces, sums)
    ctx.reverse, ctx.impl = reverse, impl


def _apply_adjoint(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *tensors, entries, pieces, sums = ctx.saved_tensors
    tables = entries, pieces, sums
    return permutohedral_apply(grad, *tensors, not ctx.reverse, *tables, ctx.impl), *(None,) * 11


permutohedral_apply.register_autograd(_apply_adjoint, setup_context=_save_lattice)


@opaque_operator("kernels::permutohedral_filter", tags=WAITS)
def permutohedral_filter(
    values: Tensor, features: Tensor, reverse: bool, impl: str = "auto"
) -> Tensor:
    """`[B, N, C]`, `[B, N, D]` -> `[B, N, C]`."""
    name = _chosen(impl, values)
    lattices = dispatch.implementation("permutohedral", name)
    output: Tensor
    if name == "triton":
        output = lattices.filter_batch(values, features, reverse)
        return output
    require_placeable(features)
    output = values.new_empty(values.shape)
    for image, points, filtered in zip(values, features, output, strict=True):
        lattice = lattices.build(points.detach().contiguous())
        filtered.copy_(lattices.filter(lattice, image.contiguous(), reverse))
    return output


permutohedral_filter.register_fake(like_first)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, features, reverse, impl = inputs
    ctx.save_for_backward(features)
    ctx.reverse, ctx.impl = reverse, impl


def _filter_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    if ctx.needs_input_grad[1]:
        raise RuntimeError(NO_FEATURE_GRADIENT)
    (features,) = ctx.saved_tensors
    return permutohedral_filter(grad, features, not ctx.reverse, ctx.impl), None, None, None


permutohedral_filter.register_autograd(_filter_adjoint, setup_context=_save_features)


def _chosen(impl: str, values: Tensor) -> str:
    return dispatch.choose("permutohedral", impl, device=values.device, dtype=values.dtype).impl
