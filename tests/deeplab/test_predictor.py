"""The predictor: batches, what it moves and computes in, and that it can be sent elsewhere."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import crf
from deeplab.crf_settings import CRFSettings
from deeplab.errors import InputError
from deeplab.model import DeepLab, build, deeplab_v2_small
from deeplab.predict import Prediction, Predictor, network_scores, predict
from deeplab.predict.limits import least_memory

BUDGET = (
    32 * torch.finfo(torch.float32).eps
)  # of a softmax over logits of about 10, in another order


@pytest.fixture(scope="module")
def model() -> DeepLab:
    torch.manual_seed(0)
    return deeplab_v2_small(num_classes=4).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def layer(classes: int = 4) -> crf.DenseCRF:
    return crf.DenseCRF(
        classes, gaussian=crf.Gaussian(3, 3), bilateral=crf.Bilateral(4, 20, 5), iterations=3
    )


def equal(found: Prediction, expected: Prediction) -> bool:
    return np.array_equal(found.labels, expected.labels) and np.array_equal(
        found.probabilities, expected.probabilities
    )


@pytest.mark.parametrize("refined", [None, layer()], ids=["network", "CRF"])
def test_several_pictures_give_what_each_gives_alone(model: DeepLab, refined) -> None:
    sizes = [(20, 30), (33, 17), (20, 30), (1, 1), (20, 30)]
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    predictor = Predictor(model, refined, scales=(0.5, 1.0), flip=True)
    found = predictor(images)
    assert len(found) == len(images)
    for image, one in zip(images, found, strict=True):
        expected = predictor(image)
        np.testing.assert_allclose(one.probabilities, expected.probabilities, atol=BUDGET)
        clear = np.sort(expected.probabilities, axis=0)
        clear = clear[-1] - clear[-2] > 2 * BUDGET
        assert np.array_equal(one.labels[clear], expected.labels[clear])


def test_pictures_of_one_size_and_dtype_go_through_the_network_together(
    model: DeepLab, monkeypatch
) -> None:
    batches: list[int] = []
    forward = model.backbone.forward

    def counted(x: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return forward(x)

    monkeypatch.setattr(model.backbone, "forward", counted)
    a, b = picture(9, 12), picture(12, 9)
    Predictor(model)([a, b, a, a.astype(np.float32), b, a])
    assert batches == [3, 2, 1]
    assert Predictor(model)([]) == []
    assert equal(Predictor(model)(np.stack([a, a]))[1], Predictor(model)([a, a])[1])


def test_one_call_is_predict(model: DeepLab) -> None:
    image = picture(20, 30)
    found = Predictor(model, layer(), scales=(1.0, 1.5), flip=True, fold=False)(image)
    assert equal(found, predict(model, image, layer(), scales=(1.0, 1.5), flip=True))


def test_labels_before_and_after_the_crf_are_those_of_both_predictions(model: DeepLab) -> None:
    image = picture(20, 30)
    before, after = Predictor(model, layer()).labels(image)
    assert np.array_equal(before, predict(model, image).labels)
    assert np.array_equal(after, predict(model, image, layer()).labels)
    assert not np.array_equal(before, after)
    before, after = Predictor(model).labels(image)
    assert np.array_equal(before, after)


def test_a_threshold_counts_for_labels_of_either_kind() -> None:
    torch.manual_seed(0)
    two, image = deeplab_v2_small(num_classes=2).eval(), picture(20, 30)
    for refined in (None, layer(2)):
        predictor = Predictor(two, refined, threshold=0.8)
        expected = (predictor(image).probabilities[1] >= 0.8).astype(np.uint8)
        assert np.array_equal(predictor.labels(image)[1], expected)
        assert np.array_equal(predictor(image).labels, expected)
        assert not np.array_equal(expected, Predictor(two, refined)(image).labels)


def test_it_is_the_same_after_pickling(model: DeepLab) -> None:
    image = picture(20, 30)
    refiners = [layer(), CRFSettings(bands="all").refiner(4)]
    for refined, bands in zip(refiners, (None, "all"), strict=True):
        predictor = Predictor(model, refined, scales=(0.5, 1.0), bands=bands)
        assert equal(pickle.loads(pickle.dumps(predictor))(image), predictor(image))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_lower_precision_is_the_networks_alone(model: DeepLab, precision: torch.dtype) -> None:
    """Within the error of the layers' sums: a hundred roundings of logits of about 1."""
    image, dtypes = picture(33, 41), set()
    hook = model.head.register_forward_hook(lambda _m, _x, scores: dtypes.add(scores.dtype))
    try:
        found = Predictor(model, precision=precision).output([image]).logits
    finally:
        hook.remove()
    assert dtypes == {precision}
    assert found.dtype == torch.float32
    with torch.no_grad():
        expected = network_scores(model, image)
    difference = (found - expected).abs().max()
    assert 0 < difference < 10 * torch.finfo(precision).eps * expected.abs().max()
    refined = Predictor(model, layer(), precision=precision)(image).probabilities
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-5)


