"""The separable filter against the sum over all pairs; its data; what it refuses."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from exact_problems import all_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels.separable import factors, grid, landmarks, reference


def bound(separable: kernels.Separable, features: Tensor, tolerance: float) -> Tensor:
    """What each row may be off by, for values in [-1, 1], from what the parts promise.

    Colours: |missed(c, d)| <= sqrt(missed(c, c) missed(d, d)), times the Gaussian of the positions;
    positions: linear interpolation of a product of Gaussians, h^2 / 8 for each of two sides and
    each axis, |k''| <= 1, the corrected variance no worse than twice that.
    """
    spatial = len(separable.axes)
    positions, colours = features[:, :spatial], features[:, spatial:]
    if colours.shape[1]:
        phi = landmarks.features_of(colours, separable.landmarks)
        missed = (1 - ((phi @ separable.mixing) * phi).sum(1)).clamp_min(0).sqrt()
    else:
        missed = features.new_zeros(len(features))
    near = torch.exp(-torch.cdist(positions, positions).square() / 2)
    spacing = 2 * math.sqrt(tolerance)
    interpolation = spatial * 4 * spacing**2 / 8
    total = missed * (near @ missed)
    # Where positions are far apart the interpolated kernel has no weight at all.
    reach = (torch.cdist(positions, positions, p=math.inf) < 8).double().sum(1)
    return total + interpolation * reach + 1e-9


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 60),
    spatial=st.integers(1, 3),
    colours=st.integers(0, 3),
    spread=st.sampled_from([0.0, 1e-3, 0.5, 2.0]),
    colour_spread=st.sampled_from([0.0, 0.3, 1.0, 30.0]),
    tolerance=st.sampled_from([0.01, 0.1, 0.3]),
    seed=st.integers(0, 2**16),
)
def test_sums_are_within_what_landmarks_and_grid_promise(
    count: int,
    spatial: int,
    colours: int,
    spread: float,
    colour_spread: float,
    tolerance: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([spread] * spatial + [colour_spread] * colours, dtype=torch.float64)
    points = torch.randn(count, spatial + colours, generator=generator, dtype=torch.float64)
    features = points * scale + 7
    values = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1
    separable = kernels.build_separable(features, spatial_dims=spatial, tolerance=tolerance)
    assert separable.residual <= tolerance
    error = (kernels.apply_separable(separable, values) - all_pairs(values, features)).abs()
    assert (error.amax(1) <= bound(separable, features, tolerance)).all()


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_smooth_colours_are_off_by_a_share_of_the_tolerance_that_shrinks_with_it(
    spatial: int,
) -> None:
    side = {1: 400, 2: 20, 3: 8}[spatial]
    axes = torch.meshgrid(*[torch.arange(side) / 4.0] * spatial, indexing="ij")
    positions = torch.stack(axes, -1).flatten(0, -2).double()
    colours = torch.stack([positions.sin().sum(1), positions.cos().sum(1)], 1) * 2
    features = torch.cat([positions, colours], 1)
    values = torch.rand(len(features), 3).double()
    errors = []
    for tolerance in (0.2, 0.02, 0.002):
        separable = kernels.build_separable(features, spatial_dims=spatial, tolerance=tolerance)
        error = kernels.separable_error(separable, features, values, sample=100)
        # A quarter for the colours, and a third for each axis, as these span few sigmas.
        assert error.mean <= tolerance * (1 / 4 + spatial / 3)
        assert error.rows == 100
        errors.append(error.mean)
    assert errors == sorted(errors, reverse=True)


def test_the_error_reported_is_that_of_the_rows() -> None:
    features, values = torch.randn(50, 4).double(), torch.rand(50, 3).double()
    separable = kernels.build_separable(features)
    exact = all_pairs(values, features)
    mass = all_pairs(torch.ones_like(values), features)
    share = (kernels.apply_separable(separable, values) - exact).abs() / mass
    found = kernels.separable_error(separable, features, values, sample=1000)
    assert found.rows == 50
    assert found.maximum == pytest.approx(share.max().item())
    assert found.mean == pytest.approx(share.mean().item())


def test_the_weight_of_a_point_for_itself_is_one() -> None:
    features = torch.randn(40, 5).double() * 3
    separable = kernels.build_separable(features, tolerance=0.3)
    matrix = kernels.apply_separable(separable, torch.eye(40).double())
    torch.testing.assert_close(matrix.diagonal(), torch.ones(40).double())


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_the_operator_is_symmetric(spatial: int) -> None:
    features = torch.randn(60, spatial + 2).double()
    separable = kernels.build_separable(features, spatial_dims=spatial)
    matrix = kernels.apply_separable(separable, torch.eye(60).double())
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    u, v = torch.randn(2, 60, 1).double()
    left = (u * kernels.apply_separable(separable, v)).sum()
    torch.testing.assert_close(left, (kernels.apply_separable(separable, u) * v).sum())


def test_float32_is_as_near_as_its_rounding_times_the_mixing() -> None:
    features, values = torch.randn(300, 5).double(), torch.rand(300, 4).double()
    double = kernels.build_separable(features, tolerance=0.05)
    tensors = {
        name: tuple(t.float() for t in value) if isinstance(value, tuple) else value.float()
        for name, value in vars(double).items()
        if name in ("landmarks", "mixing", "axes", "colours", "fractions", "diagonal")
    }
    single = dataclasses.replace(double, **tensors)
    found = kernels.apply_separable(single, values.float())
    absolute = dataclasses.replace(double, mixing=double.mixing.abs())
    size = kernels.apply_separable(absolute, values).max()
    error = (found - kernels.apply_separable(double, values)).abs().max()
    assert error <= 4 * torch.finfo(torch.float32).eps * size


def test_two_builds_and_two_filters_give_the_same_bits() -> None:
    features, values = torch.randn(500, 5), torch.rand(500, 3)
    first, second = (kernels.build_separable(features) for _ in range(2))
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, Tensor):
            assert torch.equal(value, other), name
        elif name == "axes":
            assert all(torch.equal(a, b) for a, b in zip(value, other, strict=True))
    assert torch.equal(
        kernels.apply_separable(first, values), kernels.apply_separable(second, values)
    )


def test_a_batch_is_its_images_one_by_one() -> None:
    values, features = torch.rand(3, 40, 2), torch.randn(3, 40, 4)
    whole = kernels.gaussian_filter(values, features, method="separable", spatial_dims=1)
    for b in range(3):
        separable = kernels.build_separable(features[b], spatial_dims=1)
        assert torch.equal(whole[b], kernels.apply_separable(separable, values[b]))


def test_crowded_cells_are_cut_into_pieces_and_channels_are_filtered_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, values = torch.randn(300, 4).double() * 0.3, torch.rand(300, 5).double()
    whole = kernels.apply_separable(kernels.build_separable(features), values)
    monkeypatch.setattr(factors, "PIECE", 7)
    monkeypatch.setattr(factors, "WORKSPACE", 1)
    separable = kernels.build_separable(features)
    sizes = separable.pieces[:, 1] - separable.pieces[:, 0]
    assert sizes.max() <= 7
    assert sizes.min() >= 1
    assert sizes.sum() == 300
    torch.testing.assert_close(kernels.apply_separable(separable, values), whole)


def test_one_point_and_one_colour_need_one_landmark() -> None:
    one = kernels.build_separable(torch.randn(1, 5))
    assert len(one.landmarks) == 1
    values = torch.rand(1, 3)
    torch.testing.assert_close(kernels.apply_separable(one, values), values)
    constant = torch.cat([torch.rand(200, 2), torch.full((200, 3), 0.7)], 1)
    assert len(kernels.build_separable(constant).landmarks) == 1


def test_no_point_and_no_image_are_no_error() -> None:
    nothing = kernels.build_separable(torch.empty(0, 5))
    assert kernels.apply_separable(nothing, torch.empty(0, 3)).shape == (0, 3)
    for shape in ((0, 4), (2, 0)):
        values, features = torch.empty(*shape, 3), torch.empty(*shape, 5)
        filtered = kernels.gaussian_filter(values, features, method="separable")
        assert filtered.shape == values.shape


def test_positions_alone_take_one_landmark() -> None:
    features, values = torch.rand(200, 2).double() * 4, torch.rand(200, 2).double()
    separable = kernels.build_separable(features, tolerance=0.01)
    assert len(separable.landmarks) == 1
    assert separable.residual == 0
    assert kernels.separable_error(separable, features, values).mean < 2 * 0.01 / 10


def test_a_huge_sigma_leaves_one_cell() -> None:
    features = torch.rand(100, 5) * 1e-6
    separable = kernels.build_separable(features)
    assert separable.shape == (2, 2)
    filtered = kernels.apply_separable(separable, torch.ones(100, 1))
    torch.testing.assert_close(filtered, torch.full((100, 1), 100.0), rtol=0.02, atol=0)


def test_colours_that_need_too_many_landmarks_are_refused_with_both_numbers() -> None:
    features = torch.cat([torch.rand(300, 2), torch.randn(300, 3) * 100], 1)
    with pytest.raises(
        kernels.NotSeparable, match=r"need about \d+ landmarks.*max_landmarks is 40"
    ):
        kernels.build_separable(features, max_landmarks=40)


def test_colours_unlike_all_others_count_though_no_landmark_can_serve_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(landmarks, "SAMPLE", 500)
    colours = torch.zeros(4000, 3)
    colours[::9] = torch.randn(445, 3) * 1000  # of which a sample of 500 has about 55
    with pytest.raises(kernels.NotSeparable, match="differ in a sample of 500"):
        landmarks.choose(colours, 0.05, 400)
    assert len(landmarks.choose(colours, 0.2, 400).colours) < 20


def test_a_grid_that_is_too_large_is_refused_before_it_is_made() -> None:
    features = torch.cat([torch.rand(50, 2) * 1e9, torch.rand(50, 3)], 1)
    with pytest.raises(kernels.NotSeparable, match=r"MiB a channel, and 256 MiB is the most"):
        kernels.build_separable(features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 0}, "spatial_dims must be 1 to 3"),
        ({"spatial_dims": 4}, "spatial_dims must be 1 to 3"),
        ({"tolerance": 0.0}, "tolerance must be from"),
        ({"tolerance": 0.9}, "tolerance must be from"),
        ({"tolerance": math.nan}, "tolerance must be from"),
        ({"max_landmarks": 0}, "max_landmarks must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    features, values = torch.randn(10, 5), torch.randn(10, 2)
    with pytest.raises(ValueError, match=message):
        kernels.build_separable(features, **options)
    with pytest.raises(ValueError, match=message):
        kernels.gaussian_filter(values[None], features[None], method="separable", **options)


def test_features_that_are_not_finite_or_want_a_gradient_are_refused() -> None:
    features = torch.randn(10, 5)
    features[3, 4] = math.inf
    with pytest.raises(ValueError, match="must be finite"):
        kernels.build_separable(features)
    with pytest.raises(ValueError, match="must be finite"):
        kernels.gaussian_filter(torch.randn(1, 10, 2), features[None], method="separable")
    wanting = torch.randn(10, 5).requires_grad_()
    with pytest.raises(ValueError, match='method="exact" to differentiate'):
        kernels.build_separable(wanting)
    with pytest.raises(ValueError, match='method="exact" to differentiate'):
        kernels.gaussian_filter(torch.randn(1, 10, 2), wanting[None], method="separable")


def test_values_that_do_not_fit_are_refused() -> None:
    separable = kernels.build_separable(torch.randn(10, 5))
    with pytest.raises(ValueError, match=r"shape \[10, C\], one row for each point of separable"):
        kernels.apply_separable(separable, torch.randn(9, 2))
    with pytest.raises(ValueError, match="must have the dtype and device"):
        kernels.apply_separable(separable, torch.randn(10, 2).double())
    with pytest.raises(ValueError, match="that needs impl='triton'"):
        kernels.apply_separable(separable, torch.randn(10, 2), precision="tf32")
    with pytest.raises(ValueError, match="at least 1"):
        kernels.separable_error(separable, torch.randn(10, 5), torch.randn(10, 2), sample=0)
    with pytest.raises(ValueError, match="eps is an option"):
        kernels.gaussian_filter(
            torch.randn(1, 10, 2), torch.randn(1, 10, 5), method="separable", eps=0.1
        )


class Dispatched(TorchDispatchMode):
    """Counts what is dispatched."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_operations_and_waits_do_not_grow_with_the_landmarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[object] = []
    for name in ("tolist", "item", "__int__", "__bool__", "__float__"):
        method = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda t, method=method: (reads.append(method), method(t))[1]
        )
    found = []
    for spread in (0.1, 1.0, 3.0):
        colours = torch.randn(40000, 3) * spread
        reads.clear()
        with Dispatched() as dispatched:
            chosen = landmarks.choose(colours, 0.2, 1024)
        found.append(dispatched.count)
        assert len(chosen.colours) >= 3 * spread**2
        assert len(reads) == 2
    assert max(found) <= found[0] + 1  # a copy, where not all landmarks are taken


