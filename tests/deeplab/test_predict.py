"""Prediction: any size, with and without a CRF, and what happens when the network goes wrong."""

import json
import os
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from several_processes import Started

import crf
from deeplab.errors import InputError
from deeplab.model import DeepLab, deeplab_v2_small
from deeplab.predict import Prediction, network_scores, predict
from kernels import memory


@pytest.fixture(scope="module")
def model() -> DeepLab:
    torch.manual_seed(0)
    return deeplab_v2_small(num_classes=4).eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def layer() -> crf.DenseCRF:
    return crf.DenseCRF(
        4, gaussian=crf.Gaussian(3, 3), bilateral=crf.Bilateral(4, 20, 5), iterations=3
    )


def test_a_picture_may_be_a_view_such_as_opencvs_with_its_channels_turned(model: DeepLab) -> None:
    bgr = picture(20, 30)
    turned = bgr[..., ::-1]
    for refined in (None, layer()):
        expected = predict(model, turned.copy(), refined).probabilities
        assert np.array_equal(predict(model, turned, refined).probabilities, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 50), (64, 7)])
def test_prediction_is_the_softmax_of_the_logits_at_the_pictures_size(
    model: DeepLab, size: tuple[int, int]
) -> None:
    image = picture(*size)
    result = predict(model, image)
    with torch.no_grad():
        logits = model(model.preprocess(image))[0].double()
    expected = (logits - logits.logsumexp(0)).exp().numpy()
    assert result.probabilities.shape == (4, *size)
    assert result.probabilities.dtype == np.float32
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    assert result.labels.dtype == np.uint8
    assert np.array_equal(result.labels, result.probabilities.argmax(0))


def test_scores_of_one_view_are_the_networks_own_in_each_style() -> None:
    image = picture(33, 50)
    for style in ("caffe", "torchvision"):
        torch.manual_seed(0)
        network = deeplab_v2_small(num_classes=4, style=style).eval()
        with torch.no_grad():
            expected = network(network.preprocess(image))
            found = network_scores(network, image)
            mean = network_scores(network, image, (1.0, 1.0)).softmax(1)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(mean, expected.softmax(1), atol=1e-6, rtol=1e-5)


def test_a_crf_gives_its_marginals_on_the_rgb_picture(model: DeepLab) -> None:
    image = picture(30, 20)
    with torch.no_grad():
        logits = model(model.preprocess(image))
        rgb = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None]
        expected = layer()(logits, rgb)[0].numpy()
    result = predict(model, image, layer())
    np.testing.assert_array_equal(result.probabilities, expected)
    assert not np.array_equal(result.probabilities, predict(model, image).probabilities)


def test_a_models_own_crf_layer_gives_the_same_as_the_crf_argument(model: DeepLab) -> None:
    image = picture(30, 20)
    own = deeplab_v2_small(num_classes=4).eval()
    own.load_state_dict(model.state_dict())
    own.crf = layer()
    expected = predict(model, image, layer()).probabilities
    np.testing.assert_allclose(predict(own, image).probabilities, expected, atol=1e-5)
    with pytest.raises(ValueError, match="CRF layer of its own"):
        predict(own, image, layer())


def test_the_model_runs_in_evaluation_mode_and_keeps_its_own(model: DeepLab) -> None:
    image = picture(40, 40)
    expected = predict(model, image).probabilities
    statistics = [b.clone() for b in model.buffers()]
    model.train()
    try:
        np.testing.assert_array_equal(predict(model, image).probabilities, expected)
        assert model.training
    finally:
        model.eval()
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers(), strict=True))
    predict(model, image)
    assert not model.training


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("refined", [False, True])
def test_nan_and_inf_in_the_logits_are_refused(bad: float, refined: bool) -> None:
    broken = deeplab_v2_small(num_classes=4).eval()
    with torch.no_grad():
        broken.head.classifier.bias[2] = bad
    with pytest.raises(InputError, match="NaN or Inf"):
        predict(broken, picture(9, 9), layer() if refined else None)


def test_running_out_of_memory_is_said_with_the_pictures_size(model: DeepLab, monkeypatch) -> None:
    def allocate(*args: object, **kwargs: object) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(model.head, "forward", allocate)
    with pytest.raises(InputError, match=r"not enough memory .* 20 x 10 pixels"):
        predict(model, picture(10, 20))


@pytest.mark.parametrize(
    ("refines", "scales", "flip", "bytes_a_pixel"),
    [
        (False, (1.0,), False, 130),
        (True, (1.0,), False, 300 + 16 * 4),
        (False, (1.0,), True, 130 + 4 * 4),
        (False, (0.5, 1.0), False, 130 + 4 * 4),
        (False, (1.0, 2.0), False, 4 * 130 + 4 * 4),
        (True, (2.0,), False, 4 * 130),
        (False, (0.1,), False, 0.7 + 8 * 4),
    ],
)
def test_a_picture_that_cannot_fit_into_memory_is_refused_before_any_work(
    model: DeepLab,
    monkeypatch,
    refines: bool,
    scales: tuple[float, ...],
    flip: bool,
    bytes_a_pixel: float,
) -> None:
    image = picture(10, 20)
    refined = layer() if refines else None
    for spare, refused in ((0, False), (-1, True)):
        available = round(200 * bytes_a_pixel) + spare
        monkeypatch.setattr(memory, "available", lambda device, a=available: a)
        with pytest.raises(InputError, match="20 x 10 pixels") if refused else nullcontext():
            predict(model, image, refined, scales=scales, flip=flip)


