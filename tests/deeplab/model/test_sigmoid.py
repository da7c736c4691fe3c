"""Two classes by one score: the scores (0, z), their loss, training, files, and thresholds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import assert_refused, done
from PIL import Image
from tiny_training import SHORT, equal, run, tiny_pictures

from deeplab.errors import InputError
from deeplab.model import build
from deeplab.predict import Predictor, predict
from deeplab.training.auxiliary import AuxiliaryHead
from deeplab.training.losses import segmentation_loss
from deeplab.weights import load_model, load_weights, save_weights


def pair(name="deeplab_v2_small", **options):
    """A model of one class, and the one of two classes with its weights."""
    torch.manual_seed(0)
    one = build(name, 1, **options).eval()
    two = build(name, 2, sigmoid=True, **options).eval()
    two.load_state_dict(one.state_dict())
    return one, two


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplab_v2_small", {}),
        ("deeplab_v2_small", {"scales": (1.0, 0.75, 0.5)}),
        ("deeplab_v3_mobilenet", {}),
        pytest.param("deeplab_v1_largefov", {}, marks=pytest.mark.slow),
        pytest.param("deeplab_v3plus_resnet18", {}, marks=pytest.mark.slow),
    ],
)
def test_the_softmax_of_the_scores_is_the_sigmoid_of_the_one_score(name, options):
    one, two = pair(name, **options)
    assert two.num_classes == two.config["num_classes"] == 2
    x = one.preprocess(torch.randint(0, 256, (1, 3, 33, 41), dtype=torch.uint8))
    with torch.no_grad():
        z, scores = one(x), two(x)
    assert torch.equal(scores, torch.cat([torch.zeros_like(z), z], 1))
    torch.testing.assert_close(scores.softmax(1)[:, 1:], z.sigmoid())


def test_cross_entropy_is_the_binary_one_of_the_labelled_pixels():
    one, two = pair()
    rgb = torch.randint(0, 256, (2, 3, 33, 33), dtype=torch.uint8)
    labels = torch.randint(0, 2, (2, 33, 33))
    labels[:, :9] = 255
    with torch.no_grad():
        loss = segmentation_loss(two, rgb, labels, 1).item()
        z = one(one.preprocess(rgb))[:, 0].double()
    kept = labels != 255
    expected = F.binary_cross_entropy_with_logits(z[kept], labels[kept].double()).item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_auxiliary_classifier_goes_with_it():
    _, two = pair("deeplab_v3_mobilenet")
    head = AuxiliaryHead(two).eval()
    x = two.preprocess(torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8))
    with torch.no_grad():
        main, auxiliary = head.scores(two, x, upsample=True)
        assert torch.equal(main, two(x))
    assert auxiliary.shape == main.shape


def test_a_file_and_weights_of_one_class_bring_it_back(tmp_path):
    one, two = pair()
    save_weights(two, tmp_path / "two.safetensors")
    again = load_model(tmp_path / "two.safetensors")
    assert equal(again, two)
    assert again.config == two.config
    torch.save(one.state_dict(), tmp_path / "one.pth")
    fresh = build("deeplab_v2_small", 2, sigmoid=True)
    assert load_weights(fresh, tmp_path / "one.pth").skipped == ()
    assert equal(fresh, two)


def test_it_trains_on_two_classes_and_no_other_number(tmp_path):
    config = replace(SHORT, steps=12, model_options={"sigmoid": True}, loss={"dice": 1.0})
    names, pictures = ["other", "object"], tiny_pictures()
    data = [(image, (labels > 2).astype(np.uint8)) for image, labels in pictures]
    options = {"class_names": names, "validation": data}
    out = tmp_path / "w.safetensors"
    result = run(config, data, out, **options)
    assert result.loss < run(replace(config, steps=1), data, **options).loss
    assert result.model.head.classifier.weight.shape[0] == 4  # rates, of one score each
    assert equal(load_model(out), result.model)
    with pytest.raises(InputError, match="num_classes must be 2 with sigmoid, not 11"):
        run(config, pictures)


@pytest.mark.parametrize(
    ("classes", "value", "message"),
    [(3, True, "num_classes must be 2 with sigmoid, not 3"), (2, "on", "sigmoid must be True or")],
)
def test_what_makes_no_such_model_is_refused(classes, value, message):
    with pytest.raises(ValueError, match=message):
        build("deeplab_v2_small", classes, sigmoid=value)


def test_a_threshold_says_from_which_probability_on_a_pixel_is_the_second_class():
    _, two = pair()
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8)
    plain = predict(two, image)
    middle = float(np.quantile(plain.probabilities[1], 0.3))
    found = predict(two, image, threshold=middle)
    assert np.array_equal(found.probabilities, plain.probabilities)
    assert np.array_equal(found.labels, plain.probabilities[1] >= middle)
    assert found.labels.dtype == np.uint8
    assert 0.65 < found.labels.mean() < 0.75
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold must be a number between 0 and 1, not"):
            predict(two, image, threshold=threshold)
    with pytest.raises(
        ValueError, match="threshold must be left out with 4 classes; it is for two"
    ):
        predict(build("deeplab_v2_small", 4), image, threshold=0.5)


def test_segment_takes_a_threshold(tmp_path):
    _, two = pair()
    image = np.random.default_rng(0).integers(0, 256, (33, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "p.png")
    save_weights(two, tmp_path / "w.safetensors")
    middle = float(np.quantile(Predictor(two)(image).probabilities[1], 0.3))
    given, out = [tmp_path / "p.png", "--weights", tmp_path / "w.safetensors"], tmp_path / "out"
    done("segment", *given, "--no-crf", "--out", out, "--threshold", middle)
    labels = np.asarray(Image.open(out / "p_labels.png"))
    assert np.array_equal(labels, Predictor(two, threshold=middle)(image).labels)
    wrong = "--threshold must be a number between 0 and 1, not 2"
    assert_refused(tmp_path, wrong, "segment", *given, "--out", out, "--threshold", 2)
