"""Resize "torch": the MSC of kazuto1011/deeplab-pytorch, held against a construction of its own."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import small_network
from msc_by_areas import random_msc
from networks import SCALES, two_convolutions
from PIL import Image

from deeplab import export
from deeplab.model import build
from deeplab.model.multiscale import shrink
from deeplab.training.losses import segmentation_loss
from deeplab.weights import load_weights


@pytest.fixture(scope="module")
def theirs():
    return random_msc().double()


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("msc") / "checkpoint.pth"
    torch.save(theirs.state_dict(), path)
    model = small_network(2).double()
    model.resize = "torch"
    model.set_scales(SCALES)
    assert load_weights(model, path).skipped == ()
    return model


SIZES = [(2, 2), (33, 47), (40, 64), (63, 31), (65, 81), (97, 50)]


@pytest.mark.processors
@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_his_msc_and_predictions_those_of_his_evaluation(theirs, ours, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, upsample=False), theirs(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours(x), theirs.published(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(40, 64), (65, 81)])
def test_the_check_sees_caffes_way_of_resizing(theirs, ours, size, monkeypatch):
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    monkeypatch.setattr(ours, "resize", "caffe")
    with torch.no_grad():
        assert (ours(x, upsample=False) - theirs(x)).abs().max() > 1e-3
        monkeypatch.setattr(ours, "scales", None)
        assert (ours(x) - theirs.published(x)).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.25, 0.7, 1 / 3, 0.1])
def test_sizes_are_torchs_and_at_least_one_pixel(scale):
    for n in [*range(1, 70), 320, 321, 513]:
        size = max(1, math.floor(float(n) * scale))
        assert shrink(torch.zeros(1, 1, n, 2), scale, "torch").shape[2] == size


@pytest.mark.parametrize("format", ["export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_programs_of_any_size_give_the_same(format, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model, path = two_convolutions(scales=SCALES, resize="torch"), tmp_path / "program"
    with torch.no_grad():
        path.write_bytes(export._MAKERS[format](model, None))
        program = export._READERS[format](path)
        for size in ((33, 40), (50, 35), (64, 97)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_model_of_one_graph_serves_all_sizes():
    model, graphs = two_convolutions(scales=SCALES, resize="torch"), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def all_outputs(x):
        return model(x), *model.forward_scales(x)

    torch._dynamo.reset()
    compiled = torch.compile(all_outputs, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for size in ((33, 40), (50, 35), (64, 97)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(compiled(x), all_outputs(x))
    assert len(graphs) == 1


def pil_labels(labels, scores):
    """His labels: PIL's nearest, at the size of the scores."""
    height, width = scores.shape[2:]
    pictures = (Image.fromarray(picture) for picture in labels.byte().numpy())
    shrunk = [np.asarray(p.resize((width, height), Image.Resampling.NEAREST)) for p in pictures]
    return torch.from_numpy(np.stack(shrunk)).long()


@pytest.mark.parametrize("last", [0.5, 0.25])
@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_every_score_is_trained_on_the_label_under_its_middle(style, last):
    torch.manual_seed(0)
    model = build("deeplab_v2_small", 3, style=style, scales=(1.0, last), resize="torch").eval()
    for side in (65, 97):
        rgb = torch.randint(0, 256, (2, 3, side, 65), dtype=torch.uint8)
        labels = torch.randint(0, 3, (2, side, 65))
        with torch.no_grad():
            loss = segmentation_loss(model, rgb, labels, 8)
            scores = model.forward_scales(model.preprocess(rgb))
        terms = [F.cross_entropy(s.double(), pil_labels(labels, s)).item() for s in scores]
        assert loss.item() == pytest.approx(sum(terms), rel=1e-5)
