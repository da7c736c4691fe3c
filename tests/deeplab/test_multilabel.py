"""Several labels a pixel, from a folder to a trained model, its masks and its scores."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from commands import assert_refused, done
from masked_data import masked_folder, masks_of
from PIL import Image
from tiny_training import SHORT, equal, run, tiny_pictures

from crf import DenseCRF
from deeplab.data.datasets import open_dataset
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import evaluate
from deeplab.evaluation.metrics import ConfusionMatrix, MaskCounts
from deeplab.model import build
from deeplab.predict import Predictor, predict
from deeplab.training import hook, train
from deeplab.training.auxiliary import AuxiliaryHead
from deeplab.training.config import DataConfig
from deeplab.training.samples import SkipBroken
from deeplab.weights import load_model, save_weights

MASKS = {"multilabel": True}


def network(classes=2, **options):
    """Random weights whose probabilities are neither 0 nor 1."""
    torch.manual_seed(0)
    model = build("deeplab_v2_small", classes, multilabel=True, **options).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(0.05)
    return model


def picture(height=33, width=41):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def masked(count=2):
    """A data set that is a plain list, two masks a picture."""
    return [(image, masks_of(labels)) for image, labels in tiny_pictures(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of masks, the weights of a run on it, and the run's result."""
    folder = tmp_path_factory.mktemp("masked")
    masked_folder(folder)
    data = DataConfig("folder", str(folder), "train", "val")
    config = replace(SHORT, steps=12, lr=0.1, data=data, loss={"cross_entropy": 1.0, "dice": 1.0})
    out = folder / "w.safetensors"
    return folder, out, train(config, out, progress=False), config


def test_a_folder_of_masks_trains_a_model_that_its_weights_bring_back(trained):
    folder, out, result, config = trained
    assert result.model.multilabel
    assert result.loss < train(replace(config, steps=1), progress=False).loss
    assert result.metrics["iou"].keys() == {"low", "high"}
    assert result.metrics["band_miou"] is None
    assert result.absent == {"training": (), "validation": ()}
    again = load_model(out)
    assert again.multilabel
    assert again.config == result.model.config
    scores = evaluate(again, open_dataset("folder", folder, "val"), class_names=("low", "high"))
    assert scores.network.miou == pytest.approx(result.best["miou"])


def test_a_run_on_masks_turns_them_and_is_resumed(tmp_path):
    pictures, options = masked(), {"class_names": ["low", "high"], "validation": masked()}
    config = replace(SHORT, model_options=MASKS, rotate=10.0, noise=3.0)
    result = run(config, pictures, tmp_path / "w.safetensors", **options)
    assert result.model.multilabel
    more = replace(config, steps=5)
    longer = run(more, pictures, tmp_path / "w.safetensors", resume=True, **options)
    assert longer.steps == 5
    assert equal(load_model(tmp_path / "w-last.safetensors"), longer.model)


