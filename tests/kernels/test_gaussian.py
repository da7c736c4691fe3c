"""The public functions: what they refuse and how they say it, what they choose, batches."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from exact_problems import all_pairs
from torch import Tensor

import kernels
from kernels import dispatch
from kernels.exact import tiled, tiles
from kernels.meanfield import LatticeFilter
from kernels.permutohedral import limits, reference


def inputs(batch: int = 2, count: int = 30, dims: int = 4, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, count, 3, **kwargs), torch.randn(batch, count, dims, **kwargs)


# What is computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_is_the_sum_over_all_pairs(dtype: torch.dtype) -> None:
    values, features = inputs(dtype=dtype)
    filtered = kernels.gaussian_filter(values, features, method="exact")
    assert filtered.dtype == dtype
    expected = all_pairs(values, features)
    torch.testing.assert_close(filtered.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_every_implementation_of_the_lattice_filters_as_the_oracle(impl: str) -> None:
    values, features = inputs()
    expected = torch.stack(
        [
            reference.filter(reference.build(f.double()), v.double())
            for v, f in zip(values, features, strict=True)
        ]
    )
    filtered = kernels.gaussian_filter(values, features, impl=impl)
    torch.testing.assert_close(filtered, expected.float(), rtol=1e-4, atol=1e-5)
    for image in range(2):
        lattice = kernels.build_lattice(features[image], impl=impl)
        filtered = kernels.apply_lattice(lattice, values[image], impl=impl)
        torch.testing.assert_close(filtered, expected[image].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_images_of_a_batch_do_not_mix(method: Any, impl: str) -> None:
    values, features = inputs()
    both = kernels.gaussian_filter(values, features, method=method, impl=impl)
    for b in range(2):
        one = kernels.gaussian_filter(
            values[b : b + 1], features[b : b + 1], method=method, impl=impl
        )
        torch.testing.assert_close(both[b : b + 1], one)


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_empty_batches_and_single_points_are_filtered(
    method: Any, impl: str, shape: tuple[int, int]
) -> None:
    values, features = inputs(*shape)
    filtered = kernels.gaussian_filter(values, features, method=method, impl=impl)
    assert filtered.shape == values.shape
    assert filtered.isfinite().all()


def test_one_lattice_serves_other_implementations_channels_and_orders() -> None:
    features = torch.randn(50, 5)
    by_numba, by_torch = (
        kernels.build_lattice(features, impl=impl) for impl in ("cpu", "reference")
    )
    for channels in (1, 7):
        values = torch.randn(50, channels)
        for reverse in (False, True):
            expected = kernels.apply_lattice(by_torch, values, reverse=reverse, impl="reference")
            for lattice in (by_numba, by_torch):
                for impl in ("cpu", "reference"):
                    result = kernels.apply_lattice(lattice, values, reverse=reverse, impl=impl)
                    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_gradient_of_apply_is_the_reversed_filter(impl: str) -> None:
    lattice = kernels.build_lattice(torch.randn(40, 3), impl=impl)
    values, grad = torch.randn(40, 2).requires_grad_(), torch.randn(40, 2)
    kernels.apply_lattice(lattice, values, impl=impl).backward(grad)
    expected = kernels.apply_lattice(lattice, grad, reverse=True, impl=impl)
    torch.testing.assert_close(values.grad, expected)


def test_a_gradient_of_stride_zero_reaches_the_values() -> None:
    values, features = inputs()
    kernels.gaussian_filter(values.requires_grad_(), features).sum().backward()
    transposed = [reference.filter(reference.build(f), torch.ones(30, 3), True) for f in features]
    torch.testing.assert_close(values.grad, torch.stack(transposed), rtol=1e-4, atol=1e-5)


# What compilers make of it

METHODS: dict[str, dict[str, Any]] = {
    "permutohedral": {},
    "separable": {"method": "separable"},
    "exact": {"method": "exact"},
    "exact, tiles left out": {"method": "exact", "eps": 1e-2},
}

any_method = pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)


@pytest.fixture
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the few points below, and several blocks of them."""
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiled, "BLOCK_BYTES", 1024)


