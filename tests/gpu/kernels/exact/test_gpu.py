"""The exact filter on a GPU: `pytest -m gpu tests`.

Real sizes against float64 at some rows, in every precision and with pairs skipped; bits that
repeat; CUDA graphs; memory. What the kernels do in the interpreter too is held by tests/triton.
"""

import pytest
import torch
from exact_problems import Problem, problem

import kernels

pytest.importorskip("triton", reason="triton is not installed")
from kernels.exact import tiles

pytestmark = pytest.mark.gpu

HEIGHT, WIDTH = 375, 500
PRECISIONS = ("ieee", "tf32", "bf16")
UNIT = {"ieee": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}  # by which each factor is cut or rounded
ROUNDING = 1e-5  # of weights and sums in float32
RAGGED = [(1, 1, 1), (129, 2, 3), (1000, 5, 21), (777, 9, 40), (4100, 3, 70)]


def photograph(sigma_xy: float, sigma_rgb: float, channels: int = 21) -> Problem:
    """Positions and colours of a picture of smooth regions, edges and noise, and soft labels."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    regions = torch.rand(3, 6, 8)
    regions = torch.nn.functional.interpolate(regions[None], (HEIGHT, WIDTH), mode="bicubic")[0]
    rgb = 255 * (0.7 * regions + 0.3 * (regions > 0.5)) + 3 * torch.randn(3, HEIGHT, WIDTH)
    xy = torch.stack([x, y]).float() / sigma_xy
    features = torch.cat([xy, rgb / sigma_rgb]).flatten(1).T.contiguous()
    values = torch.randn(HEIGHT * WIDTH, channels).mul(2).softmax(1)
    return Problem(values.cuda(), features.cuda())


def rows_of(p: Problem, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The filtered values and the masses of some rows, in float64."""
    features = p.features.double()
    kernel = torch.exp(-(features[rows, None] - features).square().sum(-1) / 2)
    return kernel @ p.values.double(), kernel.sum(1)


def some_rows(p: Problem) -> torch.Tensor:
    return torch.randperm(len(p.values))[:100].cuda()


def magnitudes(p: Problem, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the terms of each gradient add up to by magnitude, in float64: rounding is of that."""
    v, g, f = p.values.abs().double(), grad.abs().double(), p.features.double()
    pairs = p.kernel * (g @ v.T + v @ g.T)
    along = [(pairs * (x - x[:, None]).abs()).sum(1) for x in f.T]
    return p.kernel @ g, torch.stack(along, 1)


@pytest.mark.parametrize("shape", RAGGED, ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_those_of_float64(shape, precision):
    cpu = problem(*shape)
    grad = torch.randn_like(cpu.values)
    leaves = [t.cuda()[None].requires_grad_() for t in (cpu.values, cpu.features)]
    found = kernels.gaussian_filter(
        *leaves, method="exact", eps=1e-7, precision=precision, impl="triton"
    )
    gradients = torch.autograd.grad(found, leaves, grad.cuda()[None])
    for ours, truth, size in zip(
        gradients, cpu.gradients(grad), magnitudes(cpu, grad), strict=True
    ):
        off = (ours[0].cpu() - truth).abs()
        assert (off <= (2 * UNIT[precision] + ROUNDING) * size).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sigmas", [(80, 13), (49, 5), (67, 3)])
@pytest.mark.parametrize("eps", [0.0, 1e-2, 1e-4])
def test_a_real_size_stays_within_its_bound(sigmas, eps, precision):
    p = photograph(*sigmas)
    built = kernels.build_tiles(p.features, eps=eps)
    found = kernels.apply_tiles(built, p.values, precision=precision)
    rows = some_rows(p)
    truth, mass = rows_of(p, rows)
    off = (found[rows] - truth).abs().amax(1) / mass / p.values.max()
    assert built.bound <= eps
    assert off.max() <= built.bound + 2 * UNIT[precision] + ROUNDING
    torch.testing.assert_close(built.mass[rows].double(), mass, rtol=2 * ROUNDING, atol=0)
    assert (built.share < 1) == (eps > 0)


def test_auto_runs_the_kernels():
    p = problem(500)
    values, features = p.values.cuda()[None], p.features.cuda()[None]
    found, expected = (
        kernels.gaussian_filter(values, features, method="exact", impl=impl)
        for impl in ("auto", "triton")
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_repeated_runs_give_the_same_bits(precision):
    p = photograph(49, 5)
    first = kernels.build_tiles(p.features, eps=1e-3)
    filtered = kernels.apply_tiles(first, p.values, precision=precision)
    for _ in range(5):
        again = kernels.build_tiles(p.features, eps=1e-3)
        assert torch.equal(first.order, again.order)
        assert torch.equal(first.kept, again.kept)
        assert torch.equal(first.mass, again.mass)
        assert torch.equal(filtered, kernels.apply_tiles(again, p.values, precision=precision))


def test_gradients_repeat_bit_for_bit():
    p = problem(5000, 5, 21)
    leaves = [t.cuda()[None].requires_grad_() for t in (p.values, p.features)]

    def gradients():
        filtered = kernels.gaussian_filter(*leaves, method="exact", eps=1e-4)
        return torch.autograd.grad(filtered.square().sum(), leaves)

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(gradients(), first, strict=True))


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_a_cuda_graph_replays_the_filter(eps):
    p = photograph(49, 5)
    built = kernels.build_tiles(p.features, eps=eps)
    values = p.values.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            kernels.apply_tiles(built, values, precision="bf16")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.apply_tiles(built, values, precision="bf16")
    for factor in (1.0, -0.5):
        values.copy_(p.values * factor)
        graph.replay()
        expected = kernels.apply_tiles(built, p.values * factor, precision="bf16")
        assert torch.equal(captured, expected)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_tiles_and_filters_are_those_of_eager_calls(mode):
    torch._dynamo.reset()

    def normalised(values, features):
        built = kernels.build_tiles(features, eps=1e-3)
        return kernels.apply_tiles(built, values) / built.mass[:, None]

    compiled = torch.compile(normalised, fullgraph=True, mode=mode)
    for count in (3000, 3100, 3000):
        p = problem(count)
        values, features = p.values.cuda(), p.features.cuda()
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(compiled(values, features), normalised(values, features))


def test_nothing_waits_for_the_gpu():
    p = photograph(80, 13)
    built = kernels.build_tiles(p.features, eps=1e-3)
    kernels.apply_tiles(built, p.values)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = torch.ops.kernels.exact_build_tiles(p.features[None], 1e-3, "triton")
        kernels.apply_tiles(built, p.values)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made[2][0], built.kept)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_memory_is_linear_in_the_points_and_square_in_the_tiles(eps):
    p = photograph(80, 13)
    leaves = [t[None].requires_grad_() for t in (p.values, p.features)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kernels.gaussian_filter(*leaves, method="exact", eps=eps, precision="bf16").sum().backward()
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    count = len(p.values)
    table = tiles.tiles_of(count) ** 2 * 8 if eps else 0
    # Values, their gradient and copies in order of both, with channels made a multiple of 32.
    assert taken <= 8 * count * (32 + 5) * 4 + 10 * table


def test_a_tensor_on_another_stream_is_computed_there():
    p = photograph(49, 5)
    built = kernels.build_tiles(p.features, eps=1e-3)
    expected = kernels.apply_tiles(built, p.values)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = kernels.apply_tiles(built, p.values)
    stream.synchronize()
    assert torch.equal(found, expected)