def test_every_family_of_models_computes_in_a_lower_precision() -> None:
    for name in ("deeplab_v3_mobilenet", "deeplab_v3plus_resnet18"):
        torch.manual_seed(0)
        found = Predictor(build(name, num_classes=3), precision=torch.bfloat16)(picture(40, 33))
        assert np.isfinite(found.probabilities).all()


def test_model_and_crf_are_moved_to_the_device(model: DeepLab) -> None:
    moved = Predictor(deeplab_v2_small(4), CRFSettings(bands="all").refiner(4), device="meta")
    tensors = [*moved.model.state_dict().values(), *moved.crf.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert next(Predictor(model).model.parameters()).device.type == "cpu"


def test_what_makes_no_sense_is_refused_where_it_is_made(model: DeepLab) -> None:
    for message, options in {
        "precision must be .* not torch.float64": {"precision": torch.float64},
        "precision must be .* not 'float32'": {"precision": "float32"},
        "compile must be False without fold": {"compile": True, "fold": False},
        "scales must be": {"scales": ()},
        "threshold must be left out with 4 classes": {"threshold": 0.5},
    }.items():
        with pytest.raises(ValueError, match=message):
            Predictor(model, **options)
    own = deeplab_v2_small(4)
    own.crf = layer()
    with pytest.raises(ValueError, match="CRF layer of its own"):
        Predictor(own, layer())
    with pytest.raises(ValueError, match="compile must be False"):
        Predictor(deeplab_v2_small(4), compile=True, device="meta")


def test_pictures_that_the_model_does_not_take_are_refused_alone_and_together(model) -> None:
    predictor = Predictor(model, layer())
    for wrong in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8)):
        for images in ([wrong], [wrong, wrong]):
            with pytest.raises(ValueError, match="image must be"):
                predictor(images)


def test_nan_is_refused_in_a_batch_and_counts_as_such_in_scores(model: DeepLab) -> None:
    broken = deeplab_v2_small(num_classes=4).eval()
    with torch.no_grad():
        broken.head.classifier.bias[2] = float("nan")
    image = picture(9, 9)
    with pytest.raises(InputError, match="NaN or Inf"):
        Predictor(broken)([image, image])
    with pytest.raises(InputError, match="try bfloat16"):
        Predictor(broken, precision=torch.float16)(image)
    with pytest.raises(FloatingPointError, match="NaN or Inf"):
        Predictor(broken).labels(image)


def test_memory_is_asked_for_the_whole_batch(model: DeepLab, monkeypatch) -> None:
    monkeypatch.setattr("kernels.memory.available", lambda device: 3 * 200 * 130 - 1)
    predictor, image = Predictor(model), picture(10, 20)
    predictor([image, image])
    with pytest.raises(InputError, match="3 pictures of 20 x 10 pixels; give fewer at a time"):
        predictor([image, image, image])


def test_threads_at_once_find_what_one_finds(model: DeepLab) -> None:
    images = [picture(30 + i, 40, i) for i in range(6)]
    predictor = Predictor(model, layer(), at_once=3)
    expected = [predictor(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(predictor, 3 * images))
    assert all(map(equal, found, 3 * expected))
    assert not any(module.training for module in model.modules())


def test_pictures_at_once_share_the_memory_that_is_free(model: DeepLab, monkeypatch) -> None:
    size = (2000, 2000)
    for at_once, free, in_tiles in ((1, 2.1, False), (1, 1.9, True), (2, 2.1, True)):
        there = free * least_memory(model, size)
        monkeypatch.setattr("kernels.memory.available", lambda _, there=there: there)
        assert Predictor(model, at_once=at_once).in_tiles(size) is in_tiles