def test_cells_become_finer_until_the_tolerance_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = torch.rand(3000, 2) * 3
    usual = landmarks.choose(colours, 0.1, 1000)
    monkeypatch.setattr(landmarks, "SIDE", 9.0)
    finer = landmarks.choose(colours, 0.1, 1000)
    assert finer.residual <= 0.1
    assert len(finer.colours) <= 2 * len(usual.colours)


def test_landmarks_are_means_of_colours_that_lie_together() -> None:
    places = torch.tensor([[0.7, 0.7], [100.7, 0.7], [-1e30, 1e35]])
    counts = 50, 30, 20
    noise = torch.randn(100, 2) * 0.01
    colours = places.repeat_interleave(torch.tensor(counts), 0) + noise
    chosen = landmarks.choose(colours[torch.randperm(100)], 0.1, 100)
    for mark, group in zip(chosen.colours, colours.split(counts), strict=True):
        torch.testing.assert_close(mark, group.double().mean(0).float())


def test_landmarks_are_taken_to_the_tolerance_among_many_points() -> None:
    colours = torch.randn(3 * landmarks.SAMPLE, 2)
    counts = []
    for tolerance in (0.3, 0.03, 0.003):
        chosen = landmarks.choose(colours, tolerance, 1000)
        assert chosen.residual <= tolerance
        phi = landmarks.features_of(colours, chosen.colours)
        missed = 1 - (phi @ chosen.whitener.T.float()).square().sum(1)
        # The residual is that of a sample: its mean is off by less than four standard errors.
        slack = 4 * missed.std().item() / math.sqrt(landmarks.SAMPLE)
        assert abs(missed.mean().item() - chosen.residual) <= slack
        counts.append(len(chosen.colours))
    assert counts == sorted(counts)


