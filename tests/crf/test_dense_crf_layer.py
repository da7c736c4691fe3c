"""DenseCRF as a layer: gradients, dtypes, batches, compilers, bad input."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from dense_crf_problems import NORMALIZATIONS, problem, without_terms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crf

METHODS = ("permutohedral", "exact", "separable", "auto")

# Without and with gradients


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("compatibility", ["potts", "matrix"])
def test_inference_without_gradients_equals_the_differentiable_one(normalization, compatibility):
    logits, images = problem(3, 5, 20, 23)
    scale = 0.02 if normalization == "none" else 1.0
    terms = {"gaussian": crf.Gaussian(3 * scale, 3.0), "pairwise": [crf.Pairwise("depth", scale)]}
    terms |= {"bilateral": crf.Bilateral(4 * scale, 20.0, 8.0), "normalization": normalization}
    penalties = torch.rand(5, 5) if compatibility == "matrix" else "potts"
    model = crf.DenseCRF(5, **terms, compatibility=penalties)
    features = {"depth": torch.rand(3, 460, 2)}
    for method in (model.forward, model.refine_logits):
        fast = method(logits, images, features)
        composed = method(logits.clone().requires_grad_(), images, features)
        assert not fast.requires_grad
        assert composed.requires_grad
        torch.testing.assert_close(fast, composed, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            assert torch.equal(method(logits.clone().requires_grad_(), images, features), fast)


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
@pytest.mark.parametrize("normalization", ["symmetric", "after"])
def test_gradient_to_the_logits_passes_gradcheck(method, normalization):
    logits, images = problem(2, 3, 3, 4, torch.float64)
    options = {"iterations": 3, "method": method, "normalization": normalization}
    options |= {"bilateral": crf.Bilateral(4.0, 8.0, 40.0), "compatibility": torch.rand(3, 3)}
    model = crf.DenseCRF(3, **options)
    logits.requires_grad_()
    for call in (model.forward, model.refine_logits):
        assert torch.autograd.gradcheck(lambda x, f=call: f(x, images), logits, fast_mode=True)


def test_exact_has_gradients_to_images_and_features():
    logits, images = problem(1, 3, 3, 3, torch.float64)
    terms = {"pairwise": [crf.Pairwise("depth", 1.0)], "bilateral": crf.Bilateral(4.0, 8.0, 40.0)}
    model = crf.DenseCRF(3, **terms, iterations=2, method="exact")
    colours = images.double().clamp(1, 254).requires_grad_()
    depth = torch.rand(1, 9, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, f: model(logits, i, {"depth": f}), (colours, depth))


def test_the_lattice_refuses_gradients_to_images_and_features():
    logits, images = problem()
    coloured = images.float().requires_grad_()
    with pytest.raises(ValueError, match=r'no gradient to images, features.*"exact"'):
        crf.DenseCRF(4)(logits, coloured)
    with torch.no_grad():
        crf.DenseCRF(4)(logits, coloured)
    model = without_terms(pairwise=[crf.Pairwise("f", 1.0)])
    with pytest.raises(ValueError, match="no gradient"):
        model(logits, images, {"f": torch.rand(2, 42, 2, requires_grad=True)})


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_cross_entropy_on_refined_logits_trains_the_logits(method):
    _, images = problem(2, 3, 8, 9)
    truth = (images[:, 0] > 128).long()
    logits = torch.zeros(2, 3, 8, 9, requires_grad=True)
    model = crf.DenseCRF(3, iterations=3, method=method)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.refine_logits(logits, images), truth)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# The layer


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_softmax_of_refined_logits_gives_the_marginals(method):
    logits, images = problem()
    model = crf.DenseCRF(4, method=method)
    refined, marginals = model.refine_logits(logits, images), model(logits, images)
    torch.testing.assert_close(refined.softmax(1), marginals, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(marginals.sum(1), torch.ones(2, 6, 7))
    assert refined.is_contiguous()
    assert marginals.is_contiguous()


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_without_iterations_or_terms_the_logits_come_back(method):
    logits, images = problem()
    for model in (crf.DenseCRF(4, iterations=0, method=method), without_terms(method=method)):
        torch.testing.assert_close(model.refine_logits(logits, images), logits.log_softmax(1))
        torch.testing.assert_close(model(logits, images), logits.softmax(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient", [False, True])
def test_images_of_a_batch_do_not_mix(method, gradient):
    logits, images = problem(3)
    model = crf.DenseCRF(4, method=method)
    together = model(logits.requires_grad_(gradient), images)
    for b in range(3):
        alone = model(logits[b : b + 1], images[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient", [False, True])
def test_an_empty_batch_is_possible(method, gradient):
    logits, images = problem(0)
    model = crf.DenseCRF(4, method=method)
    logits.requires_grad_(gradient)
    assert model(logits, images).shape == model.refine_logits(logits, images).shape == (0, 4, 6, 7)
    assert model(logits, images, return_kl=True)[1].shape == (11, 0)


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(method, dtype):
    logits, images = problem()
    logits = logits.to(dtype)
    model = crf.DenseCRF(4, method=method, compatibility=torch.rand(4, 4))
    expected = model(logits.float(), images)
    assert torch.equal(model(logits, images), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(logits, images), expected)
        trained = model(logits.clone().requires_grad_(), images)
    assert trained.dtype == torch.float32
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-5)


def test_float64_logits_stay_float64_on_the_lattice():
    logits, images = problem(dtype=torch.float64)
    marginals = crf.DenseCRF(4)(logits, images)
    assert marginals.dtype == torch.float64
    single = crf.DenseCRF(4)(logits.float(), images)
    torch.testing.assert_close(single, marginals, check_dtype=False, rtol=1e-3, atol=1e-4)


def test_images_may_be_bytes_or_floats_and_logits_of_any_strides():
    logits, images = problem()
    model = crf.DenseCRF(4)
    expected = model(logits, images)
    assert torch.equal(model(logits, images.float()), expected)
    strided = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(strided, images), expected)
    flipped = model(logits.flip(3), images.flip(3)).flip(3)  # symmetric but for the lattice
    assert (flipped.argmax(1) == expected.argmax(1)).float().mean() > 0.8


def test_the_layer_has_no_state_to_save_and_says_what_it_is():
    model = crf.DenseCRF(3, pairwise=[crf.Pairwise("d", 2.0)], compatibility=torch.eye(3))
    assert not list(model.parameters())
    assert model.state_dict() == {}
    assert model.double().compatibility.dtype == torch.float64
    text = repr(copy.deepcopy(model))
    for part in ("num_classes=3", "sigma_rgb=5.0", "name='d'", "iterations=10", "matrix"):
        assert part in text
    assert "compatibility='potts'" in repr(crf.DenseCRF(3))


def test_a_layer_of_one_class_warns_that_it_decides_nothing_and_gives_ones() -> None:
    with pytest.warns(UserWarning, match="num_classes=1: with one class every marginal is 1") as w:
        layer = crf.DenseCRF(1, iterations=2)
    assert len(w) == 1
    assert w[0].filename == __file__  # the caller's line
    marginals = layer(torch.randn(1, 1, 4, 5), 255 * torch.rand(1, 3, 4, 5))
    torch.testing.assert_close(marginals, torch.ones(1, 1, 4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crf.DenseCRF(2)


sigma = st.floats(-1, 4).map(lambda power: 10**power)  # 0.1 to 1e4


@pytest.mark.parametrize("method", METHODS)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    labels=st.sampled_from([1, 2, 7, 21, 65, 256]),
    sigmas=st.tuples(sigma, sigma, sigma),
    normalization=st.sampled_from(["symmetric", "before", "after"]),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_marginals_are_probabilities(method, size, labels, sigmas, normalization, as_bytes, seed):
    batch, height, width = size
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, labels, height, width, generator=generator)
    images = 255 * torch.rand(batch, 3, height, width, generator=generator)
    model = crf.DenseCRF(
        labels,
        gaussian=crf.Gaussian(3.0, sigmas[0]),
        bilateral=crf.Bilateral(4.0, sigmas[1], sigmas[2]),
        iterations=3,
        method=method,
        normalization=normalization,
    )
    found = model(logits, images.to(torch.uint8) if as_bytes else images)
    assert found.shape == logits.shape
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(batch, height, width))


# Compilers


@pytest.mark.parametrize(
    ("method", "dynamic", "output"),
    [("exact", False, "forward"), ("permutohedral", True, "refine_logits")],
)
def test_compiled_whole_gives_the_same_values_and_gradients(method, dynamic, output):
    terms = {"gaussian": None} if dynamic else {}  # symbolic shapes make each term slow to trace
    options = {"compatibility": torch.rand(3, 3), "normalization": "after", **terms}
    model = crf.DenseCRF(3, iterations=1, method=method, **options)
    function = getattr(model, output)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for height, width in ((4, 5), (6, 3))[: 1 + dynamic]:
        logits, images = problem(2, 3, height, width)
        plain, whole = (logits.clone().requires_grad_() for _ in range(2))
        expected = function(plain, images)
        found = compiled(whole, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        grad = torch.randn_like(expected)
        expected.backward(grad)
        found.backward(grad)
        torch.testing.assert_close(whole.grad, plain.grad, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            found = compiled(logits, images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_compiled_inference_still_refuses_logits_that_are_not_finite():
    logits, images = problem()
    compiled = torch.compile(crf.DenseCRF(4), fullgraph=True, backend="aot_eager")
    logits[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits must be finite"):
        compiled(logits, images)


@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_exported_program_serves_other_sizes(method):
    model = crf.DenseCRF(4, iterations=2, method=method)
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    sizes = {0: batch, 2: height, 3: width}
    program = torch.export.export(model, problem(2, 4, 5, 6), dynamic_shapes=(sizes, sizes))
    logits, images = problem(3, 4, 7, 4)
    expected = model(logits, images)
    torch.testing.assert_close(program.module()(logits, images), expected, rtol=1e-4, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be an integer of at least 1, not 0"),
        ({"iterations": -1}, ValueError, "iterations must be an integer of at least 0, not -1"),
        ({"iterations": 2.5}, ValueError, "iterations must be an integer"),
        ({"method": "exakt"}, ValueError, r"method must be one of \['permutohedral', "),
        ({"normalization": None}, ValueError, "normalization must be one of"),
        ({"gaussian": (3, 3)}, TypeError, r"gaussian must be a crf\.Gaussian"),
        ({"bilateral": crf.Gaussian(3, 3)}, TypeError, r"bilateral must be a crf\.Bilateral"),
        ({"pairwise": [None]}, TypeError, r"pairwise must be a crf\.Pairwise"),
        ({"pairwise": crf.Pairwise("a", 1)}, TypeError, r"pairwise must be a sequence .*\(term,\)"),
        ({"pairwise": [crf.Pairwise("a", 1)] * 2}, ValueError, "terms of different names"),
        ({"compatibility": torch.eye(5)}, ValueError, "compatibility must have shape"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"eps": 1.0}, ValueError, "eps must be a number from 0 to 0.5, not 1.0"),
        ({"tolerance": 0}, ValueError, "tolerance must be a number from 0.0001 to 0.5, not 0"),
        ({"precision": "bf16"}, ValueError, "option of method='exact', not of 'permutohedral'"),
        ({"eps": 0.1, "method": "separable"}, ValueError, "eps is an option of method='exact'"),
        ({"tolerance": 0.2, "method": "exact"}, ValueError, "of method='separable'"),
    ],
)
def test_bad_settings_are_named(options, error, words):
    with pytest.raises(error, match=words):
        crf.DenseCRF(**{"num_classes": 4, **options})


LOGITS, IMAGES = torch.zeros(2, 4, 6, 7), torch.zeros(2, 3, 6, 7)
DEPTH = {"depth": torch.zeros(2, 42, 1)}


@pytest.mark.parametrize(
    ("logits", "images", "features", "error", "words"),
    [
        (LOGITS.long(), IMAGES, DEPTH, TypeError, "logits must be a floating-point tensor"),
        (LOGITS[0], IMAGES, DEPTH, ValueError, r"logits must have shape \[B, 4, H, W\]"),
        (LOGITS[:, :3], IMAGES, DEPTH, ValueError, r"logits .* not \(2, 3, 6, 7\)"),
        (LOGITS[:, :, :0], IMAGES[:, :, :0], DEPTH, ValueError, "at least one pixel"),
        (LOGITS + torch.inf, IMAGES, DEPTH, ValueError, "logits must be finite"),
        (LOGITS, IMAGES.int(), DEPTH, TypeError, "images must be a tensor of uint8 or floating"),
        (LOGITS, None, DEPTH, ValueError, "images are missing: the bilateral term compares"),
        (LOGITS, IMAGES[:1], DEPTH, ValueError, r"images must be RGB of shape \[2, 3, 6, 7\]"),
        (LOGITS, torch.zeros(2, 3, 48, 56), DEPTH, ValueError, "resize the logits to the images"),
        (LOGITS, IMAGES - 1, DEPTH, ValueError, "RGB values 0-255, but range from -1 to -1"),
        (LOGITS, IMAGES + 256, DEPTH, ValueError, "before a network's preprocessing"),
        (LOGITS, IMAGES * torch.nan, DEPTH, ValueError, "images must be finite"),
        (LOGITS, IMAGES.to("meta"), DEPTH, ValueError, "images .on meta. must be on the device"),
        (LOGITS, IMAGES, None, ValueError, r"features must hold one entry .*\['depth'\], not \[\]"),
        (LOGITS, IMAGES, {"deep": DEPTH["depth"]}, ValueError, r"not \['deep'\]"),
        (LOGITS, IMAGES, {"depth": DEPTH["depth"][:, 1:]}, ValueError, "B, N, D. = .2, 42, D."),
        (LOGITS, IMAGES, {"depth": DEPTH["depth"][:, :, :0]}, ValueError, "D at least 1"),
        (LOGITS, IMAGES, {"depth": [1]}, TypeError, "features.'depth'. must be a floating-point"),
        (LOGITS, IMAGES, {"depth": DEPTH["depth"] / 0}, ValueError, "depth'. must be finite"),
    ],
)
@pytest.mark.parametrize("method", ["permutohedral", "exact"])
def test_bad_input_is_named(logits, images, features, error, words, method):
    model = crf.DenseCRF(4, pairwise=[crf.Pairwise("depth", 1.0)], method=method)
    for call in (model, model.refine_logits):
        with pytest.raises(error, match=words):
            call(logits, images, features)


def test_images_scaled_to_one_are_warned_about():
    logits, images = problem()
    with pytest.warns(UserWarning, match="values up to 1, but RGB 0-255 is expected"):
        crf.DenseCRF(4)(logits, images / images.max())


@pytest.mark.parametrize("learnable", [False, True])
def test_a_matrix_on_another_device_than_the_logits_is_refused(learnable: bool) -> None:
    """It would be copied at each call, which a GPU's host would wait for."""
    options = {"learnable": True, "learn_sigmas": False} if learnable else {}
    layer = crf.DenseCRF(2, bilateral=None, compatibility=torch.ones(2, 2), **options).to("meta")
    with pytest.raises(ValueError, match=r"compatibility \(on meta\) .* layer\.to\('cpu'\)"):
        layer(torch.zeros(1, 2, 4, 5))
