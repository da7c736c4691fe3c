"""Evaluation: one pass, the network and the CRF, whole pictures and the band around boundaries."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from several_processes import run_two

from deeplab.crf_settings import CRFSettings
from deeplab.data.scenes import CLASSES, PALETTE, TEST_START, VALIDATION_START, ScenesDataset
from deeplab.errors import InputError
from deeplab.evaluation.evaluate import boundary_band, evaluate
from deeplab.evaluation.metrics import ConfusionMatrix
from deeplab.model import deeplab_v2_small
from deeplab.training import TrainConfig
from deeplab.training.config import SCENES_CRF
from deeplab.weights import SHIPPED, load_model, read_metadata
from kernels import memory


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return deeplab_v2_small(len(CLASSES)).eval()


@pytest.fixture(scope="module")
def pictures():
    return [tuple(ScenesDataset(s, 1, size)[0]) for s, size in ((0, 33), (1, (41, 25)), (2, 40))]


class Oracle:
    """A "CRF" that knows the truth of the pictures, in order, except where told to err."""

    def __init__(self, pictures, err=None):
        self.pictures, self.err, self.calls = pictures, err, []

    def __call__(self, logits, image):
        labels = self.pictures[len(self.calls)][1]
        self.calls.append((logits, image))
        labels = torch.from_numpy(labels.astype(np.int64))
        if self.err is not None:
            labels = torch.where(self.err(labels), (labels + 1) % len(CLASSES), labels)
        return F.one_hot(labels, len(CLASSES)).permute(2, 0, 1)[None].float()


def test_progress_is_shown_on_standard_error_only(model, pictures, capsys):
    evaluate(model, pictures[:1], progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "evaluate" in shown.err


def test_scores_are_those_of_one_matrix_over_all_predictions(model, pictures):
    confusion = ConfusionMatrix(len(CLASSES))
    for image, labels in pictures:
        with torch.no_grad():
            confusion.update(labels, model(model.preprocess(image)).argmax(1)[0])
    result = evaluate(model, pictures, class_names=CLASSES)
    assert result.images == 3
    assert result.crf is None
    assert result.network.miou == confusion.miou()
    assert result.network.pixel_accuracy == confusion.pixel_accuracy()
    assert result.network.mean_accuracy == confusion.mean_accuracy()
    for name, iou in zip(CLASSES, confusion.iou().tolist(), strict=True):
        assert result.network.iou[name] == (None if np.isnan(iou) else iou)


def test_crf_sees_logits_and_rgb_and_is_scored_beside_the_network(model, pictures):
    crf = Oracle(pictures)
    result = evaluate(model, pictures, crf)
    assert result.network == evaluate(model, pictures).network
    assert result.crf is not None
    assert result.crf.miou == result.crf.pixel_accuracy == result.crf.band_miou == 1
    double = copy.deepcopy(model).double()
    for (image, _), (logits, rgb) in zip(pictures, crf.calls, strict=True):
        np.testing.assert_array_equal(rgb[0].permute(1, 2, 0).numpy(), image)
        x = model.preprocess(image)
        with torch.no_grad():
            exact = double(x.double())
            layouts = torch.contiguous_format, torch.channels_last
            plain = [model(x.contiguous(memory_format=layout)) for layout in layouts]
        budget = 2 * max((one - exact).abs().max() for one in plain)
        budget += torch.finfo(torch.float32).eps * exact.abs().max()
        assert (logits - exact).abs().max() <= budget


def test_band_score_looks_at_boundaries_only(model, pictures):
    far = evaluate(model, pictures, Oracle(pictures, lambda y: ~boundary_band(y, 2)), band=2).crf
    near = evaluate(model, pictures, Oracle(pictures, lambda y: boundary_band(y, 2)), band=2).crf
    assert far.miou < 1 == far.band_miou
    assert near.miou > 0 == near.band_miou


@pytest.mark.parametrize("width", [1, 2, 5])
def test_band_equals_a_search_of_every_window(width):
    rng = np.random.default_rng(width)
    labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((7, 6), int))
    labels[0, 0] = 255
    expected = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(labels.shape):
        window = labels[max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        expected[y, x] = len(np.unique(window)) > 1
    np.testing.assert_array_equal(boundary_band(torch.from_numpy(labels), width), expected)


def test_picture_of_one_class_has_no_band(model):
    flat = [(np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8))]
    scores = evaluate(model, flat).network
    assert scores.band_miou is None
    assert scores.iou["1"] in (None, 0.0)


def test_ignored_pixels_do_not_count(model, pictures):
    masked = [(image, np.where(labels == 0, 255, labels)) for image, labels in pictures]
    scores = evaluate(model, masked, Oracle(pictures)).crf
    assert scores is not None
    assert scores.miou == 1
    assert scores.iou["0"] is None


def test_result_is_json_and_model_is_left_as_it_was(model, pictures):
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = evaluate(model, pictures, Oracle(pictures))
    assert model.training
    model.eval()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["crf"]["miou"] == 1
    assert plain["network"]["iou"] == result.network.iou


EVALUATE_SHARE = """
import json, sys, torch
import torch.distributed as dist
from deeplab.evaluation.evaluate import evaluate