def test_eager_and_grid_agree_on_the_corners_of_a_cell() -> None:
    positions = torch.rand(30, 3).double() * torch.tensor([3.0, 1.0, 5.0]).double()
    axes = grid.axes_over(*(r.tolist() for r in positions.aminmax(dim=0)), 0.1)
    node, fractions = grid.locate(positions, axes)
    shape = [axis.nodes for axis in axes]
    places = torch.cartesian_prod(
        *(torch.arange(m, dtype=torch.float64) * a.spacing + a.origin
          for m, a in zip(shape, axes, strict=True))
    )  # fmt: skip
    found = torch.zeros_like(positions)
    weights = grid.corner_weights(fractions)
    for corner, offset in enumerate(grid.corner_offsets(shape)):
        found += weights[:, corner : corner + 1] * places[node + offset]
    torch.testing.assert_close(found, positions)


def test_the_filter_is_the_equation_of_its_data() -> None:
    features, values = torch.randn(25, 5).double(), torch.rand(25, 2).double()
    s = kernels.build_separable(features, tolerance=0.3)
    w = torch.zeros(25, math.prod(s.shape)).double()
    offsets = grid.corner_offsets(s.shape)
    for first, end, lowest in s.pieces.tolist():
        for corner, offset in enumerate(offsets):
            w[first:end, lowest + offset] = grid.corner_weights(s.fractions)[first:end, corner]
    phi = landmarks.features_of(s.colours, s.landmarks)
    between = [torch.zeros(nodes, nodes).double() for nodes in s.shape]
    for gaussian, taps in zip(between, s.axes, strict=True):
        for apart, tap in enumerate(taps):
            gaussian.diagonal(apart).fill_(tap)
            gaussian.diagonal(-apart).fill_(tap)
    kernel = (w @ torch.kron(*between) @ w.T) * (phi @ s.mixing @ phi.T) + s.diagonal.diag()
    expected = torch.empty_like(values)
    expected[s.order] = kernel @ values[s.order]
    torch.testing.assert_close(reference.filter(s, values), expected)