@any_method
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("several_tiles")
def test_compiled_whole_gives_the_same_values_and_gradients(
    options: dict[str, Any], dynamic: bool
) -> None:
    def filter(values: Tensor, features: Tensor) -> Tensor:
        return kernels.gaussian_filter(values, features, **options)

    torch._dynamo.reset()
    compiled = torch.compile(filter, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (20, 33)[: 1 + dynamic]:
        values, features = inputs(2, count)
        leaves = [values, features] if options.get("method") == "exact" else [values]
        for leaf in leaves:
            leaf.requires_grad_()
        expected, found = filter(values, features), compiled(values, features)
        assert torch.equal(found, expected)
        ours = torch.autograd.grad(found.square().sum(), leaves)
        theirs = torch.autograd.grad(expected.square().sum(), leaves)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


@any_method
@pytest.mark.usefixtures("several_tiles")
def test_exported_program_serves_other_sizes(options: dict[str, Any]) -> None:
    class Filter(torch.nn.Module):
        def forward(self, values: Tensor, features: Tensor) -> Tensor:
            return kernels.gaussian_filter(values, features, **options)

    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("count")}
    program = torch.export.export(Filter(), inputs(2, 12), dynamic_shapes=(shapes, shapes))
    given = inputs(3, 7)
    assert torch.equal(program.module()(*given), Filter()(*given))


# What is chosen


def test_auto_takes_numba_for_float32_on_a_cpu_and_torch_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = []
    implementation = dispatch.implementation

    def spy(operation: str, name: str) -> ModuleType:
        chosen.append(name)
        return implementation(operation, name)

    monkeypatch.setattr(dispatch, "implementation", spy)
    for dtype in (torch.float32, torch.float64):
        values, features = inputs(dtype=dtype)
        kernels.gaussian_filter(values, features)
        kernels.apply_lattice(kernels.build_lattice(features[0]), values[0])
    assert chosen == ["cpu"] * 3 + ["reference"] * 3