model, pictures = torch.load(sys.argv[1], weights_only=False)
dist.init_process_group("gloo")
result = evaluate(model, pictures, lambda logits, image: -logits, shard=True)
print(json.dumps(result.as_dict()))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_a_share_each_give_the_scores_of_one(model, pictures, tmp_path):
    torch.save((model, pictures), tmp_path / "given")
    told = run_two("-c", EVALUATE_SHARE, str(tmp_path / "given"))
    whole = evaluate(model, pictures, lambda logits, image: -logits, shard=True)
    expected = json.loads(json.dumps(whole.as_dict()))
    assert [json.loads(said) for said in told] == [expected, expected]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (0, {}, "dataset must have at least one"),
        (3, {"class_names": ("a", "b")}, "class_names must be 11 names"),
        (3, {"band": 0}, "band must be"),
    ],
)
def test_wrong_arguments_say_what_was_expected(model, pictures, images, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, pictures[:images], **options)


def test_a_set_without_a_labelled_pixel_is_refused_and_such_a_picture_adds_nothing(model, pictures):
    void = [(image, np.full_like(labels, 255)) for image, labels in pictures]
    with pytest.raises(InputError, match="none of the 3 pictures has a labelled pixel"):
        evaluate(model, void)
    both = evaluate(model, [pictures[0], void[1]], trimap=(2,))
    alone = evaluate(model, pictures[:1], trimap=(2,))
    assert both.network == alone.network
    assert both.trimap == alone.trimap


def test_a_picture_that_cannot_be_scored_is_named_by_its_number(model, pictures, monkeypatch):
    image, labels = pictures[0]
    for wrong, message in (
        (labels[:-1], r"picture 1: labels of \[32, 33\] for a picture of \[33, 33\] pixels"),
        (np.full_like(labels, 11), "picture 1: labels_true must be 0 .. 10, not 11"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(model, [(image, labels), (image, wrong)])
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(InputError, match="picture 0: not enough memory for 33 x 33 pixels"):
        evaluate(model, pictures)


def test_predictions_of_more_than_256_classes_keep_their_values(pictures):
    network = deeplab_v2_small(300).eval()
    with torch.no_grad():
        network.head.classifier.bias[299] = 1e4
    found = []
    keep = {"on_prediction": lambda _index, labels: found.append(labels)}
    evaluate(network, pictures[:1], ignore=-1, **keep)
    assert (found[0] == 299).all()


def test_model_with_its_own_crf_is_refused(pictures):
    model = deeplab_v2_small(len(CLASSES))
    model.crf = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"CRF layer of its own.*crf="):
        evaluate(model, pictures)


@pytest.fixture(scope="module")
def record():
    path = Path(__file__).parents[3] / "bench" / "records" / "scenes_deeplab_v2_small.json"
    return json.loads(path.read_text())


def test_shipped_weights_reach_the_recorded_scores_and_the_crf_improves_them(record):
    settings = CRFSettings().changed(read_metadata(SHIPPED)["crf"])
    first = record["first_scenes"]
    dataset = ScenesDataset(TEST_START, first["images"])
    model = load_model()
    result = evaluate(model, dataset, settings.layer(len(CLASSES)), class_names=CLASSES)
    assert result.crf is not None
    assert result.network.miou == pytest.approx(first["network"]["miou"], abs=0.01)
    assert result.crf.miou == pytest.approx(first["crf"]["miou"], abs=0.01)
    assert result.crf.miou > result.network.miou
    assert result.crf.band_miou > result.network.band_miou


def test_record_was_measured_on_scenes_never_trained_or_tuned_on(record):
    assert record["test"]["first_scene"] >= TEST_START
    assert record["test"]["images"] >= 50
    assert record["test"]["crf"]["miou"] > record["test"]["network"]["miou"]
    search = record["crf_search"]
    assert VALIDATION_START <= search["first_scene"] < TEST_START
    assert record["training"]["recipe"]["scenes"] < VALIDATION_START


def test_shipped_weights_name_the_default_recipe_and_the_recorded_scores(record):
    metadata = read_metadata(SHIPPED)
    default = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    assert default == default | metadata["recipe"]  # options that came later are off by default
    assert default.keys() > metadata["recipe"].keys()
    assert metadata["class_names"] == list(CLASSES)
    assert metadata["palette"] == PALETTE[: len(CLASSES)].tolist()
    settings = (metadata["crf"], SCENES_CRF, record["test"]["crf_settings"])
    found, ours, recorded = (CRFSettings().changed(crf) for crf in settings)
    assert found == ours == recorded
    assert metadata["metrics"]["miou"] == record["training"]["validation"]["miou"]
    assert metadata["commit"] == record["training"]["commit"]
    assert SHIPPED.stat().st_size <= 4e6