def test_a_hook_sees_masks_and_must_give_masks_back(monkeypatch):
    (image, masks), *_ = masked()
    rng = np.random.default_rng(0)
    monkeypatch.setattr(hook, "load_hook", lambda _: lambda image, masks, rng: (image, masks % 2))
    _, found = hook.augmented("a:b", image, masks, rng, 2)
    assert np.array_equal(found, masks % 2)
    monkeypatch.setattr(hook, "load_hook", lambda _: lambda image, masks, rng: (image, masks + 1))
    with pytest.raises(InputError, match="must return labels from 0 to 1, or 255"):
        hook.augmented("a:b", image, masks // 255, rng, 9)


def test_a_broken_picture_that_is_passed_over_counts_in_no_mask():
    class Broken(list):
        def __getitem__(self, index):
            raise InputError("broken")

    pictures = SkipBroken(Broken([0]), masks=2)
    with pytest.raises(InputError, match="none of the 1 pictures has a labelled pixel"):
        evaluate(network(), pictures)
    assert pictures.broken == {"broken"}


@pytest.mark.parametrize(
    ("changes", "labels", "said"),
    [
        ({"crf": True}, None, "crf must be false for several labels a pixel"),
        ({"class_weights": "balanced"}, None, "class_weights must be numbers for several labels"),
        ({}, np.zeros((33, 33), np.uint8), r"for \[33, 33\] pixels and 2 classes, at least one"),
        ({}, np.full((2, 33, 33), 3, np.uint8), "label 3, expected 0 to 1, or 255"),
        ({"model_options": {"multilabel": 1}}, None, "multilabel must be True or False, not 1"),
    ],
)
def test_what_does_not_go_with_several_labels_is_refused_before_a_step(changes, labels, said):
    pictures = masked()
    if labels is not None:
        pictures = [(image, labels) for image, _ in pictures]
    config = replace(SHORT, **({"model_options": MASKS} | changes))
    with pytest.raises(InputError, match=said):
        run(config, pictures, class_names=["low", "high"], validation=masked())


def test_the_time_of_a_run_is_told(monkeypatch, capsys):
    monkeypatch.setattr("deeplab.training.estimate.FEWEST", 0)
    sets = {"class_names": ["low", "high"], "validation": masked()}
    run(replace(SHORT, steps=2, model_options=MASKS), masked(), **sets, progress=True)
    assert "for 2 steps of" in capsys.readouterr().err


def test_pictures_of_validations_are_refused():
    sets = {"class_names": ["low", "high"], "validation": masked()}
    with pytest.raises(InputError, match="pictures must be 0 for several labels a pixel"):
        run(replace(SHORT, model_options=MASKS), masked(), **sets, pictures=1)


def test_a_data_set_says_whether_it_has_masks_and_an_option_may_not_contradict(trained):
    *_, config = trained
    with pytest.raises(InputError, match=r"multilabel must be left out for a data set of a mask"):
        train(replace(config, model_options={"multilabel": False}), progress=False)
    one_label = open_dataset("scenes", None, "val", length=2, size=33)
    with pytest.raises(InputError, match="the validation set must have masks where the training"):
        train(config, validation=one_label, progress=False)


def test_one_class_alone_can_be_learned_from_masks():
    pictures = [(image, masks[1:]) for image, masks in masked()]
    config = replace(SHORT, model_options=MASKS, class_weights=(2.0,))
    assert run(config, pictures, class_names=["high"], validation=pictures).steps == SHORT.steps
    nothing = [(image, 0 * masks) for image, masks in pictures]
    with pytest.raises(InputError, match="no mask has a pixel of its class"):
        run(config, nothing, class_names=["high"], validation=pictures)


@pytest.mark.parametrize("scales", [None, (1.0, 0.75, 0.5)])
def test_probabilities_are_sigmoids_and_masks_those_above_the_threshold(scales):
    model, image = network(3, scales=scales), picture()
    with torch.no_grad():
        expected = model(model.preprocess(image)).sigmoid()[0].numpy()
    found = predict(model, image)
    assert np.array_equal(found.probabilities, expected)
    assert np.array_equal(found.labels, expected >= 0.5)
    assert found.labels.dtype == np.uint8
    threshold = float(np.quantile(expected, 0.7))
    assert np.array_equal(
        predict(model, image, threshold=threshold).labels, expected >= np.float32(threshold)
    )


def test_views_are_averaged_as_probabilities():
    model, image = network(), picture()
    mirrored = predict(model, image[:, ::-1].copy()).probabilities[..., ::-1]
    expected = (predict(model, image).probabilities + mirrored) / 2
    found = predict(model, image, flip=True).probabilities
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected.copy()))


def test_the_auxiliary_classifier_has_a_score_for_each_class_too():
    model = build("deeplab_v3_mobilenet", 3, multilabel=True)
    with torch.no_grad():
        x = model.preprocess(picture(33, 33)).expand(2, -1, -1, -1)
        main, auxiliary = AuxiliaryHead(model).scores(model, x, upsample=True)
    assert main.shape == auxiliary.shape == (2, 3, 33, 33)


def test_a_crf_is_refused_wherever_it_could_come_from():
    with pytest.raises(ValueError, match="crf must be None with multilabel: a CRF gives a pixel"):
        build("deeplab_v2_small", 2, multilabel=True, crf=DenseCRF(2))
    with pytest.raises(ValueError, match="sigmoid must be False with multilabel"):
        build("deeplab_v2_small", 2, multilabel=True, sigmoid=True)
    with pytest.raises(ValueError, match="crf must be None with a multi-label model"):
        predict(network(), picture(), DenseCRF(2))
    for options in ({"crf": DenseCRF(2)}, {"trimap": (1, 2)}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be left out for a multi"):
            evaluate(network(), masked(), **options)


@pytest.mark.parametrize("threshold", [None, 0.45])
def test_scores_are_those_of_each_classs_masks(threshold):
    model, pictures = network(), masked()
    result = evaluate(model, pictures, class_names=["low", "high"], threshold=threshold)
    predicted = [Predictor(model, threshold=threshold)(image).labels for image, _ in pictures]
    ious, right, counted = [], 0, 0
    for c in range(2):
        truth = np.stack([masks[c] for _, masks in pictures])
        kept, found = truth != 255, np.stack([masks[c] for masks in predicted])
        both = ((truth == 1) & (found == 1))[kept].sum()
        ious.append(both / ((truth == 1) | (found == 1))[kept].sum())
        right, counted = right + (truth == found)[kept].sum(), counted + kept.sum()
    assert list(result.network.iou.values()) == pytest.approx(ious)
    assert result.network.miou == pytest.approx(np.mean(ious))
    assert result.network.pixel_accuracy == pytest.approx(right / counted)
    truth = np.stack([masks for _, masks in pictures])
    assert result.truth("x").pixels == tuple((truth == 1).sum((0, 2, 3)))
    assert result.truth("x").ignored == (truth == 255).sum()
    assert np.array(result.as_dict()["confusion"]["network"]).shape == (2, 2, 2)


def test_a_class_without_a_pixel_is_left_out_of_the_means_or_counts_nothing():
    truth = torch.tensor([[1, 1, 0, 255], [0, 0, 0, 0]])
    found = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]])
    means = {}
    for absent in ("skip", "zero"):
        counts = MaskCounts(2, absent=absent)
        counts.update(truth, found)
        means[absent] = counts.miou(), counts.mean_accuracy()
    assert means == {"skip": (0.5, 0.5), "zero": (0.25, 0.25)}