def test_an_explicit_implementation_that_cannot_run_is_refused() -> None:
    values, features = inputs(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'cpu' computes in torch.float32 only"):
        kernels.gaussian_filter(values, features, impl="cpu")
    with pytest.raises(ValueError, match=r"impl of 'exact' must be one of"):
        kernels.gaussian_filter(values, features, method="exact", impl="cpu")


# What is refused


@pytest.mark.parametrize(
    ("values", "features", "error", "words"),
    [
        (torch.zeros(2, 5, 3).half(), torch.zeros(2, 5, 4).half(), TypeError, "values must be fl"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 4).int(), TypeError, "features must be float32"),
        ([[1.0]], torch.zeros(1, 1, 1), TypeError, "values must be a torch.Tensor, not list"),
        (torch.zeros(5, 3), torch.zeros(2, 5, 4), ValueError, r"values must have shape \[B, N, C"),
        (torch.zeros(2, 5, 3), torch.zeros(5, 4), ValueError, r"features must have shape \[B, N"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 0), ValueError, "last dimension of at least 1"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 6, 4), ValueError, "one row a point"),
        (torch.zeros(2, 5, 3), torch.zeros(1, 5, 4), ValueError, "one row a point"),
        (torch.zeros(2, 5, 3), torch.zeros(2, 5, 4).double(), ValueError, "dtype and device of v"),
        (
            torch.zeros(2, 5, 3),
            torch.zeros(2, 5, 4, device="meta"),
            ValueError,
            "dtype and device of values",
        ),
    ],
)
@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_tensors_that_do_not_fit_are_named(
    values: Any, features: Any, error: type[Exception], words: str, method: Any
) -> None:
    with pytest.raises(error, match=words):
        kernels.gaussian_filter(values, features, method=method)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", ["permutohedral", "exact"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_features_that_are_not_finite_are_refused(bad: float, method: Any, impl: str) -> None:
    values, features = inputs()
    features[1, 3, 2] = bad
    with pytest.raises(ValueError, match="features must be finite"):
        kernels.gaussian_filter(values, features, method=method, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_features_too_large_for_the_lattice_are_refused_with_the_mend(impl: str) -> None:
    values, features = inputs()
    features[0, 0, 0] = 1e7
    with pytest.raises(ValueError, match=r"too large .*float32.* larger sigma.* float64"):
        kernels.gaussian_filter(values, features, impl=impl)
    filtered = kernels.gaussian_filter(values.double(), features.double())
    assert filtered.isfinite().all()


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_features_just_below_the_limit_are_still_placed(dims: int) -> None:
    limit = 0.5 / torch.finfo(torch.float32).eps / ((2 / 3) ** 0.5 * (dims + 1))
    features = (torch.rand(500, dims) * 2 - 1) * (0.999 * limit / dims)
    limits.require_placeable(features)
    ones = torch.ones(500, 1)
    for impl in ("cpu", "reference"):
        lattice = kernels.build_lattice(features, impl=impl)
        assert 0 <= lattice.corners.min() <= lattice.corners.max() < lattice.num_rows
        assert kernels.apply_lattice(lattice, ones, impl=impl).isfinite().all()


def test_more_corners_than_32_bits_index_are_refused_before_any_work() -> None:
    features = torch.zeros(1, 1).expand(2**30, 1)
    with pytest.raises(ValueError, match="1073741824 points in 1 dimensions"):
        kernels.build_lattice(features)


def test_a_gradient_to_features_is_refused_by_the_lattice_only() -> None:
    values, features = inputs()
    features.requires_grad_()
    for call in (
        lambda: kernels.gaussian_filter(values, features),
        lambda: kernels.build_lattice(features[0]),
    ):
        with pytest.raises(ValueError, match='method="exact"'):
            call()
        with torch.no_grad():
            call()
    kernels.gaussian_filter(values, features, method="exact").sum().backward()
    assert features.grad is not None


def test_values_that_do_not_fit_the_lattice_are_refused() -> None:
    lattice = kernels.build_lattice(torch.randn(9, 2))
    with pytest.raises(ValueError, match=r"shape \[9, C\], one row for each point of the lattice"):
        kernels.apply_lattice(lattice, torch.zeros(8, 3))
    with pytest.raises(ValueError, match=r"dtype and device of lattice\.weights"):
        kernels.apply_lattice(lattice, torch.zeros(9, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"values must have shape \[N, C\]"):
        kernels.apply_lattice(lattice, torch.zeros(1, 9, 3))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    ("part", "column", "by"),
    [(-1, 0, 5), (-1, 1, 1), (-1, 2, 1), (-1, 0, -1), (0, 0, 1), (0, 1, -1)],
)
def test_parts_of_other_points_rows_or_ghosts_are_refused(
    part: int, column: int, by: int, impl: str
) -> None:
    lattice = kernels.build_lattice(torch.randn(9, 2))
    parts = lattice.parts.clone()
    parts[part, column] += by
    lattice = dataclasses.replace(lattice, parts=parts)
    values = torch.zeros(9, 3)
    term = kernels.Term(LatticeFilter([lattice]), torch.ones(3))
    for call in (
        lambda: kernels.apply_lattice(lattice, values, impl=impl),
        lambda: kernels.mean_field(values[None], [term], 1, impl=impl),
    ):
        with pytest.raises(ValueError, match=r"lattice\.parts must lead from \[0, 0, 0\] to \[9, "):
            call()


def test_parts_that_step_back_are_refused() -> None:
    lattice = kernels.build_lattice(torch.randn(9, 2))
    end = lattice.parts[-1:]
    parts = torch.cat([lattice.parts[:1], end + 1, end])
    with pytest.raises(ValueError, match="without a step back"):
        kernels.apply_lattice(dataclasses.replace(lattice, parts=parts), torch.zeros(9, 3))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'permutohedral', 'exact'.*'seperable'"):
        kernels.gaussian_filter(*inputs(), method="seperable")  # type: ignore[arg-type]
