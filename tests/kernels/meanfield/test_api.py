"""What kernels.mean_field accepts, chooses and refuses."""

import dataclasses

import pytest
import torch

import kernels
from kernels.meanfield import api

LATTICE = kernels.build_lattice(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)))
UNARY = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
TERM = kernels.Term(LATTICE, torch.full((3,), -1.0))


@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_every_implementation_gives_the_same(impl):
    expected = kernels.mean_field(UNARY, [TERM], 3, impl="reference")
    torch.testing.assert_close(kernels.mean_field(UNARY, [TERM], 3, impl=impl), expected)


def test_float64_runs_eagerly():
    lattice = kernels.build_lattice(torch.zeros(4, 2, dtype=torch.float64))
    term = kernels.Term(lattice, torch.full((3,), -1.0, dtype=torch.float64))
    result = kernels.mean_field(torch.zeros(4, 3, dtype=torch.float64), [term], 2)
    assert result.dtype == torch.float64


def test_no_gradient_is_recorded():
    unary = UNARY.clone().requires_grad_()
    assert not kernels.mean_field(unary, [TERM], 2).requires_grad


def test_no_points():
    lattice = kernels.build_lattice(torch.empty(0, 2))
    for impl in ("cpu", "reference"):
        term = kernels.Term(lattice, torch.full((3,), -1.0))
        assert kernels.mean_field(torch.empty(0, 3), [term], 2, impl=impl).shape == (0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_energies_that_are_no_energies_are_refused(bad):
    unary = UNARY.clone()
    unary[3, 1] = bad
    with pytest.raises(ValueError, match="unary holds NaN or -Inf"):
        kernels.mean_field(unary, [TERM], 1)


def test_a_point_with_no_label_left_is_refused():
    unary = UNARY.clone()
    unary[3] = float("inf")
    with pytest.raises(ValueError, match="every label"):
        kernels.mean_field(unary, [TERM], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"unary": UNARY.half()}, TypeError, "unary"),
        ({"unary": UNARY.numpy()}, TypeError, "unary"),
        ({"unary": UNARY[0]}, ValueError, "unary"),
        ({"unary": UNARY[:, :0]}, ValueError, "unary"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"iterations": 2.0}, ValueError, "iterations"),
        ({"iterations": True}, ValueError, "iterations"),
        ({"start": UNARY[:5]}, ValueError, "start"),
        ({"start": UNARY.double()}, ValueError, "start"),
        ({"order": torch.arange(11)}, ValueError, "order"),
        ({"order": torch.arange(12).int()}, ValueError, "order"),
        ({"order": torch.arange(12) + 1}, ValueError, "order .* 12 different ones from 1 to 12"),
        ({"order": torch.arange(12) - 1}, ValueError, "order .* from -1 to 10"),
        ({"order": torch.arange(12).clamp(max=9)}, ValueError, "order .* 10 different ones"),
        ({"order": torch.arange(12) * 10**12}, ValueError, "order"),
        ({"impl": "gpu"}, ValueError, "impl"),
        ({"unary": UNARY[:5]}, ValueError, r"terms\[0\].lattice has 12 points"),
        ({"unary": UNARY.double()}, ValueError, r"terms\[0\]"),
        ({"terms": [dataclasses.replace(TERM, penalty=torch.ones(4))]}, ValueError, "penalty"),
        ({"terms": [dataclasses.replace(TERM, penalty=torch.ones(3, 4))]}, ValueError, "penalty"),
        ({"terms": [dataclasses.replace(TERM, before=torch.ones(3))]}, ValueError, "before"),
        ({"terms": [TERM, dataclasses.replace(TERM, after=torch.ones(3))]}, ValueError, "after"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, names):
    arguments = {"unary": UNARY, "terms": [TERM], "iterations": 1, **arguments}
    unary, terms, iterations = (arguments.pop(n) for n in ("unary", "terms", "iterations"))
    with pytest.raises(error, match=names):
        kernels.mean_field(unary, terms, iterations, **arguments)


@pytest.mark.parametrize(
    ("order", "permutes"),
    [
        ([2, 0, 1], True),
        ([0, 1, 1], False),
        ([0, 1, 3], False),
        ([-1, 0, 1], False),
        ([0, 1, 10**12], False),
        ([], True),
    ],
)
def test_a_permutation_is_known_on_any_device_without_a_copy_to_the_host(order, permutes):
    order = torch.tensor(order, dtype=torch.int64)
    assert bool(api._permutes(order, like=order)) is permutes
    assert api._permutes_on_cpu(order) is permutes
    assert api._permutes(order.to("meta"), like=order.to("meta")).shape == ()