def test_the_commands_score_and_write_masks_that_are_labels_again(trained, tmp_path):
    folder, weights, _, _ = trained
    given = ["--weights", weights, "--no-crf"]
    data = ["--data", "folder", "--root", folder, "--split", "val"]
    done("evaluate", *given, *data, "--threshold", 0.4, "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    model = load_model(weights)
    val = open_dataset("folder", folder, "val")
    expected = evaluate(model, val, class_names=["low", "high"], threshold=0.4).network
    assert scores["threshold"] == 0.4
    assert scores["network"]["iou"] == pytest.approx(expected.iou)
    out = tmp_path / "out"
    done("segment", folder / "images" / "val", *given, "--threshold", 0.4, "--out", out)
    (out / "images").symlink_to(folder / "images" / "val")
    (out / "classes.toml").write_text(
        'multilabel = true\n[[class]]\nname="low"\n[[class]]\nname="high"'
    )
    written = open_dataset("folder", out, "all")
    for image, masks in written:
        assert np.array_equal(masks, Predictor(model, threshold=0.4)(image).labels)
    assert sorted(path.name for path in out.glob("*.png")) == ["2_overlay.png", "3_overlay.png"]
    mask = Image.open(out / "labels" / "low" / "2.png")
    assert mask.getpalette()[:6] == [0, 0, 0, 200, 0, 0]


def test_commands_refuse_what_several_labels_have_no_use_for(trained, tmp_path):
    folder, weights, _, _ = trained
    data = ["--data", "folder", "--root", folder, "--split", "val"]
    given = ["--weights", weights]
    refused = "--no-crf must be given with weights of several labels a pixel"
    photo = folder / "images" / "val" / "2.png"
    assert_refused(tmp_path, refused, "segment", photo, *given, "--out", tmp_path / "o")
    assert_refused(tmp_path, refused, "evaluate", *given, *data)
    polygons = ["segment", photo, *given, "--no-crf", "--polygons", "coco", "--out", tmp_path / "o"]
    if find_spec("rasterio"):
        assert_refused(tmp_path, "--polygons must be left out for several labels", *polygons)
    for option in ("--predictions", "--report"):
        only_one = f"{option} must be left out for several labels a pixel"
        made = ["--no-crf", option, tmp_path / "p"]
        assert_refused(tmp_path, only_one, "evaluate", *given, *data, *made)
    tune = ["tune-crf", *given, *data, "--folds", 2, "--out", tmp_path / "t"]
    assert_refused(tmp_path, "tune-crf must have weights of one label a pixel", *tune)
    other = tmp_path / "one.safetensors"
    save_weights(build("deeplab_v2_small", 2), other, {"class_names": ["low", "high"]})
    message = re.escape("of one label a pixel, masked0 val has several labels a pixel")
    message = message.replace("masked0", f"{folder.name}")
    assert_refused(tmp_path, message, "evaluate", "--weights", other, "--no-crf", *data)


def test_a_threshold_of_two_classes_counts_in_the_scores():
    torch.manual_seed(0)
    model = build("deeplab_v2_small", 2, sigmoid=True).eval()
    pictures = [(image, (labels > 3).astype(np.uint8)) for image, labels in tiny_pictures()]
    likely = np.stack([Predictor(model)(image).probabilities[1] for image, _ in pictures])
    middle = float(np.quantile(likely, 0.3))
    confusion = ConfusionMatrix(2)
    for image, labels in pictures:
        confusion.update(labels, Predictor(model, threshold=middle)(image).labels)
    found = evaluate(model, pictures, threshold=middle)
    assert found.confusion["network"].matrix.tolist() == confusion.matrix.tolist()
    assert found.network.miou != evaluate(model, pictures).network.miou
    refined = evaluate(model, pictures, lambda logits, _: logits.softmax(1), threshold=middle)
    assert refined.crf == refined.network == found.network
    for wrong, said in ((2.0, "between 0 and 1"), (0.5, "left out with 3 classes")):
        other = model if wrong == 2.0 else build("deeplab_v2_small", 3)
        with pytest.raises(ValueError, match=said):
            evaluate(other, pictures, threshold=wrong)