MEASURE = """
import ctypes, json, numpy as np, os, sys
from deeplab.predict import predict
from deeplab.model import deeplab_v2_small
from kernels import memory
getattr(ctypes.CDLL(None), "mallopt", max)(-3, 1 << 16)  # what is freed goes back at once
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
for scales, flip, msc in json.loads(sys.argv[1]):
    if os.fork():  # each in a process of its own: what one frees, the next would use
        assert os.wait()[1] == 0
        continue
    top = max(1, *scales)  # the largest view is of 768 x 1024 pixels
    image = np.zeros((round(768 / top), round(1024 / top), 3), np.uint8)
    model, asked = deeplab_v2_small(21, scales=msc).eval(), []
    predict(model, np.zeros((64, 64, 3), np.uint8), scales=scales, flip=flip)
    memory.require = lambda needed, *rest: asked.append(needed)
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = status("VmRSS")
    predict(model, image, scales=scales, flip=flip)
    print(asked[0], 1024 * (status("VmHWM") - before))
    break
"""


@pytest.mark.slow
def test_the_memory_that_is_asked_for_is_less_than_what_is_used_and_not_much_less() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell a process its peak memory")
    views = [
        ((1.0,), False, None),
        ((0.25,), True, None),
        ((1.0, 2.0), True, None),
        ((1.0,), True, (1.0, 0.75, 0.5)),
    ]
    one_thread = {"OMP_NUM_THREADS": "1"}  # each would have room of its own
    measuring = Started(("-c", MEASURE, json.dumps(views)), one_thread)
    out, err = measuring.communicate()
    assert measuring.returncode == 0, err
    for given, line in zip(views, out.splitlines(), strict=True):
        asked, used = map(int, line.split())
        assert 0.5 * used < asked < used, given


def test_views_are_averaged_without_keeping_them(model: DeepLab, monkeypatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    upsample = model.upsample

    def watched(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        assert not any(ref() is not None for ref in alive)
        scores = upsample(logits, size)
        alive.append(weakref.ref(scores))
        return scores

    monkeypatch.setattr(model, "upsample", watched)
    predict(model, picture(20, 30), scales=(0.5, 1.0, 1.5), flip=True)
    assert len(alive) == 6


def test_labels_of_more_than_256_classes_keep_their_values() -> None:
    probabilities = np.zeros((300, 1, 2), np.float32)
    probabilities[[299, 7], 0, [0, 1]] = 1
    assert Prediction.of(probabilities).labels.tolist() == [[299, 7]]


def views_by_hand(model: DeepLab, image: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """The mean of the softmaxes of all views, in float64: each scale, and each mirrored."""
    height, width = image.shape[:2]
    x, found = model.preprocess(image), []
    for scale in scales:
        size = (round((height - 1) * scale) + 1, round((width - 1) * scale) + 1)
        view = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        for mirrored in (False, True):
            given = view.flip(3) if mirrored else view
            with torch.no_grad():
                small = model.head(model.backbone(given))
            logits = F.interpolate(small, (height, width), mode="bilinear", align_corners=True)
            logits = logits.flip(3) if mirrored else logits
            found.append(logits[0].double().softmax(0).numpy())
    return np.mean(found, axis=0)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_scales_and_flip_average_the_probabilities_of_the_views(
    model: DeepLab, scales: tuple[float, ...]
) -> None:
    image = picture(33, 50)
    result = predict(model, image, scales=scales, flip=True)
    expected = views_by_hand(model, image, scales)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    assert np.abs(expected - predict(model, image).probabilities).max() > 1e-3


def test_a_crf_refines_the_average_of_the_views(model: DeepLab) -> None:
    image = picture(30, 20)
    average = predict(model, image, scales=(0.5, 1.0), flip=True).probabilities
    rgb = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None]
    expected = layer()(torch.from_numpy(average).log()[None], rgb)[0].numpy()
    found = predict(model, image, layer(), scales=(0.5, 1.0), flip=True).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_average_stays_finite_where_every_view_gives_a_probability_of_zero() -> None:
    sure = deeplab_v2_small(num_classes=4).eval()
    with torch.no_grad():
        sure.head.classifier.bias[1] = 1e5
    logits = network_scores(sure, picture(9, 9), (1.0,), flip=True)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 9.0), (float("nan"),)])
def test_scales_without_sense_are_refused(model: DeepLab, scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales must be at least one number"):
        predict(model, picture(9, 9), scales=scales)
