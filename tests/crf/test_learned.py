"""The CRF that trains: what its parameters are, that they get gradients, and that they learn."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crf

TERMS: dict[str, Any] = {
    "gaussian": crf.Gaussian(2.0, (2.0, 3.0)),
    "bilateral": crf.Bilateral(4.0, 9.0, 60.0),
    "pairwise": [crf.Pairwise("depth", 1.5)],
}


def layer(method: Any, **options: Any) -> crf.DenseCRF:
    if options.get("learnable") and method != "exact":
        options["learn_sigmas"] = False  # cannot, and need not say so
    return crf.DenseCRF(3, **{**TERMS, "iterations": 2, **options}, method=method)


def inputs(height: int = 5, width: int = 6) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    images = 255 * torch.rand(2, 3, height, width)
    return torch.randn(2, 3, height, width), images, {"depth": torch.rand(2, height * width, 1)}


@pytest.mark.parametrize("method", ["permutohedral", "exact", "separable", "auto"])
def test_a_fresh_learnable_layer_gives_what_the_fixed_one_gives(method: Any) -> None:
    given = inputs()
    expected = layer(method)(*given)
    found = layer(method, learnable=True)(*given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_weights_compatibility_and_sigmas_and_are_saved() -> None:
    model = layer("exact", learnable=True)
    assert model.learned is not None
    shapes = {name: tuple(p.shape) for name, p in model.learned.named_parameters()}
    assert shapes == {
        **{"weights": (3,), "compatibility": (3, 3), "raw_sigmas.gaussian_sigma_xy": (2,)},
        **{"raw_sigmas.bilateral_sigma_xy": (1,), "raw_sigmas.bilateral_sigma_rgb": (1,)},
    }
    other = layer("permutohedral", learnable=True)
    other.load_state_dict(model.state_dict())  # train on one method, run with another


def test_terms_say_the_numbers_learned_so_far() -> None:
    model = layer("exact", learnable=True)
    for found, given in zip(model.potentials, layer("exact").potentials, strict=True):
        assert found.weight == pytest.approx(given.weight)
        if not isinstance(given, crf.Pairwise):
            assert found.sigmas == pytest.approx(given.sigmas, rel=1e-6)
    assert model.learned is not None
    with torch.no_grad():
        model.learned.weights[1] = 7.0
        model.learned.raw_sigmas["bilateral_sigma_rgb"].fill_(-3.0)
    assert model.potentials[1].weight == 7.0
    assert 0 < model.potentials[1].sigma_rgb < 0.05  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["permutohedral", "exact", "separable"])
def test_every_method_has_gradients_to_logits_weights_and_compatibility(method: Any) -> None:
    options = {"tolerance": 1e-4} if method == "separable" else {}
    model = layer(method, learnable=True, **options).double()
    logits, images, features = inputs()
    logits = logits.double().requires_grad_()
    model(logits, images, features).square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        learns = method == "exact" or "sigma" not in name
        assert parameter.requires_grad == learns
        assert (parameter.grad is not None and bool((parameter.grad != 0).any())) == learns, name


def test_gradients_to_all_parameters_are_those_of_finite_differences() -> None:
    model = layer("exact", learnable=True).double()
    logits, images, features = inputs(3, 4)
    logits = logits.double()
    names, values = zip(*model.named_parameters(), strict=True)

    def compute(*parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(model, state, (logits, images, features))

    assert torch.autograd.gradcheck(compute, [v.detach().requires_grad_() for v in values])


@pytest.mark.parametrize("method", ["permutohedral", "exact", "auto"])
def test_compiled_training_has_the_same_gradients(method: Any) -> None:
    model = layer(method, learnable=True)
    given = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    model(*given).square().sum().backward()
    compiled(*given).square().sum().backward()
    for plain, whole in zip(model.parameters(), compiled.parameters(), strict=True):
        if plain.requires_grad:
            torch.testing.assert_close(whole.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_sigmas_move_towards_those_that_made_the_target() -> None:
    """On a picture of two flat colours, where a sigma says how far a neighbour reaches."""
    logits, images = torch.randn(1, 3, 8, 9), torch.full((1, 3, 8, 9), 60.0)
    images[:, :, :, 4:] = 180.0
    options = {"gaussian": None, "pairwise": (), "iterations": 1}
    with torch.no_grad():
        target = layer("exact", bilateral=crf.Bilateral(4.0, 2.0, 60.0), **options)(logits, images)
    model = layer("exact", learnable=True, **options)
    assert model.learned is not None
    optimizer = torch.optim.Adam(model.learned.raw_sigmas.parameters(), lr=0.3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(logits, images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert model.potentials[0].sigma_xy == pytest.approx(2.0, abs=0.5)  # type: ignore[union-attr]


def test_other_methods_refuse_sigmas_that_want_a_gradient() -> None:
    model = layer("permutohedral", learnable=True)
    assert model.learned is not None
    model.learned.raw_sigmas.requires_grad_(True)
    message = 'no gradient to images, features or sigmas: use method="ex'
    with pytest.raises(ValueError, match=message):
        model(*inputs())


@pytest.mark.parametrize("method", ["permutohedral", "separable", "auto"])
def test_sigmas_that_do_not_train_are_told_at_construction(method: Any) -> None:
    with pytest.warns(UserWarning, match='sigmas stay as they are: only method="exact"') as told:
        model = crf.DenseCRF(3, method=method, learnable=True)
    assert [warning.filename for warning in told] == [__file__]
    assert model.learned is not None
    assert not any(raw.requires_grad for raw in model.learned.raw_sigmas.parameters())


def test_who_has_chosen_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen = crf.DenseCRF(3, learnable=True, learn_sigmas=False)
        kept = crf.DenseCRF(3, method="exact", learnable=True, learn_sigmas=False)
        trained = crf.DenseCRF(3, method="exact", learnable=True, learn_sigmas=True)
        crf.DenseCRF(3, method="exact", learnable=True)
        crf.DenseCRF(3)
        without = {"gaussian": None, "bilateral": None, "pairwise": [crf.Pairwise("depth", 1.0)]}
        crf.DenseCRF(3, learnable=True, **without)  # has no sigma
    for model, trains in ((frozen, False), (kept, False), (trained, True)):
        assert model.learned is not None
        assert {raw.requires_grad for raw in model.learned.raw_sigmas.values()} == {trains}


def test_learn_sigmas_is_refused_where_it_would_change_nothing_or_cannot_hold() -> None:
    with pytest.raises(ValueError, match='learn_sigmas=True needs method="exact", not \'auto'):
        crf.DenseCRF(3, method="auto", learnable=True, learn_sigmas=True)
    with pytest.raises(ValueError, match="learn_sigmas is an option of learnable=True"):
        crf.DenseCRF(3, learn_sigmas=False)
    with pytest.raises(ValueError, match="learn_sigmas must be True, False or None, not 1"):
        crf.DenseCRF(3, method="exact", learnable=True, learn_sigmas=1)  # type: ignore[arg-type]
