"""The lattice that a layer keeps between images of one size: never out of date or in the way."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import crf
from kernels.meanfield import kept, reference


@pytest.fixture
def made(monkeypatch):
    """The features of each term that is made."""
    found = []
    plain = kept.Term.on_cpu

    def counted(features, *others):
        found.append(features.shape[1])
        return plain(features, *others)

    monkeypatch.setattr(kept.Term, "on_cpu", counted)
    return found


def _layer(**options):
    return crf.DenseCRF(3, bilateral=crf.Bilateral(4.0, 9.0, 60.0), iterations=2, **options)


def _inputs(height=9, width=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 3, height, width, generator=generator)
    return logits, 255 * torch.rand(1, 3, height, width, generator=generator)


def test_images_of_one_size_share_the_smoothness_term_bit_for_bit(made):
    model = _layer()
    for seed in range(3):
        given = _inputs(seed=seed)
        assert torch.equal(model(*given), _layer()(*given))
    assert made.count(2) == 1 + 3  # one of the model, one of each new layer
    assert made.count(5) == 3 + 3


@pytest.mark.parametrize("change", ["size", "origin", "sigma", "dtype", "normalization", "threads"])
def test_what_the_term_depends_on_makes_it_anew(made, change, monkeypatch):
    model, (logits, images) = _layer(), _inputs()
    model(logits, images)
    options = {}
    if change == "size":
        logits, images = logits.mT.contiguous(), images.mT.contiguous()
    elif change == "origin":
        options["origin"] = (1, 2)
    elif change == "sigma":
        model.gaussian = crf.Gaussian(3.0, 4.0)
    elif change == "dtype":
        logits = logits.double()
    elif change == "normalization":
        model.normalization = "after"
    else:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    made.clear()
    found = model(logits, images, **options)
    assert made.count(2) == 1
    fresh = _layer(gaussian=model.gaussian, normalization=model.normalization)
    assert torch.equal(found, fresh(logits, images, **options))


def test_another_weight_serves_itself_of_the_same_lattice(made):
    model, given = _layer(), _inputs()
    model(*given)
    model.gaussian = crf.Gaussian(1.0, 3.0)
    made.clear()
    assert torch.equal(model(*given), _layer(gaussian=model.gaussian)(*given))
    assert made == [5, 2, 5]


def test_sigmas_that_changed_in_a_learnable_layer_are_used(made):
    with torch.no_grad():
        model, given = _layer(learnable=True, learn_sigmas=False), _inputs()
        model(*given)
        for raw in model.learned.raw_sigmas.values():
            raw += 1
        found = model(*given)
        assert made.count(2) == 2
        model.kept.clear()
        assert torch.equal(found, model(*given))


def test_copies_and_state_know_nothing_of_it_and_it_can_be_given_back(made):
    model, given = _layer(), _inputs()
    expected = model(*given)
    assert model.kept._last is not None
    assert not model.state_dict()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert other.kept._last is None
        assert torch.equal(other(*given), expected)
    model.kept.clear()
    assert model.kept._last is None


def test_a_kept_term_stands_beside_new_ones_in_the_fused_mean_field(monkeypatch):
    model, given = _layer(), _inputs()
    model(*given)
    monkeypatch.setattr(reference, "mean_field", lambda *_: pytest.fail("not fused"))
    model(*given)


def test_a_large_image_is_not_kept(monkeypatch):
    monkeypatch.setattr(kept, "MOST_KEPT", 98)
    model = _layer()
    model(*_inputs())
    assert model.kept._last is None


def test_threads_that_share_a_layer_and_differ_in_size_each_get_their_own(set_threads):
    set_threads(1)
    model = _layer()
    shapes = [(9, 11), (11, 9), (7, 5), (9, 11)] * 6
    expected = [_layer()(*_inputs(*shape)) for shape in shapes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shape: model(*_inputs(*shape)), shapes))
    assert all(map(torch.equal, found, expected))


def test_a_gradient_is_the_same_after_an_image_without_one():
    model, (logits, images) = _layer(), _inputs()
    gradients = []
    for _ in range(2):
        leaf = logits.clone().requires_grad_()
        model(leaf, images).square().sum().backward()
        gradients.append(leaf.grad)
        model(logits, images)
    assert torch.equal(*gradients)
