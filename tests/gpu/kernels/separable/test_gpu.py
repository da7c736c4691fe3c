"""The separable filter's Triton kernels on a GPU: real sizes in every precision, waits, memory."""

from dataclasses import replace

import pytest
import torch
from gpu_measures import waits_of
from torch import Tensor

import kernels
from kernels.meanfield import GridFilter, SeparableFilter
from kernels.meanfield.triton import composed
from kernels.separable import factors, landmarks, triton

pytestmark = pytest.mark.gpu
ROUNDING = {"ieee": 2**-24, "tf32": 2**-11, "bf16": 2**-9}  # of a factor of a product


def picture(height: int, width: int, spatial: int = 2, depth: int = 8) -> Tensor:
    """Features of smooth colours with noise, at sigmas 80 and 13, or of a volume of them."""
    sides = [torch.arange(side, device="cuda") / 80.0 for side in (height, width)]
    if spatial == 3:
        sides.append(torch.arange(depth, device="cuda") / 4.0)
    positions = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, -2)
    waves = torch.stack([(positions * k).sin().sum(1) for k in (3, 5, 7)], 1)
    noise = torch.randn(waves.shape, device="cuda")
    return torch.cat([positions, waves * 4 + noise * 0.3], 1)


def doubled(separable: kernels.Separable) -> kernels.Separable:
    names = "landmarks", "mixing", "colours", "fractions", "diagonal"
    tensors = {name: getattr(separable, name).double() for name in names}
    return replace(separable, **tensors, axes=tuple(axis.double() for axis in separable.axes))


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize(
    ("height", "width", "spatial", "channels"),
    [(375, 500, 2, 21), (61, 67, 2, 1), (120, 130, 2, 150), (40, 41, 3, 5)],
)
def test_output_is_the_eager_filter_within_rounding(
    precision: str, height: int, width: int, spatial: int, channels: int
) -> None:
    features = picture(height, width, spatial)
    separable = kernels.build_separable(features, spatial_dims=spatial)
    values = torch.rand(len(features), channels, device="cuda")
    found = kernels.apply_separable(separable, values, impl="triton", precision=precision)
    truth = kernels.apply_separable(doubled(separable), values.double(), impl="reference")
    eager = kernels.apply_separable(separable, values, impl="reference")
    # Four factors are rounded on the way, and A adds up what their sums are off by.
    absolute = replace(doubled(separable), mixing=separable.mixing.double().abs())
    size = kernels.apply_separable(absolute, values.double(), impl="reference")
    budget = 2 * (eager - truth).abs().max() + 4 * ROUNDING[precision] * size
    assert ((found - truth).abs() <= budget).all()


@pytest.mark.parametrize("precision", ROUNDING)
def test_normalised_output_is_near_the_exact_filter(precision: str) -> None:
    features = picture(180, 240)
    values = torch.rand(len(features), 8, device="cuda").softmax(1)
    separable = kernels.build_separable(features)
    error = kernels.separable_error(separable, features, values, impl="triton", precision=precision)
    eager = kernels.separable_error(separable, features, values, impl="reference")
    assert error.mean <= 2 * eager.mean + ROUNDING[precision]


@pytest.mark.parametrize("precision", ROUNDING)
def test_two_runs_give_the_same_bits(precision: str) -> None:
    features = picture(375, 500)
    values = torch.rand(len(features), 21, device="cuda")
    first, second = (kernels.build_separable(features) for _ in range(2))
    assert torch.equal(first.mixing, second.mixing)
    outputs = [
        kernels.apply_separable(separable, values, impl="triton", precision=precision)
        for separable in (first, second)
    ]
    assert torch.equal(*outputs)


def test_auto_takes_triton() -> None:
    features = picture(60, 70)
    separable = kernels.build_separable(features)
    values = torch.rand(len(features), 3, device="cuda")
    output = kernels.apply_separable(separable, values)
    assert torch.equal(output, kernels.apply_separable(separable, values, impl="triton"))


def test_compiled_whole_gives_the_same() -> None:
    def filter(values: Tensor, features: Tensor) -> Tensor:
        return kernels.gaussian_filter(values, features, method="separable")

    features = torch.stack([picture(40, 50), picture(40, 50)])
    values = torch.rand(2, 2000, 3, device="cuda")
    compiled = torch.compile(filter, fullgraph=True)
    assert torch.equal(compiled(values, features), filter(values, features))


@pytest.mark.parametrize("precision", ROUNDING)
def test_compiled_with_cuda_graphs_gives_the_same(precision: str) -> None:
    """The operator factors an image at each call: its own sizes, whatever a graph recorded."""

    def filter(values: Tensor, features: Tensor) -> Tensor:
        options = {"method": "separable", "precision": precision}
        return kernels.gaussian_filter(values * 2, features, **options) * 2

    torch._dynamo.reset()
    compiled = torch.compile(filter, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # warms up, records, replays
        features = picture(60, 70)[None]
        values = torch.randn(1, 4200, 5, device="cuda")
        expected = filter(values, features)
        assert torch.equal(compiled(values, features), expected)


def test_own_weights_of_a_picture_are_those_of_the_eager_function() -> None:
    colours = picture(375, 500)[:, 2:].contiguous()
    chosen = landmarks.choose(colours, 0.1, 1024)
    exact = factors.own_weights(colours.double(), chosen)
    eager = factors.own_weights(colours, chosen)
    found = triton.own_weights(colours, chosen)
    # Three products in TF32 keep about 21 bits of a factor.
    size = landmarks.features_of(colours, chosen.colours) @ chosen.whitener.float().abs().T
    budget = 2 * (eager - exact).abs().max() + 2 * 2**-20 * size.max()
    assert (found - exact).abs().max() <= budget


def test_a_build_waits_four_times_however_many_landmarks() -> None:
    for depth in (0.3, 2.0):
        features = picture(120, 160)
        features[:, 2:] *= depth
        assert waits_of(lambda features=features: kernels.build_separable(features)) == 4


def test_updates_of_a_mean_field_wait_for_nothing() -> None:
    features = picture(60, 70)[None]
    grid = GridFilter.of(features[..., [1, 0]] * 80 / 3, 70)
    colours = SeparableFilter.over(features, 2, 0.1, "bf16")
    terms = [kernels.Term(each, torch.full((5,), -3.0, device="cuda")) for each in (grid, colours)]
    unary = torch.randn(1, 4200, 5, device="cuda")
    composed.mean_field(unary, terms, 2)  # compiles
    assert waits_of(lambda: composed.mean_field(unary, terms, 2)) == 0


def test_a_filter_is_recorded_in_a_graph() -> None:
    features = picture(60, 70)
    separable = kernels.build_separable(features)
    values = torch.rand(len(features), 3, device="cuda")
    expected = kernels.apply_separable(separable, values)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernels.apply_separable(separable, values)
    values.mul_(2)
    graph.replay()
    torch.testing.assert_close(output, 2 * expected)


def test_memory_stays_within_the_workspace() -> None:
    features = picture(375, 500)
    separable = kernels.build_separable(features)
    values = torch.rand(len(features), 21, device="cuda")
    kernels.apply_separable(separable, values)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = kernels.apply_separable(separable, values)
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 2**28 * 5 // 4 + output.nbytes + 2**23  # the sums of corners, and of nodes
