"""What kernels.mean_field accepts, chooses and refuses."""

import dataclasses

import pytest
import torch

import kernels
from kernels.meanfield import GridFilter, LatticeFilter, api

LATTICE = kernels.build_lattice(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)))
UNARY = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(1))
TERM = kernels.Term(LatticeFilter([LATTICE]), torch.full((3,), -1.0))


def changed(**parts):
    return dataclasses.replace(TERM, **parts)


def ordered(order):
    return changed(filter=LatticeFilter([LATTICE], order))


@pytest.mark.parametrize("impl", ["auto", "cpu", "reference"])
def test_every_implementation_gives_the_same(impl):
    expected = kernels.mean_field(UNARY, [TERM], 3, impl="reference")
    torch.testing.assert_close(kernels.mean_field(UNARY, [TERM], 3, impl=impl), expected)


def test_float64_runs_eagerly():
    lattice = kernels.build_lattice(torch.zeros(4, 2, dtype=torch.float64))
    term = kernels.Term(LatticeFilter([lattice]), torch.full((3,), -1.0, dtype=torch.float64))
    result = kernels.mean_field(torch.zeros(1, 4, 3, dtype=torch.float64), [term], 2)
    assert result.dtype == torch.float64


def test_a_gradient_takes_plain_pytorch_and_a_fused_implementation_refuses_it():
    unary = UNARY.double().requires_grad_()
    lattice = dataclasses.replace(LATTICE, weights=LATTICE.weights.double())
    term = kernels.Term(LatticeFilter([lattice]), torch.full((3,), -1.0, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda u: kernels.mean_field(u, [term], 2), unary)
    with pytest.raises(ValueError, match=r"no gradients; use impl='reference'"):
        kernels.mean_field(UNARY.clone().requires_grad_(), [TERM], 2, impl="cpu")
    with torch.no_grad():
        found = kernels.mean_field(UNARY.clone().requires_grad_(), [TERM], 2, impl="cpu")
    assert torch.equal(found, kernels.mean_field(UNARY, [TERM], 2))


def test_logits_are_what_the_last_softmax_is_taken_of():
    matrix = changed(compatibility=2.0 * (1 - torch.eye(3)) + 0.5)
    for terms, iterations in (([TERM], 2), ([matrix], 3), ([], 1), ([TERM], 0)):
        logits = kernels.mean_field(UNARY, terms, iterations, marginals=False)
        plain = kernels.mean_field(UNARY, terms, iterations, marginals=False, impl="reference")
        torch.testing.assert_close(logits, plain)
        marginals = kernels.mean_field(UNARY, terms, iterations)
        torch.testing.assert_close(logits.softmax(2), marginals)


def test_a_filter_of_another_kind_takes_plain_pytorch():
    grid = GridFilter.of(
        torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0)).flip(1)[None], 4
    )
    term = kernels.Term(grid, torch.full((3,), -1.0))
    assert kernels.mean_field(UNARY, [term, TERM], 2).shape == UNARY.shape
    with pytest.raises(ValueError, match=r"terms\[1\].filter must be .* not GridFilter"):
        kernels.mean_field(UNARY, [TERM, term], 2, impl="cpu")


def test_several_images_on_one_lattice_are_the_images_one_by_one():
    points = torch.randn(3, 20, 2)
    order = torch.randperm(20)
    unary, scale = torch.randn(3, 20, 4), torch.rand(3, 20, 1)
    for chosen in (None, order):
        placed = points if chosen is None else points[:, chosen]
        together = LatticeFilter([kernels.build_lattice(placed)], chosen)
        term = kernels.Term(together, torch.full((4,), -2.0), scale, scale)
        found = kernels.mean_field(unary, [term], 3, impl="cpu")
        for b in range(3):
            alone = LatticeFilter([kernels.build_lattice(placed[b])], chosen)
            single = kernels.Term(alone, term.compatibility, scale[b : b + 1], scale[b : b + 1])
            expected = kernels.mean_field(unary[b : b + 1], [single], 3, impl="cpu")
            torch.testing.assert_close(found[b : b + 1], expected)


def test_no_points():
    lattice = kernels.build_lattice(torch.empty(0, 2))
    for impl in ("cpu", "reference"):
        term = kernels.Term(LatticeFilter([lattice]), torch.full((3,), -1.0))
        assert kernels.mean_field(torch.empty(1, 0, 3), [term], 2, impl=impl).shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("place", "bad", "message"),
    [
        ((0, 3, 1), float("nan"), "unary holds NaN or -Inf"),
        ((0, 3, 1), float("-inf"), "unary holds NaN or -Inf"),
        ((0, 3), float("inf"), "every label"),
    ],
)
def test_energies_that_are_none_or_leave_no_label_are_refused(place, bad, message):
    unary = UNARY.clone()
    unary[place] = bad
    with pytest.raises(ValueError, match=message):
        kernels.mean_field(unary, [TERM], 1)


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"unary": UNARY.half()}, TypeError, "unary"),
        ({"unary": UNARY.numpy()}, TypeError, "unary"),
        ({"unary": UNARY[0]}, ValueError, "unary"),
        ({"unary": UNARY[..., :0]}, ValueError, "unary"),
        ({"iterations": -1}, ValueError, "iterations"),
        ({"iterations": 2.0}, ValueError, "iterations"),
        ({"iterations": True}, ValueError, "iterations"),
        ({"start": UNARY, "iterations": 0, "marginals": False}, ValueError, "at least 1 iteration"),
        ({"start": UNARY[:, :5]}, ValueError, "start"),
        ({"start": UNARY.double()}, ValueError, "start"),
        ({"terms": [ordered(torch.arange(11))]}, ValueError, "order"),
        ({"terms": [ordered(torch.arange(12).int())]}, ValueError, "order"),
        (
            {"terms": [ordered(torch.arange(12) + 1)]},
            ValueError,
            "order .* 12 different ones from 1 to 12",
        ),
        ({"terms": [ordered(torch.arange(12) - 1)]}, ValueError, "order .* from -1 to 10"),
        (
            {"terms": [ordered(torch.arange(12).clamp(max=9))]},
            ValueError,
            "order .* 10 different ones",
        ),
        ({"terms": [ordered(torch.arange(12) * 10**12)]}, ValueError, "order"),
        ({"impl": "gpu"}, ValueError, "impl"),
        ({"unary": UNARY[:, :5]}, ValueError, r"filter must be over the 5 .* not over 12"),
        ({"unary": UNARY.double()}, ValueError, r"terms\[0\]"),
        ({"terms": [changed(compatibility=torch.ones(4))]}, ValueError, "compatibility"),
        ({"terms": [changed(compatibility=torch.ones(3, 4))]}, ValueError, "compatibility"),
        ({"terms": [changed(before=torch.ones(3))]}, ValueError, "before"),
        ({"terms": [TERM, changed(after=torch.ones(3))]}, ValueError, "after"),
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
    assert bool(api._permutes(order)) is permutes
    assert api._permutes_on_cpu(order) is permutes
    assert api._permutes(order.to("meta")).shape == ()
