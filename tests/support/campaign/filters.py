"""`kernels`: atrous convolution, Gaussian filters and mean field with any arguments.

Oracles: every implementation that runs here agrees with the plain one in float64; what cannot be
computed is a ValueError or TypeError.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

import kernels
from campaign.case import Call, Case, require
from campaign.damage import seeds
from campaign.runner import Family
from kernels.meanfield import LatticeFilter

SIZE = st.integers(1, 9)
DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int32, torch.int64, torch.bool, torch.complex64),
)
ODD = st.sampled_from((0, -1, 1.5, float("nan"), None, "auto", (), [1], "x", True, 2**70))


def randn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape)).to(dtype)


def near(expected: torch.Tensor, share: float, found: torch.Tensor) -> None:
    shapes = f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    require(found.shape == expected.shape, shapes)
    if expected.numel():
        largest = float(expected.abs().max()) + 1e-6
        worst = float((found.double() - expected).abs().max()) / largest
        require(worst < share, f"off by {worst:.1e} of the largest value")


@st.composite
def convolution(draw: Any) -> Case:
    """All rates in one call against one convolution a rate, in float64."""
    batch, cin, cout, height, width = draw(st.tuples(st.integers(0, 2), SIZE, SIZE, SIZE, SIZE))
    rates = draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    kernel, fuse = draw(st.sampled_from((1, 3, 5))), draw(st.sampled_from(("sum", "concat")))
    impl, seed = draw(st.sampled_from(("auto", "reference"))), draw(seeds())
    dtype, last = draw(st.sampled_from((torch.float32, torch.float64))), draw(st.booleans())
    x = randn((batch, cin, height, width), seed)
    w = randn((len(rates), cout, cin, kernel, kernel), seed + 1)
    bias = randn((len(rates), cout), seed + 2) if draw(st.booleans()) else None
    parts = [
        F.conv2d(x, w[i], None if bias is None else bias[i], padding=r * (kernel // 2), dilation=r)
        for i, r in enumerate(rates)
    ]
    expected = torch.stack(parts).sum(0) if fuse == "sum" else torch.cat(parts, 1)
    given = x.to(dtype)
    given = given.to(memory_format=torch.channels_last) if last else given

    def call() -> torch.Tensor:
        b = None if bias is None else bias.to(dtype)
        how = {"rates": rates, "fuse": fuse, "impl": impl}
        return kernels.multi_rate_atrous_conv2d(given, w.to(dtype), b, **how)

    said = f"rates {rates}, kernel {kernel}, {fuse}, {impl}, {dtype}, {list(x.shape)} -> {cout}"
    return Call(said, call, "result", partial(near, expected, 1e-4))


@st.composite
def odd_convolution(draw: Any) -> Case:
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 2, 5)), min_size=1, max_size=5)))
    any_shape = st.lists(st.sampled_from((0, 1, 2, 3)), min_size=2, max_size=6)
    weight = tuple(draw(st.just((2, 3, 2, 3, 3)) | any_shape))
    a, b = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    names = ("rates", "fuse", "impl", "activation", "bias", "scale", "shift")
    name, value = draw(st.sampled_from(names)), draw(ODD)

    def call() -> torch.Tensor:
        arguments: dict[str, Any] = {"rates": (1, 2)} | {name: value}
        given = torch.zeros(shape, dtype=a), torch.zeros(weight, dtype=b)
        return kernels.multi_rate_atrous_conv2d(*given, **arguments)

    return Call(f"input {a} {shape}, weight {b} {weight}, {name} = {value!r}", call)


@st.composite
def filtering(draw: Any) -> Case:
    """A Gaussian filter over all pairs by its formula in float64; the lattice by its plain form."""
    sizes = st.tuples(st.integers(1, 60), st.integers(1, 4), st.integers(1, 6))
    (count, channels, dims), seed = draw(sizes), draw(seeds())
    values = randn((1, count, channels), seed).abs()
    points = randn((1, count, dims), seed + 1) * draw(st.sampled_from((0.1, 1.0, 10.0)))
    kernel = torch.exp(-0.5 * torch.cdist(points, points) ** 2)
    expected = kernel @ values
    method = draw(st.sampled_from(("exact", "permutohedral", "permutohedral")))
    impl = draw(st.sampled_from(("auto", "reference")))
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))

    def call() -> torch.Tensor:
        given = values.to(dtype), points.to(dtype)
        found = kernels.gaussian_filter(*given, method=method, impl=impl)
        if method == "permutohedral":
            plain = kernels.gaussian_filter(*given, method=method, impl="reference")
            near(plain.double(), 1e-4, found)
            require(bool((found >= -1e-6).all()), "a filter of positive values is negative")
        else:
            near(expected, 1e-4, found)
        return found

    return Call(f"{method}, {impl}, {dtype}, {count} points in {dims} dimensions", call, "result")


@st.composite
def odd_filter(draw: Any) -> Case:
    shapes = st.lists(st.sampled_from((0, 1, 2, 7)), min_size=1, max_size=4).map(tuple)
    a = draw(shapes)
    b = draw(st.just(a) | shapes)
    one, other = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    names = ("method", "impl", "precision", "eps", "spatial_dims", "tolerance", "max_landmarks")
    name, value = draw(st.sampled_from(names)), draw(ODD)
    method = draw(st.sampled_from(("permutohedral", "exact", "separable")))
    poison = draw(st.sampled_from((None, float("nan"), float("inf"), 1e30, -1e30)))

    def call() -> torch.Tensor:
        features = torch.ones(b, dtype=other)
        if poison is not None and features.numel() and other.is_floating_point:
            features.flatten()[0] = poison
        arguments: dict[str, Any] = {"method": method} | {name: value}
        return kernels.gaussian_filter(torch.zeros(a, dtype=one), features, **arguments)

    given = f"values {one} {a}, features {other} {b} with {poison}"
    return Call(f"{given}, {method}, {name} = {value!r}", call)


@st.composite
def mean_field(draw: Any) -> Case:
    """numba and plain PyTorch agree; what makes no sense is refused."""
    count, labels, seed = draw(st.integers(1, 50)), draw(st.integers(1, 5)), draw(seeds())
    steps = draw(st.sampled_from((0, 1, 3, 3, -1, 1.5, None)))
    wrongs = ("nothing", "nothing", "nothing", "NaN", "forbidden", "points", "compatibility")
    wrong = draw(st.sampled_from(wrongs))
    unary = randn((1, count, labels), seed, torch.float32)
    points = randn((count, 3), seed + 1, torch.float32)
    if wrong == "NaN":
        unary[0, 0, 0] = torch.nan
    elif wrong == "forbidden":
        unary[0, 0] = torch.inf
    elif wrong == "points":
        points = torch.cat([points, points])
    wide = wrong == "compatibility"
    compatibility = torch.zeros(labels + 1, labels) if wide else -torch.ones(labels)

    def call() -> torch.Tensor:
        term = kernels.Term(LatticeFilter([kernels.build_lattice(points)]), compatibility)
        found = kernels.mean_field(unary, [term], steps)
        plain = kernels.mean_field(unary, [term], steps, impl="reference")
        near(plain.double(), 2e-3, found)
        require(float((found.sum(2) - 1).abs().max()) < 1e-4, "rows do not sum to 1")
        return found

    right = wrong == "nothing" and steps in (0, 1, 3)
    said = f"mean field of {count} points, {labels} labels, {steps} steps, wrong: {wrong}"
    return Call(said, call, "result" if right else "refused")


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(convolution(), odd_convolution(), filtering(), odd_filter(), mean_field())


FAMILY = Family("kernels", "atrous convolution, filters, mean field", lambda _shared: None, cases)
