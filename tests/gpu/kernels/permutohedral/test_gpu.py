"""The Triton lattice on a GPU: eager's vertices bit for bit, filters within budget, few waits."""

import dataclasses

import pytest
import torch
from gpu_measures import SIGMAS, any_sigma, colours, waits_of
from torch import Tensor

import kernels
from kernels.permutohedral import cpu, reference

pytest.importorskip("triton", reason="triton is not installed")
from kernels.permutohedral import triton
from kernels.permutohedral.lattice import Lattice
from kernels.permutohedral.triton import segments

pytestmark = pytest.mark.gpu

EPS = torch.finfo(torch.float32).eps


def positions(height: int, width: int, sigma: float) -> Tensor:
    """(x, y) of every pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], 2).reshape(-1, 2) / sigma


def pixels(height: int, width: int, sigmas: tuple[float, float]) -> Tensor:
    """(x, y, r, g, b) of a shaded picture with edges and a little noise, under a flat sky."""
    scaled = colours(height, width).reshape(-1, 3) / sigmas[1]
    return torch.cat([positions(height, width, sigmas[0]), scaled], 1).contiguous()


def assert_equal_lattices(ours: Lattice, theirs: Lattice) -> None:
    for name in ("corners", "weights", "neighbours"):
        assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name)), name


@any_sigma
def test_vertices_and_weights_of_an_image_are_bit_for_bit_those_of_the_cpu(
    sigmas: tuple[float, float],
) -> None:
    features = pixels(375, 500, sigmas)
    assert_equal_lattices(triton.build(features.cuda()), reference.build(features))
    grid = positions(375, 500, 3.0)
    assert_equal_lattices(triton.build(grid.cuda()), reference.build(grid))


@any_sigma
@pytest.mark.parametrize("channels", [1, 21, 256])
@pytest.mark.parametrize("reverse", [False, True])
def test_errors_stay_within_twice_those_of_the_cpu(
    sigmas: tuple[float, float], channels: int, reverse: bool
) -> None:
    features, values = pixels(120, 160, sigmas), torch.randn(120 * 160, channels)
    lattice = reference.build(features)
    exact = dataclasses.replace(lattice, weights=lattice.weights.double())
    truth = reference.filter(exact, values.double(), reverse)
    mass = reference.filter(exact, values.double().abs(), reverse).max()
    single = (cpu.filter(cpu.build(features), values, reverse) - truth).abs().max()
    found = triton.filter(triton.build(features.cuda()), values.cuda(), reverse).cpu()
    assert (found - truth).abs().max() <= 2 * single + 4 * EPS * mass


@pytest.mark.parametrize("sigma", [1e4, 3.0])
def test_all_points_on_few_vertices_are_summed(sigma: float) -> None:
    features, values = positions(500, 700, sigma), torch.randn(350_000, 5)
    lattice = reference.build(features)
    exact = dataclasses.replace(lattice, weights=lattice.weights.double())
    truth = reference.filter(exact, values.double())
    mass = reference.filter(exact, values.double().abs()).max()
    found = triton.filter(triton.build(features.cuda()), values.cuda()).cpu()
    # A row's sum rounds once an entry of a piece, and once each 16 partial rows or fewer; then come
    # a sum over the lanes, three directions and a slice.
    roundings = segments.PIECE + len(features) / segments.PIECE / 16 + 32
    assert (found - truth).abs().max() <= roundings * EPS * mass


def test_two_runs_give_the_same_bits() -> None:
    features, values = pixels(375, 500, SIGMAS[1]).cuda(), torch.randn(187_500, 21).cuda()
    first = triton.filter(triton.build(features), values)
    for _ in range(5):
        assert torch.equal(triton.filter(triton.build(features), values), first)


def test_nothing_is_left_unwritten() -> None:
    features, values = pixels(60, 70, SIGMAS[0]).cuda(), torch.randn(4200, 19).cuda()
    expected = triton.filter(triton.build(features), values)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        found = triton.filter(triton.build(features), values)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, expected)


def test_a_build_waits_once_and_a_filter_never() -> None:
    features, values = pixels(60, 70, SIGMAS[0]).cuda(), torch.randn(4200, 19).cuda()
    lattice = kernels.build_lattice(features)
    kernels.apply_lattice(lattice, values)  # compiled
    assert waits_of(lambda: kernels.build_lattice(features)) == 1
    assert waits_of(lambda: kernels.apply_lattice(lattice, values)) == 0
    several = [features, features[:, :2].contiguous()]
    assert waits_of(lambda: kernels.permutohedral.build_lattices(several)) == 1
    batch = features[None].expand(3, -1, -1), values[None].expand(3, -1, -1)
    assert waits_of(lambda: kernels.gaussian_filter(batch[1], batch[0])) == 1


def test_a_cuda_graph_holds_a_filter() -> None:
    lattice = triton.build(pixels(60, 70, SIGMAS[0]).cuda())
    values = torch.randn(4200, 21, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        triton.filter(lattice, values)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = triton.filter(lattice, values)
    for _ in range(2):
        values.normal_()
        graph.replay()
        assert torch.equal(captured, triton.filter(lattice, values))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_filters_train_as_eager_ones(mode: str) -> None:
    torch._dynamo.reset()

    def loss(values: Tensor, features: Tensor) -> Tensor:
        return kernels.gaussian_filter(values.sin(), features).square().sum()

    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    features = pixels(20, 30, SIGMAS[0])[None].cuda()
    for _ in range(4):  # warm-up, capture, replays
        values = torch.randn(1, 600, 3, device="cuda", requires_grad=True)
        (expected,) = torch.autograd.grad(loss(values, features), values)
        torch.compiler.cudagraph_mark_step_begin()
        (found,) = torch.autograd.grad(compiled(values, features), values)
        torch.testing.assert_close(found, expected)


def test_rows_beyond_2_31_elements_are_addressed_right() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    count, channels = 2_100_000, 1024
    features = torch.arange(count, device="cuda", dtype=torch.float32)[:, None]
    lattice = triton.build(features)
    assert lattice.num_rows * channels > 2**31
    values = torch.randn(count, channels, device="cuda")
    found = triton.filter(lattice, values)[-100:]
    del lattice
    # Features of the same fraction of a simplex: 1-D lattices are local.
    tail = triton.filter(triton.build(features[-300:]), values[-300:])[-100:]
    torch.testing.assert_close(found, tail, rtol=1e-5, atol=1e-5)
